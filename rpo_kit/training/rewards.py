"""What RL rewards: the task's own metric on the rewrite, and small parts for a well-formed trajectory and for content.

    R = (1 - w - c) * score(rewrite, gold) + w * format + c * content      if the completion parses
    R = 0                                                                  if it does not: there is no rewrite

format is 1 if the trajectory cites items, all of which were shown, else 0; content is the share of content that the
rewrite keeps (`rewrite_content` in `lamp.content`), for tasks whose answers are texts. w is `rl.format_weight`, c is
`rl.content_weight`, by default 0: then content is measured and not rewarded.
score is accuracy (0 or 1), 1 - |err|/4 for ratings, or the mean of ROUGE-1 and ROUGE-L, all between 0 and 1. A rewrite
that the task's evaluator cannot read ("about 4", an unknown tag) scores 0.

    >>> from rpo_kit.lamp.tasks import get_task
    >>> text = "<observe>[1] reads 2, gave 1</observe><plan>3 to 2</plan><rewrite>2</rewrite>"
    >>> reward(get_task("LaMP-3"), text, gold="1", items=2)
    0.775
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rpo_kit.lamp.content import rewrite_content
from rpo_kit.lamp.metrics import example_score, is_parseable
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.trajectory import parse, trajectory_error
from rpo_kit.setting_rules import SECTIONS


@dataclass(frozen=True)
class Judged:
    """A completion's reward and its parts."""

    reward: float  # 0..1
    score: float  # of the rewrite, by the task's metric
    format: float  # 1 for a well-formed trajectory
    rewrite: str | None  # None if the completion does not parse
    cited: tuple[int, ...]
    parse_error: str | None
    content: float | None = None  # 0..1, what the rewrite keeps; None for labels and ratings, or without a rewrite


def judge(
    task: Task,
    completion: str,
    gold: str,
    items: int,
    format_weight: float = 0.1,
    content_weight: float = 0.0,
    generic: str = "",
    query: str = "",
    sections: tuple[str, ...] = SECTIONS,
) -> Judged:
    """Judge one completion. `items` is how many history items the prompt showed; `generic` and `query` are the texts
    whose content a rewrite should keep. Without observations in `sections` no item has to be cited.
    """
    parsed = parse(completion, sections)
    trajectory = parsed.trajectory
    if trajectory is None:
        return Judged(0.0, 0.0, 0.0, None, (), parsed.error)
    readable = is_parseable(task, trajectory.rewrite)
    score = example_score(task, gold, trajectory.rewrite) if readable else 0.0
    well_formed = float("observe" not in sections or trajectory_error(trajectory, range(1, items + 1)) is None)
    content = rewrite_content(generic, query, trajectory.rewrite).share if task.kind == "generation" else None
    content_weight = content_weight if content is not None else 0.0
    total = (1 - format_weight - content_weight) * score + format_weight * well_formed + content_weight * (content or 0)
    return Judged(total, score, well_formed, trajectory.rewrite, trajectory.cited, None, content)


def reward(task: Task, completion: str, gold: str, items: int, format_weight: float = 0.1) -> float:
    """The reward of one completion, in 0..1."""
    return judge(task, completion, gold, items, format_weight).reward


def shares(
    task: Task, rewrites: Sequence[str | None], generics: Sequence[str], histories: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Share of completions that parse; of rewrites that are the most frequent label, or (for texts) a history item word
    for word, or the generic answer.
    """
    count = len(rewrites)
    result = {"parsed": sum(rewrite is not None for rewrite in rewrites) / count}
    if task.kind == "generation":
        result["copied_history"] = sum(r in own for r, own in zip(rewrites, histories, strict=True)) / count
        result["copied_generic"] = sum(r == g.strip() for r, g in zip(rewrites, generics, strict=True)) / count
    else:  # a label may rightly repeat them, but not be the same for every query
        result["same_answer"] = max(Counter(rewrites).values()) / count
    return result
