"""Which examples the notebooks show live: chosen by their data, before the module has answered, so not by its success.

The first dev user may be one whose items mislead, or whose generic answer is nonsense; then a reader sees a failure and
learns nothing of the method. A *clear* example has a generic answer that is not the gold already, items that show the
user's habit, and a generic answer that keeps what the query says. Where a habit is unknown, or answers are labels, the
parts that are known decide. What the module makes of the example is open; its mean is in notebook 05.

    from_clear_to_hard(task, load_prepared(run, "dev"), k=6)[0]        # the clearest
    from_clear_to_hard(task, load_prepared(run, "dev"), k=1, count=6)  # the clearest, the hardest, and four in between
    why_chosen(task, example, k=6)      # "6 of 6 items show the user's habit; the generic answer keeps 100% of …"
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rpo_kit.lamp.content import content_kept
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_score
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.faithfulness import truth_of


def from_clear_to_hard(task: Task, examples: Sequence[Example], k: int, count: int = 1) -> list[Example]:
    """`count` examples at even distances in the order of clearness with k items, the clearest first; in a tie the
    earlier one.
    """
    ordered = sorted(examples, key=lambda example: clearness(task, example, k), reverse=True)  # stable
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def clearness(task: Task, example: Example, k: int) -> tuple[bool, float, float]:
    """Whether there is something to change; the share of the k items that show the user's habit; the share of the
    query's content that the generic answer keeps. 0 for what is unknown.
    """
    changes = example_score(task, example["output"], example["generic"]) < 1
    shows, shown = _items_with_habit(task, example, k)
    return changes, shows / shown if shown else 0.0, _content(task, example) or 0.0


def why_chosen(task: Task, example: Example, k: int) -> str:
    """What is known of the example's clearness, in words."""
    shows, shown = _items_with_habit(task, example, k)
    content = _content(task, example)
    said = [f"{shows} of {shown} items show the user's habit"] if shown else []
    said += [f"the generic answer keeps {content:.0%} of the query's content"] if content is not None else []
    return "; ".join(said or ["the generic answer is not the gold"])


def _items_with_habit(task: Task, example: Example, k: int) -> tuple[int, int]:
    """(items that show the user's habit, items shown); (0, 0) if the habit is unknown."""
    items = top_k(example, example["ranking"], k)
    truth = truth_of(task, example, items)
    if truth is None:
        return 0, 0
    return truth.habits.count(example["facts"]["habit"]["name"]), len(items)


def _content(task: Task, example: Example) -> float | None:
    if task.kind != "generation":
        return None
    return content_kept(task.query_text(example["input"]), example["generic"]).share


def most_shared(task: Task, examples: Sequence[Example], retrievers: Sequence[str], k: int) -> Example:
    """The example on which the retrievers agree most: the most items that all of them place in their top k; in a tie
    the first.
    """
    rankings = [rank(task, examples, name) for name in retrievers]
    common = [len(set.intersection(*(set(order[:k]) for order in orders))) for orders in zip(*rankings, strict=True)]
    return examples[common.index(max(common))]
