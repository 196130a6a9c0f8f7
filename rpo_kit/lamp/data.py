"""LaMP's files as a `datasets.Dataset`: one row per example, with the user's profile and the gold.

The left edge of Figure 1: where the query q and the profile U come from, be it LaMP's official files or the embedded
personas, which have the same format. Every row is checked on load. A row without the task's instruction (LaMP-2 has
one) is excluded, counted and reported; any other defect stops with a sentence. An empty profile is kept: the method
must cope. Left out: downloading (see `download`); how gigabytes stay out of memory (see `stream` and `table`).

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
from rpo_kit.lamp.leaks import check_is_text, gold_positions, has_entity, history_key, users_by_history
from rpo_kit.lamp.stream import stream_list
from rpo_kit.lamp.table import Notes, conversion_of, notes_of, open_rows, write_rows
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, Task

log = logging.getLogger(__name__)


def read_lamp(folder: Path, task: Task, split: str, *, drop_gold: bool = False, cache: Path | None = None) -> Dataset:
    """`{split}_questions.json` and `{split}_outputs.json` of a folder, in the order of the questions.

    `user_id` is the file's; if it has none (LaMP's user split), the id of the first example with the same history.
    Items keep their id, the task's fields and `date`, if given. `drop_gold` removes items that give the gold away from
    the profiles; they are counted either way. A large file is converted once, into `cache`.

    Raises: KitError if a file is missing, broken, of another task, or has a row that cannot be used.
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
    """One pass over a questions file: yields the rows, and counts what has to be reported afterwards."""

    path: Path
    task: Task
    split: str
    golds: dict[str, str] | None  # None: withheld
    drop_gold: bool
    ids: dict[str, None] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)  # ids
    histories: list[np.ndarray] = field(default_factory=list)  # one per kept id; empty if the row has a user_id
    users: list[str | None] = field(default_factory=list)  # one per kept id, as the file says
    other: Task | None = None  # the task whose instruction an excluded row has
    has: dict[str, bool] = field(default_factory=dict)  # whether the first row has a "user_id", the first item a "date"

    def rows(self) -> Iterator[Example]:
        for number, row in enumerate(stream_list(self.path)):
            if not isinstance(row, dict) or not {"id", "input", "profile"} <= set(row):
                raise self._incomplete(number, row)
            example = self._checked(number, row)
            if self.task.is_official(example["input"]):
                yield self._counted(example, "user_id" in row)
            else:
                self.excluded.append(example["id"])
                self.other = self.other or task_of_input(example["input"])
        self._check_ids()
        if not self.kept:
            raise KitError(
                f"No question in the question file {self.path} is a question of {self.task.name}, which begin with "
                f"{self.task.prefix[:60]!r}…: give the folder of {self.task.name} ({self.task.title}), or "
                f"{_task_option(self.other)}."
            )

    def _incomplete(self, number: int, row: object) -> KitError:
        missing = {"id", "input", "profile"} - set(row) if isinstance(row, dict) else {"everything"}
        name = f", id {shown(row['id'])}," if isinstance(row, dict) and "id" in row else ""
        lacking = ", ".join(sorted(missing))
        return KitError(
            f"Row {number}{name} of the question file {self.path} lacks {lacking}: complete it, or {AGAIN}."
        )

    def _checked(self, number: int, row: Mapping[str, object]) -> Example:
        """One checked row; its id has not occurred before."""
        key = as_id(row["id"], f'"id" of row {number} of the question file {self.path}')
        if key in self.ids:
            raise KitError(f"The id {shown(key)} occurs twice in {self.path}: keep one of the two questions.")
        self.ids[key] = None
        where = f"Question {shown(key)} in {self.path}"
        example = _example(self.task, {**row, "id": key}, (self.golds or {}).get(key, ""), where)
        self._check_separation("user_id", "user_id" in row, where)
        for item in example["profile"]:
            self._check_separation("date", "date" in item, where)
        return example

    def _check_separation(self, name: str, has: bool, where: str) -> None:
        """LaMP's time split has a user_id for each example and a date for each item, its user split neither."""
        if self.has.setdefault(name, has) != has:
            what = ("comes" if name == "user_id" else "has an item") + (" with" if has else " without")
            raise KitError(
                f"{where} {what} a {name}, unlike the rows before it: this file mixes LaMP's time split (which has "
                "user_id and date) with its user split. Take the file of one of them."
            )

    def _counted(self, example: Example, has_user: bool) -> Example:
        leaking = gold_positions(self.task, example)
        self.counts["gold_in_profile"] += bool(leaking)
        self.counts["html_entities"] += has_entity(example["input"]) or has_entity(example["output"])
        self.kept.append(example["id"])
        self.users.append(example["user_id"] if has_user else None)
        keys = [] if has_user else [history_key(item) for item in example["profile"]]
        self.histories.append(np.array(keys, np.int64))
        if self.drop_gold and leaking:
            self.counts["gold_dropped"] += len(leaking)
            example["profile"] = [item for n, item in enumerate(example["profile"]) if n not in leaking]
        self.counts["empty"] += not example["profile"]
        if self.task.items_have_labels and self.task.kind == "classification":
            self.counts["foreign_labels"] += sum(item_gold(self.task, item) is None for item in example["profile"])
        return example

    def _check_ids(self) -> None:
        if not self.ids:
            raise KitError(
                f"The question file {self.path} should be a JSON list of questions, and not an empty one: {AGAIN}."
            )
        if self.golds is None:
            return
        missing, extra = sorted(self.ids.keys() - self.golds.keys()), sorted(self.golds.keys() - self.ids.keys())
        if missing or extra:
            golds = self.path.with_name(f"{self.split}_outputs.json")
            raise KitError(
                f"The gold file {golds} does not fit its questions: {len(missing)} of {len(self.ids)} questions have "
                f"no output {missing[:3]}, {len(extra)} outputs have no question {extra[:3]}. Take both files from one "
                "release, and of one split (LaMP's user split or time split)."
            )

    def notes(self) -> Notes:
        """What travels with the dataset; "users" only if the file does not name all of them."""
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
        if None in self.users:
            notes["users"] = users_by_history(self.kept, self.histories)
            notes["users_found"] = len(set(notes["users"]))
        return notes


