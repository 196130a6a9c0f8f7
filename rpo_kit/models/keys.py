"""Keys of endpoints: found in the environment or in Colab's secrets, sent to the server they belong to, never written.

A key goes only where the user sent it: `OPENAI_API_KEY` to the `openai:` form, and any other variable to the one URL
that names it, as in `https://openrouter.ai/api/v1#some/model@OPENROUTER_API_KEY`. A URL without a variable gets none.

    key_in("MY_KEY")        # 'sk-…', as it is sent
"""

from __future__ import annotations

import getpass
import os

from rpo_kit.errors import KitError
from rpo_kit.model_spec import OPENAI

_TOO_SHORT = 6  # letters; a shorter "key" would blot out ordinary words


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
    key = key.strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise KitError(
            f"The key in {variable} holds a character that no key has (a space, a line break or a letter beyond "
            "ASCII): copy it once more."
        )
    return key


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
