"""LaMP's files as a `datasets.Dataset`: one row per example, with the user's profile and the gold.

The left edge of Figure 1: the source of the query q and the profile U, from LaMP's official files or from the embedded
personas, which have the same format. Every row is checked on load. A row without the task's instruction (LaMP-2 has
one) is excluded, counted and reported; any other defect raises KitError. An empty profile is kept: the method has to
handle it. Elsewhere: downloading (`download`), and keeping gigabytes out of memory (`stream` and `table`).

In: `dev_questions.json` with `[{"id": "310", "input": "What is the score … review: Does what it should.", "profile":
[{"id": "3100", "text": "Broke twice.", "score": "1"}]}]` and `dev_outputs.json` with `{"task": "LaMP_3", "golds":
[{"id": "310", "output": "4"}]}`. Out: a row `{"id": "310", "user_id": "310", "input": "What …", "output": "4",
"profile": [{"id": "3100", "text": "Broke twice.", "score": "1"}]}`.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.files import (
    AGAIN,
    GOLDS,
    QUESTIONS,
    as_id,
    as_text,
    check_present,
    raw_outputs,
    shown,
    write_json,
    write_outputs,
)
from rpo_kit.lamp.item import item_gold, read_gold, read_item, task_of_input
from rpo_kit.lamp.leaks import check_no_placeholder, gold_positions, has_entity, history_key, users_by_history
from rpo_kit.lamp.stream import stream_list
from rpo_kit.lamp.table import Notes, conversion_of, notes_of, open_rows, write_rows
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, Task

log = logging.getLogger(__name__)


def read_lamp(folder: Path, task: Task, split: str, *, drop_gold: bool = False, cache: Path | None = None) -> Dataset:
    """The examples in `{split}_questions.json` and `{split}_outputs.json` of a folder, in the order of the former.

    `user_id` is the file's; if it has none (LaMP's user split), the id of the first example with the same history.
    Items keep their id, the task's fields and `date`, if given. `drop_gold` removes items that give the gold away; they
    are counted in any case. A large file is converted once, into `cache`.

    Raises: KitError if a file is missing, broken, of another task, or has an invalid row.
    """
    path = Path(folder) / f"{split}_questions.json"
    check_present(path, QUESTIONS)
    outputs = path.with_name(f"{split}_outputs.json")
    conversion = conversion_of(path, outputs, task, f"drop_gold={drop_gold}", cache)
    if conversion and conversion.exists():
        dataset = open_rows(conversion)
    else:
        reader = _Reader(path, task, split, _read_golds(outputs, task, split), drop_gold)
        dataset = write_rows(task, reader.rows(), conversion, reader.notes)
    _report(path, notes_of(dataset))
    return dataset


@dataclass
class _Reader:
    """One pass over a question file: yields the rows, and counts what has to be reported afterwards."""

    path: Path
    task: Task
    split: str
    golds: dict[str, str] | None  # None: withheld
    drop_gold: bool
    ids: dict[str, None] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)  # ids
    histories: list[np.ndarray] = field(default_factory=list)  # one per kept id; empty if rows have a user_id
    other: Task | None = None  # the task whose instruction an excluded row has
    has: dict[str, bool] = field(default_factory=dict)  # whether rows have a "user_id", items a "date"

    def rows(self) -> Iterator[Example]:
        for number, row in enumerate(stream_list(self.path)):
            example = self._checked(number, row)
            if self.task.is_official(example["input"]):
                yield self._counted(example)
            else:
                self.excluded.append(example["id"])
                self.other = self.other or task_of_input(example["input"])
        self._check_ids()
        if not self.kept:
            other = f"give --task {self.other.name}, whose examples they are" if self.other else "name the right --task"
            raise KitError(
                f"No example in the question file {self.path} is of {self.task.name}, whose inputs begin with "
                f"{self.task.prefix[:60]!r}…: give the folder of {self.task.name} ({self.task.title}), or {other}."
            )

    def _checked(self, number: int, row: object) -> Example:
        """The row as an example whose id has not occurred before."""
        columns = {"id", "input", "profile"}
        if not isinstance(row, dict) or not columns <= set(row):
            name = f", id {shown(row['id'])}," if isinstance(row, dict) and "id" in row else ""
            missing = ", ".join(sorted(columns - set(row))) if isinstance(row, dict) else "everything"
            where = f"Row {number}{name} of the question file {self.path}"
            raise KitError(f"{where} lacks {missing}: complete it, or {AGAIN}.")
        key = as_id(row["id"], f'"id" of row {number} of the question file {self.path}')
        if key in self.ids:
            raise KitError(f"The id {shown(key)} occurs twice in the question file {self.path}: keep one of the rows.")
        self.ids[key] = None
        where = f"Example {shown(key)} in the question file {self.path}"
        example = _example(self.task, {**row, "id": key}, (self.golds or {}).get(key, ""), where)
        self._check_separation("user_id", "user_id" in row, where)
        for item in example["profile"]:
            self._check_separation("date", "date" in item, where)
        return example

    def _check_separation(self, name: str, has: bool, where: str) -> None:
        """LaMP's time split has a user_id for each example and a date for each item, its user split neither."""
        if self.has.setdefault(name, has) != has:
            owner = "has" if name == "user_id" else "has an item with"
            raise KitError(
                f"{where} {owner} {'a' if has else 'no'} {name}, unlike the rows before it: this file mixes LaMP's "
                "time split (which has user_id and date) with its user split. Use the file of one of them."
            )

    def _counted(self, example: Example) -> Example:
        """The example, recorded for the notes, without the items that `drop_gold` removes."""
        leaking = gold_positions(self.task, example)
        self.counts["gold_in_profile"] += bool(leaking)
        self.counts["html_entities"] += has_entity(example["input"]) or has_entity(example["output"])
        self.kept.append(example["id"])
        keys = [] if self.has["user_id"] else [history_key(item) for item in example["profile"]]
        self.histories.append(np.array(keys, np.int64))
        if self.drop_gold and leaking:
            self.counts["gold_dropped"] += len(leaking)
            example["profile"] = [item for n, item in enumerate(example["profile"]) if n not in leaking]
        self.counts["empty"] += not example["profile"]
        if self.task.items_have_labels:
            self.counts["foreign_labels"] += sum(item_gold(self.task, item) is None for item in example["profile"])
        return example

    def _check_ids(self) -> None:
        if not self.ids:
            raise KitError(f"The question file {self.path} is an empty list of examples: {AGAIN}.")
        if self.golds is None:
            return
        missing, extra = sorted(self.ids.keys() - self.golds.keys()), sorted(self.golds.keys() - self.ids.keys())
        if missing or extra:
            golds = self.path.with_name(f"{self.split}_outputs.json")
            raise KitError(
                f"The gold file {golds} does not match the question file: {len(missing)} of {len(self.ids)} examples "
                f"have no gold {missing[:3]}, {len(extra)} golds have no example {extra[:3]}. Take both files from the "
                "same release and the same split (LaMP's user split or time split)."
            )

    def notes(self) -> Notes:
        """The notes that travel with the dataset; "users" only if the file does not name them."""
        notes = Notes(
            task=self.task.name,
            split=self.split,
            excluded=self.excluded,
            total=len(self.ids),
            user_id=self.has.get("user_id"),
            date=self.has.get("date"),
            excluded_outputs={key: (self.golds or {}).get(key, "") for key in self.excluded},
            empty=self.counts["empty"],
            gold_in_profile=self.counts["gold_in_profile"],
            gold_dropped=self.counts["gold_dropped"],
            html_entities=self.counts["html_entities"],
            foreign_labels=self.counts["foreign_labels"],
        )
        if not self.has["user_id"]:
            notes["users"] = users_by_history(self.kept, self.histories)
            notes["users_found"] = len(set(notes["users"]))
        return notes


