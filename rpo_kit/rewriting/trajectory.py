"""Structured Rewriting Trajectory: the text between a generic answer and its rewrite (Figure 1 and 2 of the paper).

A trajectory makes the reasoning explicit: *observe* says what the history shows, each line naming the item it rests on;
*plan* says what to change in the generic answer; *rewrite* is the new answer. The module that is trained writes exactly
this, so the grammar is strict, and what does not fit is no rewrite at all: the generic answer stays, and it is counted.

    <observe>[1] reads 2, gave 1: harsh</observe>
    <plan>reads 3, harsh: give 2</plan>
    <rewrite>2</rewrite>

`parse` never raises, whatever the text. The three tags must stand once each and in this order, with nothing around
them but white space; so no text inside a section can change which part is taken as the rewrite.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rpo_kit.errors import KitError

SECTIONS = ("observe", "plan", "rewrite")
# Possessive (`+`): a text of nothing but "<" and spaces would otherwise take time with the square of its length.
_ANY_TAG = re.compile(r"<\s*+/?+\s*+(?:observe|plan|rewrite)\b[^>]*+>", re.IGNORECASE)
_WHOLE = re.compile(r"\s*" + r"\s*".join(rf"<{name}>(?P<{name}>.*?)</{name}>" for name in SECTIONS) + r"\s*", re.DOTALL)
_CITED = re.compile(r"\[(\d{1,4})\]")


@dataclass(frozen=True)
class Trajectory:
    """The three parts; `observe` holds one line an observation."""

    observe: str
    plan: str
    rewrite: str

    @property
    def cited(self) -> tuple[int, ...]:
        """The items which the observations rest on: 1-based positions, in order of first mention."""
        return tuple(dict.fromkeys(int(number) for number in _CITED.findall(self.observe)))


@dataclass(frozen=True)
class Parsed:
    """Either a trajectory, or the complaint why there is none."""

    trajectory: Trajectory | None
    error: str | None = None


def render(trajectory: Trajectory) -> str:
    """The text of a trajectory; KitError where a part would not survive being parsed again."""
    text = _text_of(trajectory)
    if not is_writable(trajectory):
        raise KitError(f"This trajectory cannot be written down ({parse(text).error or 'outer spaces'}): {trajectory}")
    return text


def is_writable(trajectory: Trajectory) -> bool:
    """Whether it is read back as it was written."""
    return parse(_text_of(trajectory)).trajectory == trajectory


def _text_of(trajectory: Trajectory) -> str:
    return "\n".join(f"<{name}>{getattr(trajectory, name)}</{name}>" for name in SECTIONS)


def parse(text: str) -> Parsed:
    """Read a completion. Never raises; what does not fit the grammar comes back with a complaint in words."""
    tags = [re.sub(r"\s+", "", tag).lower() for tag in _ANY_TAG.findall(text)]
    wanted = [tag for name in SECTIONS for tag in (f"<{name}>", f"</{name}>")]
    if not tags:
        return Parsed(None, "no tags")
    for tag in wanted:
        if tags.count(tag) != 1:
            return Parsed(None, f"{'no' if tag not in tags else 'more than one'} {tag}")
    match = _WHOLE.fullmatch(text)
    if tags != wanted or not match:
        return Parsed(None, "tags out of order" if tags != wanted else "text outside the tags")
    parts = {name: match[name].strip() for name in SECTIONS}
    empty = [name for name in SECTIONS if not parts[name]]
    return Parsed(None, f"empty {empty[0]}") if empty else Parsed(Trajectory(**parts))


def trajectory_error(trajectory: Trajectory, shown: Collection[int], gold: str | None = None) -> str | None:
    """Why this trajectory is not worth training on, or None: cites only items `shown`, ends in the true output."""
    if not trajectory.cited:
        return "cites no item"
    if not set(trajectory.cited) <= set(shown):
        return "cites an item that was not shown"
    if gold is not None and trajectory.rewrite != gold.strip():
        return "does not end in the gold"
    return None


def count_parse_errors(completions: Sequence[str]) -> dict[str, int]:
    """How often each complaint was made, most frequent first; completions that parse are not counted."""
    found = [parsed.error for parsed in map(parse, completions) if parsed.error]
    return {reason: found.count(reason) for reason in sorted(set(found), key=lambda r: (-found.count(r), r))}