def _read_golds(path: Path, task: Task, split: str) -> dict[str, str] | None:
    """{id: output}; None if LaMP withholds the outputs."""
    if split == "test" and not path.exists():
        log.warning("%s does not exist: LaMP withholds the outputs of its test split; they are read as empty.", path)
        return None
    name, rows = raw_outputs(path, GOLDS)
    if name not in (task.official_name, task.name):
        every = (TASKS | MORE_TASKS).values()
        named = [other.name for other in every if name in (other.official_name, other.name)]
        option = f", or --task {' or '.join(named)}" if named else ""
        raise KitError(
            f"The gold file {path} says it is of {name} and not of {task.official_name}: give the folder of "
            f"{task.name}{option}."
        )
    return {key: read_gold(task, output, f"The output of {shown(key)} in {path}") for key, output, _ in rows}


def _task_option(task: Task | None) -> str:
    return f"give --task {task.name}, which they are of" if task else "name the task it is with --task"


def _example(task: Task, row: Mapping[str, object], output: str, where: str) -> Example:
    """One checked row. Raises KitError that names the example and the item."""
    profile = row["profile"]
    if not isinstance(profile, list):
        raise KitError(f"{where} has a profile that is not a list of items: correct it, or {AGAIN}.")
    input = as_text(row["input"], f"{where}: input", numbers=False)
    check_is_text(task, input, f"The input of {where[0].lower()}{where[1:]}")

    def hint() -> str:
        other = task_of_input(input)
        option = f" Or give --task {other.name}, whose question this is." if other and other is not task else ""
        return f" Check that this is a file of {task.name}, or {AGAIN}.{option}"

    items = [
        read_item(task, item, f"{where}, profile item {n}", strict=True, hint=hint) for n, item in enumerate(profile)
    ]
    if len({item["id"] for item in items}) < len(items):
        twice = Counter(item["id"] for item in items).most_common(1)[0][0]
        raise KitError(f"{where} has two profile items of the id {shown(twice)}: give each an id of its own.")
    return Example(
        id=str(row["id"]),
        user_id=as_id(row.get("user_id", row["id"]), f"{where}: user_id"),
        input=input,
        output=output,
        profile=items,
    )


