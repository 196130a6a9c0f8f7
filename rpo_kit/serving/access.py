"""Who sends a request, and for which user they may speak.

The server's key (RPO_SERVE_KEY) speaks for everyone. A user's token is made from the key and the user's name, and
speaks for that user alone: nothing is stored, and a new key makes all tokens invalid. A server without a key listens on
this machine only; it answers everyone there, and stores nothing for anyone.

    token_of("a long random key", "ann")             # 'ann.b64dc1…'
    sender_of(key, headers)                          # 'ann' for her token; None for the key, or if there is no key
"""

from __future__ import annotations

import hmac
import os
from email.message import Message
from functools import lru_cache
from hashlib import pbkdf2_hmac

from rpo_kit.errors import KitError
from rpo_kit.serving.messages import RequestError, checked_user

KEY_VARIABLE = "RPO_SERVE_KEY"
_ROUNDS = 200_000  # ours: so that a token does not help much to guess the key (0.1 s, once per key)


def token_of(key: str, user: str) -> str:
    """The token of a user of the server with this key."""
    return f"{user}.{hmac.new(_secret(key), user.encode(), 'sha256').hexdigest()}"


def key_from_environment() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def token_from_environment(user: str) -> str:
    """The token of a user of the server with the key in the environment. Raises KitError if there is no key."""
    key = key_from_environment()
    if not key:
        raise KitError(f"A token is made from the server's key: set {KEY_VARIABLE} as for the server, and repeat.")
    try:
        return token_of(key, checked_user(user))
    except RequestError as error:
        raise KitError(f"--token {user}: {error}") from None


@lru_cache(maxsize=8)
def _secret(key: str) -> bytes:
    return pbkdf2_hmac("sha256", key.encode(), b"rpo_kit serve", _ROUNDS)


def sender_of(key: str, headers: Message) -> str | None:
    """The user whose token was sent; None for the server's key, and for everyone if the server has none.

    Raises:
        RequestError: 401, if it is neither.
    """
    sent = _sent(headers)
    if not key or hmac.compare_digest(sent.encode(), key.encode()):
        return None
    user, dot, _ = sent.rpartition(".")
    if dot and hmac.compare_digest(sent.encode(), token_of(key, user).encode()):
        return user
    raise RequestError(401, "The key is missing or wrong: send it as Authorization: Bearer KEY.")


def _sent(headers: Message) -> str:
    scheme, _, token = str(headers.get("Authorization") or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else scheme


def check_speaks_for(sender: str | None, user: str) -> None:
    """Raise RequestError (403) if the sender's token is another user's."""
    if sender is not None and sender != user:
        raise RequestError(403, "This token belongs to another user: send the token of the user whom you name.")


def owner_of(key: str, sender: str | None, name: str) -> str:
    """The user `name` of a stored profile, who the sender may speak for.

    Raises:
        RequestError: 400 for an impossible name, 401 on a server without a key, 403 for another user's token.
    """
    user = checked_user(name)
    if not key:
        raise RequestError(
            401, f"This server has no key, so it cannot tell whose profile this is: start it with {KEY_VARIABLE} set."
        )
    check_speaks_for(sender, user)
    return user
