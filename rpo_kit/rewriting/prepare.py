"""Stage 1, `prepare`: read the benchmark, rank every profile, and let the base model write its generic answers.

The base model sees the official LaMP input and nothing else: `base_conversation` takes no profile, so none can leak.
Generic answers are appended to `generic.jsonl` as they come; a killed call goes on with the missing ones. A query that
an endpoint does not answer is recorded in `failed.jsonl`, left out, and asked again by the next call (`failures.py`).

    prepare(run)
    load_prepared(run, "dev")[0]["generic"]        # '3'
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_from_disk
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.lamp.data import excluded_outputs, read_lamp
from rpo_kit.lamp.download import fetch
from rpo_kit.lamp.files import check_present
from rpo_kit.lamp.leaks import check_belong_together
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.presets import DataSettings
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.chat import Chat, Completion, Conversation, as_they_come, open_chat_of, told_cost
from rpo_kit.rewriting.own_items import asking_field, questions_from_items
from rpo_kit.rewriting.prompts import whole
from rpo_kit.runs import Run, append_records, made_from, read_records, require, sort_records, stage

SPLITS = ("train", "dev")
Example = dict[str, Any]  # id, user_id, input, output, profile, ranking, generic, facts ({} outside of personas)
_CHUNK = 64  # ours: generic answers stored at a time


def prepare(run: Run, open_base: Callable[[str], Chat] | None = None) -> None:
    """Write `prepare/{train,dev}` (Arrow, with the ranking) and `prepare/generic.jsonl`."""
    preset = run.preset
    if preset.data.leave_one_out:
        asking_field(get_task(preset.data.task))  # told before anything is moved away
    failures.reopen(run, "prepare")
    with stage(run, "prepare", **prepare_inputs(run) | source_files(preset.data)) as work:
        if work is None:
            return
        task = get_task(preset.data.task)
        if preset.data.separation != "user" and preset.data.source != "official":
            print(f"prepare: data.separation={preset.data.separation} is for --data official and changes nothing here.")
        for split in SPLITS:
            if not (work / split / "dataset_info.json").exists():
                read_source(preset.data, split, work).save_to_disk(str(work / split))
        rows = _queries(work, _folder(preset.data, work))
        missing = _without_generic(rows, work)
        if missing:
            base = open_base(preset.base) if open_base else open_chat_of(run, preset.base)
            _answer(task, base, missing, work, preset.base_max_new_tokens)
        failures.conclude(work, len(rows), preset.endpoint.tolerate)
        sort_records(work / "generic.jsonl", [row["id"] for row in rows])
        _tell_cuts(work, answer_tokens(task, preset.base_max_new_tokens))


def prepare_inputs(run: Run) -> dict[str, Any]:
    """What decides this stage beside LaMP's files, which are gigabytes and read again by this stage alone."""
    return {"data": run.preset.data, "base": run.preset.base, "base_tokens": run.preset.base_max_new_tokens}


def prepared_inputs(run: Run) -> dict[str, Any]:
    """What every later stage reads of this one, which must have been made with the present settings: the answers, and
    the fingerprints which LaMP's files had then.
    """
    folder = require(run, "prepare", **prepare_inputs(run))
    files = {name: made for name, made in made_from(folder).items() if name.endswith(".json")}
    return {"data": run.preset.data, "generic": folder / "generic.jsonl"} | files


def source_files(settings: DataSettings) -> dict[str, Path]:
    """The files that somebody else may change: LaMP's own. Personas are made from their settings alone."""
    if settings.source == "personas":
        return {}
    folder = lamp_folder(settings)
    files = {name: folder / name for split in SPLITS for name in (f"{split}_questions.json", f"{split}_outputs.json")}
    for path in files.values():
        check_present(path)
    return files


def lamp_folder(settings: DataSettings) -> Path:
    """The folder with LaMP's files: the one that is named, or the downloaded one, which is completed first."""
    if settings.source == "official":
        return fetch(get_task(settings.task), settings.separation, SPLITS)
    folder = Path(settings.source)
    if folder.is_file():
        raise KitError(f"The data {folder} is a file: give the folder in which it lies, --data {folder.parent}.")
    if not folder.is_dir():
        close = get_close_matches(settings.source.lower(), ("personas", "official"), n=1)
        raise KitError(
            f"The data {settings.source!r} is no folder that is there: give personas, official (downloads LaMP's "
            f"files), or a folder with them.{f' Did you mean --data {close[0]}?' if close else ''}"
        )
    return folder


def _folder(settings: DataSettings, work: Path) -> Path:
    return work / "personas" if settings.source == "personas" else lamp_folder(settings)


