"""One row of data, as it passes through every stage.

A TypedDict rather than a class, because rows of a `datasets.Dataset` and of LaMP's JSON are dicts: they are passed on
as they are read. `read_lamp` fills the first five fields, `prepare` the others.

    {"id": "310", "user_id": "310", "input": "What is the score … review: It leaks.", "output": "2",
     "profile": [{"id": "3100", "text": "Broke twice.", "score": "1"}], "ranking": [0], "generic": "3", "facts": {}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from rpo_kit.lamp.tasks import Item

Facts = dict[str, str | int]  # what a careful reader finds in a text; flat, so that it is JSON and easy to check
Row = Mapping[str, Any]  # an Example, or any mapping with the keys that a function uses


class UserFacts(TypedDict, total=False):
    """What the embedded benchmark knows about a user; empty for LaMP's own users."""

    habit: dict[str, str]  # {"name": "harsh"}
    query: Facts
    items: dict[str, Facts]  # by item id


class Example(TypedDict):
    """A query with the user's profile and the gold."""

    id: str
    user_id: str
    input: str  # LaMP's full input; `Task.query_text` returns the query, its varying part
    output: str  # the gold; "" if LaMP withholds it (split "test")
    profile: Sequence[Item]
    ranking: NotRequired[list[int]]  # indices into the profile, best first
    generic: NotRequired[str]  # the base model's answer, written without seeing the user
    facts: NotRequired[UserFacts]
