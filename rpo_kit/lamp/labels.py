"""Find the label or rating that a text gives as its answer, not the scale it mentions or the options it repeats.

find_label(get_task("LaMP-3"), "On a scale of 1 to 5, I would give this a 2.")       # '2'
find_label(get_task("LaMP-1"), "Between [1] and [2], I choose [2].")                 # '[2]'
find_label(get_task("LaMP-2"), "I would say: Sci Fi")                                # 'sci-fi'
find_label(get_task("LaMP-3"), "4.5 out of 5")       # '4.5': LaMP's evaluator scores it unrounded, and so do we
find_label(get_task("LaMP-3"), "8/10")               # None: a different scale
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from rpo_kit.lamp.tasks import Task


def find_label(task: Task, text: str) -> str | None:
    """The label or rating that the text gives as its answer; None if it gives none."""
    return _rating(task, text) if task.kind == "regression" else _label(task, text)


# ---- labels -------------------------------------------------------------------------------------------------------

_JOINED = re.compile(r"[\s,;/|'\"*\\]*(?:and|or|vs\.?|to|&)?[\s,;/|'\"*\\]*", re.IGNORECASE)
_NOT_BEFORE = re.compile(
    r"(?:\bnot|n['’]t|\brather than|\binstead of|\bnor|\bunlike)(?:\s+\w+){0,2}[\s'\"*]+$", re.IGNORECASE
)
_NOT_AFTER = re.compile(r"['\"*]*\s+(?:is|was|does|seems)\s*(?:not\b|n['’]t)", re.IGNORECASE)
_NEAR = 48  # characters around a mention that say what it is


@dataclass(frozen=True)
class _Mention:
    start: int
    end: int
    label: str


def _label(task: Task, text: str) -> str | None:
    """The label that is the answer; None if none is named. A bare number means "[1]" only if it is all of the text."""
    pattern, labels = _mention_pattern(task.labels)
    mentions = [_Mention(m.start(), m.end(), labels[m.lastgroup or ""]) for m in pattern.finditer(text)]
    if mentions:
        return _chosen(task, text, mentions)
    bare = re.fullmatch(r"\W*(?:(?:reference|paper|option|answer|title)\W*)*(\d{1,2})\W*", text, re.IGNORECASE)
    return next((label for label in task.labels if bare and label == f"[{bare[1]}]"), None)


@cache
def _mention_pattern(labels: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """One pattern for all labels, longer ones first; case, hyphens, blanks and "&" may vary."""
    groups, named = [], {}
    for number, label in enumerate(sorted(labels, key=len, reverse=True)):
        words = [{"&": "(?:&amp;|&|and)"}.get(word, re.escape(word)) for word in re.split(r"[\s-]+", label)]
        spelled = r"[\s_‐‑–-]{1,3}".join(words)
        number_in_brackets = rf"\\?\[\s?{re.escape(label[1:-1])}\s?\\?\]"
        spelled = number_in_brackets if label.startswith("[") else rf"(?<!\w){spelled}(?!\w)"
        groups.append(f"(?P<l{number}>{spelled})")
        named[f"l{number}"] = label
    return re.compile("|".join(groups), re.IGNORECASE), named


def _chosen(task: Task, text: str, mentions: list[_Mention], strong: frozenset[int] = frozenset()) -> str:
    """Of several labels named, the one that is the answer; labels that are only recited or denied come last.

    The last one after "answer", else the first after the task's own word ("rating", "tag"), the first with its scale
    beside it (`strong`), the first after a verb such as "give", or simply the first.
    """
    mentions = _without_recitals(task, text, mentions)
    before = {m: text[max(0, m.start - _NEAR) : m.start] for m in mentions}
    denied = {m for m in mentions if _NOT_BEFORE.search(before[m]) or _NOT_AFTER.match(text, m.end, m.end + _NEAR)}
    kept = [m for m in mentions if m not in denied] or mentions
    final, named, verb = _marker_patterns(task.answer_names)
    if answers := [m for m in kept if final.search(before[m])]:
        return answers[-1].label
    orders = (
        [m for m in kept if named.search(before[m])],
        [m for m in kept if m.start in strong],
        [m for m in kept if verb.search(before[m])],
        kept,
    )
    return next(found for found in orders if found)[0].label


def _is_marked(task: Task, text: str, mention: _Mention) -> bool:
    """Whether the words before the mention announce an answer: "my rating is", "I would give"."""
    before = text[max(0, mention.start - _NEAR) : mention.start]
    return any(pattern.search(before) for pattern in _marker_patterns(task.answer_names))


@cache
def _marker_patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    own = "|".join(map(re.escape, names)) or "label"
    link = r"\b[\s*_\"'“`]*(?:\b(?:is|are|would be|should be|could be|of)\b|[:：=–—-])?[\s*_\"'“`:(\[]*$"
    return (
        re.compile(rf"\b(?:final |best |correct |my )?answer{link}", re.IGNORECASE),
        re.compile(rf"\b(?:{own}){link}", re.IGNORECASE),
        re.compile(r"\b(?:give|rate|assign|award|deserves?|choose|pick|select|say)\b[^.!?\n\d]{0,40}$", re.IGNORECASE),
    )


def _without_recitals(task: Task, text: str, mentions: list[_Mention]) -> list[_Mention]:
    """Without runs such as "[1] or [2]" or "sci-fi, comedy, action, …", unless nothing else is named."""
    runs: list[list[_Mention]] = []
    for mention in mentions:
        joined = runs and _JOINED.fullmatch(text, runs[-1][-1].end, mention.start)
        runs[-1].append(mention) if joined else runs.append([mention])
    few = min(3, len(task.labels))
    kept = [m for run in runs if len({m.label for m in run}) < few for m in run]
    return kept or mentions


# ---- ratings ------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.,#$€£/^-])(?<!\d:)(\d{1,3}(?:[.,]\d{1,4})?)(?![\w%]|[.,:/]\d)")
_WORDS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_OUT_OF = r"\s{0,2}(?:/|\\/|out\s+of|von|sur|of(?=\s+(?:5|five)\b))\s{0,2}"
_SCALES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # 1 to 5, 1-5, 1 (worst) through 5, one to ten
        r"(?<![\w.,])(?:0|1|one)(?:\.0)?\s*(?:stars?\s*)?(?:\([^()\n]{0,40}\)\s*)?(?:to|through|and|bis|-|–|—|→|~|\.{2,3}|…)\s*"
        r"(?:5|five|10|ten|100)(?:\.0)?(?![\w]|[.,]\d)",
        # 1 being the worst and 5 the best
        r"(?<![\w.,])1\s+(?:being|is|=|means|meaning)\s[^.\n\d]{0,60}\b5\b(?!\s*/)(?:\s+(?:being|is|=|means|meaning))?",
        r"\b(?:5|five|10|ten)[\s-]*(?:point|star)s?[\s-]+(?:scale|system)",
        r"\bout\s+of\s+(?:5|five)\b(?:\s+stars?)?",
        r"\b(?:scale|maximum|max)\s+(?:of\s+)?(?:up\s+to\s+)?(?:5|five|10|ten)\b",
    )
)
_SHARE = re.compile(
    rf"(?<![\w.,/-])(\d{{1,3}}(?:[.,]\d{{1,4}})?|{'|'.join(_WORDS)}){_OUT_OF}(\d{{1,3}}|five|ten)(?:\.0)?(?!\w|[.,/]\d)",
    re.IGNORECASE,
)
_STARS_AFTER = re.compile(r"[\s-]{0,2}(?:\*{0,2}\s?)(?:stars?\b|★|⭐|points?\b)", re.IGNORECASE)
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_STARS = re.compile(r"(?:★|⭐️?|🌟){1,5}")


def _rating(task: Task, text: str) -> str | None:
    """The rating: a number on the task's scale, "4.5" unrounded (as LaMP scores it) and "4.0" as "4"; else None.

    The ends of a scale that the text mentions are not ratings, nor is "8/10", which is on another scale.
    """
    lowest, highest = float(task.labels[0]), float(task.labels[-1])
    strong: set[int] = set()  # starts of numbers with their scale beside them

    def share(match: re.Match[str]) -> str:
        if match[2].lower() not in ("5", "five"):
            return " " * len(match[0])
        strong.add(match.start())
        return match[1].ljust(len(match[0]))

    clean = _SHARE.sub(share, text)
    for scale in _SCALES:
        clean = scale.sub(lambda match: " " * len(match[0]), clean)
    numbers = [_Mention(m.start(), m.end(), f"{float(m[1].replace(',', '.')):g}") for m in _NUMBER.finditer(clean)]
    mentions = [m for m in numbers if lowest <= float(m.label) <= highest]
    spelled = [_Mention(m.start(), m.end(), _WORDS[m[0].lower()]) for m in _WORD.finditer(clean)]
    strong |= {m.start for m in mentions + spelled if _STARS_AFTER.match(clean, m.end, m.end + 12)}
    if not mentions:  # "one" is rarely a rating
        alone = clean.strip(" .!*\"'")
        mentions = [
            m for m in spelled if m.start in strong or alone == clean[m.start : m.end] or _is_marked(task, clean, m)
        ]
    if mentions:
        return _chosen(task, clean, mentions, frozenset(strong))
    stars = _STARS.search(clean)
    return str(len(re.findall("[★⭐🌟]", stars[0]))) if stars else None