def _report(path: Path, notes: Notes) -> None:
    """Log what is odd in the file; at every opening, also of a conversion."""
    excluded, total = notes["excluded"], notes["total"]
    if excluded:
        ids = ", ".join(excluded[:5]) + (", …" if len(excluded) > 5 else "")
        log.warning("%s: excluded %d of %d questions without instruction: %s.", path, len(excluded), total, ids)
    if notes["empty"]:
        log.warning("%s: %d of %d questions have an empty profile; they are kept.", path, notes["empty"], total)
    if notes["html_entities"]:
        text = (
            "%s: %d of %d questions have HTML entities such as &amp; in input or output; LaMP scores them as they are."
        )
        log.warning(text, path, notes["html_entities"], total)
    if notes.get("foreign_labels"):
        text = "%s: %d profile items have a label that is none of the task's; they are shown, but never asked about."
        log.warning(text, path, notes["foreign_labels"])
    if notes.get("users_found", total) < total - len(excluded):
        log.warning("%s: %d questions of %d users, found by their histories.", path, total, notes["users_found"])
    if notes["gold_in_profile"]:
        advice = "those items are dropped" if notes["gold_dropped"] else "set data.drop_gold to remove those items"
        count = notes["gold_in_profile"]
        log.warning("%s: %d of %d questions have their gold in their own profile; %s.", path, count, total, advice)


def split_summary(dataset: Dataset) -> dict[str, object]:
    """A split in numbers: examples, users, profile sizes, golds, and what is odd in LaMP's files.

    "excluded", "gold_in_profile", "gold_dropped" and "html_entities" are of the whole file, also for a selection.
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
    """{id: gold} of the rows without instruction, which LaMP's outputs file has too; {} for a part of a split.

    Predictions for a whole split must include them: LaMP's evaluator demands exactly the ids of the golds.
    """
    notes = notes_of(dataset)
    excluded = notes.get("excluded_outputs", {})
    return excluded if len(dataset) + len(excluded) == notes.get("total") else {}


def _written_gold(task: Task, split: str, value: object, where: str) -> str:
    """A gold to write; "" is what stands for one that LaMP withholds."""
    return "" if split == "test" and value == "" else read_gold(task, value, where)


def write_lamp(folder: Path, task: Task, split: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as LaMP's two official files of a split; a row that `read_lamp` would reject is rejected here."""
    questions, outputs = [], {}
    for number, row in enumerate(rows):
        missing = {"id", "input", "output", "profile"} - set(row)
        where = f"Row {number} for {folder} ({task.name} {split})"
        if missing:
            raise KitError(f"{where} lacks {', '.join(sorted(missing))}: give rows as read_lamp returns them.")
        example = _example(task, row, _written_gold(task, split, row["output"], f"{where}: output"), where)
        if not task.is_official(example["input"]) or example["id"] in outputs:
            raise KitError(f"{where} repeats an id or has no official input: use one id per row and Task.make_input.")
        outputs[example["id"]] = example["output"]
        questions.append({key: value for key, value in example.items() if key != "output"})
    write_outputs(Path(folder) / f"{split}_outputs.json", task.official_name, outputs)
    write_json(Path(folder) / f"{split}_questions.json", questions)  # last: a reader asks for this one first
