"""Read a file of own texts: its format by name and content, its encoding, its separators.

    read_own("posts.csv", Options(), notes)       # [OwnText(id="posts.csv:1", text="gonna be late", …), …]

`.eml` and `.mbox` are mails (`mailbox.py`); `.csv` and `.tsv` are tables with a head; `.jsonl` has one object or one
text per line; `.json` is a list of them; everything else is plain text, divided at separator lines or, if asked, at
every line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.columns import Columns, Row, row_texts
from rpo_kit.lamp.own_texts.mailbox import read_mails
from rpo_kit.lamp.own_texts.text import Notes, OwnText, decoded

_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".mbox": "mbox",
    ".mbx": "mbox", ".eml": "mbox", ".txt": "text", ".md": "text", ".js": "json",
}  # fmt: skip
_OTHER = {  # how files start that hold texts, but not as text
    b"PK\x03\x04": "a ZIP archive, as .docx, .odt and .xlsx are", b"\x1f\x8b": "a gzip archive", b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document", b"\xd0\xcf\x11\xe0": "an Office or Outlook file", b"!BDN": "an Outlook data file",
    b"SQLite format 3": "an SQLite database",
}  # fmt: skip
_DELIMITERS = ",;\t|"
_RULE = re.compile(r"\s*([-=*_~#%])(?:\s*\1)*\s*")  # a line of one mark: ---, ===, * * *, %
_ASSIGNED = re.compile(r"\s*[\w.]+\s*=\s*(?=\[)")  # before the list in tweets.js, as Twitter's archive has it
_DEPTH = 3  # ours: objects inside of one another that are read
_BINARY = 0.1  # ours: share of control bytes from which on a file is not a text


@dataclass(frozen=True)
class Options:
    """How to read; "" is guessed."""

    format: str = ""
    columns: Columns = field(default_factory=Columns)
    separator: str = ""


def read_own(path: Path, options: Options, notes: Notes) -> list[OwnText]:
    """All texts of a file, in its order.

    Raises:
        KitError: there is no such file, it cannot be read as its format, or a named column is missing.
    """
    if path.is_dir():
        raise KitError(f"{path} is a folder: give the files in it, as in {path}/*.")
    if not path.is_file():
        raise KitError(f"There is no file {path}: correct the path.")
    _refuse_other_kinds(path)
    form = options.format or _guessed(path)
    if form == "mbox":  # gigabytes, perhaps: one mail at a time
        return read_mails(path, notes)
    data = path.read_bytes()
    _refuse_binary(path, data)
    text, encoding = decoded(data)
    notes.say(f"{path.name}: read as {form}, {encoding}" + ("" if options.format else " (--format to change)"))
    if form == "text":
        return _plain(text, path.name, options.separator, notes)
    if form == "lines":
        return _own_texts(text.split("\n"), path.name)
    rows = {"csv": _table, "jsonl": _lines, "json": _list}[form](text, path, notes)
    return row_texts(rows, options.columns, path.name, notes) if rows else []


def _guessed(path: Path) -> str:
    """By the content where that is clear, else by the suffix, else plain text."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf")
    if re.match(rb"From \S.*\n[A-Za-z-]+:|>?From - ", start):
        return "mbox"
    known = _SUFFIXES.get(path.suffix.lower(), "")
    if known in ("", "text", "json") and start.lstrip().startswith(b"{") and _is_object(path.read_bytes()):
        return "jsonl"
    return known or "text"


def _is_object(data: bytes) -> bool:
    """Whether the first of several lines alone is a JSON object."""
    first, *others = data.strip().split(b"\n", 1)
    try:
        return bool(others) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((kind for sign, kind in _OTHER.items() if start.startswith(sign)), "")
    if kind:
        raise KitError(f"{path} is {kind}: unpack it, or save its texts as plain text, CSV, JSONL or mbox.")


def _refuse_binary(path: Path, data: bytes) -> None:
    start = data[:65536]
    odd = sum(byte < 9 or 13 < byte < 27 for byte in start if byte)  # NUL: half of a file in UTF-16
    if odd > _BINARY * max(1, len(start)):
        raise KitError(
            f"{path} is not a text file: export it as CSV, JSONL, mbox or plain text (a mail program can write mbox)."
        )


# ---- formats ------------------------------------------------------------------------------------------------------


