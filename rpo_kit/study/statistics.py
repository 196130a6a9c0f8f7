"""The numbers of an evaluation: scores with bootstrap intervals over users, paired differences, the two references.

Every table and figure with intervals uses these. Users are resampled, not examples, because the answers of one user
are not independent (LaMP-2 and LaMP-4 have several examples per user).

>>> low, high = bootstrap_interval(np.array([0.0, 1.0] * 50), [f"user {n}" for n in range(100)])
>>> round(low, 2), round(high, 2)
(0.4, 0.6)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from rpo_kit.lamp.content import ContentKept
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores, lamp_metrics, scorable
from rpo_kit.lamp.personas import oracle
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.presets import EvaluationSettings
from rpo_kit.runs import Run
from rpo_kit.setting_rules import kind_of
from rpo_kit.study.baselines import Record
from rpo_kit.study.completions import completion_columns, contents
from rpo_kit.study.results import PAIRED_COLUMNS, reads_other_k, shots_in
from rpo_kit.study.significance import ONE_SEED, compare, crossed_bootstrap

SYSTEMS = ("base", "context", "untrained", "sft", "rl")  # the steps of the method: each is compared with the one before


def references(task: Task, examples: list[Example], shots: int) -> dict[str, np.ndarray]:
    """Scores (n,) per example of `best guess` and `oracle`; {} if the habits are unknown (LaMP's own files)."""
    if not all(example["facts"] for example in examples):
        return {}
    golds = [example["output"] for example in examples]
    guesses = oracle.best_guesses(task.name, examples)
    by_majority = [oracle.predict(task.name, e, top_k(e, e["ranking"], shots)) for e in examples]
    return {"best guess": example_scores(task, golds, guesses), "oracle": example_scores(task, golds, by_majority)}


def bootstrap_interval(
    values: np.ndarray, users: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,) over users, as `significance.compare` has it; NaN for one user."""
    row = compare(values[None], users, ONE_SEED, 1, resamples, seed)
    return row["low"], row["high"]


def bootstrap_means(values: np.ndarray, users: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Means (resamples,) of `values` (n,), resampling whole users with replacement."""
    return crossed_bootstrap(values[None], users, ONE_SEED, 1, resamples, seed)


def metrics_table(run: Run, task: Task, examples: list[Example], records: dict[str, list[Record]]) -> pd.DataFrame:
    """One row per system: score (0..1, higher is better) with interval, LaMP's metrics, unparsed, words, copy rate.

    For texts also the content kept, with interval, and the share of words changed; for the module how it uses the
    items (`completions`).
    """
    golds, users, settings = [e["output"] for e in examples], [e["user_id"] for e in examples], run.preset.evaluation
    rows: list[dict[str, object]] = []
    for name, answers in records.items():
        predictions = [answer["prediction"] for answer in answers]
        values = example_scores(task, golds, predictions)
        shots = shots_in(name) if reads_other_k(name) else settings.shots
        row: dict[str, object] = {"system": name}
        row |= (
            _mean_with_interval(values, users, settings.bootstrap, settings.seed)
            | lamp_metrics(task, golds, [scorable(task, prediction) for prediction in predictions])
            | {
                "unparsed": float(np.mean([bool(answer.get("complaint")) for answer in answers])),
                "words": float(np.mean([len(prediction.split()) for prediction in predictions])),
                "copied": copy_rate(task, examples, predictions, shots),
            }
            | _content(contents(task, examples, predictions), users, settings)
            | completion_columns(task, examples, answers, shots, settings.keep_content, run.preset.reflection.sections)
        )
        rows.append(row)
    for name, values in references(task, examples, settings.shots).items():
        rows.append({"system": name, **_mean_with_interval(values, users, settings.bootstrap, settings.seed)})
    for shots in sorted({shots_in(name) for name in records if reads_other_k(name)}):
        for name, values in references(task, examples, shots).items():
            if name == "oracle":  # the other one does not read items
                interval = _mean_with_interval(values, users, settings.bootstrap, settings.seed)
                rows.append({"system": f"oracle-{shots}", **interval})
    return pd.DataFrame(rows).assign(task=task.name, shots=settings.shots, examples=len(examples))


def paired_table(run: Run, task: Task, examples: list[Example], records: dict[str, list[Record]]) -> pd.DataFrame:
    """Mean differences with intervals paired on the same users, one row per pair of `compared`.

    `mde` is the smallest difference that such data would show in 80 of 100 repetitions: 2.8 standard errors.
    """
    golds, users, settings = [e["output"] for e in examples], [e["user_id"] for e in examples], run.preset.evaluation
    predictions = {name: [answer["prediction"] for answer in answers] for name, answers in records.items()}
    scores = {name: example_scores(task, golds, texts) for name, texts in predictions.items()}
    rows = []
    for system, other in compared(list(records)):
        difference_SE = (scores[system] - scores[other])[None]
        row = compare(difference_SE, users, ONE_SEED, 1, settings.bootstrap, settings.seed)
        rows.append({"system": system, "minus": other} | row)
    return pd.DataFrame(rows, columns=PAIRED_COLUMNS)


def compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """(system, the one it is compared with), in the order of the table.

    Each system is compared with the base model (without one, with the first system) and with the preceding step of the
    method, and the last step of the method with every baseline. A module that reads all k items is compared with itself
    on K of them.
    """
    fewer = [(kind_of(name), name) for name in names if reads_other_k(name) and kind_of(name) in names]
    names = [name for name in names if not reads_other_k(name)]
    steps = [name for name in SYSTEMS if name in names]
    before, first = dict(pairwise(reversed(steps))), next((name for name in ("base", *names) if name in names), "")
    pairs = [(name, other) for name in names for other in dict.fromkeys((first, before.get(name, first)))]
    baselines = [name for name in names if name not in SYSTEMS or name == "context"]
    others = [(steps[-1], name) for name in baselines] if steps else []
    return [pair for pair in dict.fromkeys([*pairs, *others, *fewer]) if pair[0] != pair[1]]


def copy_rate(task: Task, examples: list[Example], predictions: Sequence[str], shots: int) -> float:
    """Share of predictions that repeat the gold of one of the k items word for word (generation tasks; else 0)."""
    if task.kind != "generation":
        return 0.0
    copied = [
        prediction.strip() in {item[task.gold_field].strip() for item in top_k(example, example["ranking"], shots)}
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return float(np.mean(copied))


def _content(kept: Sequence[ContentKept], users: Sequence[str], settings: EvaluationSettings) -> dict[str, float]:
    if not kept:
        return {}
    shares, changed = (np.array([getattr(text, name) for text in kept]) for name in ("share", "changed"))
    found = _mean_with_interval(shares, users, settings.bootstrap, settings.seed)
    interval = {"content_low": found["low"], "content_high": found["high"]}
    return {"content_kept": found["score"], **interval, "words_changed": float(changed.mean())}


def _mean_with_interval(values: np.ndarray, users: Sequence[str], resamples: int, seed: int) -> dict[str, float]:
    low, high = np.clip(bootstrap_interval(values, users, resamples, seed), 0.0, 1.0)  # as the values
    return {"score": float(values.mean()), "low": float(low), "high": float(high)}
