"""Texts in passages: paragraphs, and parts of long ones, of up to a few dozen words, each in one line.

A passage is what the module rewrites. Small models read and write few words well, and one mail gives several examples.
Short paragraphs, such as a greeting, join the next one.

    >>> [passage for passage in passages_of("hey all,\\n\\nthe train is late again. start without me, please.")]
    ['hey all, the train is late again. start without me, please.']
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rpo_kit.lamp.own_texts.cleaning import normal
from rpo_kit.lamp.own_texts.text import Notes, OwnText

LONGEST = 40  # ours: words; six items, query and answer fit into 1,024 tokens
SHORTEST = 6  # ours: words; a shorter paragraph joins the next one
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”’)]*\s+")


@dataclass(frozen=True)
class Passage:
    """A passage of a text; `text_id` is the text's, which keeps the passages of a text together."""

    id: str
    text_id: str
    text: str
    date: str = ""


def cut_texts(texts: Sequence[OwnText], notes: Notes) -> list[Passage]:
    """The passages of all texts, in their order; of equal ones the first. One without enough words is left out."""
    passages, seen = [], set[str]()
    for text in texts:
        for number, passage in enumerate(passages_of(text.text), 1):
            words = normal(passage)
            if len(words.split()) < 2:
                notes.counts["passages of fewer than two words (left out)"] += 1
            elif words in seen:
                notes.counts["repeated passages, such as a greeting alone (left out)"] += 1
            else:
                seen.add(words)
                passages.append(Passage(f"{text.id}/{number}", text.id, passage, text.date))
    return passages


def passages_of(text: str) -> list[str]:
    """The passages of one text, each in one line."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
    parts = [part for paragraph in paragraphs for part in _cut(paragraph)]
    joined: list[str] = []
    for part in parts:
        if joined and _fits(joined[-1], part):
            joined[-1] = f"{joined[-1]} {part}"
        else:
            joined.append(part)
    return joined


def _fits(before: str, part: str) -> bool:
    """Whether one of the two is too short to stand alone and both together are not too long."""
    first, second = len(before.split()), len(part.split())
    return min(first, second) < SHORTEST and first + second <= LONGEST + SHORTEST


def _cut(paragraph: str) -> list[str]:
    """The paragraph, or its sentences in groups of at most `LONGEST` words; a longer sentence is cut between words."""
    words = paragraph.split()
    if len(words) <= LONGEST:
        return [paragraph]
    parts: list[list[str]] = [[]]
    for sentence in _SENTENCE_END.split(paragraph):
        own = sentence.split()
        if parts[-1] and len(parts[-1]) + len(own) > LONGEST:
            parts.append([])
        parts[-1] += own
    return [piece for part in parts if part for piece in _pieces(part)]


def _pieces(words: list[str]) -> list[str]:
    return [" ".join(words[start : start + LONGEST]) for start in range(0, len(words), LONGEST)]
