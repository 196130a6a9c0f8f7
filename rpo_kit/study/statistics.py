"""The numbers of an evaluation: scores with bootstrap intervals over users, paired differences, the two references.

Stands behind every table and figure with intervals. Users are resampled, not examples: a user's answers belong together
(LaMP-2 and 4 have several questions a user).

    bootstrap_interval(np.array([1.0, 0.0, 1.0]), ["ann", "ann", "bob"])      # (0.5, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores, is_parseable, score
from rpo_kit.lamp.personas import oracle, persona
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.runs import Run
from rpo_kit.study.baselines import Record

SYSTEMS = ("base", "context", "untrained", "sft", "rl")  # the method's own line: each is compared with the one before


def scorable(task: Task, prediction: str) -> str:
    """The prediction as LaMP's evaluator can take it: a rating "nan" would make it raise, "" counts as the worst."""
    return prediction if is_parseable(task, prediction) or task.kind != "regression" else ""


def references(task: Task, examples: list[Example], shots: int) -> dict[str, np.ndarray]:
    """Scores per example of `any habit` and `oracle`; empty where the habits are not known (LaMP's own files)."""
    if not all(example["facts"] for example in examples):
        return {}
    rules, golds = persona(task.name), [example["output"] for example in examples]
    guesses = [[rules.apply(habit, e["facts"]["query"]) for e in examples] for habit in rules.HABITS]
    followed = [oracle.predict(task.name, e, top_k(e, e["ranking"], shots)) for e in examples]
    expected = np.mean([example_scores(task, golds, guess) for guess in guesses], axis=0)
    return {"any habit": expected, "oracle": example_scores(task, golds, followed)}


def bootstrap_interval(
    values: np.ndarray, users: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (n,), resampling whole users with replacement."""
    _, who = np.unique(np.asarray(users), return_inverse=True)
    count = int(who.max()) + 1
    sums, sizes = np.bincount(who, values, count), np.bincount(who, minlength=count)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def metrics_table(run: Run, task: Task, examples: list[Example], found: dict[str, list[Record]]) -> pd.DataFrame:
    """One row a system: score (0..1, higher is better) with interval, LaMP's metrics, unparsed, words, copy rate."""
    golds, users, settings = [e["output"] for e in examples], [e["user_id"] for e in examples], run.preset.evaluation
    rows = []
    for name, records in found.items():
        predictions = [record["prediction"] for record in records]
        values = example_scores(task, golds, predictions)
        rows.append(
            {"system": name}
            | _mean_with_interval(values, users, settings.bootstrap, settings.seed)
            | score(task, golds, [scorable(task, prediction) for prediction in predictions])
            | {
                "unparsed": float(np.mean([bool(record.get("complaint")) for record in records])),
                "words": float(np.mean([len(prediction.split()) for prediction in predictions])),
                "copied": copy_rate(task, examples, predictions, settings.shots),
            }
        )
    for name, values in references(task, examples, settings.shots).items():
        rows.append({"system": name} | _mean_with_interval(values, users, settings.bootstrap, settings.seed))
    return pd.DataFrame(rows).assign(task=task.name, shots=settings.shots, examples=len(examples))


def paired_table(run: Run, task: Task, examples: list[Example], found: dict[str, list[Record]]) -> pd.DataFrame:
    """Mean differences with paired intervals: each system minus base and minus the one before it in the method's line,
    and the last of that line minus every other baseline.
    """
    golds, users, settings = [e["output"] for e in examples], [e["user_id"] for e in examples], run.preset.evaluation
    values = {name: example_scores(task, golds, [r["prediction"] for r in records]) for name, records in found.items()}
    pairs = compared(list(found))
    rows = []
    for better, worse in pairs:
        difference = _mean_with_interval(values[better] - values[worse], users, settings.bootstrap, settings.seed)
        rows.append({"system": better, "minus": worse} | difference)
    return pd.DataFrame(rows)


def compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """(system, the one it is compared with), in the order of the table."""
    line = [name for name in names if name in SYSTEMS]
    before = dict(pairwise(reversed(line)))
    pairs = [(name, other) for name in names for other in dict.fromkeys((names[0], before.get(name, names[0])))]
    others = [(line[-1], name) for name in names if name not in SYSTEMS] if line else []
    return [pair for pair in dict.fromkeys([*pairs, *others]) if pair[0] != pair[1]]


def copy_rate(task: Task, examples: list[Example], predictions: Sequence[str], shots: int) -> float:
    """Share of predictions which are, word for word, the output of one of the k items (generation tasks; else 0)."""
    if task.kind != "generation":
        return 0.0
    copied = [
        prediction.strip() in {item[task.gold_field].strip() for item in top_k(example, example["ranking"], shots)}
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return float(np.mean(copied))


def _mean_with_interval(values: np.ndarray, users: Sequence[str], resamples: int, seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, users, resamples, seed)
    return {"score": float(values.mean()), "low": low, "high": high}