def _read_golds(path: Path, task: Task, split: str) -> dict[str, str] | None:
    """{id: gold}; None if LaMP withholds the golds."""
    if split == "test" and not path.exists():
        log.warning("%s does not exist: LaMP withholds the golds of its test split; they are read as empty.", path)
        return None
    name, rows = raw_outputs(path, GOLDS)
    if name not in (task.official_name, task.name):
        every = (TASKS | MORE_TASKS).values()
        named = [other.name for other in every if name in (other.official_name, other.name)]
        option = f", or --task {' or '.join(named)}" if named else ""
        raise KitError(
            f"The gold file {path} is of {name}, not of {task.official_name}: give the folder of {task.name}{option}."
        )
    return {key: read_gold(task, gold, f"The gold of {shown(key)} in the gold file {path}") for key, gold, _ in rows}


def _example(task: Task, row: Mapping[str, object], output: str, where: str) -> Example:
    """The row as an example. Raises KitError that names the example and the item."""
    profile = row["profile"]
    if not isinstance(profile, list):
        raise KitError(f"{where} has a profile that is not a list of items: correct it, or {AGAIN}.")
    input = as_text(row["input"], f"{where}: input", numbers=False)
    check_no_placeholder(task, input, f"The input of {where[0].lower()}{where[1:]}")

    def hint() -> str:
        other = task_of_input(input)
        option = f" Or give --task {other.name}, whose example this is." if other and other is not task else ""
        return f" Check that this is a file of {task.name}, or {AGAIN}.{option}"

    items = [
        read_item(task, item, f"{where}, profile item {n}", strict=True, hint=hint) for n, item in enumerate(profile)
    ]
    if len({item["id"] for item in items}) < len(items):
        twice = Counter(item["id"] for item in items).most_common(1)[0][0]
        raise KitError(f"{where} has two profile items with the id {shown(twice)}: give each its own id.")
    return Example(
        id=str(row["id"]),
        user_id=as_id(row.get("user_id", row["id"]), f"{where}: user_id"),
        input=input,
        output=output,
        profile=items,
    )


