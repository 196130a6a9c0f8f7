"""Recorded answers as the black box: `base=file:PREDICTIONS.json`, in LaMP's prediction format.

For a model that answered earlier or elsewhere. `prepare` takes the generic answers from the files instead of asking a
model, and reads them like any reply (`rewriting/base.py`). A file may answer more examples than the run uses; it must
not lack one. Everything is checked before `prepare` writes anything.

In: `{"task": "LaMP_3", "golds": [{"id": "310", "output": "4"}]}`. Out of `complete_answers`: `{"310": "4"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import Role, as_text, raw_outputs, shown
from rpo_kit.lamp.source import SPLITS, unranked_ids
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.presets import DataSettings, Preset

RECORDED = Role("file of recorded answers", "record it again", "it was not written to its end")


def check_recorded(preset: Preset) -> str:
    """Check the files of recorded answers. Raises KitError as `recorded_answers`; "" if nothing is wrong."""
    recorded_answers(preset)
    return ""


def recorded_answers(preset: Preset) -> dict[str, str]:
    """{id: answer} of all files; {} if the base is a model.

    Raises:
        KitError: a file is missing, damaged or of another task, an id is repeated, or an answer is not text.
    """
    task, answers = get_task(preset.data.task), dict[str, str]()
    for path in recorded_files(preset.base):
        of_file = _read(path, task)
        twice = [id_ for id_ in of_file if id_ in answers]
        if twice:
            raise KitError(
                f"{len(twice)} of the {len(of_file)} ids in the {RECORDED.name} {path} are in another file of base=… "
                f"too{_such_as(twice)}: keep one answer per id."
            )
        answers |= of_file
    return answers


def complete_answers(preset: Preset) -> dict[str, str]:
    """The same; prints how many are used and how many ignored.

    Raises:
        KitError: as `recorded_answers`, or an example of the run has no recorded answer.
    """
    answers, names = recorded_answers(preset), " and ".join(str(path) for path in recorded_files(preset.base))
    ids = {split: unranked_ids(preset.data, split) for split in SPLITS}
    missing = {split: [id_ for id_ in ids[split] if id_ not in answers] for split in SPLITS}
    lacking = [id_ for split in SPLITS for id_ in missing[split]]
    total = sum(len(of_split) for of_split in ids.values())
    others = answers.keys() - {id_ for of_split in ids.values() for id_ in of_split}
    if lacking:
        counts = " and ".join(f"{len(missing[split])} of {len(ids[split])} in {split}" for split in SPLITS)
        raise KitError(
            f"No answer is recorded in {names} for {len(lacking)} of {total} examples ({counts}){_such_as(lacking)}"
            f"{f', but there are {len(others)} answers to other ids{_such_as(sorted(others))}' if others else ''}: "
            f"add them, name a second file after a comma (base=file:TRAIN.json,DEV.json){_fewer(preset.data)}, or "
            "choose a base model."
        )
    ignored = f"; ignored answers to other ids: {len(others)}" if others else ""
    print(f"prepare: {total} generic answers are taken from {names}{ignored}{_unreadable(preset, ids, answers)}")
    return answers


def _unreadable(preset: Preset, ids: Mapping[str, Sequence[str]], answers: Mapping[str, str]) -> str:
    """How many answers name no label of the task, if it is most: perhaps they are of another one."""
    task, used = get_task(preset.data.task), [answers[id_] for of_split in ids.values() for id_ in of_split]
    labels = [label.lower() for label in task.labels]
    without = sum(not any(label in answer.lower() for label in labels) for answer in used)
    if not labels or 2 * without <= len(used):
        return ""
    return f". {without} of them name no label of {task.name}: are they of another task?"


def _fewer(data: DataSettings) -> str:
    if data.leave_one_out:
        return ", set data.leave_one_out=0 (examples made of history items were never asked)"
    return ""


def _read(path: Path, task: Task) -> dict[str, str]:
    name, rows = raw_outputs(path, RECORDED)
    if name not in (task.official_name, task.name):
        raise KitError(
            f"The {RECORDED.name} {path} is of {name}, not of {task.official_name}: name the file of {task.name}, or "
            "choose its task with --task."
        )
    texts: dict[str, str] = {}
    not_text: list[str] = []
    for id_, output, where in rows:
        try:
            texts[id_] = as_text(output, where, remedy=RECORDED.remedy)
        except KitError:
            not_text.append(id_)
    if not_text:
        raise KitError(
            f"{len(not_text)} of the {len(not_text) + len(texts)} outputs in the {RECORDED.name} {path} are not text"
            f"{_such_as(not_text)}: correct them, or {RECORDED.remedy}."
        )
    return texts


def _such_as(ids: Sequence[str]) -> str:
    return f", such as {', '.join(shown(id_) for id_ in ids[:3])}"
