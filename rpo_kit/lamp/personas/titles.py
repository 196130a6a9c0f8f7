"""LaMP-5 users: scholars, and how they title a paper. A short abstract goes in, the scholar's own title comes out.

The query and the profile of Figure 1 for the paper title task. An abstract names the `task`, its `domain`, the system's
`name`, its `method` and its `aim`, each of them word for word. A habit is a frame that uses two or three of these
unchanged, so titles in two different frames share few words. There are no real results and no title case (a title here
is written like a sentence, so its words are those of the abstract).

    abstract  "We study crack detection in drone footage. Our system Lumo uses patch shuffling. Trials show better
               stability under fog."
    via       "Crack detection via patch shuffling"
    question  "Can patch shuffling improve stability under fog?"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.frames import draw_parts, fill, outline, topics
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

SHOWS = 0.8  # ours: one title in five is in another frame, so one item is not enough
FRAMES = {
    "via": "{task} via {method}",
    "question": "Can {method} improve {aim}?",
    "on": "On {aim} in {domain}",
    "name": "{name}: {task} in {domain}",
    "towards": "Towards {task} with {aim}",
}
HABITS = tuple(FRAMES)
# The characters that mark a title of each frame, and the word for them.
MARKS = {"via": " via ", "question": "Can ", "on": "On ", "name": ": ", "towards": "Towards "}
SAID = {"via": "via", "question": "Can", "on": "On", "name": "colon", "towards": "Towards"}

_BANK = load_bank("titles")
_FIELDS = topics(_BANK, "task")
_PARTS = ("task", "domain", "name", "method", "aim")


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    """A short abstract with a title in this frame, and the word for the frame's mark."""
    field = rng.choice(_FIELDS)
    parts = draw_parts(rng, _BANK, field, _PARTS)
    abstract = expand(rng, _BANK, f"{{{habit}_item}}", parts, scope=field)
    return {"title": apply(habit, {**parts}), "abstract": abstract}, {"mark": SAID[habit]}


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    """The official input around an abstract, the scholar's title, and what the abstract says."""
    field = rng.choice(_FIELDS)
    parts = draw_parts(rng, _BANK, field, _PARTS)
    facts: Facts = {**parts}
    text = expand(rng, _BANK, "{query}", parts, scope=field)
    return get_task("LaMP-5").make_input(text=text), apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    """The frame whose mark the title has; None if it has none."""
    return next((habit for habit in HABITS if MARKS[habit] in item["title"]), None)


def apply(habit: str, query_facts: Facts) -> str:
    """The title: the frame, filled with the abstract's own words."""
    return fill(FRAMES[habit], query_facts)


def observe(item: Item, facts: Facts) -> str:
    """The mark in the title, and its frame: "title has Can: question"."""
    return f"title has {facts['mark']}: {shown_habit(item, facts)}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    """The title to write in place of the generic one, in outline: "question: Can patch.. improve stability..?"."""
    return f"{habit}: {outline(FRAMES[habit], query_facts)}"
