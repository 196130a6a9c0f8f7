"""Which server, model and key variable a string names; a string that holds a secret is rejected.

Such strings are settings: they are stored in `run.json` and in notebooks. So anything in them that looks like a key or
a password is rejected before it is written, by a message that does not repeat it. What follows an @ must be the name of
an environment variable; digits alone are a version, as in `claude-3-5-sonnet@20240620`.

    >>> parse_spec("http://localhost:8000/v1#my-model@MY_KEY")
    EndpointSpec(url='http://localhost:8000/v1', model='my-model', variable='MY_KEY')
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from rpo_kit.errors import KitError

OPENAI = "OPENAI_API_KEY"
_URL_FORM = re.compile(r"(?P<url>https?://[^#]+)#(?P<model>.+?)(?:@(?P<variable>[A-Z][A-Z0-9_]*))?")
_VARIABLE, _VERSION = re.compile(r"[A-Z][A-Z0-9_]*"), re.compile(r"[0-9]{1,8}")
_KEY = re.compile(r"\b(?:sk-|gsk_|hf_|AIza)[\w-]{12,}|@.*[A-Z0-9]{16,}")  # known prefixes; long runs of capitals
_REMEDY = (
    "Put the key into an environment variable and name that: http://HOST:PORT/v1#MODEL@VARIABLE, or openai:MODEL with "
    "OPENAI_API_KEY."
)


@dataclass(frozen=True)
class EndpointSpec:
    """A model at an endpoint. `url` is "" for OpenAI's; `variable` names the variable with the key, or is ""."""

    url: str
    model: str
    variable: str


def parse_spec(spec: str) -> EndpointSpec | None:
    """The endpoint that `spec` names, or None.

    Raises:
        KitError: `spec`, or OPENAI_BASE_URL, seems to hold a secret.
    """
    refuse_secrets(spec)
    if spec.startswith("openai:") and len(spec) > len("openai:"):
        url = os.environ.get("OPENAI_BASE_URL", "")
        if url:
            _check_address(url, "OPENAI_BASE_URL")
        return EndpointSpec(url, spec.removeprefix("openai:"), OPENAI)
    match = _URL_FORM.fullmatch(spec)
    return EndpointSpec(match["url"], match["model"], match["variable"] or "") if match else None


def refuse_secrets(spec: str) -> None:
    """Raise KitError if the string looks as if it holds a secret. It may also name a local model, or none at all."""
    if spec.startswith("local:"):
        return
    if _KEY.search(spec):
        raise KitError(f"The name of a model contains what looks like a key; such names are stored. {_REMEDY}")
    address, _, model = spec.partition("#")
    if "://" in spec:
        _check_address(address, "The address of a model")
    name, at, tail = (model if "://" in spec else spec).rpartition("@")
    by_variable = "://" in spec and _VARIABLE.fullmatch(tail)
    if name and at and not by_variable and not _VERSION.fullmatch(tail):
        raise KitError(
            "What follows the @ in the name of a model must be the name of an environment variable (capitals, digits "
            f"and _), and only after a URL; it is not repeated here because it may be a key. {_REMEDY}"
        )


def _check_address(url: str, what: str) -> None:
    if "@" in url or "?" in url:
        raise KitError(f"{what} contains a user, a password or a question mark; addresses are stored. {_REMEDY}")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise KitError(
            f"{what} is not a valid address: write http://HOST:PORT/v1, with a port from 1 to 65535 or without one."
        )
