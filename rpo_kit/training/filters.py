"""Quality filters: which trajectories are worth training on, and why the others are not (Figure 2, left).

    cites items that were shown      "cites no item", "cites an item that was not shown"
    ends in the user's own output    "does not end in the gold"; labels word for word, texts by ROUGE
    observes the history only        "observe leaks the gold"
    can be written by a small model  "longer than 200 words"
    is no copy                       "copies a history item" (texts only)

A text that matches closely but not word for word is replaced by the user's own: the teacher was asked for it word for
word, and a slip of the teacher is nothing to learn. The rule-based teacher is held to word for word (`RULES`): where it
is nearly right it followed the wrong habit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.trajectory import Trajectory, trajectory_error

_GIVEN_AWAY = 0.6  # ours: share of the output's words, in one run, that `observe` may not hold
_SPOKEN = re.compile(
    r"\b(?:user'?s own|true|right|correct|gold|target|expected) (?:answer|output|rating|score|tag|title|headline)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Filters:
    """What is asked of a trajectory. `match_text`: how close a text must come to the true output (1: word for word)."""

    match_text: float = 0.9
    max_words: int = 200
    copies: bool = False  # whether a rewrite may be a shown item's text; rules apply a habit and copy by chance only


RULES = Filters(match_text=1.0, copies=True)


def rejection_reason(
    task: Task, example: Example, items: Sequence[tuple[int, Item]], trajectory: Trajectory, filters: Filters
) -> str | None:
    """Why this trajectory is not worth training on, or None; `items` are those shown, with their numbers."""
    error = trajectory_error(trajectory, dict(items))
    if error:
        return error
    if not matches(task, example["output"], trajectory.rewrite, filters.match_text):
        return "does not end in the gold"
    shown = [item for _, item in items]
    if leaks_gold(task, example, shown, trajectory.observe):
        return "observe leaks the gold"
    if len(f"{trajectory.observe} {trajectory.plan} {trajectory.rewrite}".split()) > filters.max_words:
        return f"longer than {filters.max_words} words"
    if (
        task.kind == "generation"
        and not filters.copies
        and _words(trajectory.rewrite) in [_words(item[task.gold_field]) for item in shown]
    ):
        return "copies a history item"
    return None


def matches(task: Task, target: str, rewrite: str, match_text: float) -> bool:
    """Labels and ratings word for word; texts also where the mean of ROUGE-1 and ROUGE-L reaches `match_text`."""
    if rewrite.strip() == target.strip():
        return True
    close = task.kind == "generation" and match_text < 1
    return close and bool(example_scores(task, [target], [rewrite])[0] >= match_text)


def leaks_gold(task: Task, example: Example, shown: Sequence[Item], observe: str) -> bool:
    """Whether `observe` speaks of the true output: it must rest on the history, which is all there will be later.

    Ratings and [1], [2] are figures that stand for other things as well; there, only speaking of it counts.
    """
    if _SPOKEN.search(observe):
        return True
    if not task.gold_is_distinctive:
        return False
    target, known = _words(example["output"]), [_words(task.item_line(item)) for item in shown]
    if task.kind == "generation":  # what stands in the query was seen there
        known += [_words(task.query_text(example["input"])), _words(example["generic"])]
    size = min(len(target), max(3, ceil(_GIVEN_AWAY * len(target))))
    taken = _runs(target, size) & _runs(_words(observe), size)
    return bool(taken - set().union(*(_runs(words, size) for words in known)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    """All runs of `size` words."""
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)} if size else set()
