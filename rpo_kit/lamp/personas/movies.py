"""LaMP-2 personas: people who tag a film by its genre, by where its story comes from, or by how it feels.

LaMP's fifteen tags fall into three families; every description has a readable cue for one tag of each family, so all
three tags fit, and only the user's habit says which one they choose. Combinations that contradict or blur each
other (a comedy that is a dark comedy, a fantasy that is a true story) are left out.

    item   "Ilka, a shuttle pilot, wakes … A much-quoted classic of the fifties. The last scene …" -> classic
    facts  {"genre": "sci-fi", "origin": "classic", "feel": "twist ending"}                      shows "origin"
    observe  "classic is the origin: tags by origin"    plan  "romance, true story, violence; by genre: romance"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

HABITS: tuple[str, ...] = ("genre", "origin", "feel")
SHOWS: float = 0.8  # ours
FAMILIES = {
    "genre": ("sci-fi", "comedy", "action", "fantasy", "romance"),
    "origin": ("based on a book", "true story", "classic"),
    "feel": (
        "dark comedy",
        "twist ending",
        "dystopia",
        "psychology",
        "thought-provoking",
        "social commentary",
        "violence",
    ),
}
# Pairs that a reader could not tell apart, or that are implausible in one film.
CLASHES = (
    {"comedy", "dark comedy"},
    {"comedy", "violence"},
    {"comedy", "dystopia"},
    {"action", "violence"},
    {"sci-fi", "dystopia"},
    {"sci-fi", "true story"},
    {"fantasy", "true story"},
    {"dystopia", "true story"},
)
SHE = {"she": "she", "her": "her", "hers": "her", "name": "{woman}"}
HE = {"she": "he", "her": "his", "hers": "him", "name": "{man}"}


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    text, facts = _film(rng, 22, 32)
    return {"tag": apply(habit, facts), "description": text}, facts


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    text, facts = _film(rng, 25, 40)
    return get_task("LaMP-2").make_input(text=text), apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    return next((family for family in HABITS if facts[family] == item["tag"]), None)


def apply(habit: str, query_facts: Facts) -> str:
    return str(query_facts[habit])


def observe(item: Item, facts: Facts) -> str:
    family = shown_habit(item, facts)
    return f"{item['tag']} is the {family}: tags by {family}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    tags = ", ".join(str(query_facts[family]) for family in HABITS)
    return f"{tags}; by {habit}: {apply(habit, query_facts)}"


def _film(rng: random.Random, shortest: int, longest: int) -> tuple[str, Facts]:
    """A description of `shortest` to `longest` words, and its tag in each family."""
    tags = _tags(rng)
    bank = load_bank("movies")
    while True:
        person = rng.choice((SHE, HE))
        person = person | {"name": expand(rng, bank, person["name"])}
        clauses = {
            "plot": expand(rng, bank, "{plot}", person, tags["genre"], capitals=False),
            "lead": expand(rng, bank, "{lead}", person, tags["origin"], capitals=False),
            "head": expand(rng, bank, "{head}", person, tags["origin"], capitals=False),
            "origin": expand(rng, bank, "{tail}", person, tags["origin"], capitals=False),
            "feel": expand(rng, bank, "{says}", person, tags["feel"], capitals=False),
            "with": expand(rng, bank, "{with}", person, tags["feel"], capitals=False),
        }
        text = expand(rng, bank, "{order}", clauses)
        if shortest <= len(text.split()) <= longest:
            return text, dict(tags)


def _tags(rng: random.Random) -> dict[str, str]:
    """One tag of each family, without a clash."""
    while True:
        tags = {family: rng.choice(members) for family, members in FAMILIES.items()}
        if not any(clash <= set(tags.values()) for clash in CLASHES):
            return tags
