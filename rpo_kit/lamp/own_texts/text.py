"""One text of a person, what was noticed while reading, and the encoding of files.

OwnText(id="3", text="gonna be late", date="2024-05-03T10:00:00", author="mia@example.org", source="mail.mbox")
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from rpo_kit.text import replace_surrogates

_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUL_SHARE = 0.2  # ours: from this share of NUL bytes on, a file is UTF-16 without a mark


@dataclass(frozen=True)
class OwnText:
    """A text as it was found. `date` is ISO, "" if unknown; `author` is a name or an address in lower case."""

    id: str
    text: str
    date: str = ""
    author: str = ""
    source: str = ""


@dataclass
class Notes:
    """What is shown after reading: sentences on what was guessed, and counts of what was left out or removed."""

    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def report(self) -> str:
        """The sentences, then one line per count, most frequent first."""
        counted = [f"  {count:>6,}  {what}" for what, count in self.counts.most_common() if count]
        return "\n".join([*self.lines, *counted])


def decoded(data: bytes, encoding: str = "") -> tuple[str, str]:
    """(text, the encoding it was read in); never raises.

    A byte order mark decides, then the declared encoding, UTF-8, and UTF-16 without a mark; else Windows-1252, in which
    nearly every byte is a character.
    """
    tried = [name for mark, name in _BOMS if data.startswith(mark)] or [encoding, "utf-8"]
    if len(data) > 3 and data.count(0) > _NUL_SHARE * len(data):
        tried.append("utf-16-be" if data[0] == 0 else "utf-16-le")
    for name in filter(None, tried):
        try:
            text = data.decode(name)
        except (LookupError, ValueError, TypeError):  # an unknown encoding, or bytes that are not in it
            continue
        if "\0" not in text:
            return readable(text), name.removesuffix("-sig")
    for mark, _ in _BOMS:  # of an encoding that the rest is not in
        data = data.removeprefix(mark)
    return readable(data.decode("cp1252", "replace")), "windows-1252"


def readable(text: str) -> str:
    """The text with plain line ends, without control characters and lone surrogates."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return replace_surrogates(_UNREADABLE.sub("", lines.replace("\u2028", "\n").replace("\u2029", "\n")))
