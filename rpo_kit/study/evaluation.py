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
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import write_predictions
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import WEIGHTS, current, inputs_of
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.prepare import load_excluded, load_prepared
from rpo_kit.rewriting.prompts import prompt_fingerprints
from rpo_kit.rewriting.reflection import load_reflection, module_inputs, reflect
from rpo_kit.rewriting.trajectory import rewrite_or_generic
from rpo_kit.runs import Run, append_records, read_records, sort_records, stage, write_text
from rpo_kit.study.baselines import (
    answer_with_summary,
    copy_nearest,
    inject_context,
    is_defined,
    majority,
    shots_of,
    without_model,
)
from rpo_kit.study.statistics import SYSTEMS, Record, metrics_table, paired_table, scorable

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
    """What decides the numbers of these systems; besides the stage's own inputs, their module, adapters and prompts."""
    inputs = inputs_of(run, "evaluate") | {"systems": list(systems)}
    if any(name.startswith("pag") for name in systems):
        inputs["pag"] = prompt_fingerprints("pag_summary", "pag_answer")
    if {"untrained", "sft", "rl"} & set(systems):
        inputs |= module_inputs(run)
    return inputs | {name: current(run, name) / WEIGHTS for name in systems if name in ("sft", "rl")}


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
        base, tokens = open_chat_for(run, run.preset.base), run.preset.base_max_new_tokens
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
    shown = [top_k(example, example["ranking"], shots) for example in examples]
    records = []
    for example, completion, cut in zip(
        examples, *reflect(loaded, task, examples, shown, max_new_tokens, batch_size), strict=True
    ):
        prediction, parsed = rewrite_or_generic(completion.text, example["generic"])
        record = {"id": example["id"], "prediction": prediction, "raw": completion.text, "complaint": parsed.error}
        records.append(record | {"tokens": completion.new_tokens, "finished": completion.finished, "shortened": cut})
    return records


def tell_cuts(found: dict[str, list[Record]]) -> None:
    """Say for each system how many prompts and how many of its texts are not whole."""
    for name, records in found.items():
        shortened = sum(record.get("shortened", False) for record in records)
        unfinished = sum(not record.get("finished", True) for record in records)
        if shortened:
            print(f"evaluate: {name}: {shortened} of {len(records)} prompts had their history items shortened to fit")
        if unfinished:
            print(f"evaluate: {name}: {unfinished} of {len(records)} texts were cut off at the token limit")
