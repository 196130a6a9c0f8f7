"""Stage 5, `evaluate`: systems side by side on the dev users, with intervals.

    base        the black box alone; it sees the input
    context     the black box with the k items in its prompt, LaMP's way (context injection)
    untrained   base → the reflection module before any training
    sft         base → the reflection module after SFT
    rl          base → the reflection module after SFT and RL
    sft-K, rl-K  the same modules reading K items in place of `evaluation.shots`

More baselines (`context-K`, `pag-K`, and the trivial ones, such as `majority`) are in `baselines`; `evaluation.systems`
chooses the systems. On the embedded benchmark, whose hidden habits are known, there are two references: `best guess` is
a reader who understands every text but does not know the user, and gives the answer that scores best on average over
the habits; `oracle` counts the habits that the same k items show and follows the majority. Intervals are 95 %
percentile bootstraps over users.

If the reflection module's completion does not parse, the generic answer is used, and `unparsed` counts it. Examples
that the base model did not answer in `context` or `pag` are listed in `failed.jsonl` and retried by the next call.
Until then the tables cover only the examples that every system answered, because they compare systems example by
example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores, scorable, write_predictions
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import WEIGHTS, current, inputs_of, refuse
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.prepare import load_excluded, load_golds, load_prepared
from rpo_kit.rewriting.prompts import prompt_fingerprints
from rpo_kit.rewriting.reflection import load_reflection, module_inputs, reflect
from rpo_kit.rewriting.trajectory import FULL, Form, rewrite_or_generic
from rpo_kit.runs import Run, append_records, read_records, sort_records, write_text
from rpo_kit.setting_rules import ALL_USERS, SYSTEM, SYSTEM_FORMS, TRIVIAL, kind_of
from rpo_kit.stages import stage
from rpo_kit.study.baselines import (
    FROM_TRAIN,
    Record,
    answer_of,
    answer_with_summary,
    inject_context,
    why_undefined,
    without_model,
)
from rpo_kit.study.results import MODULE, reads_other_k, shots_in, shots_of
from rpo_kit.study.statistics import metrics_table, paired_table

Answers = Callable[[list[Example]], Iterator[list[Record]]]  # yields records as they are ready
_CHUNK = 64  # ours: examples between two writes to disk; a kill loses at most this many answers of our own models


def evaluate(run: Run, systems: Sequence[str] | None = None) -> None:
    """Write `evaluate/{metrics,paired}.csv`, `predictions/<system>.json` (LaMP's format) and every raw completion.

    Raises:
        KitError: a system is unknown, a stage before this one is missing or stale, or too many answers failed.
    """
    if systems is None:
        refuse(run, "evaluate")
    preset, systems = run.preset, evaluated(run, systems)
    inputs = evaluate_inputs(run, systems)
    adapters = {name: run.stage(name) / "adapter" for name in ("sft", "rl")}
    retry = failures.pending(run, "evaluate")
    with stage(run, "evaluate", retry=retry, **inputs) as stage_dir:
        if stage_dir is None:
            return
        task, examples = get_task(preset.data.task), load_prepared(run, "dev")
        wanted = {preset.evaluation.shots, *(shots_in(name) for name in systems if reads_other_k(name))}
        report_short_profiles(examples, wanted, "evaluate")
        excluded = excluded_predictions(run)
        failures.clear(stage_dir)
        records = {name: predict(run, name, examples, stage_dir, adapters.get(kind_of(name))) for name in systems}
        asked = sum(asks_base(name) or kind_of(name) in MODULE for name in systems)
        failures.report(stage_dir, len(examples) * asked, preset.endpoint.tolerate)
        for name, answers in records.items():
            predictions = {answer["id"]: scorable(task, answer["prediction"]) for answer in answers} | excluded
            path = stage_dir / "predictions" / f"{name}.json"
            write_predictions(path, task, list(predictions), list(predictions.values()))
        report_cuts(records)
        examples, records = answered_by_all(examples, records)
        write_text(stage_dir / "metrics.csv", metrics_table(run, task, examples, records).to_csv(index=False))
        write_text(stage_dir / "paired.csv", paired_table(run, task, examples, records).to_csv(index=False))


def evaluate_inputs(run: Run, systems: Sequence[str]) -> dict[str, Any]:
    """What determines the numbers of these systems: the stage's inputs, and their module, adapters and prompts."""
    inputs = inputs_of(run, "evaluate") | {"systems": list(systems)}
    if any(kind_of(name) == "pag" for name in systems):
        inputs["pag"] = prompt_fingerprints("pag_summary", "pag_answer")
    kinds = {kind_of(name) for name in systems}
    if kinds & set(MODULE):
        inputs |= module_inputs(run)
    return inputs | {stage: current(run, stage) / WEIGHTS for stage in ("sft", "rl") if stage in kinds}


def all_inputs(run: Run) -> dict[str, Any]:
    """The inputs of the stage as the pipeline calls it."""
    return evaluate_inputs(run, evaluated(run))


def evaluated(run: Run, systems: Sequence[str] | None = None) -> list[str]:
    """The systems, by default those of the settings, that the task and the data have."""
    return with_train_golds(run, chosen_systems(run, systems or run.preset.evaluation.systems))


def chosen_systems(run: Run, systems: Sequence[str]) -> list[str]:
    """The systems that are defined for the task; prints which are left out.

    Raises:
        KitError: there is no such system; raised before the first model is loaded.
    """
    task = get_task(run.preset.data.task)
    for name in systems:
        if not SYSTEM.fullmatch(name):
            raise KitError(f"There is no system {name!r} to evaluate: choose from {SYSTEM_FORMS}.")
    systems = _answerable(run, systems)
    reasons = {name: why_undefined(name, task) for name in systems}
    for name, reason in reasons.items():
        if reason:
            print(f"evaluate: {name} left out, because {reason}.")
    return _not_empty(task, [name for name, reason in reasons.items() if not reason])


def with_train_golds(run: Run, systems: Sequence[str]) -> list[str]:
    """The systems without those that read the train split, if it is empty; prints which are left out."""
    left_out = [name for name in systems if name in FROM_TRAIN]
    if not left_out or load_golds(run, "train"):
        return list(systems)
    print(f"evaluate: {', '.join(left_out)} left out, because the run has no train examples to take the answer from.")
    return _not_empty(get_task(run.preset.data.task), [name for name in systems if name not in left_out])


def _not_empty(task: Task, systems: list[str]) -> list[str]:
    if not systems:
        raise KitError(f"No system is left to evaluate {task.name} with: add base to evaluation.systems.")
    return systems


def _answerable(run: Run, systems: Sequence[str]) -> list[str]:
    """The systems without those that would ask a base model whose answers are only recorded.

    Raises:
        KitError: none is left.
    """
    asking = [name for name in systems if asks_base(name)] if recorded_files(run.preset.base) else []
    if asking:
        why = f"the answers of base={run.preset.base} are recorded, and it cannot be asked anew"
        if len(asking) == len(systems):
            raise KitError(
                f"No system is left to evaluate without {', '.join(asking)}, because {why}: add base to "
                "evaluation.systems, or choose a base model."
            )
        print(f"evaluate: {', '.join(asking)} left out, because {why}.")
    return [name for name in systems if name not in asking]


def excluded_predictions(run: Run) -> dict[str, str]:
    """{id: ""} for the examples excluded from the data: LaMP's golds include them, so the predictions must too."""
    ids = list(load_excluded(run, "dev"))
    if ids:
        listed = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        print(f"evaluate: {len(ids)} excluded examples ({listed}) get an empty output in the prediction files.")
    return dict.fromkeys(ids, "")


# ---- predictions --------------------------------------------------------------------------------------------------


def asks_base(system: str) -> bool:
    """Whether the system sends the base model prompts of its own."""
    return system.partition("-")[0] in ("context", "pag")


def predict(run: Run, system: str, examples: list[Example], stage_dir: Path, adapter: Path | None) -> list[Record]:
    """The system's records, in the order of the examples. After an interruption only the missing ones are computed.

    Examples that the base model did not answer have no record; they are listed in `failed.jsonl` of `stage_dir`.
    """
    path = stage_dir / "records" / f"{system}.jsonl"
    done = {record["id"] for record in read_records(path)}
    missing = [example for example in examples if example["id"] not in done]
    if missing:
        answers = _answerer(run, system, adapter, stage_dir)
        with tqdm(total=len(missing), desc=f"evaluating {system}", unit="example") as bar:
            for batch in answers(missing):
                append_records(path, [dict(record) for record in batch if "failure" not in record])
                failures.record(stage_dir, {f"{system}/{r['id']}": r["failure"] for r in batch if "failure" in r})
                bar.update(len(batch))
    sort_records(path, [example["id"] for example in examples])
    return cast("list[Record]", read_records(path))


def answered_by_all(
    examples: list[Example], records: dict[str, list[Record]]
) -> tuple[list[Example], dict[str, list[Record]]]:
    """The examples that every system answered, with their records; prints how many if some are left out.

    Raises:
        KitError: no example was answered by every system.
    """
    ids = {example["id"] for example in examples}.intersection(*({r["id"] for r in rs} for rs in records.values()))
    if not ids:
        raise KitError("No example was answered by every system: evaluate again, or with fewer evaluation.systems.")
    if len(ids) < len(examples):
        print(f"evaluate: the tables cover the {len(ids)} of {len(examples)} examples that every system answered")
    common = {name: [record for record in answers if record["id"] in ids] for name, answers in records.items()}
    return [example for example in examples if example["id"] in ids], common


def _answerer(run: Run, system: str, adapter: Path | None, stage_dir: Path) -> Answers:
    """The function that answers for the system, with its model loaded or its endpoint opened."""
    task, settings = get_task(run.preset.data.task), run.preset.evaluation
    if system == "base" or kind_of(system) in TRIVIAL:
        golds = list(load_golds(run, "train").values()) if system in FROM_TRAIN else []
        return _in_chunks(without_model(answer_of(system, task, golds), task))
    shots = shots_of(system, settings.shots)
    if asks_base(system):
        base, tokens = open_chat_for(run, run.preset.base), run.preset.base_max_new_tokens
        if system.startswith("context"):
            return lambda missing: inject_context(base, task, missing, shots, tokens)
        summaries = stage_dir / "records" / "summaries.jsonl"
        return lambda missing: answer_with_summary(base, task, missing, shots, tokens, summaries)
    loaded, form = load_reflection(run.preset.reflection, adapter), Form.of(run.preset.reflection)
    limits = (settings.max_new_tokens, settings.batch_size)
    return _in_chunks(lambda chunk: rewrite(loaded, task, chunk, shots, *limits, form))


def _in_chunks(answer: Callable[[list[Example]], list[Record]]) -> Answers:
    return lambda missing: (answer(missing[start : start + _CHUNK]) for start in range(0, len(missing), _CHUNK))


def score_table(task: Task, examples: list[Example], records: list[Record]) -> pd.DataFrame:
    """Columns id, user, score and unparsed of the records of `rewrite`; the generic answer stands for a missing one."""
    answers = [record.get("prediction", e["generic"]) for record, e in zip(records, examples, strict=True)]
    unparsed = [float(bool(record.get("complaint", True))) for record in records]
    return scored(task, examples, answers).assign(unparsed=unparsed)


def scored(task: Task, examples: list[Example], answers: list[str]) -> pd.DataFrame:
    """Columns id, user and score: one row per example."""
    scores = example_scores(task, [example["output"] for example in examples], answers)
    return pd.DataFrame({"id": [e["id"] for e in examples], "user": [e["user_id"] for e in examples], "score": scores})


def rewrite(
    loaded: LoadedModel,
    task: Task,
    examples: list[Example],
    shots: int,
    max_new_tokens: int,
    batch_size: int = 32,
    form: Form = FULL,
) -> list[Record]:
    """The reflection module's greedy rewrites, from the first `shots` items of each ranking."""
    items = [top_k(example, example["ranking"], shots) for example in examples]
    completions, shortened = reflect(
        loaded, task, examples, items, max_new_tokens, batch_size, skip_unfitting=True, form=form
    )
    records: list[Record] = []
    for example, completion, cut in zip(examples, completions, shortened, strict=True):
        if completion.failure:
            records.append({"id": example["id"], "failure": completion.failure})
            continue
        prediction, parsed = rewrite_or_generic(completion.text, example["generic"], form.sections)
        records.append(
            {
                "id": example["id"],
                "prediction": prediction,
                "raw": completion.text,
                "complaint": parsed.error,
                "tokens": completion.new_tokens,
                "finished": completion.finished,
                "shortened": cut,
            }
        )
    return records


def report_short_profiles(examples: list[Example], shots: Iterable[int], command: str) -> None:
    """Print for each k how many profiles hold fewer items."""
    for k in sorted(set(shots)):
        short = sum(len(example["profile"]) < k for example in examples)
        if short:
            print(f"{command}: {short} of {len(examples)} profiles have fewer than {k} items: all of theirs are shown")


def report_fewer_users(examples: list[Example], setting: str, asked: int) -> None:
    """Say so if a setting asks for more dev users than the run has."""
    users = len({example["user_id"] for example in examples})
    if users < asked < ALL_USERS:
        command = setting.partition(".")[0]
        print(
            f"{command}: {setting}={asked}, but this run has {users} dev users: all are scored (more: data.dev_users)"
        )


def report_cuts(records: dict[str, list[Record]], command: str = "evaluate") -> None:
    """Print for each system how many prompts did not fit or were shortened and how many completions were cut off."""
    for name, answers in records.items():
        unfitting = sum("failure" in record for record in answers)
        shortened = sum(record.get("shortened", False) for record in answers)
        unfinished = sum(not record.get("finished", True) for record in answers)
        for count, what in (
            (unfitting, "prompts did not fit; the generic answer was scored instead"),
            (shortened, "prompts had their history items shortened to fit"),
            (unfinished, "completions were cut off at the token limit"),
        ):
            if count:
                print(f"{command}: {name}: {count} of {len(answers)} {what}")
