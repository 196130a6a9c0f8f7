"""`python -m rpo_kit serve`: the personalizer as an OpenAI-compatible endpoint in front of any base model.

A client sends what it would send to OpenAI, and says who is asking: `"user": "ann"` reads the history from `ann.json`
in the folder of profiles (a JSON list of LaMP items), `"profile": [...]` sends it along. The last message is the query:
LaMP's whole input, or the bare text. The response says under `rpo` how the rewrite was made; its `usage` counts the
tokens of both models, base and reflection. (A base model that does not count adds none; a cached answer counts as when
it was made.) A broken profile file is reported on stderr, not to the client. Left out: token streaming, batching of
requests, TLS.

    POST /v1/chat/completions  {"model": "rpo", "user": "ann", "messages": [{"role": "user", "content": "It leaks."}]}
    200                        {"choices": [{"message": {"content": "1"}, …}], "rpo": {"generic": "3", "plan": …}, …}

By default it listens on this machine only; on any other address it requires a key in RPO_SERVE_KEY. Requests are
limited in size, time and number, and web pages in a browser cannot reach it (JSON only, and Host must be this machine).
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from urllib.parse import urlsplit

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.runs import Run
from rpo_kit.serving.messages import (
    ChatCompletion,
    RequestError,
    as_completion,
    as_events,
    checked_profile,
    query_of,
)

MAX_BODY = 1_000_000  # ours: bytes
MOST_AT_ONCE = 16  # ours: requests being read or waiting for the model
PATIENCE = 30.0  # ours: seconds for a client to send its request
KEY_VARIABLE = "RPO_SERVE_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")  # no path can be made of it


@dataclass
class Service:
    """What all requests share: one personalizer, used by one request at a time."""

    personalizer: Personalizer
    profiles: Path | None
    key: str = ""
    name: str = "rpo"
    local_only: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the personalizer works
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MOST_AT_ONCE))


# ---- a request ----------------------------------------------------------------------------------------------------


def answer(service: Service, body: Mapping[str, object]) -> ChatCompletion:
    """The response to the body of a request.

    Raises:
        RequestError: the request is at fault.
        KitError: the base model did not answer, or the query is too long for the reflection module.
    """
    if body.get("n") not in (None, 1):
        raise RequestError(400, "There is one choice per request: leave n out.")
    query = query_of(service.personalizer.task, body.get("messages"))
    profile = profile_of(service, body)
    with service.lock:
        rewrite = service.personalizer(query, profile)
    return as_completion(service.name, rewrite)


def profile_of(service: Service, body: Mapping[str, object]) -> list[Item]:
    """The history in the request, or in the user's file."""
    if body.get("profile") is not None:
        return checked_profile(service.personalizer.task, body["profile"], "`profile`")
    user = body.get("user")
    if user is None:
        raise RequestError(400, "Say who is asking: name a profile file in `user`, or send the history in `profile`.")
    if not isinstance(user, str) or not _USER.fullmatch(user):
        raise RequestError(400, "`user` must be a name of letters, digits and _ . @ -")
    path = service.profiles / f"{user}.json" if service.profiles else None
    if path is None or not path.is_file():
        raise RequestError(404, f"There is no profile of {user!r} here.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return checked_profile(service.personalizer.task, content, "the file")
    except (OSError, ValueError, RecursionError, RequestError) as error:  # not the client's fault, nor its business
        print(f"rpo_kit serve: the profile {path} cannot be used: {error}", file=sys.stderr, flush=True)
        raise RequestError(500, f"The profile of {user!r} cannot be used; the server's log says why.") from None


# ---- HTTP ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """One thread per request; all share the service."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up is not worth a traceback
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: GET /v1/models or POST /v1/chat/completions."""

    server: Server
    server_version, sys_version = "rpo_kit", ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(PATIENCE)

    def do_GET(self) -> None:
        self.respond(self.models)

    def do_POST(self) -> None:
        self.respond(self.completion)

    def respond(self, make: Callable[[], tuple[str, str]]) -> None:
        """Send what `make` returns (content type, text), or an error with its status."""
        service = self.server.service
        if not service.slots.acquire(blocking=False):
            return self.send(503, *_error("The server is busy; try again in a moment."))
        try:
            check_sender(service, self.headers)
            self.send(200, *make())
        except RequestError as error:
            self.send(error.status, *_error(error.message))
        except KitError as error:  # the base model, or a query that is too long for the module
            self.send(502, *_error(str(error)))
        except TimeoutError:
            self.send(408, *_error(f"The request did not arrive within {PATIENCE:g} s."))
        finally:
            service.slots.release()

    def models(self) -> tuple[str, str]:
        self.check_path("/v1/models")
        name = self.server.service.name
        return _json({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "rpo_kit"}]})

    def completion(self) -> tuple[str, str]:
        self.check_path("/v1/chat/completions")
        body = read_body(self.headers, self.rfile)
        completion = answer(self.server.service, body)
        return ("text/event-stream", as_events(completion)) if body.get("stream") else _json(completion)

    def check_path(self, known: str) -> None:
        if self.path != known:
            raise RequestError(404, "There is GET /v1/models and POST /v1/chat/completions.")

    def send(self, status: int, content_type: str, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass  # who asked what is private


def check_sender(service: Service, headers: Message) -> None:
    """Check the key, if the service has one, and that no web page in a browser of this machine is asking.

    A page can reach a server on this machine through a name of its own (DNS rebinding); the Host header shows it.
    """
    sent = str(headers.get("Authorization") or "").removeprefix("Bearer ")
    if service.key and not hmac.compare_digest(sent.encode(), service.key.encode()):
        raise RequestError(401, "The key is missing or wrong: send it as Authorization: Bearer KEY.")
    try:
        host = urlsplit(f"//{headers.get('Host') or ''}").hostname
    except ValueError:
        raise RequestError(400, "The Host header is not an address.") from None
    if service.local_only and host not in LOOPBACK:
        raise RequestError(403, "This server is for this machine only: use 127.0.0.1 or localhost.")


def read_body(headers: Message, stream: BufferedIOBase) -> dict[str, object]:
    """The JSON object in the body, read only if the headers say that it is one and that it is not too large."""
    if str(headers.get("Content-Type") or "").partition(";")[0].strip() != "application/json":
        raise RequestError(415, "Send JSON, with Content-Type: application/json.")
    length = str(headers.get("Content-Length") or "")
    if not length.isascii() or not length.isdigit():
        raise RequestError(411, "Send the length of the body (Content-Length).")
    if len(length) > 12 or int(length) > MAX_BODY:  # int() rejects more than 4,300 digits
        raise RequestError(413, f"The request is too large: at most {MAX_BODY:,} bytes are read.")
    try:
        body = json.loads(stream.read(int(length)))
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return body


def _json(content: object) -> tuple[str, str]:
    return "application/json", json.dumps(content)


def _error(message: str) -> tuple[str, str]:
    return _json({"error": {"message": message, "type": "rpo_kit", "code": None}})


# ---- starting -----------------------------------------------------------------------------------------------------


def serve(run: Run, stage: str, profiles: Path | None, host: str, port: int) -> None:
    """Load the run's base model and its trained module, and answer until Ctrl-C."""
    key = os.environ.get(KEY_VARIABLE, "")
    check_address(host, port, profiles, key)  # before a model is loaded, which takes a while
    personalizer = Personalizer.of(run, stage)
    service = Service(personalizer, profiles, key)
    with make_server(service, host, port) as server:
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}/v1"
        print(f"{personalizer.task.title} at {address} (model {service.name}); Ctrl-C stops it")
        server.serve_forever()


def make_server(service: Service, host: str = "127.0.0.1", port: int = 8765) -> Server:
    """A server that is not running yet.

    Raises:
        KitError: as in `check_address`, or the port is taken.
    """
    check_address(host, port, service.profiles, service.key)
    service.local_only = host in LOOPBACK
    try:
        return Server((host, port), service)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have, such as a..b
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"Port {port} on {host} cannot be used ({reason}): choose another --port or --host.") from None


def check_address(host: str, port: int, profiles: Path | None, key: str) -> None:
    """Check what needs no model.

    Raises:
        KitError: an impossible port, no such folder, or open to other machines without a key.
    """
    if not 0 <= port <= 65535:
        raise KitError(f"There is no port {port}: choose a --port from 1 to 65535, or 0 for any free one.")
    if profiles and not profiles.is_dir():
        raise KitError(f"There is no folder {profiles}: --profiles takes one with a USER.json per user.")
    if host not in LOOPBACK and not key:
        raise KitError(
            f"On {host} other machines can ask, and read what the profiles contain: set the environment variable "
            f"{KEY_VARIABLE} to a key that clients must send, or leave --host at 127.0.0.1."
        )
