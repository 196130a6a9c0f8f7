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
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rpo_kit.errors import KitError

OPENAI = "OPENAI_API_KEY"
_RECORDED = "file:"
_VLLM = "vllm:"
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
    spec = spec.strip()
    refuse_secrets(spec)
    if spec.startswith("openai:") and len(spec) > len("openai:"):
        url = os.environ.get("OPENAI_BASE_URL", "").strip()  # as copied, with a line end
        if url:
            _check_address(url, "OPENAI_BASE_URL")
        return EndpointSpec(url, spec.removeprefix("openai:"), OPENAI)
    match = _URL_FORM.fullmatch(spec)
    return EndpointSpec(match["url"], match["model"], match["variable"] or "") if match else None


def rollout_server(spec: str) -> EndpointSpec | None:
    """The vLLM server that `rl.rollouts` names, as vllm:http://HOST:PORT or vllm:http://HOST:PORT@VARIABLE, or None.

    Raises:
        KitError: `spec` seems to hold a secret.
    """
    address = spec.strip().removeprefix(_VLLM)
    if not spec.strip().startswith(_VLLM):
        return None
    head, at, tail = address.rpartition("@")
    url, variable = (head, tail) if at and _VARIABLE.fullmatch(tail) else (address, "")
    url = url.rstrip("/").removesuffix("/v1")
    return parse_spec(f"{url}/v1#rollouts{f'@{variable}' if variable else ''}")


def recorded_files(spec: str) -> tuple[Path, ...]:
    """The files of recorded texts in `file:TRAIN.json,DEV.json`; () for the name of a model."""
    kind, colon, names = spec.strip().partition(":")
    if f"{kind}{colon}" != _RECORDED:
        return ()
    return tuple(Path(name.strip()).expanduser() for name in names.split(",") if name.strip())


def with_absolute_files(spec: str) -> str:
    """The same spec with absolute paths of its recorded files; the name of a model is unchanged."""
    files = recorded_files(spec)
    return f"{_RECORDED}{','.join(str(path.resolve()) for path in files)}" if files else spec


def refuse_secrets(spec: str) -> None:
    """Raise KitError if the string looks as if it holds a secret. It may also name a local model, or none at all."""
    spec = spec.strip()
    if spec.startswith(("local:", _RECORDED)):
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


def on_this_machine(url: str) -> bool:
    """Whether the address is one of this machine, under whichever name, so that nobody else is asked on the way."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower():
        return True
    try:  # a number that belongs to this machine can be listened on, even in a short form such as 127.1
        address = host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def _check_address(url: str, what: str) -> None:
    if "@" in url or "?" in url:
        raise KitError(f"{what} contains a user, a password or a question mark; addresses are stored. {_REMEDY}")
    odd = [character for character in url if character in ' "<>\\^`{|}' or not character.isprintable()]
    if odd:  # urlsplit would drop a line end without a word
        raise KitError(
            f"{what} contains {odd[0]!r}, which no address has (a line end or a blank that was copied with it?): write "
            "http://HOST:PORT/v1."
        )
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise KitError(
            f"{what} is not a valid address: write http://HOST:PORT/v1, with a port from 1 to 65535 or without one."
        )