def _table(text: str, path: Path, notes: Notes) -> list[Row]:
    """The rows of a table with a head; the delimiter is the one that divides the first lines most evenly."""
    csv.field_size_limit(2**30)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    if delimiter != ",":
        notes.say(f"{path.name}: columns are divided by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [line for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise KitError(f"{path}, line {reader.line_num}, is not CSV ({error}): correct it, or --format text.") from None
    if not lines:
        return []
    head = [name.strip() or f"column {n}" for n, name in enumerate(lines[0], 1)]
    notes.counts["rows with too few or too many columns (read as far as they go)"] += sum(
        len(line) != len(head) for line in lines[1:]
    )
    return [dict(zip(head, line, strict=False)) for line in lines[1:]]


def _delimiter(text: str) -> str:
    def evenness(delimiter: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text[:20_000], newline=""), delimiter=delimiter)
        try:
            widths = [len(line) for _, line in zip(range(20), reader, strict=False) if line]
        except csv.Error:
            return 0, 0
        width, count = Counter(widths).most_common(1)[0] if widths else (1, 0)
        return (count, width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=evenness)


def _lines(text: str, path: Path, notes: Notes) -> list[Row]:
    values = []
    for line in text.split("\n"):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            notes.counts[f"lines of {path.name} that are not JSON (left out)"] += 1
    return _objects(values, path, notes)


def _list(text: str, path: Path, notes: Notes) -> list[Row]:
    try:
        value = json.loads(_ASSIGNED.sub("", text, count=1))
    except (ValueError, RecursionError) as error:
        raise KitError(f"{path} is not JSON ({error}): correct it, or give --format jsonl or text.") from None
    parts = value.values() if isinstance(value, dict) else [value]
    lists: list[list[Any]] = [part for part in parts if isinstance(part, list)]
    if not lists:
        raise KitError(f"{path} holds no list of texts: it should be a JSON list of objects or texts.")
    longest: list[Any] = max(lists, key=len)
    return _objects(longest, path, notes)


def _objects(values: Iterable[Any], path: Path, notes: Notes) -> list[Row]:
    rows: list[Row] = []
    for value in values:
        if isinstance(value, dict):
            rows.append(_row(value))
        elif isinstance(value, str):
            rows.append({"text": value})
        else:
            notes.counts[f"entries of {path.name} that are neither objects nor texts (left out)"] += 1
    return rows


def _row(value: dict[str, Any], before: str = "") -> Row:
    """The texts and numbers of an object; those of objects in it under names such as "tweet.full_text"."""
    row: Row = {}
    for key, part in value.items():
        part = _in_parts(part)
        if isinstance(part, dict) and before.count(".") < _DEPTH:
            row |= _row(part, f"{before}{key}.")
        elif isinstance(part, str | int | float):
            row[f"{before}{key}"] = str(part)
    return row


def _in_parts(value: Any) -> Any:
    """The text of a list such as ["see ", {"type": "link", "text": "…"}], as Telegram writes it; others unchanged."""
    if not isinstance(value, list) or not any(isinstance(part, dict) for part in value):
        return value
    parts = [part.get("text") if isinstance(part, dict) else part for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else value


def _plain(text: str, source: str, separator: str, notes: Notes) -> list[OwnText]:
    """Divided at lines that are the separator; guessed: lines of one mark, else two empty lines, else one."""
    lines = text.split("\n")
    if separator:
        if not any(line.strip() == separator.strip() for line in lines):
            raise KitError(f"{source} has no line {separator!r}: name another --separator, or leave the option out.")
        chunks, said = _divided(lines, lambda line: line.strip() == separator.strip()), repr(separator)
    elif sum(bool(line.strip() and _RULE.fullmatch(line)) for line in lines) > 1:
        chunks, said = _divided(lines, lambda line: bool(line.strip() and _RULE.fullmatch(line))), "lines such as ---"
    else:
        said = "two empty lines" if re.search(r"\S\n[ \t]*\n[ \t]*\n\s*\S", text) else "empty lines"
        chunks = re.split(r"\n[ \t]*\n[ \t]*\n\s*" if said.startswith("two") else r"\n[ \t]*\n\s*", text)
    notes.say(
        f"{source}: texts are divided at {said}" + ("" if separator else " (guessed; --separator LINE to change)")
    )
    texts = _own_texts(chunks, source)
    lines_of_first = texts[0].text.strip().count("\n") + 1 if texts else 0
    if len(texts) == 1 and lines_of_first > 1:
        notes.say(f"{source}: one text of {lines_of_first} lines; if every line is a text, add --format lines")
    return texts


def _own_texts(chunks: Iterable[str], source: str) -> list[OwnText]:
    return [OwnText(f"{source}:{n}", chunk, source=source) for n, chunk in enumerate(chunks, 1) if chunk.strip()]


def _divided(lines: list[str], divides: Callable[[str], bool]) -> list[str]:
    chunks: list[list[str]] = [[]]
    for line in lines:
        if divides(line):
            chunks.append([])
        else:
            chunks[-1].append(line)
    return ["\n".join(chunk) for chunk in chunks]
