"""Validation of profile items and golds on load: an error names the field and the remedy.

`data` validates LaMP's files, `rewriting` the items that a program or a server passes in.

    read_item(task, {"id": 7, "text": "Broke twice.", "score": 1}, "Item 0")
    # {'id': '7', 'text': 'Broke twice.', 'score': '1'}
    read_gold(get_task("LaMP-3"), "4.0", "The gold of 310")        # '4', as LaMP's own files have it
    read_gold(get_task("LaMP-2"), "Sci-Fi", "The gold of 110")     # KitError: … write it as 'sci-fi'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import AGAIN, as_id, as_text, shown
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, Item, Task

_CORRECT = f"correct it, or {AGAIN}"


def read_item(
    task: Task, item: object, where: str, *, strict: bool = False, hint: Callable[[], str] | None = None
) -> Item:
    """The item with its fields as strings. `strict`, for LaMP's files, requires an id, quoted texts and valid ratings.

    `hint` returns a further remedy for the message if fields are missing.

    Raises:
        KitError: the item is not a JSON object, lacks a field, or has a field that is not text.
    """
    names = ("id", *task.fields) if strict else task.fields
    if not isinstance(item, dict) or not item.keys() >= set(names):
        missing = [name for name in names if not isinstance(item, dict) or name not in item]
        example = ", ".join(f'"{name}": "…"' for name in ("id", *task.fields))
        raise KitError(
            f"{where} lacks {', '.join(missing)}: items of {task.name} ({task.title}) have {', '.join(names)}, as in "
            f"{{{example}}}.{hint() if hint else ''}"
        )
    texts = {}
    if "id" in item:
        texts["id"] = as_id(item["id"], f"{where}: id") if strict else str(item["id"])
    numbers = task.gold_field if task.items_have_labels else ""  # the only field that may be a number
    for name in task.fields:
        texts[name] = as_text(item[name], f"{where}: {name}", numbers=name == numbers or not strict)
    if "date" in item:
        date = item["date"]
        texts["date"] = "" if date is None else as_text(date, f"{where}: date")
    if task.kind == "regression" and strict:
        _check_rating(task, texts[task.gold_field], f"{where}: {task.gold_field}")
    return texts


def items_by_id(profile: Iterable[Item], example_id: str) -> dict[str, Item]:
    """{item id: item}. Raises KitError if two items have one id: records name items by their ids."""
    items: dict[str, Item] = {}
    for item in profile:
        if item["id"] in items:
            raise KitError(
                f"Two profile items of example {shown(example_id)} have the id {shown(item['id'])}: give each an id of "
                "its own, and prepare the data again."
            )
        items[item["id"]] = item
    return items


def read_gold(task: Task, value: object, where: str) -> str:
    """The gold as text; a rating such as 4.0 becomes "4", which is how LaMP writes it.

    Raises:
        KitError: it is not text, or not one of the task's labels: LaMP's evaluator would count every prediction that
            is not a label as equal to it.
    """
    text = as_text(value, where, numbers=task.kind != "generation")
    if task.kind == "generation" or text.strip() in task.labels:
        return text
    if task.kind == "regression":
        rating = _check_rating(task, text, where)
        known = {float(label): label for label in task.labels}
        if rating not in known:
            raise KitError(f"{where} is {shown(text)}, which is not a rating {_scale(task)}: {_CORRECT}.")
        return known[rating]
    close = [label for label in task.labels if label.casefold() == text.strip().casefold()]
    if close:
        raise KitError(
            f"{where} is {shown(text)}, and LaMP compares labels character by character: write it as {close[0]!r}."
        )
    namesakes = [other for other in (TASKS | MORE_TASKS).values() if other.official_name == task.official_name]
    named = [other.name for other in namesakes if text.strip() in other.labels]
    instead = f" Or give --task {named[0]}." if named else ""
    raise KitError(
        f"{where} is {shown(text)}, which is not a label of {task.name} ({task.title}): correct it to one of "
        f"{', '.join(task.labels)}, or {AGAIN}.{instead}"
    )


def item_gold(task: Task, item: Item) -> str | None:
    """The item's gold, as `read_gold` returns it; None if it is not one of the task's labels."""
    try:
        return read_gold(task, item[task.gold_field], "")
    except KitError:
        return None


def task_of_input(input: object) -> Task | None:
    """The task whose instruction the input has, whichever task is expected; None if there is none."""
    every = (TASKS | MORE_TASKS).values()
    return next((task for task in every if isinstance(input, str) and task.is_official(input)), None)


def _check_rating(task: Task, text: str, where: str) -> float:
    """The rating as a number. Raises KitError on load, instead of failing in the metric after training."""
    if text in task.labels:
        return float(text)
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if not float(task.labels[0]) <= rating <= float(task.labels[-1]):
        raise KitError(f"{where} is {shown(text)}, which is not a rating {_scale(task)}: {_CORRECT}.")
    return rating


def _scale(task: Task) -> str:
    return f"from {task.labels[0]} to {task.labels[-1]}"
