"""LaMP-4 users: editors, and how they build a headline. A short local article goes in, the editor's headline comes out.

The query and the profile of Figure 1 for the headline task. An article says who will do what (`who`, `act`, `thing`),
`why`, how the public reacted (`crowd`), and what somebody says about it (`person`, `say`), each of them word for word.
A habit is a frame that uses some of these unchanged, so headlines in two different frames share few words. There is no
wordplay and no title case (a headline here is written like a sentence, so its words are those of the article).

    article   'Keldmoor council voted to drain the old pool because of cracks in the floor. The move drew 75 letters.
               "Cold water never hurt anyone," said lifeguard Mara Beldow.'
    question  "Why drain old pool, Keldmoor council?"
    number    "75 letters, cracks in the floor, one old pool"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.frames import draw_parts, fill, outline, topics
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

SHOWS = 0.8  # ours: one headline in five is in another frame, so one item is not enough
FRAMES = {
    "question": "Why {act} {thing}, {who}?",
    "number": "{crowd}, {why}, one {thing}",
    "quote": "'{say}', says {person}",
    "kicker": "{thing} row: {person} confronts {who}",
    "verdict": "Right to {act} {thing} after {why}",
}
HABITS = tuple(FRAMES)
# The characters that mark a headline of each frame.
MARKS = {"question": "Why ", "number": ", one ", "quote": "', says ", "kicker": " row: ", "verdict": "Right to "}

_BANK = load_bank("headlines")
_TOPICS = topics(_BANK, "thing")
_PARTS = ("who", "act", "thing", "why", "crowd", "say", "person")


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    """A short article with a headline in this frame, and the word that marks the frame."""
    topic = rng.choice(_TOPICS)
    parts = draw_parts(rng, _BANK, topic, _PARTS)
    text = expand(rng, _BANK, f"{{{habit}_item}}", parts, scope=topic)
    return {"text": text, "title": apply(habit, {**parts})}, {"mark": MARKS[habit].strip("',: ")}


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    """The official input around an article, the editor's headline, and what the article says."""
    topic = rng.choice(_TOPICS)
    parts = draw_parts(rng, _BANK, topic, _PARTS)
    facts: Facts = {**parts}
    text = expand(rng, _BANK, "{query}", parts, scope=topic)
    return get_task("LaMP-4").make_input(text=text), apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    """The frame whose mark the headline has; None if it has none."""
    return next((habit for habit in HABITS if MARKS[habit] in item["title"]), None)


def apply(habit: str, query_facts: Facts) -> str:
    """The headline: the frame, filled with the article's own words."""
    return fill(FRAMES[habit], query_facts)


def observe(item: Item, facts: Facts) -> str:
    """The mark in the headline, and its frame: "title has Why: question"."""
    return f"title has {facts['mark']}: {shown_habit(item, facts)}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    """The headline to write in place of the generic one, in outline: "question: Why drain old.., Keldmoor..?"."""
    return f"{habit}: {outline(FRAMES[habit], query_facts)}"
