"""Keys of endpoints: found in the environment or in Colab's secrets, sent to the server they belong to, never written.

A key goes only where the user sent it: `OPENAI_API_KEY` to the `openai:` form, and any other variable to the one URL
that names it, as in `https://openrouter.ai/api/v1#some/model@OPENROUTER_API_KEY`. A URL without a variable gets none.

    >>> place_of("http://localhost:8000/v1#my-model@MY_KEY")
    Place(url='http://localhost:8000/v1', model='my-model', variable='MY_KEY')
"""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from rpo_kit.errors import KitError

OPENAI = "OPENAI_API_KEY"
_URL_FORM = re.compile(r"(?P<url>https?://[^#]+)#(?P<model>.+?)(?:@(?P<variable>[A-Z][A-Z0-9_]*))?")
_TOO_SHORT = 6  # letters; a shorter "key" would blot out ordinary words


@dataclass(frozen=True)
class Place:
    """A model at an endpoint; `url` is "" for OpenAI's own, `variable` holds the key ("" where none is sent)."""

    url: str
    model: str
    variable: str


def place_of(spec: str) -> Place | None:
    """The endpoint that `spec` names, or None; KitError where an address holds what looks like a secret."""
    if spec.startswith("openai:") and len(spec) > len("openai:"):
        return Place(os.environ.get("OPENAI_BASE_URL", ""), spec.removeprefix("openai:"), OPENAI)
    found = _URL_FORM.fullmatch(spec)
    if found is None:
        return None
    address = urlsplit(found["url"])
    if address.username or address.password or address.query:
        raise KitError(
            f"The address of {address.hostname} carries a user, a password or a question mark; addresses are written "
            "down. Put the key into an environment variable and name it: http://HOST:PORT/v1#MODEL@VARIABLE."
        )
    return Place(found["url"], found["model"], found["variable"] or "")


def key_in(variable: str) -> str:
    """The key that `variable` holds in the environment or among Colab's secrets; "" for no variable."""
    if not variable:
        return ""
    key = os.environ.get(variable) or _colab_secret(variable)
    if not key:
        raise KitError(
            f"Set the environment variable {variable} (on Colab: a secret of that name; in a notebook: "
            f"rpo_kit.rewriting.keys.ask_for_key({variable!r})), or point to a server with http://HOST:PORT/v1#MODEL."
        )
    return key.strip()


def ask_for_key(variable: str = OPENAI) -> None:
    """Ask for a key without showing it; it stays in this process's memory and its children's, in no file."""
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
    """Some servers repeat the key which they refuse."""
    return text.replace(key, "…") if len(key) >= _TOO_SHORT else text
