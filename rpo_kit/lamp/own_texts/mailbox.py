"""Mails: each message of an mbox (or one .eml file) as a text, with author and date; nothing in a mail can stop it.

The plain part is read, else the HTML without tags; attachments are left out. What a person did not write is removed by
`mail_body`. Charsets that are unknown or wrong are guessed.

    read_mails(Path("sent.mbox"), notes)     # [OwnText(id="sent.mbox:1", text="gonna be late", author="mia@…", …)]
"""

from __future__ import annotations

import mailbox
import re
from collections.abc import Iterator
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parseaddr
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.dates import iso_date
from rpo_kit.lamp.own_texts.mail_body import own_part
from rpo_kit.lamp.own_texts.text import Notes, OwnText, decoded

_SILENT = frozenset(("style", "script", "head", "title", "blockquote"))  # blockquote: what others wrote
_DAMAGE = (LookupError, ValueError, TypeError, AttributeError, RecursionError, MessageError)  # see `_read`
_FLOWED = re.compile(r"(?<!\n--) \n(?!>)")  # RFC 3676: the line goes on, but for a signature's mark and quoted lines
_BREAKS = frozenset(("br", "p", "div", "li", "tr", "h1", "h2", "h3", "ul", "ol", "table"))


def read_mails(path: Path, notes: Notes) -> list[OwnText]:
    """The messages of the file, in its order, as far as they hold words of their own.

    Raises:
        KitError: the file holds no message.
    """
    texts, count = [], 0
    for count, data in enumerate(_messages(path), 1):
        try:
            author, date, body = _read(data, notes)
        except _DAMAGE:
            notes.counts["mails that are too damaged to be read (left out)"] += 1
            continue
        if own := own_part(body, notes):
            texts.append(OwnText(f"{path.name}:{count}", own, date, author, path.name))
    if not count:
        raise KitError(f"{path} holds no mails: an mbox begins with a line `From …`; or give --format text.")
    notes.say(f"{path.name}: {count} mails")
    return texts


def _messages(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() == ".eml":
        yield path.read_bytes()
        return
    box = mailbox.mbox(path, create=False)
    try:
        for key in box.keys():  # noqa: SIM118  iterating would parse all messages a second time
            yield box.get_bytes(key)
    finally:
        box.close()


def _read(data: bytes, notes: Notes) -> tuple[str, str, str]:
    """(author, date, text) of a message. Raises one of _DAMAGE for what Python's parser trips over."""
    message = message_from_bytes(data)
    return _author(message), iso_date(str(message.get("Date") or "")), _body(message, notes)


def _author(message: Message) -> str:
    """The sender's address in lower case, or the name where there is none."""
    name, address = parseaddr(_header(message, "From"))
    return (address or name).strip().casefold()


def _header(message: Message, name: str) -> str:
    """A header in readable form; never raises."""
    value = message.get(name)
    if value is None:
        return ""
    try:
        return str(make_header(decode_header(str(value))))
    except (LookupError, ValueError, AttributeError, MessageError):
        return str(value)


def _body(message: Message, notes: Notes) -> str:
    """The text of a message: its plain part, else its HTML without tags; "" if it has neither."""
    parts: dict[str, str] = {}
    for part in _own_parts(message, notes):
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html"):
            parts.setdefault(kind, _content(part))
    if parts.get("text/plain", "").strip():
        return parts["text/plain"]
    if "text/html" in parts:
        notes.counts["mails in HTML alone (read without their tags)"] += 1
    return without_tags(parts.get("text/html", ""))


def _own_parts(message: Message, notes: Notes) -> Iterator[Message]:
    """The parts that are not attachments, which are counted, nor inside an attached mail."""
    if message.get_content_maintype() == "message":
        notes.counts["attached mails (left out)"] += 1
    elif message.is_multipart():
        for part in message.get_payload():
            if isinstance(part, Message):
                yield from _own_parts(part, notes)
    elif message.get_content_disposition() == "attachment" or message.get_filename():
        notes.counts["attachments (left out)"] += 1
    else:
        yield message


def _content(part: Message) -> str:
    try:
        data: Any = part.get_payload(decode=True)
        charset = part.get_content_charset() or ""
    except (LookupError, ValueError, TypeError, AttributeError):
        data, charset = part.get_payload(), ""
    if isinstance(data, bytes):
        text, _ = decoded(data, charset)
    else:
        text = str(data or "")
    flowed = str(part.get_param("format") or "").lower() == "flowed"
    return _FLOWED.sub(" ", f"\n{text}")[1:] if flowed else text


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.silent: list[str] = []  # the open tags whose text is not read

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self.silent.append(tag)
        elif tag in _BREAKS:
            self.pieces.append("\n\n" if tag == "p" else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[self.silent.index(tag) :]
        elif tag in ("p", "div"):
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.pieces.append(data.replace("\n", " "))


def without_tags(html: str) -> str:
    """The words of an HTML text, one paragraph per line; quoted mail and styles left out. Never raises."""
    parser = _Text()
    try:
        parser.feed(html)
        parser.close()
    except (ValueError, AssertionError, RecursionError):
        pass  # what was read so far stands
    return "".join(parser.pieces)
