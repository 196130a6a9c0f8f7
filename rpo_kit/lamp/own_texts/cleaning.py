"""Whose texts they are, and which of them are used: author, length, language, duplicates; each choice is counted.

kept = cleaned(texts, Choice(author="mia"), notes)
# notes.lines: ["author: mia@example.org (given), 281 of 300 texts; others: bob@… 12, ann@… 7", …]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.languages import SCRIPT, UNKNOWN, language_of
from rpo_kit.lamp.own_texts.text import Notes, OwnText

_SHOWN = 5  # ours: authors and languages named at most


@dataclass(frozen=True)
class Choice:
    """Which texts are used. `author`: part of a name or address; `language`: as `languages` names it."""

    author: str = ""
    language: str = ""
    min_words: int = 4  # ours
    max_words: int = 2000  # ours: longer ones are reports and digests rather than a voice


def cleaned(texts: Sequence[OwnText], choice: Choice, notes: Notes) -> list[OwnText]:
    """The chosen author's texts without those that are too short, too long, or there already.

    Raises:
        KitError: nobody of that name wrote any of them, or no text is left.
    """
    own = _of_author(texts, choice.author, notes)
    own = _of_length(own, choice, notes)
    own = _of_language(own, choice.language, notes)
    kept = _without_repeats(own, notes)
    if not kept:
        raise KitError(
            f"None of the {len(texts)} texts can be used: give other files, or change --author, "
            f"--min-words, --max-words or --language. What became of them:\n{notes.report()}"
        )
    return kept


def _of_author(texts: Sequence[OwnText], wanted: str, notes: Notes) -> list[OwnText]:
    counts = Counter(text.author for text in texts)
    named = [author for author, _ in counts.most_common() if author]
    if not wanted and len(named) < 2:
        return list(texts)
    if not named:
        raise KitError(
            f"--author {wanted}: no text says who wrote it. Leave --author out, or name the column that does with "
            "--author-column."
        )
    chosen = [author for author in named if wanted.casefold() in author] if wanted else named[:1]
    exact = [author for author in chosen if author == wanted.casefold()]
    if len(exact or chosen) != 1:
        what = f"fits {len(chosen)} authors" if chosen else "is none of the authors"
        raise KitError(f"--author {wanted} {what}: {_listed(counts, chosen or named)}. Write one of them in full.")
    author = (exact or chosen)[0]
    how = "given" if wanted else "who wrote most; --author NAME to change"
    others = _listed(counts, [name for name in [*named, ""] if name != author and counts[name]])
    notes.say(
        f"author: {author} ({how}), {counts[author]} of {len(texts)} texts" + (f"; others: {others}" * bool(others))
    )
    notes.counts["texts by others (left out)"] += len(texts) - counts[author]
    return [text for text in texts if text.author == author]


def _listed(counts: Counter[str], names: Sequence[str]) -> str:
    listed = ", ".join(f"{name or 'without an author'} {counts[name]}" for name in names[:_SHOWN])
    return listed + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _of_length(texts: Sequence[OwnText], choice: Choice, notes: Notes) -> list[OwnText]:
    kept = []
    for text in texts:
        words = len(text.text.split())
        if not words:
            notes.counts["empty texts (left out)"] += 1
        elif words < choice.min_words:
            notes.counts[f"texts of fewer than {choice.min_words} words (left out; --min-words)"] += 1
        elif words > choice.max_words:
            notes.counts[f"texts of more than {choice.max_words:,} words (left out; --max-words)"] += 1
        else:
            kept.append(text)
    return kept


def _of_language(texts: Sequence[OwnText], wanted: str, notes: Notes) -> list[OwnText]:
    languages = [language_of(text.text) for text in texts]
    if texts:
        listed = ", ".join(f"{name} {count}" for name, count in Counter(languages).most_common(_SHOWN))
        kept = "all in Latin letters are used; --language NAME for one"
        if wanted:
            kept = f"{wanted} and what is {UNKNOWN} are used"
        notes.say(f"languages: {listed} ({kept})")
    latin = [(text, name) for text, name in zip(texts, languages, strict=True) if not name.endswith(SCRIPT)]
    notes.counts["texts without Latin letters, which ROUGE cannot score (left out)"] += len(texts) - len(latin)
    if not wanted:
        return [text for text, _ in latin]
    names = {name.casefold(): name for _, name in latin}
    if wanted.casefold() not in names:
        raise KitError(f"--language {wanted}: there are {', '.join(names.values())}.")
    chosen = [text for text, name in latin if name in (names[wanted.casefold()], UNKNOWN)]
    notes.counts["texts in another language (left out)"] += len(latin) - len(chosen)
    return chosen


def normal(text: str) -> str:
    """The words alone, in lower case: what makes two texts the same.

    >>> normal("Thanks -- see you!")
    'thanks see you'
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


def _without_repeats(texts: Sequence[OwnText], notes: Notes) -> list[OwnText]:
    """The first of each; two with the same id, from two files of one name, get ids of their own."""
    seen: set[str] = set()
    ids: Counter[str] = Counter()
    kept = []
    for text in texts:
        if (words := normal(text.text)) in seen:
            notes.counts["repeated texts (left out)"] += 1
            continue
        seen.add(words)
        ids[text.id] += 1
        kept.append(text if ids[text.id] == 1 else replace(text, id=f"{text.id}#{ids[text.id]}"))
    return kept
