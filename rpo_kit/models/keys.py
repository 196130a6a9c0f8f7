"""Keys of endpoints: read from the environment or from Colab's secrets, sent to their own server, never written down.

A key is sent only to the server it is meant for: `OPENAI_API_KEY` to that of `openai:`, any other variable to the URL
that names it, as in `https://openrouter.ai/api/v1#some/model@OPENROUTER_API_KEY`. A URL without a variable gets none.

    key_in("MY_KEY")                                 # 'sk-…', as it is sent
    without_key("no such key: sk-12345", "sk-12345")     # 'no such key: …'
"""

from __future__ import annotations

import base64
import getpass
import os
import re
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote

from rpo_kit.errors import KitError
from rpo_kit.model_spec import OPENAI

_MIN_LENGTH = 6  # characters; a shorter "key" would mask ordinary words
_HEAD = 16  # characters by which a truncated key is recognized
_ESCAPED = 64  # characters of a key that may be escaped one by one; the rest of a longer one is matched literally
_GAPS = r"\s\u00ad\u200b-\u200f\u2060\ufeff"  # line ends and invisible characters inside a key
_GAP = re.compile(f"[{_GAPS}]+")
_HEX = re.compile(r"(?:\\(?:u00|x)|&#[xX]0{0,6})([0-9a-fA-F]{2});?")
_DECIMAL = re.compile(r"&#0{0,6}([0-9]{2,3});?")
_REST = r"(?:[\w~+/=%&#;\\.-]*[\w=/+])?"  # what may follow the head of a key, without the end of a sentence
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}


def key_in(variable: str) -> str:
    """The key that `variable` holds in the environment or among Colab's secrets; "" for no variable.

    Raises:
        KitError: the variable is not set, or its value cannot be a key; the message does not repeat it.
    """
    if not variable:
        return ""
    key = os.environ.get(variable) or _colab_secret(variable)
    if not key:
        raise KitError(
            f"The environment variable {variable}, which should hold the API key, is not set: set it (on Colab: a "
            f"secret of that name; in a notebook: rpo_kit.models.keys.ask_for_key({variable!r})), or name a server "
            "without a key as http://HOST:PORT/v1#MODEL."
        )
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise KitError(
            f"The key in {variable} contains a character that no key has (a space, a line break or a non-ASCII "
            "character): copy it again."
        )
    return key


def ask_for_key(variable: str = OPENAI) -> None:
    """Ask for a key without showing it. It stays in the memory of this process and its children, never in a file."""
    os.environ[variable] = getpass.getpass(f"{variable}: ").strip()


def _colab_secret(variable: str) -> str:
    try:
        from google.colab import userdata
    except ImportError:
        return ""
    try:
        return str(userdata.get(variable) or "")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return ""


def without_key(text: str, key: str) -> str:
    """The text with "…" for the key, which some servers repeat in the message that rejects it.

    The key is found in any case, with line breaks inside, escaped for URLs, HTML, JSON or Python, in Base64, as hex
    digits and backwards; of a long key, the first 16 characters are enough. If it cannot be separated from the rest of
    the text (escaped in several ways at once), the whole text is replaced.
    """
    if len(key) < _MIN_LENGTH or not _holds_key(text, key):
        return text
    shown = _pattern(key).sub("…", text)
    return "…" if _holds_key(shown, key) else shown


def _holds_key(text: str, key: str) -> bool:
    """Whether the key is in the text, or in what the text decodes to."""
    heads = [form[:_HEAD].replace("\\", "").casefold() for form in _forms(key)]
    texts = [text]
    for _ in range(4):  # a text may be escaped more than once
        for plain in (_GAP.sub("", read).replace("\\", "").casefold() for read in texts):
            if any(head in plain for head in heads):
                return True
        # one after the other, because a key may hold what reads as an escape: 0000%00' is 0000%00&#x27; in HTML
        texts = list(dict.fromkeys(decode(read) for read in texts for decode in _DECODERS))
    return False


def _without_entities(text: str) -> str:
    for character, name in _ENTITIES.items():
        text = text.replace(f"&{name};", character)
    return text


_DECODERS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    unquote,
    lambda text: _HEX.sub(lambda match: chr(int(match[1], 16)), text),
    lambda text: _DECIMAL.sub(lambda match: chr(int(match[1])), text),
    _without_entities,
)


@lru_cache(maxsize=8)
def _forms(key: str) -> tuple[str, ...]:
    """The key as it is, backwards, as hex digits, and in Base64."""
    return key, key[::-1], key.encode().hex(), *(form for form in _in_base64(key) if len(form) >= _MIN_LENGTH)


def _in_base64(key: str) -> set[str]:
    """The key in Base64 inside a longer text, such as `Bearer KEY`: one form per offset modulo 3.

    Characters that also depend on the text before or after the key are omitted.
    """
    forms = set()
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + key.encode()).decode()
        forms.add(coded[-(-offset * 8 // 6) : (offset + len(key)) * 8 // 6])
    return forms | {form.replace("+", "-").replace("/", "_") for form in forms}


@lru_cache(maxsize=8)
def _pattern(key: str) -> re.Pattern[str]:
    """Matches the key in each of its forms, complete or truncated."""
    forms = _forms(key)
    heads = [_escaped_regex(form[:_HEAD]) + _REST for form in forms if len(form) > _HEAD]
    return re.compile("|".join([*map(_escaped_regex, forms), *heads]), re.IGNORECASE)


def _escaped_regex(text: str) -> str:
    """A regular expression for the text whose characters may each be escaped, as in `%73k&#45;\\u0061`."""
    characters = []
    for character in text[:_ESCAPED]:
        code, plain = ord(character), re.escape(character)
        entity = f"|&{_ENTITIES[character]};" if character in _ENTITIES else ""
        characters.append(
            rf"(?:\\{{0,4}}{plain}|%(?:25){{0,3}}{code:02x}|&#0{{0,6}}{code};|&#x0{{0,6}}{code:x};"
            rf"|\\{{1,4}}(?:u00|x){code:02x}{entity})"
        )
    return f"[{_GAPS}]{{0,80}}".join(characters) + re.escape(text[_ESCAPED:])
