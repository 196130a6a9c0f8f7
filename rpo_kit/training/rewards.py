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

from rpo_kit.lamp.metrics import example_scores, is_parseable
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.trajectory import complaint_about, parse


def reward(task: Task, completion: str, gold: str, items: int, format_weight: float = 0.1) -> float:
    """The reward of one completion, in 0..1. `items` is how many history items the prompt showed."""
    trajectory = parse(completion).trajectory
    if trajectory is None:
        return 0.0
    readable = is_parseable(task, trajectory.rewrite)
    score = float(example_scores(task, [gold], [trajectory.rewrite])[0]) if readable else 0.0
    well_formed = complaint_about(trajectory, range(1, items + 1)) is None
    return (1 - format_weight) * score + format_weight * well_formed
