"""A history typed in, one item per line, for every task."""

from __future__ import annotations

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task
from rpo_kit.study.typed_items import as_line, items_of, line_form


@pytest.mark.parametrize("task", (TASKS | MORE_TASKS).values(), ids=lambda task: task.name)
def test_an_item_written_as_a_line_reads_the_same_to_the_module(task):
    values = {name: f"a {name}" for name in task.fields} | ({task.gold_field: task.labels[0]} if task.labels else {})
    line = as_line(task, {"id": "7"} | values)
    (item,) = items_of(task, line)
    assert task.item_line(item) == task.item_line({"id": "7"} | values)
    assert as_line(task, item) == line
    assert item.keys() == {"id", *task.fields}


@pytest.mark.parametrize("name", personas.MODULES)
def test_a_pasted_persona_reads_the_same_to_the_module(name):
    task, (user,) = get_task(name), personas.build(name, "dev", 1)
    pasted = "\n\n".join(as_line(task, item) for item in user["profile"])
    assert [task.item_line(item) for item in items_of(task, pasted)] == [task.item_line(i) for i in user["profile"]]


def test_the_form_names_the_fields_that_the_module_reads():
    assert [line_form(get_task(name)) for name in ("LaMP-3", "LaMP-7")] == ["text -> score", "text"]


def test_the_last_arrow_divides_text_and_label_and_ids_are_line_numbers():
    items = items_of(get_task("LaMP-3"), "\n go -> left -> 4.0 \r\n\nfine->5")
    assert items == [{"id": "2", "text": "go -> left", "score": "4"}, {"id": "3", "text": "fine", "score": "5"}]
    assert items_of(get_task("LaMP-7"), "go -> left")[0]["text"] == "go -> left", "a tweet may hold an arrow"


def test_nothing_is_no_items():
    assert items_of(get_task("LaMP-3"), " \n\n") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fine -> 5\nno arrow", "Line 2 is not of the form `text -> score`: 'no arrow'. Write one item per line."),
        ("-> 5", "Line 1 is not of the form"),
        ("fine ->", "Line 1 is not of the form"),
        ("fine -> six", "Line 1 ends in 'six': write one of 1, 2, 3, 4, 5 after ->."),
        ("fine -> nan", "Line 1 ends in 'nan'"),
    ],
)
def test_a_line_of_another_form_is_named_with_the_right_one(text, said):
    with pytest.raises(KitError) as error:
        items_of(get_task("LaMP-3"), text)
    assert str(error.value).startswith(said)
