"""Keys of endpoints: read from the environment or from Colab's secrets, sent to their own server, never written down.

A key goes only where the user sent it: `OPENAI_API_KEY` to the `openai:` form, and any other variable to the one URL
that names it, as in `https://openrouter.ai/api/v1#some/model@OPENROUTER_API_KEY`. A URL without a variable gets none.

    key_in("MY_KEY")                                 # 'sk-…', as it is sent
    without_key("no such key: sk-12345", "sk-12345")     # 'no such key: …'
"""

from __future__ import annotations

import getpass
import os

from rpo_kit.errors import KitError
from rpo_kit.model_spec import OPENAI

_MIN_LENGTH = 6  # characters; a shorter "key" would blot out ordinary words


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
            f"Set the environment variable {variable} (on Colab: a secret of that name; in a notebook: "
            f"rpo_kit.models.keys.ask_for_key({variable!r})), or name a server with http://HOST:PORT/v1#MODEL."
        )
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise KitError(
            f"The key in {variable} contains a character that no key has (a space, a line break or a letter beyond "
            "ASCII): copy it once more."
        )
    return key


def ask_for_key(variable: str = OPENAI) -> None:
    """Ask for a key without showing it. It stays in the memory of this process and its children, in no file."""
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
    """The text with "…" for the key, which some servers repeat in the message that rejects it."""
    return text.replace(key, "…") if len(key) >= _MIN_LENGTH else text