def read_source(settings: DataSettings, split: str, work: Path) -> Dataset:
    """One split with its ranking: from the embedded personas, or from a folder with LaMP's official files."""
    task = get_task(settings.task)
    users = settings.train_users if split == "train" else settings.dev_users
    facts: dict[str, Any] = {}
    folder = _folder(settings, work)
    if settings.source == "personas":
        personas.write(folder, task.name, {split: users}, items_per_user=settings.items_per_user, seed=settings.seed)
        facts = json.loads((folder / f"{split}_facts.json").read_text(encoding="utf-8"))
    dataset = first_users(read_lamp(folder, task, split, drop_gold=settings.drop_gold), users)
    if settings.leave_one_out and split == "train":
        own = list(questions_from_items(task, dataset, facts, settings.leave_one_out, settings.seed))
        dataset = concatenate_datasets([dataset, Dataset.from_list([row for row, _ in own], dataset.features)])
        facts |= {row["id"]: known for row, known in own}
    rows = [json.dumps(facts.get(example_id, {})) for example_id in dataset["id"]]
    return dataset.add_column("ranking", rank(task, dataset, settings.retriever, settings.seed)).add_column(
        "facts", rows
    )


def first_examples(settings: DataSettings, split: str, users: int) -> list[Example]:
    """The first users of a split, read and ranked as `prepare` does it; no model is asked."""
    few = replace(settings, train_users=users, dev_users=users, leave_one_out=0)
    with tempfile.TemporaryDirectory() as work:
        rows = read_source(few, split, Path(work)).to_list()
    return [row | {"facts": json.loads(row["facts"])} for row in rows]


def first_users(dataset: Dataset, users: int) -> Dataset:
    """The examples of the first `users` users, never cutting through one (LaMP-2 and 4 have several queries a user)."""
    known: dict[str, None] = {}
    for user in dataset["user_id"]:
        if len(known) < users:
            known.setdefault(user)
    return dataset.select([i for i, user in enumerate(dataset["user_id"]) if user in known])


def load_prepared(run: Run, split: str) -> list[Example]:
    """The examples of a split, each with its ranking (indices into the profile, best first) and its generic answer.

    Examples whose query the base model did not answer are left out; `prepare` has shown them. Profiles, which are
    nearly all of the data, stay in the file (`Profile`).
    """
    folder = require(run, "prepare", **prepare_inputs(run))
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


class Profile(Sequence[Item]):
    """A user's items, read from the memory-mapped Arrow file each time they are asked for.

    As Python objects a split shaped like LaMP-3 dev takes 2.4 times the file's size (measured), more than a gigabyte.
    """

    def __init__(self, items: pa.StructArray) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        return self.items[place].to_pylist() if isinstance(place, slice) else self.items[place].as_py()

    def __iter__(self) -> Iterator[Item]:
        return iter(self[:])

    def __repr__(self) -> str:
        return repr(self[:])


def base_conversation(query: str) -> Conversation:
    """What the base model sees: the query. No profile can be passed."""
    return [{"role": "user", "content": whole(query)}]


def read_answer(task: Task, text: str) -> str:
    """The answer inside a chatty reply: the first label that it names; for generation tasks the first line. (ours)"""
    if task.kind == "generation":
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return first.removeprefix("Title:").removeprefix("Headline:").strip().strip('"').strip()
    labels = task.labels or ("1", "2", "3", "4", "5")
    places = [
        (m.start(), -len(label), label) for label in labels if (m := re.search(_whole(label), text, re.IGNORECASE))
    ]
    return min(places)[2] if places else text.strip()


def _whole(label: str) -> str:
    return rf"(?<!\w){re.escape(label)}(?!\w)"


def _queries(work: Path, folder: Path) -> list[dict[str, str]]:
    """`id` and `input` of both splits, which must belong together."""
    train, dev = (load_from_disk(str(work / split)) for split in SPLITS)
    check_belong_together(train, dev, folder)
    return [row for split in (train, dev) for row in split.select_columns(["id", "input"]).to_list()]


def _without_generic(rows: list[dict[str, str]], work: Path) -> list[dict[str, str]]:
    done = {record["id"] for record in read_records(work / "generic.jsonl")}
    return [row for row in rows if row["id"] not in done]


def answer_tokens(task: Task, tokens: int) -> int:
    """How many tokens an answer may have: a label needs no more than 12 (ours)."""
    return tokens if task.kind == "generation" else min(tokens, 12)


def base_answers(base: Chat, task: Task, prompts: list[str], tokens: int) -> list[Completion]:
    """The base model's answers as they came, in order. KitError where one is missing."""
    conversations = [base_conversation(prompt) for prompt in prompts]
    answers = base.complete(conversations, max_new_tokens=answer_tokens(task, tokens))
    failed = [answer.failure for answer in answers if answer.failure]
    if failed:
        raise KitError(
            f"The model {base.name} left {len(failed)} of {len(prompts)} questions unanswered, the first one with: "
            f"{failed[0]}. Run again; answers that are in the cache are not paid for twice."
        )
    return answers


def _answer(task: Task, base: Chat, rows: list[dict[str, str]], work: Path, tokens: int) -> None:
    """Ask for all rows, storing each answer as it comes, and noting each failure."""
    failures.forget(work)
    limit, asked = answer_tokens(task, tokens), [base_conversation(row["input"]) for row in rows]
    bar = tqdm(total=len(rows), desc=f"{base.name} answers without seeing the user", unit="query")
    with bar, told_cost(base, asked, limit):
        for batch in as_they_come(base, asked, max_new_tokens=limit, chunk=_CHUNK):
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