def _report(path: Path, notes: Notes) -> None:
    """Log what is unusual in the file, whenever it or its conversion is opened."""
    excluded, total = notes["excluded"], notes["total"]
    if excluded:
        ids = ", ".join(excluded[:5]) + (", …" if len(excluded) > 5 else "")
        log.warning("%s: excluded %d of %d examples without instruction: %s.", path, len(excluded), total, ids)
    if notes["empty"]:
        log.warning("%s: %d of %d examples have an empty profile; they are kept.", path, notes["empty"], total)
    if notes["html_entities"]:
        text = "%s: %d of %d examples have HTML entities such as &amp; in input or gold; LaMP scores them as they are."
        log.warning(text, path, notes["html_entities"], total)
    if notes.get("foreign_labels"):
        text = "%s: %d profile items have a label that is not one of the task's; they are shown, but never queries."
        log.warning(text, path, notes["foreign_labels"])
    if notes.get("users_found", total) < total - len(excluded):
        log.warning("%s: %d examples of %d users, identified by their histories.", path, total, notes["users_found"])
    if notes["gold_in_profile"]:
        advice = "those items are dropped" if notes["gold_dropped"] else "set data.drop_gold to remove those items"
        count = notes["gold_in_profile"]
        log.warning("%s: %d of %d examples have their gold in their own profile; %s.", path, count, total, advice)


def split_summary(dataset: Dataset) -> dict[str, object]:
    """A split in numbers: examples, users, profile sizes, golds, and what is unusual in LaMP's files.

    "excluded", "gold_in_profile", "gold_dropped" and "html_entities" count in the whole file, even for a selection.
    """
    notes = notes_of(dataset)
    lengths = [pc.list_value_length(batch["profile"]) for batch in dataset.with_format("arrow").iter(256)]
    sizes = np.array([size for part in lengths for size in part.to_pylist()] or [0])
    return {
        "task": notes.get("task", "unknown"),
        "split": notes.get("split", "unknown"),
        "examples": len(dataset),
        "users": len(set(dataset["user_id"])),
        "profile_min": int(sizes.min()),
        "profile_median": float(np.median(sizes)),
        "profile_mean": float(sizes.mean()),
        "profile_max": int(sizes.max()),
        "empty_profiles": int(np.sum(sizes == 0)) if len(dataset) else 0,
        "most_common_outputs": dict(Counter(dataset["output"]).most_common(5)),
        "excluded": notes.get("excluded", []),
        "gold_in_profile": notes.get("gold_in_profile", 0),
        "gold_dropped": notes.get("gold_dropped", 0),
        "html_entities": notes.get("html_entities", 0),
    }


def excluded_outputs(dataset: Dataset) -> dict[str, str]:
    """{id: gold} of the excluded examples, which are in LaMP's gold file too; {} for a part of a split.

    Predictions for a whole split must include them: LaMP's evaluator requires exactly the ids of the golds.
    """
    notes = notes_of(dataset)
    excluded = notes.get("excluded_outputs", {})
    return excluded if len(dataset) + len(excluded) == notes.get("total") else {}


def write_lamp(folder: Path, task: Task, split: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as LaMP's two official files of a split; a row that `read_lamp` would reject is rejected here."""
    questions, golds = [], {}
    for number, row in enumerate(rows):
        missing = {"id", "input", "output", "profile"} - set(row)
        where = f"Row {number} for {folder} ({task.name} {split})"
        if missing:
            raise KitError(f"{where} lacks {', '.join(sorted(missing))}: give rows as read_lamp returns them.")
        withheld = split == "test" and row["output"] == ""
        gold = "" if withheld else read_gold(task, row["output"], f"{where}: output")
        example = _example(task, row, gold, where)
        if example["id"] in golds:
            raise KitError(f"{where} repeats the id {shown(example['id'])}: give each row its own.")
        if not task.is_official(example["input"]):
            raise KitError(f"{where} is not an input of {task.name}: {shown(example['input'])}: use Task.make_input.")
        golds[example["id"]] = gold
        questions.append({key: value for key, value in example.items() if key != "output"})
    write_outputs(Path(folder) / f"{split}_outputs.json", task.official_name, golds)
    write_json(Path(folder) / f"{split}_questions.json", questions)  # last: a reader looks for this one first
