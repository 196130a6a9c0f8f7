"""How the writing personas (tweets, headlines, titles) put words of a query into a user's frame.

Such a persona knows the parts of a text ("did", "when"), each of which the text contains word for word, and a habit is
a frame with slots for some of them. Nothing is inflected or invented: a rewrite is the frame and copied words.

    facts = {"task": "crack detection", "method": "foam", "aim": "speed"}
    fill("{task} via {method}", facts)      # "Crack detection via foam"
    outline("{task} via {method}", facts)   # "crack.. via foam"
"""

import random

from rpo_kit.lamp.example import Facts
from rpo_kit.lamp.personas.grammar import Bank, expand, tidy


def draw_parts(rng: random.Random, bank: Bank, scope: str, parts: tuple[str, ...]) -> dict[str, str]:
    """One expanded phrase per part, within one topic of the bank, as it will appear in a text."""
    return {part: expand(rng, bank, f"{{{part}}}", scope=scope, capitals=False) for part in parts}


def topics(bank: Bank, part: str) -> tuple[str, ...]:
    """The topics of a bank: all scopes with phrases of their own for `part`."""
    return tuple(name.removesuffix(f".{part}") for name in bank if name.endswith(f".{part}"))


def fill(frame: str, facts: Facts) -> str:
    """The frame with whole parts in its slots, and a capital at the start."""
    return tidy(frame.format(**facts))


def outline(frame: str, facts: Facts) -> str:
    """The frame with the first word of each part in its slots (the second too after an article); ".." means more."""
    starts = {}
    for name, part in facts.items():
        words = str(part).split()
        first = words[: 2 if words[0] in ("a", "an", "the") else 1]
        starts[name] = " ".join(first) + (".." if len(words) > len(first) else "")
    return frame.format(**starts)
