"""Texts of the invented users: a tiny phrase-bank expander, and what every persona module must offer.

Each persona module turns a habit into texts by expanding phrases of a JSON bank with a seeded `random.Random`. A bank
is a dictionary of lists of phrases, nested one level where a topic has its own phrases. Inside a phrase,

    {name}        is a slot given by the caller, else a random phrase of bank[scope][name], else of bank[name]
    [a|b|]        is a random one of the alternatives (they may nest and may be empty)
    a(n)          is "a" or "an", as the next word requires

so `expand(rng, {"thing": ["oven", "[red|blue] kettle"]}, "{brand} made a(n) {thing}.", {"brand": "tolvik"})` gives
"Tolvik made an oven." or "Tolvik made a blue kettle." No phrase is used twice in one text while others are unused.
There are no weights, no conditions and no inflection: a bank that needs "was/were" spells it out in its phrases.
"""

import json
import random
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.tasks import Item

Bank = dict[str, tuple[str, ...]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")  # innermost brackets only: nesting is resolved from the inside out
_NAME = re.compile(r"\{([\w.]+)\}")
_VOWEL_SOUND = re.compile(r"(?i)(?!uni|use|usu|eu|one\b|once|uk)[aeiou]|hour|honest|heir|mp3|led\b|x-ray")


class Persona(Protocol):
    """The interface of a persona module, which the type checker checks for the modules of this package."""

    HABITS: tuple[str, ...]
    SHOWS: float  # probability that an item shows the user's own habit

    def make_item(self, rng: random.Random, habit: str) -> tuple[Item, Facts]:
        """A profile item (without id) that shows `habit`, and what can be read in it."""

    def make_query(self, rng: random.Random, habit: str) -> tuple[str, str, Facts]:
        """An official input, the gold of a user with this habit, and what can be read in the input."""

    def shown_habit(self, item: Item, facts: Facts) -> str | None:
        """The habit that this item shows, or None if it shows none."""

    def apply(self, habit: str, query_facts: Facts) -> str:
        """The answer that this habit gives to the query."""

    def observe(self, item: Item, facts: Facts) -> str:
        """One short observation about one item, in values that can be checked against its text."""

    def plan(self, habit: str, query_facts: Facts, generic: str) -> str:
        """What to change in the generic answer, in a few words."""


@cache
def load_bank(name: str) -> Bank:
    """`banks/<name>.json`, flattened: {"thing": […], "kitchen": {"praise": […]}} has "thing", "kitchen.praise"."""
    path = Path(__file__).parent / "banks" / f"{name}.json"
    raw: dict[str, list[str] | dict[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
    bank: Bank = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            bank |= {f"{key}.{inner}": tuple(phrases) for inner, phrases in value.items()}
        else:
            bank[key] = tuple(value)
    return bank


def expand(
    rng: random.Random,
    bank: Bank,
    text: str,
    slots: Mapping[str, str] | None = None,
    scope: str = "",
    capitals: bool = True,
) -> str:
    """Expand `text` and tidy it (articles, spaces, capitals at sentence starts). Slot values are not expanded."""
    return tidy(_fill(rng, bank, text, slots or {}, scope, set()), capitals)


def _fill(rng: random.Random, bank: Bank, text: str, slots: Mapping[str, str], scope: str, used: set[str]) -> str:
    while _CHOICE.search(text):  # brackets first, so that names in alternatives not taken draw no random numbers
        text = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), text)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in slots:
            return slots[name]
        phrases = bank.get(f"{scope}.{name}") or bank.get(name)
        if not phrases:
            raise KitError(f"The phrase bank has no {name!r} (scope {scope!r}), which {text!r} needs: add it there.")
        phrase = rng.choice([p for p in phrases if p not in used] or phrases)
        used.add(phrase)
        return _fill(rng, bank, phrase, slots, scope, used)

    return _NAME.sub(value, text)


def tidy(text: str, capitals: bool = True) -> str:
    """Right articles, single spaces, none before punctuation, and `capitals` at the start and after . ! ?"""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    # A phrase may bring its own punctuation: one mark is enough where two phrases meet.
    text = re.sub(r",(?=[,.;:!?])", "", re.sub(r"([!?])\.(?!\.)", r"\1", text))
    text = re.sub(
        r"\b([Aa])\(n\) (?=(\W*\w\S*))",
        lambda m: m[1] + ("n " if _VOWEL_SOUND.match(m[2].lstrip("\"'(")) else " "),
        text,
    )
    if not capitals:
        return text
    return re.sub(r"(?:^|[.!?] )\W?[a-z]", lambda m: m[0][:-1] + m[0][-1].upper(), text)
