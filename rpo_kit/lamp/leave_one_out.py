"""Leave one out: items of a train user become queries, with the other items as the profile.

This turns a few hundred users into thousands of trajectories (`data.leave_one_out` items per user; 0 by default). The
text of a chosen item is then a query like any other: the base model sees it, but neither its gold nor any other item.
Not possible for citations (LaMP-1) and tweets (LaMP-7): their items contain no query.

    in:   {"id": "410", …, "profile": [{"id": "4100", "text": "The lid leaks.", "score": "2"}, …]}
    out:  {"id": "410-4100", "input": "What is the score … review: The lid leaks.", "output": "2", "profile": […]}
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example, UserFacts
from rpo_kit.lamp.item import item_gold
from rpo_kit.lamp.tasks import Task


def examples_from_items(
    task: Task, rows: Iterable[Example], facts: Mapping[str, UserFacts], per_user: int, seed: int
) -> Iterator[tuple[Example, UserFacts]]:
    """(example, its facts) for up to `per_user` items of each user, drawn with the seed from the user's first row."""
    text_field = query_field(task)
    seen: set[str] = set()
    for row in rows:
        if row["user_id"] in seen:
            continue
        seen.add(row["user_id"])
        drawn = random.Random(f"{seed}/{row['user_id']}/leave-one-out").sample(row["profile"], len(row["profile"]))
        for item in drawn[:per_user] if len(drawn) > 1 else []:
            gold = item_gold(task, item)
            if gold is None:  # `read_lamp` has counted such items
                continue
            example = Example(
                id=f"{row['id']}-{item['id']}",
                user_id=row["user_id"],
                input=task.make_input(text=item[text_field]),
                output=gold,
                profile=[other for other in row["profile"] if other["id"] != item["id"]],
            )
            yield example, _facts_without(facts.get(row["id"], {}), item["id"])


def query_field(task: Task) -> str:
    """The field of an item that can serve as a query. Raises KitError if the task's items contain no query."""
    if task.no_leave_one_out:
        raise KitError(
            f"Items of {task.name} ({task.title}) contain no query, so data.leave_one_out must be 0 there (--set "
            f"data.leave_one_out=0): {task.no_leave_one_out}."
        )
    return task.text_field


def _facts_without(facts: UserFacts, item_id: str) -> UserFacts:
    """The user's facts with the item as the query; {} if less is known about the item than about a query."""
    item_facts = facts.get("items", {}).get(item_id)
    if item_facts is None or not facts["query"].keys() <= item_facts.keys():
        return {}
    others = {key: value for key, value in facts["items"].items() if key != item_id}
    return {"habit": facts["habit"], "query": item_facts, "items": others}
