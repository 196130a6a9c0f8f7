"""Quality filters: which trajectories are worth training on, and why the others are rejected (Figure 2, top).

    a trajectory must                rejected with
    cite items that were shown       "cites no item", "cites an item that was not shown"
    end in the gold                  "does not end in the gold"; labels word for word, texts by ROUGE
    observe the history only         "observe leaks the gold"
    suit a small model               "longer than 200 words"
    not be a copy                    "copies a history item" (texts only)

A rewrite that matches the gold closely but not word for word is replaced by the gold: the prompt asks for it word for
word, and the module should not learn the teacher's slips. The rule-based teacher must match word for word (`RULES`):
if it is nearly right, it followed the wrong habit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_score
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.prompts import restore_tags
from rpo_kit.rewriting.trajectory import Trajectory, trajectory_error

_LEAKED_SHARE = 0.6  # ours: share of consecutive gold words that `observe` must not contain
_MENTIONS_GOLD = re.compile(
    r"\b(?:user'?s own|true|right|correct|gold|target|expected) (?:answer|output|rating|score|tag|title|headline)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Filters:
    """What a trajectory must satisfy. `match_text`: the ROUGE a text must reach with the gold (1: word for word)."""

    match_text: float = 0.9
    max_words: int = 200
    copies: bool = False  # whether a rewrite may equal an item's text; rules apply a habit and copy only by chance


RULES = Filters(match_text=1.0, copies=True)


def rejection_reason(
    task: Task, example: Example, items: Sequence[tuple[int, Item]], trajectory: Trajectory, filters: Filters
) -> str | None:
    """Why this trajectory is rejected, or None; `items` are those the teacher saw, with their numbers."""
    error = trajectory_error(trajectory, dict(items))
    if error:
        return error
    if not matches(task, example["output"], restore_tags(trajectory.rewrite), filters.match_text):
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


def matches(task: Task, gold: str, rewrite: str, match_text: float) -> bool:
    """Labels and ratings word for word; texts also if the mean of ROUGE-1 and ROUGE-L reaches `match_text`."""
    if rewrite.strip() == gold.strip():
        return True
    close = task.kind == "generation" and match_text < 1
    return close and example_score(task, gold, rewrite) >= match_text


def leaks_gold(task: Task, example: Example, shown: Sequence[Item], observe: str) -> bool:
    """Whether `observe` reveals the gold. It must rest on the history, which is all the module sees later.

    Ratings and [1], [2] are numbers that occur for other reasons too; for them, only an explicit mention counts.
    """
    if _MENTIONS_GOLD.search(observe):
        return True
    if not task.gold_is_distinctive:
        return False
    gold, known = _words(example["output"]), [_words(task.item_line(item)) for item in shown]
    if task.kind == "generation":  # its words may come from the query
        known += [_words(task.query_text(example["input"])), _words(example["generic"])]
    size = min(len(gold), max(3, ceil(_LEAKED_SHARE * len(gold))))
    shared = _ngrams(gold, size) & _ngrams(_words(observe), size)
    return bool(shared - set().union(*(_ngrams(words, size) for words in known)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _ngrams(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)} if size else set()
