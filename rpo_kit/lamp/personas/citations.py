"""LaMP-1 personas: authors with a home field, who cite from it.

Seven of ten papers of an author are from the home field. The query gives a title that would fit any field and two
references, one from the home field and one from another, in random order; only the author's other papers show which one
is cited.

    item   {"title": "Edge colourings of sparse planar graphs", "abstract": "…"}             shows "graph theory"
    facts  {"first": "robotics", "second": "graph theory"}                                   gold "[2]"
    observe  "about graph theory"     plan  "[1] robotics, [2] graph theory: choose [2]"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

HABITS: tuple[str, ...] = (
    "graph theory",
    "robotics",
    "cryptography",
    "computer vision",
    "speech recognition",
    "databases",
    "genomics",
    "user interfaces",
)
# Ours, and lower than in the other tasks: a paper from a third field costs only a coin toss here, so at 0.8 a single
# item would already give the right answer nine times out of ten.
SHOWS: float = 0.7


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    topic = _topic(rng, habit)
    while True:
        abstract = expand(rng, load_bank("citations"), "{abstract}", topic, scope=habit)
        if 20 <= len(abstract.split()) <= 36:
            return {"title": _title(rng, habit, topic), "abstract": abstract}, {"field": habit}


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    fields = [habit, rng.choice([field for field in HABITS if field != habit])]
    rng.shuffle(fields)
    facts: Facts = {"first": fields[0], "second": fields[1]}
    title = expand(rng, load_bank("citations"), "{neutral}")
    refs = [_title(rng, field, _topic(rng, field)) for field in fields]
    text = get_task("LaMP-1").make_input(title=title, ref1=refs[0], ref2=refs[1])
    return text, apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    return str(facts["field"])


def apply(habit: str, query_facts: Facts) -> str:
    """The reference from this field; "[1]" if neither is."""
    return "[2]" if query_facts["second"] == habit else "[1]"


def observe(item: Item, facts: Facts) -> str:
    return f"about {facts['field']}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    return f"[1] {query_facts['first']}, [2] {query_facts['second']}: choose {apply(habit, query_facts)}"


def _topic(rng: random.Random, field: str) -> dict[str, str]:
    """The topic of one paper, so that its title and its abstract agree; "task2" is another of the field's tasks."""
    bank = load_bank("citations")
    topic = {}
    for name in ("task", "method", "thing", "place"):
        topic[name], topic[f"{name}2"] = rng.sample(bank[f"{field}.{name}"], 2)
    return topic


def _title(rng: random.Random, field: str, topic: dict[str, str]) -> str:
    return expand(rng, load_bank("citations"), "{title}", topic, scope=field)
