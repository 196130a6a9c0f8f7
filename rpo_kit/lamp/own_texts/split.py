"""Older texts become the history that is trained on, newer ones are held out; what is in both is removed.

history, held_out = by_time(texts, 0.2, notes)
held_out = without_overlap(cut_texts(history, notes), cut_texts(held_out, notes), notes)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.cleaning import normal
from rpo_kit.lamp.own_texts.passages import Passage
from rpo_kit.lamp.own_texts.text import Notes, OwnText

FEWEST, FEWEST_HELD_OUT = 20, 5  # ours: texts below which nothing can be learned, or nothing be said about it
NEAR = 0.6  # ours: share of a passage's word triples in another one from which on it counts as a repetition
_RUN = 3  # words of a triple
_UNDATED = 0.1  # ours: up to this share of texts may lack a date; they take the date of the text before


def by_time(texts: Sequence[OwnText], share: float, notes: Notes) -> tuple[list[OwnText], list[OwnText]]:
    """(the older texts, the newest `share`), each oldest first; in the order of the files if dates are missing.

    Raises:
        KitError: there are too few texts.
    """
    if not 0 < share < 1:
        raise KitError(f"--held-out {share:g} must be a share above 0 and below 1, as in 0.2.")
    held_out = max(FEWEST_HELD_OUT, round(share * len(texts)))
    if len(texts) - held_out < FEWEST:
        raise KitError(
            f"Too few texts are left: {len(texts)}, where {FEWEST} to train on and {FEWEST_HELD_OUT} to hold out are "
            f"the least. Give more files, or change what is left out. What became of them:\n{notes.report()}"
        )
    ordered = _dated(texts, notes)
    history, newest = ordered[:-held_out], ordered[-held_out:]
    until = f", {newest[0].date[:10]} to {newest[-1].date[:10]}" if newest[0].date else ""
    notes.say(f"split: {len(history)} texts to train on, {len(newest)} newer ones held out{until}")
    return history, newest


def _dated(texts: Sequence[OwnText], notes: Notes) -> list[OwnText]:
    """Oldest first; without dates if too many lack one, so that either all texts have a date or none."""
    missing = sum(not text.date for text in texts)
    if missing > _UNDATED * len(texts):
        what = "No text has a date" if missing == len(texts) else f"{missing} of {len(texts)} texts have no date"
        notes.say(f"{what}: the order in the files is taken as the order in time")
        return [replace(text, date="") for text in texts]
    if missing:
        notes.say(f"{missing} of {len(texts)} texts have no date: each takes that of the text before it")
    known = next(text.date for text in texts if text.date)
    dated = []
    for text in texts:
        known = text.date or known
        dated.append(replace(text, date=known))
    return sorted(dated, key=lambda text: datetime.fromisoformat(text.date))


def without_overlap(history: Sequence[Passage], held_out: Sequence[Passage], notes: Notes) -> list[Passage]:
    """The passages held out without those that the history has too, in the same or nearly the same words.

    Raises:
        KitError: too little is left.
    """
    known = {normal(passage.text) for passage in history}
    triples = [_triples(passage.text) for passage in history]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, own in enumerate(triples):
        for triple in own:
            where[triple].append(number)
    kept = []
    for passage in held_out:
        if normal(passage.text) in known:
            notes.counts["held-out passages that the history has too (left out)"] += 1
        elif _is_near(_triples(passage.text), triples, where):
            notes.counts["held-out passages that are nearly in the history (left out)"] += 1
        else:
            kept.append(passage)
    if len({passage.text_id for passage in kept}) < FEWEST_HELD_OUT:
        raise KitError(
            f"Of the held-out texts only {len(kept)} passages are not in the history already, too few to measure "
            f"anything: give more files, or raise --held-out. What became of them:\n{notes.report()}"
        )
    return kept


def _triples(text: str) -> set[tuple[str, ...]]:
    words = normal(text).split()
    return {tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}


def _is_near(
    own: set[tuple[str, ...]], others: Sequence[set[tuple[str, ...]]], where: dict[tuple[str, ...], list[int]]
) -> bool:
    candidates = {number for triple in own for number in where.get(triple, ())}
    return any(len(own & others[n]) >= NEAR * len(own) for n in candidates)
