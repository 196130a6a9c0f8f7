"""What RL rewards: the task's own metric on the rewrite, and a small part for a well-formed trajectory.

    R = (1 - w) * score(rewrite, gold) + w        where the completion parses and cites items that exist
    R = (1 - w) * score(rewrite, gold)            where it parses but cites none, or one that does not exist
    R = 0                                         where it does not parse: there is no rewrite

score is accuracy (0 or 1), 1 - |err|/4 for ratings, or the mean of ROUGE-1 and ROUGE-L, all between 0 and 1. A rewrite
which the task's evaluator cannot read ("about 4", an unknown tag) scores 0.
`None` is never returned: whitening would turn it into a number (facts on reward traps).

    >>> text = "<observe>[1] reads 2, gave 1</observe><plan>3 to 2</plan><rewrite>2</rewrite>"
    >>> reward(get_task("LaMP-3"), text, gold="1", items=2)
    0.775
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rpo_kit.lamp.metrics import example_scores, is_parseable
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.trajectory import parse, trajectory_error


def reward(task: Task, completion: str, gold: str, items: int, format_weight: float = 0.1) -> float:
    """The reward of one completion, in 0..1. `items` is how many history items the prompt showed."""
    trajectory = parse(completion).trajectory
    if trajectory is None:
        return 0.0
    readable = is_parseable(task, trajectory.rewrite)
    score = float(example_scores(task, [gold], [trajectory.rewrite])[0]) if readable else 0.0
    well_formed = trajectory_error(trajectory, range(1, items + 1)) is None
    return (1 - format_weight) * score + format_weight * well_formed


def reward_function(task: Task, format_weight: float) -> Any:
    """The reward in the form TRL calls: lists in, one float a completion out; logs what the guard looks at."""

    def task_reward(
        completions: list[Any],
        gold: list[str],
        k: list[int],
        generic: list[str],
        history: list[list[str]],
        log_metric: Any = None,
        **_: Any,
    ) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        if log_metric:
            log_metric("shots", sum(k) / len(k))
            for name, share in shares(task, texts, generic, history).items():
                log_metric(name, share)
        return [reward(task, text, g, n, format_weight) for text, g, n in zip(texts, gold, k, strict=True)]

    return task_reward


def shares(task: Task, texts: list[str], generic: list[str], history: list[list[str]]) -> dict[str, float]:
    """Share of completions that parse; of rewrites that are the most frequent label, or (for texts) a history item word
    for word, or the generic answer.
    """
    rewrites = [parsed.trajectory and parsed.trajectory.rewrite for parsed in map(parse, texts)]
    found = {"parsed": sum(rewrite is not None for rewrite in rewrites) / len(texts)}
    if task.kind == "generation":
        found["copied_history"] = sum(r in own for r, own in zip(rewrites, history, strict=True)) / len(texts)
        found["copied_generic"] = sum(r == g.strip() for r, g in zip(rewrites, generic, strict=True)) / len(texts)
    else:  # a label may be right although it repeats them, but not the same one for every query
        found["same_answer"] = max(Counter(rewrites).values()) / len(texts)
    return found
