"""A user's history as lines of text, one item per line, as one types or pastes it.

A line has the fields that the module reads (`Task.line`), with "->" between a text and its label or title; fields that
the module does not read stay empty. Blank lines are skipped. What the lines say is data: nothing in it is interpreted.

    >>> from rpo_kit.lamp.tasks import get_task
    >>> line_form(get_task("LaMP-3"))
    'text -> score'
    >>> items_of(get_task("LaMP-3"), "Broke twice. -> 1")
    [{'id': '1', 'text': 'Broke twice.', 'score': '1'}]
"""

from __future__ import annotations

import re

from rpo_kit.errors import KitError
from rpo_kit.lamp.item import item_gold
from rpo_kit.lamp.tasks import Item, Task

ARROW = "->"


def line_fields(task: Task) -> list[str]:
    """The fields of an item that a line has, in order."""
    return re.findall(r"\{(\w+)\}", task.line)


def line_form(task: Task) -> str:
    """What a line looks like: "text -> score"."""
    return f" {ARROW} ".join(line_fields(task))


def as_line(task: Task, item: Item) -> str:
    """The item as a line, whitespace collapsed."""
    return f" {ARROW} ".join(" ".join(item[name].split()) for name in line_fields(task))


def items_of(task: Task, text: str) -> list[Item]:
    """The items of all lines; an item's id is the number of its line.

    Raises:
        KitError: a line lacks a part, or its label is not one of the task's.
    """
    lines = enumerate(re.split(r"[\r\n]+", text), 1)
    return [item_of(task, line, str(number), f"Line {number}") for number, line in lines if line.strip()]


def item_of(task: Task, line: str, id: str, where: str) -> Item:
    """The item of one line; `where` names the line in the error. Raises KitError as `items_of`."""
    names = line_fields(task)
    parts = [line.strip()] if len(names) == 1 else [part.strip() for part in line.rpartition(ARROW)[::2]]
    if not all(parts):
        raise KitError(
            f"{where} is not of the form `{line_form(task)}`: {line.strip()[:60]!r}. Write one item per line."
        )
    item = {"id": id} | dict.fromkeys(task.fields, "") | dict(zip(names, parts, strict=True))
    if task.items_have_labels:
        label = item_gold(task, item)
        if label is None:
            raise KitError(
                f"{where} ends in {item[task.gold_field][:40]!r}: write one of {', '.join(task.labels)} after {ARROW}."
            )
        item[task.gold_field] = label
    return item
