"""LaMP's files as a `datasets.Dataset`: one row a question, with the user's profile and the user's own output.

The left edge of Figure 1: where the question q and the profile U come from, be it LaMP's official files or the embedded
personas, which have the same format. Every row is checked at this door. A question without the task's instruction
(LaMP-2 has one) is excluded, counted and shown; any other defect stops with a sentence. An empty profile is kept: the
method must cope. Left out: downloading, and streaming of the files of several gigabytes.

In: `dev_questions.json` with `[{"id": "310", "input": "What is the score … review: Does what it should.", "profile":
[{"id": "3100", "text": "Broke twice.", "score": "1"}]}]` and `dev_outputs.json` with `{"task": "LaMP_3", "golds":
[{"id": "310", "output": "4"}]}`. Out: a row `{"id": "310", "user_id": "310", "input": "What …", "output": "4",
"profile": [{"id": "3100", "text": "Broke twice.", "score": "1"}]}`.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from datasets import Dataset, DatasetInfo, Features, Value

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import AGAIN, as_text, read_json, read_outputs, write_json, write_outputs
from rpo_kit.lamp.tasks import Item, Task

log = logging.getLogger(__name__)


_TEXTS: tuple[Literal["id", "user_id", "input", "output"], ...] = ("id", "user_id", "input", "output")


class Example(TypedDict):
    """One row of the dataset."""

    id: str
    user_id: str
    input: str
    output: str  # "" where LaMP withholds it (split "test")
    profile: list[Item]


def read_lamp(folder: Path, task: Task, split: str) -> Dataset:
    """`{split}_questions.json` and `{split}_outputs.json` of a folder, in the order of the questions.

    `user_id` is the question's id where the file has none (LaMP's user split: there, several questions of LaMP-2 and
    LaMP-4 may come from one user all the same). Items keep their id, the task's fields and, where given, `date`.
    """
    path = Path(folder) / f"{split}_questions.json"
    questions = _read_questions(path)
    outputs = _read_golds(path.with_name(f"{split}_outputs.json"), task, split, questions)
    rows, excluded = [], []
    for key, row in questions.items():
        example = _example(task, row, outputs[key], f"Question {key!r} in {path}")
        if task.is_official(example["input"]):
            rows.append(example)
        else:
            excluded.append(key)
    if not rows:
        raise KitError(
            f"No question in {path} is a question of {task.name}, which begin with {task.prefix[:60]!r}…: "
            f"give the folder of {task.name} ({task.title}), or name the task it is."
        )
    _say_what_is_odd(path, excluded, sum(not row["profile"] for row in rows), len(questions))
    return _dataset(task, rows, json.dumps({"task": task.name, "split": split, "excluded": excluded}))


def _read_questions(path: Path) -> dict[str, dict[str, Any]]:
    """{id: question} of a questions file; each has "id", "input" and "profile", and no id stands twice."""
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise KitError(f"{path} should be a JSON list of questions, and not an empty one: {AGAIN}, or swap the files.")
    questions: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(content):
        missing = {"id", "input", "profile"} - set(row) if isinstance(row, dict) else {"everything"}
        if missing:
            name = f", id {row['id']!r}," if isinstance(row, dict) and "id" in row else ""
            raise KitError(f"Row {number}{name} of {path} lacks {', '.join(sorted(missing))}: complete it, or {AGAIN}.")
        key = as_text(row["id"], f'"id" of row {number} of {path}')
        if key in questions:
            raise KitError(f"The id {key!r} stands twice in {path}: keep one of the two questions.")
        questions[key] = row
    return questions


def _read_golds(path: Path, task: Task, split: str, questions: Mapping[str, object]) -> dict[str, str]:
    """{id: output}, for exactly the questions' ids; empty texts where LaMP withholds the outputs."""
    if split == "test" and not path.exists():
        log.warning("%s is not there: LaMP withholds the outputs of its test split; they are read as empty.", path)
        return dict.fromkeys(questions, "")
    name, outputs = read_outputs(path)
    if name != task.official_name:
        raise KitError(f"{path} says it is of {name} and not of {task.official_name}: give the folder of {task.name}.")
    missing, extra = sorted(questions.keys() - outputs.keys()), sorted(outputs.keys() - questions.keys())
    if missing or extra:
        raise KitError(
            f"{path} does not fit its questions: {len(missing)} of {len(questions)} questions have no output "
            f"{missing[:3]}, {len(extra)} outputs have no question {extra[:3]}. Take both files from one release."
        )
    return outputs


