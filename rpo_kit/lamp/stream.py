"""A JSON list read item by item, however large the file is: LaMP-3's training questions are 3 GB.

Python's own parser is asked for one item at a time out of a buffer of a few megabytes; where it runs into the end of
the buffer, more is read and the item is parsed once more. A broken file is said with the place, and the buffer stops
growing there: what is wrong in the middle of a file is told from what is merely not read yet. Left out: streaming
inside of an item, which is a user and fits into memory.

    for question in stream_list(Path("train_questions.json")): ...        # {"id": "20", "input": …, "profile": […]}
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import AGAIN, check_present, not_json, not_utf8, web_page

_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON's own
_CHUNK = 2**23  # bytes read at a time
_TOKEN = 16  # characters: an error this near the end of the buffer may be a word cut in two, such as "nul"


def stream_list(path: Path) -> Iterator[object]:
    """The items of the list which the file is; KitError where it is missing, no list, a web page or broken off."""
    check_present(path)
    with path.open("rb") as file:
        text = _Buffer(path, file)
        opening = text.next_character()
        if opening == "<":
            raise web_page(path)
        if opening and opening != "[":
            raise KitError(f"{path} should be a JSON list of questions: {AGAIN}, or swap questions and outputs.")
        text.skip(opening or "[")
        if text.next_character() != "]":
            yield from _items(text)
        text.skip("]")
        if text.next_character():
            raise text.broken("more text after the end of the list")


def _items(text: "_Buffer") -> Iterator[object]:
    yield text.value()
    while text.next_character() == ",":
        text.skip(",")
        yield text.value()


class _Buffer:
    """The part of the file that is in memory, and the place in it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.text, self.at, self.dropped, self.ended = "", 0, 0, False
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = json.JSONDecoder().raw_decode

    def read(self, count: int = _CHUNK) -> bool:
        """Add `count` bytes of the file and forget what is behind; False at the end of the file."""
        if self.ended:
            return False
        data = self.file.read(count)
        self.ended = not data
        try:
            new = self.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            before = self.file.tell() - len(error.object)
            raise not_utf8(self.path, before + error.start) from error
        self.dropped += self.at
        self.text, self.at = self.text[self.at :] + new, 0
        return True

    def next_character(self) -> str:
        """The next one that is not blank, not taken yet; "" at the end."""
        while True:
            match = _BLANKS.match(self.text, self.at)
            assert match is not None  # it matches the empty text as well
            self.at = match.end()
            if self.at < len(self.text) or not self.read():
                return self.text[self.at : self.at + 1]

    def skip(self, character: str) -> None:
        if self.next_character() != character:
            raise self.broken(f"Expecting {character!r}")
        self.at += 1

    def value(self) -> object:
        """The next JSON value; more of the file is read, twice as much each time, until it is whole."""
        self.next_character()
        count = _CHUNK
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self.text) - _TOKEN or error.msg.startswith("Unterminated string")
                if not (cut_off and self.read(count)):
                    raise self.broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.broken("brackets nested too deeply") from error
            else:
                if end < len(self.text) or not self.read(count):  # at the very end, a number may go on
                    self.at = end
                    return value
            count *= 2

    def broken(self, what: str, at: int | None = None) -> KitError:
        return not_json(self.path, what, self.dropped + (self.at if at is None else at), self.size)
