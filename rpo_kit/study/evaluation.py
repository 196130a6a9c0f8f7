"""Stage 5, `evaluate`: systems side by side on the dev users, with intervals.

    base        the black box alone; it sees the query
    context     the black box with the k items in its prompt, LaMP's way (context injection)
    untrained   base → the reflection module before any training
    sft         base → the reflection module after SFT
    rl          base → the reflection module after SFT and RL

Further baselines (`context-K`, `pag-K`, `majority`, `copy-nearest`) are in `baselines`. Which systems run is a setting.
Two references frame them where the embedded benchmark is used, because its hidden habits are known: `any habit` is
the expected score of a reader who understands every text but does not know the user; `oracle` counts the habits which
the same k items show and follows the majority. Intervals are 95 % percentile bootstraps over users. A completion that
does not parse leaves the generic answer standing; it is counted in `unparsed`. A question that the base model left
unanswered in `context` or `pag` is listed in `failed.jsonl` and asked again by the next call; while any is missing, the
tables count the questions that every system answered, for they compare systems question by question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores, is_parseable, score, write_predictions
from rpo_kit.lamp.personas import oracle, persona
from rpo_kit.lamp.retrieval import take
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.chat import open_chat_of
from rpo_kit.rewriting.prepare import Example, load_excluded, load_prepared, prepared_inputs
from rpo_kit.rewriting.prompts import prompt_fingerprints
from rpo_kit.rewriting.reflection import LoadedModel, load_reflection, reflect
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import Run, append_records, read_records, require, sort_records, stage, write_text
from rpo_kit.study.baselines import (
    answer_with_summary,
    copy_nearest,
    inject_context,
    is_defined,
    majority,
    shots_of,
    without_model,
)
from rpo_kit.training.inputs import WEIGHTS, module_inputs, rl_inputs, sft_inputs

SYSTEMS = ("base", "context", "untrained", "sft", "rl")  # the method's own line: each is compared with the one before
REFERENCES = ("any habit", "oracle")
Record = dict[str, Any]  # id, prediction; and for the reflection module raw, complaint, tokens
Answers = Callable[[list[Example]], Iterator[list[Record]]]  # records as they are ready
_CHUNK = 64


def evaluate(run: Run, systems: Sequence[str] | None = None) -> None:
    """Write `evaluate/{metrics,paired}.csv`, `predictions/<system>.json` (LaMP's format) and every raw completion."""
    preset, systems = run.preset, chosen_systems(run, systems or run.preset.evaluation.systems)
    inputs = evaluate_inputs(run, systems)
    adapters = {name: inputs[name].parent for name in systems if name in ("sft", "rl")}
    failures.reopen(run, "evaluate")
    with stage(run, "evaluate", **inputs) as work:
        if work is None:
            return
        task, examples = get_task(preset.data.task), load_prepared(run, "dev")
        short = sum(len(example["profile"]) < preset.evaluation.shots for example in examples)
        if short:
            print(f"evaluate: {short} of {len(examples)} profiles have fewer than {preset.evaluation.shots} items")
        excluded = without_prediction(run)
        failures.forget(work)
        found = {name: predict(run, name, examples, work, adapters.get(name)) for name in systems}
        failures.conclude(work, len(examples) * sum(map(asks_base, systems)), preset.endpoint.tolerate)
        for name, records in found.items():
            predictions = {record["id"]: scorable(task, record["prediction"]) for record in records} | excluded
            path = work / "predictions" / f"{name}.json"
            write_predictions(path, task, list(predictions), list(predictions.values()))
        tell_cuts(found)
        examples, found = answered_by_all(examples, found)
        write_text(work / "metrics.csv", metrics_table(run, task, examples, found).to_csv(index=False))
        write_text(work / "paired.csv", paired_table(run, task, examples, found).to_csv(index=False))


def evaluate_inputs(run: Run, systems: Sequence[str]) -> dict[str, Any]:
    """What decides this stage's numbers: settings, data, and the module, adapters and prompts of these systems."""
    preset = run.preset
    found = prepared_inputs(run) | {"settings": preset.evaluation, "systems": list(systems)}
    found |= {"base": preset.base, "base_tokens": preset.base_max_new_tokens}
    if any(name.startswith("pag") for name in systems):
        found["pag"] = prompt_fingerprints("pag_summary", "pag_answer")
    if {"untrained", "sft", "rl"} & set(systems):
        found |= module_inputs(run)
    makers = {"sft": sft_inputs, "rl": rl_inputs}
    return found | {name: require(run, name, **makers[name](run)) / WEIGHTS for name in systems if name in makers}


def chosen_systems(run: Run, systems: Sequence[str]) -> list[str]:
    """Those that the task allows, checked before the first model is loaded; what is left out is said."""
    task = get_task(run.preset.data.task)
    for name in systems:
        if name.partition("-")[0] in ("context", "pag"):
            shots_of(name, run.preset.evaluation.shots)
        elif name not in (*SYSTEMS, "majority", "copy-nearest"):
            known = (*SYSTEMS, "context-K", "pag-K", "majority", "copy-nearest")
            raise KitError(f"There is no system {name!r} to evaluate; there are {', '.join(known)}.")
    left_out = [name for name in systems if not is_defined(name, task)]
    if left_out:
        print(f"evaluate: without {', '.join(left_out)}: items of {task.name} have no label.")
    return [name for name in systems if name not in left_out]


def without_prediction(run: Run) -> dict[str, str]:
    """{id: ""} of the questions that were excluded from the data; predictions must have them, as LaMP's golds do."""
    ids = list(load_excluded(run, "dev"))
    if ids:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        print(f"evaluate: {len(ids)} excluded questions ({shown}) stand in the predictions with an empty output.")
    return dict.fromkeys(ids, "")


# ---- predictions --------------------------------------------------------------------------------------------------


def asks_base(system: str) -> bool:
    """Whether it sends the base model a prompt of its own."""
    return system.partition("-")[0] in ("context", "pag")


def predict(run: Run, system: str, examples: list[Example], work: Path, adapter: Path | None) -> list[Record]:
    """The system's records, in the order of the examples; goes on with the missing ones after an interruption.

    Without the questions that the base model left unanswered: these are noted in `work`.
    """
    path = work / "records" / f"{system}.jsonl"
    done = {record["id"] for record in read_records(path)}
    missing = [example for example in examples if example["id"] not in done]
    if missing:
        answers = _answerer(run, system, adapter, work)
        with tqdm(total=len(missing), desc=f"evaluating {system}", unit="question") as bar:
            for batch in answers(missing):
                append_records(path, [record for record in batch if "failure" not in record])
                failures.note(work, {f"{system}/{r['id']}": r["failure"] for r in batch if "failure" in r})
                bar.update(len(batch))
    sort_records(path, [example["id"] for example in examples])
    return read_records(path)


def answered_by_all(
    examples: list[Example], found: dict[str, list[Record]]
) -> tuple[list[Example], dict[str, list[Record]]]:
    """The examples that every system answered, and their records; where that leaves out any, it is said."""
    ids = {example["id"] for example in examples}.intersection(*({r["id"] for r in rs} for rs in found.values()))
    if not ids:
        raise KitError("There is no question that every system answered; run again, or leave a system out.")
    if len(ids) < len(examples):
        print(f"evaluate: the tables count the {len(ids)} of {len(examples)} questions that every system answered")
    both = {name: [record for record in records if record["id"] in ids] for name, records in found.items()}
    return [example for example in examples if example["id"] in ids], both


def _answerer(run: Run, system: str, adapter: Path | None, work: Path) -> Answers:
    task, settings = get_task(run.preset.data.task), run.preset.evaluation
    ready: dict[str, Callable[[Task, Example], str]] = {
        "base": lambda task, example: str(example["generic"]),
        "majority": majority,
        "copy-nearest": copy_nearest,
    }
    if system in ready:
        return _in_chunks(without_model(ready[system], task))
    shots = shots_of(system, settings.shots)
    if asks_base(system):
        base, tokens = open_chat_of(run, run.preset.base), run.preset.base_max_new_tokens
        if system.startswith("context"):
            return lambda missing: inject_context(base, task, missing, shots, tokens)
        kept = work / "records" / "summaries.jsonl"
        return lambda missing: answer_with_summary(base, task, missing, shots, tokens, kept)
    loaded = load_reflection(run.preset.reflection, adapter)
    return _in_chunks(lambda chunk: rewrite(loaded, task, chunk, shots, settings.max_new_tokens, settings.batch_size))


def _in_chunks(answer: Callable[[list[Example]], list[Record]]) -> Answers:
    return lambda missing: (answer(missing[start : start + _CHUNK]) for start in range(0, len(missing), _CHUNK))


def rewrite(
    loaded: LoadedModel, task: Task, examples: list[Example], shots: int, max_new_tokens: int, batch_size: int = 32
) -> list[Record]:
    """The reflection module's rewrites with `shots` items each; greedy."""
    shown = [take(example, example["ranking"], shots) for example in examples]
    records = []
    for example, completion, cut in zip(
        examples, *reflect(loaded, task, examples, shown, max_new_tokens, batch_size), strict=True
    ):
        parsed = parse(completion.text)
        prediction = parsed.trajectory.rewrite if parsed.trajectory else example["generic"]
        record = {"id": example["id"], "prediction": prediction, "raw": completion.text, "complaint": parsed.complaint}
        records.append(record | {"tokens": completion.new_tokens, "finished": completion.finished, "shortened": cut})
    return records


def tell_cuts(found: dict[str, list[Record]]) -> None:
    """Say for each system how many prompts and how many of its texts are not whole."""
    for name, records in found.items():
        shortened = sum(record.get("shortened", False) for record in records)
        unfinished = sum(not record.get("finished", True) for record in records)
        if shortened or unfinished:
            print(
                f"evaluate: {name}: of {len(records)} questions {shortened} had their history items shortened to fit, "
                f"{unfinished} texts were cut off at the token limit"
            )


def scorable(task: Task, prediction: str) -> str:
    """The prediction as LaMP's evaluator can take it: a rating "nan" would make it raise, "" counts as the worst."""
    return prediction if is_parseable(task, prediction) or task.kind != "regression" else ""


def references(task: Task, examples: list[Example], shots: int) -> dict[str, np.ndarray]:
    """Scores per example of `any habit` and `oracle`; empty where the habits are not known (LaMP's own files)."""
    if not all(example["facts"] for example in examples):
        return {}
    rules, golds = persona(task.name), [example["output"] for example in examples]
    guesses = [[rules.apply(habit, e["facts"]["query"]) for e in examples] for habit in rules.HABITS]
    followed = [oracle.predict(task.name, e, take(e, e["ranking"], shots)) for e in examples]
    expected = np.mean([example_scores(task, golds, guess) for guess in guesses], axis=0)
    return {"any habit": expected, "oracle": example_scores(task, golds, followed)}


# ---- statistics ---------------------------------------------------------------------------------------------------


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
        prediction.strip() in {item[task.gold_field].strip() for item in take(example, example["ranking"], shots)}
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return float(np.mean(copied))


def _mean_with_interval(values: np.ndarray, users: Sequence[str], resamples: int, seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, users, resamples, seed)
    return {"score": float(values.mean()), "low": low, "high": high}
