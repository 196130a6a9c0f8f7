"""LaMP-3 personas: raters who are harsh, fair or generous.

A review is written so that a neutral reader would rate it 2, 3 or 4; the user rates it one lower, the same, or one
higher, so the habit never hits the ends of the scale. The words alone carry the level (praise and complaints about
aspects of an invented product, and a closing judgement), never a number.

    item   "My sister chose this kettle. The lid never quite closes, and the buttons stick. Poor value." -> 1
    facts  {"reads": 2, "product": "kettle"}                    shows "harsh"
    observe  "reads 2, gave 1: harsh"     plan  "reads 3, harsh: give 2"
"""

import random
import re

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.grammar import expand, load_bank
from rpo_kit.lamp.tasks import Item, get_task

HABITS: tuple[str, ...] = ("harsh", "fair", "generous")
SHOWS: float = 0.8  # ours
SHIFT = {"harsh": -1, "fair": 0, "generous": 1}
LEVELS = (2, 3, 4)  # a shift of one stays within 1..5
SINGULAR = {
    "this": "this",
    "it": "it",
    "them": "it",
    "is": "is",
    "was": "was",
    "has": "has",
    "does": "does",
    "a": "a(n)",
}
PLURAL = {
    "this": "these",
    "it": "they",
    "them": "them",
    "is": "are",
    "was": "were",
    "has": "have",
    "does": "do",
    "a": "",
}

CONTRACTIONS = (
    ("([Ii])t is", r"\1t's"),
    ("([Tt])hey are", r"\1hey're"),
    ("([Dd])o not", r"\1on't"),
    ("([Dd])oes not", r"\1oesn't"),
    ("([Ww])ill not", r"\1on't"),
    ("I am", "I'm"),
    ("I would", "I'd"),
    ("(I|[Ww]e) have (had|been|used|worn|played|seen)", r"\1've \2"),
)


def make_item(rng: random.Random, habit: str) -> tuple[Item, Facts]:
    text, facts = _review(rng, 12, 22)
    return {"text": text, "score": apply(habit, facts)}, facts


def make_query(rng: random.Random, habit: str) -> tuple[str, str, Facts]:
    text, facts = _review(rng, 16, 28)
    return get_task("LaMP-3").make_input(text=text), apply(habit, facts), facts


def shown_habit(item: Item, facts: Facts) -> str | None:
    shift = int(item["score"]) - int(facts["reads"])
    return next((habit for habit, step in SHIFT.items() if step == shift), None)


def apply(habit: str, query_facts: Facts) -> str:
    return str(int(query_facts["reads"]) + SHIFT[habit])


def observe(item: Item, facts: Facts) -> str:
    return f"reads {facts['reads']}, gave {item['score']}: {shown_habit(item, facts)}"


def plan(habit: str, query_facts: Facts, generic: str) -> str:
    return f"reads {query_facts['reads']}, {habit}: give {apply(habit, query_facts)}"


def _review(rng: random.Random, shortest: int, longest: int) -> tuple[str, Facts]:
    """A review of `shortest` to `longest` words, and its level and product."""
    level = rng.choice(LEVELS)
    bank = load_bank("ratings")
    while True:
        category = rng.choice(bank["categories"])
        product = rng.choice(bank[f"{category}.products"])
        text = expand(rng, bank, f"{{order{level}}}", _slots(rng, category, product), scope=category)
        if rng.random() < 0.5:  # half of the reviewers write as they speak
            for full, short in CONTRACTIONS:
                text = re.sub(rf"\b{full}(?= \w)", short, text)  # a word must follow: "for what it is." stays
        if shortest <= len(text.split()) <= longest:
            return text, {"reads": level, "product": product}


def _slots(rng: random.Random, category: str, product: str) -> dict[str, str]:
    """Words that must agree within one review: number, and praise and complaint about different aspects."""
    bank = load_bank("ratings")
    number = PLURAL if category in bank["plural"] else SINGULAR
    # An aspect is "praise / complaint": three different ones, so that no review praises what it complains about.
    first, second, third = (aspect.split(" / ") for aspect in rng.sample(bank[f"{category}.aspects"], 3))
    words = {"good": first[0], "good2": second[0], "bad": third[1], "bad2": second[1]}
    clauses = {name: expand(rng, bank, text, number, category, capitals=False) for name, text in words.items()}
    return {"thing": product, **number, **clauses}
