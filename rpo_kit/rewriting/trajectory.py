"""Structured Rewriting Trajectory: the text between a generic answer and its rewrite (Figures 1 and 2 of the paper).

A trajectory makes the reasoning explicit: *observe* says what the history shows, each line citing an item; *plan* says
what to change in the generic answer; *rewrite* is the new answer. The trained module writes exactly this, so the
grammar is strict: if a text does not parse, the generic answer is used instead.

    <observe>[1] reads 2, gave 1: harsh</observe>
    <plan>reads 3, harsh: give 2</plan>
    <rewrite>2</rewrite>

`parse` never raises. Each of the six tags must appear exactly once, in this order, with nothing but whitespace outside
the sections; so no text inside a section can change which part is taken as the rewrite.

To measure what a part contributes, `reflection.sections` leaves out *observe* or *plan*; `reflection.sees_generic`
leaves the generic answer out of the prompt. Both together are the module's `Form`. A part that is left out is "" in
`Trajectory`, and its tags are not allowed.

>>> rewrite_or_generic("<observe>[1] gave 1</observe><plan>one lower</plan><rewrite>2</rewrite>", generic="3")[0]
'2'
>>> rewrite_or_generic("I would say 2.", generic="3")
('3', Parsed(trajectory=None, error='no tags'))
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from rpo_kit.errors import KitError
from rpo_kit.lamp.reading import without_thoughts
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.prompts import escape_tags, restore_tags
from rpo_kit.setting_rules import SECTIONS

# Possessive (`+`): otherwise a text of nothing but "<" and spaces would take quadratic time.
_ANY_TAG = re.compile(r"<\s*+/?+\s*+(?:observe|plan|rewrite)\b[^>]*+>", re.IGNORECASE)
_CITED = re.compile(r"\[(\d{1,4})\]")


@dataclass(frozen=True)
class Form:
    """What the module writes and reads: the sections of its trajectories, and whether it sees the generic answer."""

    sections: tuple[str, ...] = SECTIONS
    sees_generic: bool = True

    @classmethod
    def of(cls, settings: ModelSettings) -> Form:
        return cls(settings.sections, settings.sees_generic)


FULL = Form()  # the method


@dataclass(frozen=True)
class Trajectory:
    """The three parts; `observe` holds one line per observation."""

    observe: str
    plan: str
    rewrite: str

    @property
    def cited(self) -> tuple[int, ...]:
        """The items that the observations cite: 1-based positions, in order of first mention."""
        return tuple(dict.fromkeys(int(number) for number in _CITED.findall(self.observe)))


@dataclass(frozen=True)
class Parsed:
    """Either a trajectory, or the reason why the text is not one."""

    trajectory: Trajectory | None
    error: str | None = None


def parse(text: str, sections: tuple[str, ...] = SECTIONS) -> Parsed:
    """Parse a completion. Never raises: a text that does not fit the grammar gives an `error` in words."""
    tags = _tags(text)
    expected = [tag for name in sections for tag in (f"<{name}>", f"</{name}>")]
    if not tags:
        return Parsed(None, "no tags")
    for tag in expected:
        if tags.count(tag) != 1:
            return Parsed(None, f"{'no' if tag not in tags else 'more than one'} {tag}")
    unknown = [tag for tag in tags if tag not in expected]
    match = _whole(sections).fullmatch(text)
    if unknown or tags != expected or not match:
        order = "tags out of order" if tags != expected else "text outside the tags"
        return Parsed(None, f"{unknown[0]} is not part of the form" if unknown else order)
    parts = {name: match[name].strip() for name in sections}
    empty = [name for name in sections if not parts[name]]
    return Parsed(None, f"empty {empty[0]}") if empty else Parsed(Trajectory(**dict.fromkeys(SECTIONS, "") | parts))


@cache
def _whole(sections: tuple[str, ...]) -> re.Pattern[str]:
    """A text of these sections and nothing else."""
    return re.compile(
        r"\s*" + r"\s*".join(rf"<{name}>(?P<{name}>.*?)</{name}>" for name in sections) + r"\s*", re.DOTALL
    )


def _tags(text: str) -> list[str]:
    """All tags of the grammar in the text, in lower case and without spaces."""
    # No tag ends after the last ">", but the search would scan from each "<observe " there to the end of the text.
    return [re.sub(r"\s+", "", tag).lower() for tag in _ANY_TAG.findall(text, 0, text.rfind(">") + 1)]


def parse_teacher(text: str) -> Parsed:
    """Parse a teacher's text: as `parse`, but ignore thoughts, code fences and preambles around the three parts.

    A teacher is not trained on the format, and a retry costs money. Text between the parts, or a repeated part, is
    still an error.
    """
    strict = parse(text)
    if strict.trajectory:
        return strict
    first, last = f"<{SECTIONS[0]}>", f"</{SECTIONS[-1]}>"
    for candidate in (without_thoughts(text), text):
        start, end = candidate.find(first), candidate.rfind(last) + len(last)
        if 0 <= start < end and not _tags(candidate[:start]) and not _tags(candidate[end:]):
            parsed = parse(candidate[start:end])
            if parsed.trajectory:
                return parsed
    return strict


def rewrite_or_generic(text: str, generic: str, sections: tuple[str, ...] = SECTIONS) -> tuple[str, Parsed]:
    """The rewrite in a completion, as the user would read it; the generic answer if the completion does not parse."""
    parsed = parse(text, sections)
    return (restore_tags(parsed.trajectory.rewrite) if parsed.trajectory else generic), parsed


def render(trajectory: Trajectory, sections: tuple[str, ...] = SECTIONS) -> str:
    """The text of a trajectory, to train on, with these of its parts; anything that a tokenizer might read as a special
    token is escaped.

    Raises:
        KitError: a part would not survive being parsed again.
    """
    if not is_writable(trajectory):
        error = parse(_text_of(trajectory)).error or "leading or trailing whitespace"
        raise KitError(f"This trajectory cannot be written as text ({error}): {trajectory}")
    return _text_of(Trajectory(*(escape_tags(getattr(trajectory, name)) for name in SECTIONS)), sections)


def is_writable(trajectory: Trajectory) -> bool:
    """Whether the trajectory is the same after being written and parsed again."""
    return parse(_text_of(trajectory)).trajectory == trajectory


def _text_of(trajectory: Trajectory, sections: tuple[str, ...] = SECTIONS) -> str:
    return "\n".join(f"<{name}>{getattr(trajectory, name)}</{name}>" for name in sections)


def trajectory_error(trajectory: Trajectory, shown: Collection[int]) -> str | None:
    """Why this trajectory is rejected, or None: it must cite items, and only those in `shown`."""
    if not trajectory.cited:
        return "cites no item"
    if not set(trajectory.cited) <= set(shown):
        return "cites an item that was not shown"
    return None
