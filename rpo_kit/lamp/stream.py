"""A JSON list read item by item, however large the file is: LaMP-3's train_questions.json has 3 GB.

Python's own parser reads one item at a time from a buffer of a few megabytes; when it reaches the end of the buffer,
more is read and the item is parsed again. Parse errors report the position, and the buffer stops growing there: a
defect in the middle of a file is distinguished from text that has not been read yet. An item is one user's example and
fits into memory.

    for row in stream_list(Path("train_questions.json")): ...        # {"id": "20", "input": …, "profile": […]}
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import (
    AGAIN,
    QUESTIONS,
    check_present,
    not_json,
    not_usable,
    not_utf8,
    reject_repeated_keys,
    web_page,
)

_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON's own
_CHUNK = 2**23  # bytes read at a time
_TOKEN = 16  # characters: an error this close to the end of the buffer may be a word cut in two, such as "nul"


def stream_list(path: Path) -> Iterator[object]:
    """The items of the list in the file. Raises KitError if it is missing, not a list, a web page or truncated."""
    check_present(path, QUESTIONS)
    with path.open("rb") as file:
        text = _Buffer(path, file)
        opening = text.next_character()
        if opening == "<":
            raise web_page(path, QUESTIONS)
        if opening and opening != "[":
            raise KitError(
                f"The question file {path} should be a JSON list of examples: {AGAIN}, or swap it with the gold file."
            )
        text.skip(opening or "[")
        if text.next_character() != "]":
            yield text.value()
            while text.next_character() == ",":
                text.skip(",")
                yield text.value()
        text.skip("]")
        if text.next_character():
            raise text.broken("text after the end of the list")


class _Buffer:
    """The part of the file that is in memory, and the position in it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.text, self.position, self.dropped, self.ended = "", 0, 0, False  # dropped: characters before `text`
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = json.JSONDecoder(object_pairs_hook=reject_repeated_keys).raw_decode

    def read(self, count: int = _CHUNK) -> bool:
        """Add `count` bytes of the file and drop what was consumed; False at the end of the file."""
        if self.ended:
            return False
        data = self.file.read(count)
        self.ended = not data
        try:
            new = self.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            before = self.file.tell() - len(error.object)
            raise not_utf8(self.path, before + error.start, QUESTIONS) from error
        self.dropped += self.position
        self.text, self.position = self.text[self.position :] + new, 0
        return True

    def next_character(self) -> str:
        """The next character that is not blank, without consuming it; "" at the end."""
        while True:
            match = _BLANKS.match(self.text, self.position)
            assert match is not None  # it also matches the empty text
            self.position = match.end()
            if self.position < len(self.text) or not self.read():
                return self.text[self.position : self.position + 1]

    def skip(self, character: str) -> None:
        if self.next_character() != character:
            raise self.broken(f"Expecting {character!r}")
        self.position += 1

    def value(self) -> object:
        """The next JSON value; more of the file is read, twice as much each time, until it is complete."""
        self.next_character()
        count = _CHUNK
        while True:
            try:
                value, end = self.parse(self.text, self.position)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self.text) - _TOKEN or error.msg.startswith("Unterminated string")
                if not (cut_off and self.read(count)):
                    raise self.broken(error.msg, error.pos) from error
            except ValueError as error:  # a repeated key, or a number of thousands of digits
                place = f"{error}, in the row that begins at character {self.dropped + self.position}"
                raise not_usable(self.path, place, QUESTIONS) from error
            except RecursionError as error:
                raise self.broken("brackets nested too deeply") from error
            else:
                if end < len(self.text) or not self.read(count):  # a number at the end of the buffer may continue
                    self.position = end
                    return value
            count *= 2

    def broken(self, what: str, position: int | None = None) -> KitError:
        position = self.dropped + (self.position if position is None else position)
        return not_json(self.path, what, position, self.size, QUESTIONS)
