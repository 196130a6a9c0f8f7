"""Whether a trajectory says the truth about the items that it cites. Personas only: their habits and facts are known.

Three questions for a completion, each answered between 0 and 1:

    faithful    share of its statements that say of each item cited what the persona's own rules say, word for word
    habit_named share of its statements that name the habit which each item cited shows (softer: the words may differ)
    majority    whether it follows the habit that most of the items shown show, in a tie the first one: its rewrite is
                that habit's answer or, if it is no habit's answer, its plan names that habit and no other

A *statement* is what stands behind one or more citations: "[1] opens ugh, ends smh: grumpy". Text without a citation is
not checked. A completion that does not parse, or cites nothing, states nothing and counts as 0: the mean is over all
completions.

    truth = truth_of(get_task("LaMP-7"), example, items)            # None for real users
    truth.statements                                                # ('opens ugh, ends smh: grumpy', …)
    check(completion, truth, shots=2)           # Checked(cites_many=False, faithful=1.0, habit_named=1.0, majority=1.0)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.personas.oracle import believed_habit
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.prompts import restore_tags
from rpo_kit.rewriting.trajectory import Trajectory, parse
from rpo_kit.setting_rules import SECTIONS

# Possessive, as the text is a model's: citations, then what they say, up to the next citation or the end of the line.
_STATEMENT = re.compile(r"((?:\[\d{1,4}\][\s,&]*+)++)((?:[^\[\n]|\[(?!\d{1,4}\]))*+)")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Truth:
    """What a reader without errors knows about a prompt."""

    statements: tuple[str, ...]  # of the items shown, by rank
    habits: tuple[str | None, ...]  # which habit each item shows
    majority: str | None  # None if no item shows a habit
    answers: dict[str, str]  # habit: its answer to the query


@dataclass(frozen=True)
class Checked:
    """One completion; the last three are 0..1, and None without a `Truth`."""

    cites_many: bool  # more than one of the items shown
    faithful: float | None = None
    habit_named: float | None = None
    majority: float | None = None


def truth_of(task: Task, example: Example, items: Sequence[Item]) -> Truth | None:
    """The truth about these items and the example's query; None if it is unknown, as for real users."""
    facts = example.get("facts") or {}
    known: dict[str, Any] = {**facts.get("items", {})}
    if not facts.get("query") or not all(item["id"] in known for item in items):
        return None
    rules = persona(task.name)
    habits = tuple(rules.shown_habit(item, known[item["id"]]) for item in items)
    return Truth(
        tuple(_plain(rules.observe(item, known[item["id"]])) for item in items),
        habits,
        believed_habit(task.name, example, items) if any(habits) else None,
        {habit: _plain(rules.apply(habit, facts["query"])) for habit in rules.HABITS},
    )


def check(completion: str, truth: Truth | None, shots: int, sections: tuple[str, ...] = SECTIONS) -> Checked:
    """What a completion cites, of `shots` items shown, and how true it is. Never raises."""
    trajectory = parse(completion, sections).trajectory
    cited = {number for number in trajectory.cited if 1 <= number <= shots} if trajectory else set()
    if truth is None:
        return Checked(len(cited) > 1)
    if trajectory is None:
        return Checked(False, 0.0, 0.0, 0.0)
    said = statements(trajectory.observe)
    true = [is_true(numbers, text, truth) for numbers, text in said]
    named = [all(_named(text, truth) == _says(truth.habits, n, "") for n in numbers) for numbers, text in said]
    return Checked(len(cited) > 1, _mean(true), _mean(named), float(_follows(trajectory, truth)))


def shares_of(checked: Sequence[Checked]) -> dict[str, float]:
    """Means over completions; without the truth, the share that cites several items is all that is known."""
    shares = {"cites_many": fmean(one.cites_many for one in checked)}
    if all(one.faithful is not None for one in checked):
        names = ("faithful", "habit_named", "majority")
        shares |= {name: fmean(getattr(one, name) for one in checked) for name in names}
    return shares


def statements(observe: str) -> list[tuple[list[int], str]]:
    """(numbers of the items cited, what is said of them) for each statement; blanks and case do not matter."""
    return [
        ([int(number) for number in _NUMBER.findall(cited)], _plain(text))
        for cited, text in _STATEMENT.findall(observe)
    ]


def is_true(numbers: Sequence[int], text: str, truth: Truth) -> bool:
    """Whether a statement (see `statements`) says of each item that it cites what a reader without errors would say."""
    return all(_says(truth.statements, number) == text for number in numbers)


def _plain(text: str) -> str:
    return " ".join(restore_tags(text).casefold().split()).rstrip(".,;")


def _says(values: Sequence[str | None], number: int, missing: str | None = None) -> str | None:
    return values[number - 1] if 1 <= number <= len(values) else missing


def _named(text: str, truth: Truth) -> str | None:
    """The habit that the text names last: an observation ends in its conclusion."""
    last = {habit: found[-1].start() for habit in truth.answers if (found := _mentions(habit, text))}
    return max(last, key=lambda habit: last[habit]) if last else None


def _mentions(habit: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(habit.casefold())}(?!\w)", text))


def _follows(trajectory: Trajectory, truth: Truth) -> bool:
    if truth.majority is None:
        return False
    rewrite, plan = _plain(trajectory.rewrite), _plain(trajectory.plan)
    if rewrite in truth.answers.values():
        return truth.answers[truth.majority] == rewrite
    return [habit for habit in truth.answers if _mentions(habit, plan)] == [truth.majority]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