def _example(task: Task, row: Mapping[str, Any], output: str, where: str) -> Example:
    """One checked row; KitError says which question and which item is wrong."""
    if not isinstance(row["profile"], list):
        raise KitError(f"{where} has a profile that is no list of items: correct it, or {AGAIN}.")
    return Example(
        id=str(row["id"]),
        user_id=as_text(row.get("user_id", row["id"]), f"{where}: user_id"),
        input=as_text(row["input"], f"{where}: input"),
        output=output,
        profile=[_item(task, item, f"{where}, profile item {n}") for n, item in enumerate(row["profile"])],
    )


def _item(task: Task, item: object, where: str) -> Item:
    wanted = ("id", *task.fields)
    missing = [field for field in wanted if field not in item] if isinstance(item, dict) else list(wanted)
    if missing or not isinstance(item, dict):
        raise KitError(
            f"{where} lacks {', '.join(missing)}: items of {task.name} ({task.title}) have {', '.join(wanted)}. "
            f"Check that this is a file of {task.name}, or {AGAIN}."
        )
    dated = ("date",) if item.get("date") else ()
    return {field: as_text(item[field], f"{where}: {field}") for field in (*wanted, *dated)}


def _say_what_is_odd(path: Path, excluded: list[str], empty: int, total: int) -> None:
    if excluded:
        shown = ", ".join(excluded[:5]) + (", …" if len(excluded) > 5 else "")
        log.warning("%s: excluded %d of %d questions without instruction: %s.", path, len(excluded), total, shown)
    if empty:
        log.warning("%s: %d of %d questions have an empty profile; they are kept.", path, empty, total)


def _dataset(task: Task, rows: list[Example], notes: str) -> Dataset:
    """The rows as a table. What was excluded travels in the description, which saving and selecting keep."""
    dated = any("date" in item for row in rows for item in row["profile"])
    fields = ("id", *task.fields, *(("date",) if dated else ()))
    text = Value("string")
    features = Features(dict.fromkeys(_TEXTS, text) | {"profile": [dict.fromkeys(fields, text)]})
    table: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in _TEXTS}
    table["profile"] = [[{name: item.get(name, "") for name in fields} for item in row["profile"]] for row in rows]
    return Dataset.from_dict(table, features=features, info=DatasetInfo(description=notes, features=features))


def split_summary(dataset: Dataset) -> dict[str, Any]:
    """What a split holds, in numbers: examples, users, profile sizes, outputs, and which questions were excluded."""
    notes = json.loads(dataset.info.description or "{}")
    sizes = np.array([len(profile) for profile in dataset["profile"]] or [0])
    outputs = Counter(dataset["output"])
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
        "most_common_outputs": dict(outputs.most_common(5)),
        "excluded": notes.get("excluded", []),
    }


def write_lamp(folder: Path, task: Task, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as LaMP's two official files of a split; a row which `read_lamp` would refuse is refused here."""
    questions, outputs = [], {}
    for number, row in enumerate(rows):
        missing = {"id", "input", "output", "profile"} - set(row)
        where = f"Row {number} for {folder} ({task.name} {split})"
        if missing:
            raise KitError(f"{where} lacks {', '.join(sorted(missing))}: give rows as read_lamp returns them.")
        if not task.is_official(row["input"]) or row["id"] in outputs:
            raise KitError(f"{where} has a known id or no official input: use one id a row and Task.make_input.")
        example = _example(task, row, as_text(row["output"], f"{where}: output"), where)
        outputs[example["id"]] = example["output"]
        questions.append({key: value for key, value in example.items() if key != "output"})
    write_outputs(Path(folder) / f"{split}_outputs.json", task.official_name, outputs)
    write_json(Path(folder) / f"{split}_questions.json", questions)  # last: a reader asks for this one first
