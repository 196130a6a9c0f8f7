"""Stage 1, `prepare`: read the benchmark, rank every profile, and let the base model write its generic answers.

The first half of Figure 1, for all queries at once. The base model sees LaMP's input and nothing else (`base.py`).
Answers are appended to `generic.jsonl` as they arrive; an interrupted call resumes with the missing ones. A query that
an endpoint does not answer is listed in `failed.jsonl`, left out, and asked again by the next call (`failures.py`).
With `base=file:PREDICTIONS.json` no model is asked: the answers were recorded before (`recorded.py`).

    prepare(run)
    load_prepared(run, "dev")[0]
    # {'id': '310', 'input': 'What is the score … review: It leaks.', 'output': '2', 'profile': …, 'ranking': [4, 0, …],
    #  'generic': '3', …}
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import excluded_outputs
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.leaks import check_belong_together
from rpo_kit.lamp.metrics import has_words
from rpo_kit.lamp.recorded import complete_answers
from rpo_kit.lamp.source import SPLITS, Profile, check_data, read_source, save_split, source_files, source_folder
from rpo_kit.lamp.table import notes_of
from rpo_kit.lamp.tasks import OWN_TASKS, get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.models.chat import Chat, Completion, reporting_cost, stream_completions
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import current, inputs_of, refusals, refuse
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.base import answer_tokens, base_conversations, describe_oddities, generic_record
from rpo_kit.runs import Run, append_records, read_records, sort_records
from rpo_kit.stages import fingerprints, is_finished, made_from, require, stage

_LIKE_GOLDS = 0.9  # ours: a share of answers equal to the gold that no model reaches
_CHUNK = 64  # ours: generic answers stored at a time, from a model that does not stream


def prepare(run: Run, open_base: Callable[[str], Chat] | None = None) -> None:
    """Write `prepare/{train,dev}` (Arrow, with the ranking) and `prepare/generic.jsonl`."""
    preset = run.preset
    check_data(preset)  # before an earlier result is moved away
    if open_base is None:
        refuse(run, "prepare")
    inputs, retry = inputs_of(run, "prepare") | source_files(preset.data), failures.pending(run, "prepare")
    recorded = _recorded_answers(run, inputs)
    with stage(run, "prepare", retry=retry, **inputs) as stage_dir:
        if stage_dir is None:
            return
        told: dict[str, str] = {}
        for name, reason in refusals(run).items():
            if name != "prepare" and told.setdefault(reason, name) == name:
                print(f"prepare: {name} will refuse these settings: {reason}")
        if preset.data.separation != "user" and preset.data.source != "official":
            print(f"prepare: data.separation={preset.data.separation} is for --data official and changes nothing here.")
        for split in SPLITS:
            if not (stage_dir / split).exists():
                save_split(read_source(preset.data, split, stage_dir), stage_dir / split)
        train, dev = (load_from_disk(str(stage_dir / split)) for split in SPLITS)
        check_belong_together(train, dev, source_folder(preset.data, stage_dir))
        _check_dev(run, train, dev)
        rows = [row for part in (train, dev) for row in part.select_columns(["id", "input"]).to_list()]
        queries: dict[str, str] = {row["id"]: row["input"] for row in rows}
        done = {record["id"] for record in read_records(stage_dir / "generic.jsonl")}
        missing = {id_: input for id_, input in queries.items() if id_ not in done}
        if recorded_files(preset.base):
            _write_recorded_answers(run, {id_: recorded[id_] for id_ in missing}, stage_dir)
        elif missing:
            base = open_base(preset.base) if open_base else open_chat_for(run, preset.base)
            _write_generic_answers(run, base, missing, stage_dir)
        failures.report(stage_dir, len(queries), preset.endpoint.tolerate)
        sort_records(stage_dir / "generic.jsonl", list(queries))
        records = read_records(stage_dir / "generic.jsonl")
        _report_oddities(run, records)
        if recorded_files(preset.base):
            _report_golds(
                records, dict(zip([*train["id"], *dev["id"]], [*train["output"], *dev["output"]], strict=True))
            )


def _check_dev(run: Run, train: Dataset, dev: Dataset) -> None:
    """Say which golds nothing can match, and how many dev users are train users although users should be unseen.

    Raises:
        KitError: nothing can match any gold, as in a file of withheld golds.
    """
    task = get_task(run.preset.data.task)
    empty = sum(not has_words(gold) for gold in dev["output"]) if task.kind == "generation" else 0
    if empty and empty == len(dev):
        raise KitError(
            f"None of the {empty} dev golds has a letter or number that ROUGE reads (a to z, 0 to 9), so every answer "
            "would score 0: take golds with texts."
        )
    if empty:
        print(
            f"prepare: {empty} of {len(dev)} dev golds have no letter or number that ROUGE reads (a to z, 0 to 9): "
            "every answer to them scores 0."
        )
    known = set(dev["user_id"]) & set(train["user_id"])
    if known and not notes_of(dev).get("date") and task.name not in OWN_TASKS:  # LaMP's time split has dates
        print(
            f"prepare: {len(known)} of {len(set(dev['user_id']))} dev users are train users too, so results will not "
            "be about unseen users."
        )


def _report_oddities(run: Run, records: list[dict[str, Any]]) -> None:
    cut = sum(not record.get("finished", True) for record in records)
    limit = answer_tokens(get_task(run.preset.data.task), run.preset.base_max_new_tokens)
    if odd := describe_oddities(records, limit):
        print(odd)
    if cut:
        print(
            f"prepare: {cut} of {len(records)} generic answers were cut off at {limit} tokens; to allow more, run "
            f"`python -m rpo_kit prepare --run {run.name} --set base_max_new_tokens={2 * limit}`"
        )


def _report_golds(records: list[dict[str, Any]], golds: dict[str, str]) -> None:
    """Say so if recorded answers are the golds, whose files have the same format and ids."""
    equal = sum(record["text"].strip() == golds[record["id"]].strip() for record in records)
    if records and equal >= _LIKE_GOLDS * len(records):
        print(
            f"prepare: {equal} of {len(records)} recorded answers equal the gold: is this a file of golds "
            "(…_outputs.json), not of a model's answers?"
        )


def _recorded_answers(run: Run, inputs: dict[str, Any]) -> dict[str, str]:
    """{id: recorded answer}, checked before an earlier result is moved away; {} for a model, or if all is done."""
    if not recorded_files(run.preset.base) or is_finished(run.stage("prepare"), fingerprints(inputs)):
        return {}
    return complete_answers(run.preset)


def _write_recorded_answers(run: Run, answers: dict[str, str], stage_dir: Path) -> None:
    """Store each {id: recorded answer} as if the model had just given it."""
    task = get_task(run.preset.data.task)
    records = [generic_record(task, id_, Completion(text, True, 0, 0)) for id_, text in answers.items()]
    append_records(stage_dir / "generic.jsonl", records)


def _write_generic_answers(run: Run, base: Chat, inputs: dict[str, str], stage_dir: Path) -> None:
    """Ask for the answer to each {id: input}; store each as it arrives, and note each failure."""
    failures.clear(stage_dir)
    task, ids = get_task(run.preset.data.task), list(inputs)
    limit = answer_tokens(task, run.preset.base_max_new_tokens)
    conversations = base_conversations(base, list(inputs.values()))
    bar = tqdm(total=len(ids), desc=f"{base.name} answers without seeing the user", unit="query")
    with bar, reporting_cost(base, conversations, limit):
        for batch in stream_completions(base, conversations, max_new_tokens=limit, chunk=_CHUNK):
            records: list[dict[str, object]] = []
            failed: dict[str, str] = {}
            for index, answer in batch:
                if answer.failure:
                    failed[ids[index]] = answer.failure
                    continue
                records.append(generic_record(task, ids[index], answer))
            append_records(stage_dir / "generic.jsonl", records)
            failures.record(stage_dir, failed)
            bar.update(len(batch))


# ---- what later stages read ---------------------------------------------------------------------------------------


def load_prepared(run: Run, split: str) -> list[Example]:
    """The examples of a split, each with its ranking (indices into the profile, best first) and its generic answer.

    Examples that the base model did not answer are left out; `prepare` has shown them. Profiles, which are nearly all
    of the data, stay in the file (`Profile`).
    """
    folder = current(run, "prepare")
    generic = {record["id"]: record["text"] for record in read_records(folder / "generic.jsonl")}
    dataset = load_from_disk(str(folder / split))
    rows, profiles = dataset.remove_columns("profile").to_list(), dataset.data.column("profile")
    return [
        row | {"profile": Profile(items.values), "generic": generic[row["id"]], "facts": json.loads(row["facts"])}
        for row, items in zip(rows, profiles, strict=True)
        if row["id"] in generic
    ]


def dev_examples(run: Run, users: int) -> list[Example]:
    """The examples of the first `users` dev users."""
    examples = load_prepared(run, "dev")
    chosen = set(list(dict.fromkeys(example["user_id"] for example in examples))[:users])
    return [example for example in examples if example["user_id"] in chosen]


def load_excluded(run: Run, split: str) -> dict[str, str]:
    """{id: gold} of the rows that are in the split but that no model is asked (see `excluded_outputs`)."""
    return excluded_outputs(load_from_disk(str(require(run, "prepare") / split)))


def load_golds(run: Run, split: str) -> dict[str, str]:
    """{id: gold} of all rows of a split, including those that were excluded or that the base model did not answer."""
    dataset = load_from_disk(str(require(run, "prepare") / split))
    return dict(zip(dataset["id"], dataset["output"], strict=True)) | excluded_outputs(dataset)


def prepared_inputs(run: Run) -> dict[str, object]:
    """Inputs that later stages take from `prepare`: the generic answers and the fingerprints of LaMP's files.

    LaMP's files are gigabytes, so `prepare` alone reads them and takes their fingerprints.
    """
    folder = current(run, "prepare")
    files = {name: digest for name, digest in made_from(folder).items() if name.endswith(".json")}
    return {"data": run.preset.data, "generic": folder / "generic.jsonl"} | files


def train_inputs(run: Run) -> dict[str, object]:
    """The part of `prepared_inputs` that training reads.

    Without the dev users, so that evaluating on more of them does not train anything again.
    """
    folder = current(run, "prepare")
    ids = set(load_from_disk(str(folder / "train"))["id"])
    answers = {r["id"]: r["text"] for r in read_records(folder / "generic.jsonl") if r["id"] in ids}
    files = {name: digest for name, digest in made_from(folder).items() if name.startswith("train_")}
    return {"data": replace(run.preset.data, dev_users=0), "generic": answers} | files
