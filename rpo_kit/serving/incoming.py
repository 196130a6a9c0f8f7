"""Checks and limits on a request: its origin, the time that it may take, the size of its body.

check_origin(True, headers)                                             # RequestError for a page in a browser
read_body(headers, BufferedReader(DeadlineReader(connection, time.monotonic() + 30.0)))   # {'messages': […], …}
"""

from __future__ import annotations

import json
import socket
import time
from email.message import Message
from io import BufferedIOBase, RawIOBase
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rpo_kit.serving.messages import RequestError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BODY = 1_000_000  # ours: bytes
_JSON, _TEXT = "application/json", "text/plain"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class DeadlineReader(RawIOBase):
    """Reads what a client sends until a deadline, so that one byte every few seconds cannot keep a thread for ever."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


def check_origin(local_only: bool, headers: Message) -> None:
    """Check that the request does not come from a web page in a browser on this machine.

    A page can reach a server on this machine through its own domain name (DNS rebinding); the Host header reveals that.
    """
    try:
        host = (urlsplit(f"//{headers.get('Host') or ''}").hostname or "").rstrip(".")
    except ValueError:
        raise RequestError(400, "The Host header is not an address.") from None
    if local_only and host not in LOOPBACK:
        raise RequestError(403, "This server accepts local requests only: use 127.0.0.1 or localhost in the URL.")


def read_body(headers: Message, stream: BufferedIOBase) -> dict[str, object]:
    """The JSON object in the body; read only if the headers declare JSON of an acceptable size."""
    if content_type(headers) != _JSON:
        raise RequestError(415, "The Content-Type is not application/json: send JSON with this header.")
    body = _json(_read(headers, stream))
    if not isinstance(body, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return body


def read_profile(headers: Message, stream: BufferedIOBase) -> object:
    """The profile in the body: what its JSON holds, or its text."""
    kind = content_type(headers)
    if kind not in (_JSON, _TEXT):
        raise RequestError(
            415,
            f"The Content-Type is neither {_JSON} nor {_TEXT}: send a JSON list of items, or a text with one item per "
            "line, with the header for it.",
        )
    content = _read(headers, stream)
    if kind == _JSON:
        return _json(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(400, "The text is not UTF-8: save it in this encoding.") from None


def content_type(headers: Message) -> str:
    return str(headers.get("Content-Type") or "").partition(";")[0].strip().lower()


def _read(headers: Message, stream: BufferedIOBase) -> bytes:
    length = str(headers.get("Content-Length") or "").strip()
    if not length.isascii() or not length.isdigit():
        raise RequestError(411, "Content-Length is missing or not a number: send the length of the body in bytes.")
    if len(length) > 12 or int(length) > MAX_BODY:  # int() rejects more than 4,300 digits
        raise RequestError(413, f"The request is too large: at most {MAX_BODY:,} bytes are read.")
    content = stream.read(int(length))
    if len(content) < int(length):
        raise RequestError(400, "The body is shorter than its Content-Length.")
    return content


def _json(content: bytes) -> object:
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is not JSON.") from None
    return value
