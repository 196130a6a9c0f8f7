"""Trajectories written elsewhere: `synthesis.teacher=file:TRAJECTORIES.jsonl`, one JSON object per line.

    {"example": "60001", "items": ["600013"], "observe": "[1] lower case", "plan": "lower case", "rewrite": "so tired"}

`example` is the id of a train example. `items` are ids of items of its profile, numbered in this order from `first`
(default 1). Without `items`, the numbers that `observe` cites are ranks, as `prepare` ranked the profile. `id` (default
EXAMPLE/N) and `task` are optional; other keys are ignored. So the `trajectories.jsonl` of a run is such a file.

The file is checked when the settings are; each trajectory then passes the filters of a chat model's (`filters.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.files import Role, check_present, not_utf8, reject_repeated_keys, shown
from rpo_kit.lamp.item import items_by_id
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.presets import Preset
from rpo_kit.rewriting.trajectory import Trajectory, is_writable, render
from rpo_kit.setting_rules import SECTIONS
from rpo_kit.text import replace_surrogates
from rpo_kit.training.teachers import Draft, Judge, Request

TRAJECTORIES = Role("trajectory file", "write it again", "it was not written to its end")
UNKNOWN_ITEM = "names an item that is not in the profile"
UNRANKED = "cites no item, or one beyond the end of the profile"
_FORM = '{"example": "60001", "items": ["600013"], "observe": "[1] …", "plan": "…", "rewrite": "…"}'


@dataclass(frozen=True)
class Line:
    """One trajectory of a file. `items` is None if the numbers cited are ranks; `where` is its place for messages."""

    id: str  # "" if the file gives none
    example: str
    items: tuple[str, ...] | None
    first: int
    trajectory: Trajectory
    where: str


def check_imported(preset: Preset) -> str:
    """Check the files of the setting `synthesis.teacher`. Raises KitError as `read_lines`; "" if nothing is wrong."""
    files = recorded_files(preset.synthesis.teacher)
    if files:
        read_lines(files, get_task(preset.data.task))
    return ""


class ImportedTeacher:
    """A `Teacher` whose texts were written before: it makes its own requests, and answers them."""

    def __init__(self, files: Sequence[Path], task: Task) -> None:
        self.names = " and ".join(str(path) for path in files)
        self.lines = read_lines(files, task)
        self._drafts: dict[str, Draft] = {}

    def requests(self, examples: Sequence[Example]) -> list[Request]:
        """One request per trajectory about a train example; prints how many others are ignored.

        Raises:
            KitError: no trajectory is about a train example of the run.
        """
        known = {example["id"]: example for example in examples}
        used = [line for line in self.lines if line.example in known]
        if not used:
            raise KitError(
                f"None of the {len(self.lines)} trajectories in {self.names} is about one of the {len(known)} train "
                f"examples of this run; their examples are {_such_as([line.example for line in self.lines])}. Check "
                "--task, --data and data.train_users."
            )
        if len(used) < len(self.lines):
            others = [line.example for line in self.lines if line.example not in known]
            print(
                f"synthesize: {len(others)} of {len(self.lines)} trajectories in {self.names} are ignored, because "
                f"their examples are not among the train examples: {_such_as(others)}"
            )
        requests = []
        for id_, line in zip(_ids(used), used, strict=True):
            request, reason = _request(id_, line, known[line.example])
            requests.append(request)
            self._drafts[id_] = Draft(_text(line.trajectory), reason=reason)
        return requests

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Draft]]]:
        """The texts of these requests, a chunk at a time."""
        for start in range(0, len(requests), chunk):
            yield [(request, self._drafts[request.id]) for request in requests[start : start + chunk]]


def _request(id_: str, line: Line, example: Example) -> tuple[Request, str | None]:
    """The request with the items that the trajectory is about, and why it has to be rejected, if it has."""
    if line.items is None:
        cited = line.trajectory.cited
        if not cited or not 1 <= min(cited) <= max(cited) <= len(example["ranking"]):
            return Request(id_, example, []), UNRANKED
        items = top_k(example, example["ranking"][min(cited) - 1 :], max(cited) - min(cited) + 1)
        return Request(id_, example, items, min(cited)), None
    profile = items_by_id(example["profile"], example["id"])
    items = [profile[item] for item in line.items if item in profile]
    reason = UNKNOWN_ITEM if len(items) < len(line.items) else None
    if line.first + len(line.items) - 1 > len(profile):
        reason = reason or UNRANKED
    return Request(id_, example, items, line.first), reason


def _text(trajectory: Trajectory) -> str:
    """The trajectory as text; if that cannot be parsed again, with its tags, so that the filters say what is wrong."""
    if is_writable(trajectory):
        return render(trajectory)
    return "".join(f"<{name}>{getattr(trajectory, name)}</{name}>" for name in SECTIONS)


def _ids(lines: Sequence[Line]) -> list[str]:
    """The id of each line: its own, or EXAMPLE/N with the first N that is free."""
    taken, count, ids = {line.id for line in lines if line.id}, Counter[str](), []
    for line in lines:
        id_ = line.id
        while not id_ or (not line.id and id_ in taken):
            id_ = f"{line.example}/{count[line.example]}"
            count[line.example] += 1
        ids.append(id_)
    return ids


# ---- reading ------------------------------------------------------------------------------------------------------


def read_lines(files: Sequence[Path], task: Task) -> list[Line]:
    """The trajectories of all files, blank lines left out.

    Raises:
        KitError: a file is missing, empty or not UTF-8; or lines are not JSON, lack a field, hold one of the wrong
            type, are of another task, or repeat another line. The message counts them and names the first.
    """
    rows = [row for path in files for row in _rows(path)]
    problems: dict[str, list[str]] = {}
    lines: list[Line] = []
    for row, where in rows:
        problem = row if isinstance(row, str) else _problem(row, task)
        if problem or isinstance(row, str):
            problems.setdefault(problem, []).append(where)
        else:
            lines.append(_line(row, where))
    for where in _repeated(lines):
        problems.setdefault("repeat an id or a whole trajectory", []).append(where)
    if problems:
        raise KitError(_describe(problems, len(rows), task))
    return lines


def _rows(path: Path) -> list[tuple[Any, str]]:
    """(the JSON object, or what is wrong with the line; the line's place) for each line of a file."""
    check_present(path, TRAJECTORIES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start, TRAJECTORIES) from error
    rows: list[tuple[Any, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append((_parsed(line), f"line {number} of {path}"))
    if not rows:
        raise KitError(f"The {TRAJECTORIES.name} {path} is empty: {TRAJECTORIES.remedy}, one JSON object per line.")
    return rows


def _parsed(line: str) -> Any:
    """The object of a line, or what is wrong with it. As pandas writes them: without fields that are null, and with
    whole numbers as ids and ratings.
    """
    if line.strip() == "[":
        return "begin a JSON list, where each line must be an object of its own (JSONL)"
    try:
        value = json.loads(line, object_pairs_hook=reject_repeated_keys)
    except (ValueError, RecursionError):
        return "are not complete JSON, or repeat a key"
    if not isinstance(value, dict):
        return "are not JSON objects"
    value = json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False)))
    known = {name: part for name, part in value.items() if part is not None}
    return known | {name: str(known[name]) for name in ("id", "rewrite") if type(known.get(name)) is int}


