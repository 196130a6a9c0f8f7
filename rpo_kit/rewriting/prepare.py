"""Stage 1, `prepare`: read the benchmark, rank every profile, and let the base model write its generic answers.

The base model sees the official LaMP input and nothing else: `base_conversation` takes no profile, so none can leak.
Generic answers are appended to `generic.jsonl` as they come; a killed call goes on with the missing ones. A query that
an endpoint does not answer is recorded in `failed.jsonl`, left out, and asked again by the next call (`failures.py`).

    prepare(run)
    load_prepared(run, "dev")[0]["generic"]        # '3'
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import load_from_disk
from tqdm.auto import tqdm

from rpo_kit.lamp.data import excluded_outputs
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.leaks import check_belong_together
from rpo_kit.lamp.leave_one_out import asking_field
from rpo_kit.lamp.source import SPLITS, Profile, read_source, source_files, source_folder
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.chat import Chat, Completion, reporting_cost, stream_completions
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import current, inputs_of
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.base import answer_tokens, base_conversation, read_answer
from rpo_kit.runs import Run, append_records, read_records, sort_records
from rpo_kit.stages import made_from, require, stage

_CHUNK = 64  # ours: generic answers stored at a time


def prepare(run: Run, open_base: Callable[[str], Chat] | None = None) -> None:
    """Write `prepare/{train,dev}` (Arrow, with the ranking) and `prepare/generic.jsonl`."""
    preset = run.preset
    if preset.data.leave_one_out:
        asking_field(get_task(preset.data.task))  # told before anything is moved away
    failures.reopen(run, "prepare")
    with stage(run, "prepare", **inputs_of(run, "prepare") | source_files(preset.data)) as work:
        if work is None:
            return
        task = get_task(preset.data.task)
        if preset.data.separation != "user" and preset.data.source != "official":
            print(f"prepare: data.separation={preset.data.separation} is for --data official and changes nothing here.")
        for split in SPLITS:
            if not (work / split / "dataset_info.json").exists():
                read_source(preset.data, split, work).save_to_disk(str(work / split))
        rows = _queries(work, source_folder(preset.data, work))
        missing = _without_generic(rows, work)
        if missing:
            base = open_base(preset.base) if open_base else open_chat_for(run, preset.base)
            _answer(task, base, missing, work, preset.base_max_new_tokens)
        failures.conclude(work, len(rows), preset.endpoint.tolerate)
        sort_records(work / "generic.jsonl", [row["id"] for row in rows])
        _tell_cuts(work, answer_tokens(task, preset.base_max_new_tokens))


def prepared_inputs(run: Run) -> dict[str, Any]:
    """Inputs that later stages take from `prepare`: the generic answers and the fingerprints of LaMP's files.

    LaMP's files, which are gigabytes, are fingerprinted by `prepare` alone.
    """
    folder = current(run, "prepare")
    files = {name: made for name, made in made_from(folder).items() if name.endswith(".json")}
    return {"data": run.preset.data, "generic": folder / "generic.jsonl"} | files


def train_inputs(run: Run) -> dict[str, Any]:
    """The part of `prepared_inputs` that training reads; without the dev users, so that evaluating on more of them
    does not train anything again.
    """
    prepared = prepared_inputs(run)
    generic = prepared["generic"]
    ids = set(load_from_disk(str(generic.parent / "train"))["id"])
    answers = {record["id"]: record["text"] for record in read_records(generic) if record["id"] in ids}
    files = {name: made for name, made in prepared.items() if name.startswith("train_")}
    return {"data": replace(run.preset.data, dev_users=0), "generic": answers} | files


def load_prepared(run: Run, split: str) -> list[Example]:
    """The examples of a split, each with its ranking (indices into the profile, best first) and its generic answer.

    Examples whose query the base model did not answer are left out; `prepare` has shown them. Profiles, which are
    nearly all of the data, stay in the file (`Profile`).
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


def load_excluded(run: Run, split: str) -> dict[str, str]:
    """{id: output} of the questions which the whole split has and no model was asked (see `excluded_outputs`)."""
    return excluded_outputs(load_from_disk(str(require(run, "prepare") / split)))


def load_golds(run: Run, split: str) -> dict[str, str]:
    """{id: output} of all questions of a split, also of those that were excluded or that the base model left."""
    dataset = load_from_disk(str(require(run, "prepare") / split))
    return dict(zip(dataset["id"], dataset["output"], strict=True)) | excluded_outputs(dataset)


def _queries(work: Path, folder: Path) -> list[dict[str, str]]:
    """`id` and `input` of both splits, which must belong together."""
    train, dev = (load_from_disk(str(work / split)) for split in SPLITS)
    check_belong_together(train, dev, folder)
    return [row for split in (train, dev) for row in split.select_columns(["id", "input"]).to_list()]


def _without_generic(rows: list[dict[str, str]], work: Path) -> list[dict[str, str]]:
    done = {record["id"] for record in read_records(work / "generic.jsonl")}
    return [row for row in rows if row["id"] not in done]


def _answer(task: Task, base: Chat, rows: list[dict[str, str]], work: Path, tokens: int) -> None:
    """Ask for all rows, storing each answer as it comes, and noting each failure."""
    failures.forget(work)
    limit, asked = answer_tokens(task, tokens), [base_conversation(row["input"]) for row in rows]
    bar = tqdm(total=len(rows), desc=f"{base.name} answers without seeing the user", unit="query")
    with bar, reporting_cost(base, asked, limit):
        for batch in stream_completions(base, asked, max_new_tokens=limit, chunk=_CHUNK):
            good = [_generic(task, rows[place]["id"], answer) for place, answer in batch if not answer.failure]
            append_records(work / "generic.jsonl", good)
            failures.note(work, {rows[place]["id"]: answer.failure for place, answer in batch if answer.failure})
            bar.update(len(batch))


def _generic(task: Task, id_: str, answer: Completion) -> dict[str, Any]:
    record = {"id": id_, "text": read_answer(task, answer.text), "raw": answer.text}
    return record if answer.finished else record | {"finished": False}


def _tell_cuts(work: Path, limit: int) -> None:
    records = read_records(work / "generic.jsonl")
    cut = sum(not record.get("finished", True) for record in records)
    if cut:
        print(f"{cut} of {len(records)} generic answers were cut off at {limit} tokens")
