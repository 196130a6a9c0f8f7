"""Leave one out: items of a train user become questions themselves, with the other items as the profile.

So a few hundred users give thousands of trajectories (`data.leave_one_out` items a user; 0 by default). The text of a
chosen item is then a question like any other: the base model reads it, and never the user's own answer to it, nor any
other item. Citations (LaMP-1) and tweets (LaMP-7) cannot be had so: their items hold no question, and one would have to
be invented.

    in:   {"id": "410", …, "profile": [{"id": "4100", "text": "The lid leaks.", "score": "2"}, …]}
    out:  {"id": "410-4100", "input": "What is the score … review: The lid leaks.", "output": "2", "profile": […]}
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task

_NO_QUESTION = {
    "LaMP-1": "an item is a paper with its abstract, and which papers it cites is not in the data",
    "LaMP-7": "an item is the tweet alone, and a question is a paraphrase of it that LaMP let a model write",
}


def questions_from_items(
    task: Task, rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], per_user: int, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(row, its facts) for up to `per_user` items of each user, drawn with the seed; a user's first question serves."""
    text_field = asking_field(task)
    seen: set[str] = set()
    for row in rows:
        if row["user_id"] in seen:
            continue
        seen.add(row["user_id"])
        drawn = random.Random(f"{seed}/{row['user_id']}/leave-one-out").sample(row["profile"], len(row["profile"]))
        for item in drawn[:per_user] if len(drawn) > 1 else []:
            others = [other for other in row["profile"] if other["id"] != item["id"]]
            query = task.make_input(text=item[text_field])
            made = {"id": f"{row['id']}-{item['id']}", "user_id": row["user_id"], "input": query}
            made |= {"output": item[task.gold_field], "profile": others}
            yield made, _facts_without(facts.get(row["id"], {}), item["id"])


def asking_field(task: Task) -> str:
    """The field of an item that can be asked about; KitError where items hold no question."""
    if task.name in _NO_QUESTION:
        raise KitError(
            f"Items of {task.name} ({task.title}) hold no question, so data.leave_one_out must be 0 there (--set "
            f"data.leave_one_out=0): {_NO_QUESTION[task.name]}."
        )
    return next(field for field in task.fields if field != task.gold_field)


def _facts_without(facts: Mapping[str, Any], item_id: str) -> dict[str, Any]:
    """The personas' facts with this item as the question; {} where less is known about items than about questions."""
    known = facts.get("items", {}).get(item_id)
    if known is None or not facts["query"].keys() <= known.keys():
        return {}
    items = {key: value for key, value in facts["items"].items() if key != item_id}
    return {"habit": facts["habit"], "query": known, "items": items}