def _problem(row: Mapping[str, Any], task: Task) -> str:
    """What is wrong with a line's object, as "lack plan"; "" if nothing."""
    missing = [name for name in ("example", *SECTIONS) if row.get(name) is None or not str(row[name]).strip()]
    if missing:
        return f"lack {', '.join(missing)}"
    odd = [name for name in ("id", "task", *SECTIONS) if not isinstance(row.get(name, ""), str)]
    odd += [] if type(row["example"]) in (str, int) else ["example"]
    items = row.get("items", [0])  # without items, the numbers cited are ranks
    if not isinstance(items, list) or not items or any(type(item) not in (str, int) for item in items):
        odd.append("items")
    elif len({str(item) for item in items}) < len(items):
        return "name an item twice"
    if type(row.get("first", 1)) is not int or row.get("first", 1) < 1:
        odd.append("first")
    if odd:
        return f"hold the wrong kind of value in {', '.join(odd)}"
    if row.get("task", task.name) not in (task.name, task.official_name):
        return f"are of task {shown(row['task'])}, not of {task.name}"
    return ""


def _line(row: Mapping[str, Any], where: str) -> Line:
    items = tuple(str(item) for item in row["items"]) if "items" in row else None
    trajectory = Trajectory(*(row[name].strip() for name in SECTIONS))
    return Line(row.get("id", ""), str(row["example"]), items, row.get("first", 1), trajectory, where)


def _repeated(lines: Sequence[Line]) -> list[str]:
    """The places of lines with the id, or else the whole content, of an earlier one."""
    seen: set[object] = set()
    places = []
    for line in lines:
        key: object = line.id or (line.example, line.items, line.first, line.trajectory)
        if key in seen:
            places.append(line.where)
        seen.add(key)
    return places


def _describe(problems: Mapping[str, list[str]], total: int, task: Task) -> str:
    parts = [f"{len(places)} {problem} (first: {places[0]})" for problem, places in problems.items()]
    return (
        f"Of {total} lines in the {TRAJECTORIES.name} {'; '.join(parts)}. Correct or remove them; a line for "
        f"{task.name} looks like {_FORM}."
    )


def _such_as(ids: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(ids))
    return ", ".join(map(shown, distinct[:3])) + (", …" if len(distinct) > 3 else "")
