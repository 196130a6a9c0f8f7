"""`python -m rpo_kit serve`: the personalizer as an OpenAI-compatible endpoint in front of any base model.

A client sends what it would send to OpenAI, and says who is asking: `"user": "ann"` takes the history from `ann.json`
in the folder of profiles (a JSON list of LaMP items), `"profile": [...]` brings it in the request. The last message is
the query, a whole LaMP input or the bare text. A profile file at fault is named on stderr, and not to the client. The
answer carries, beside the rewrite, how it came about. Its `usage` is what it cost: the tokens of both models, base and
reflection, prompts and texts; `rpo.tokens` tells them apart. (A base model that counts no tokens adds none; an answer
of it that was kept in the cache counts as when it was made.)

    POST /v1/chat/completions  {"model": "rpo", "user": "ann", "messages": [{"role": "user", "content": "It leaks."}]}
    200                        {"choices": [{"message": {"content": "1"}, …}], "rpo": {"generic": "3", "plan": …}, …}

It listens on this machine alone unless told otherwise, and then wants the key in RPO_SERVE_KEY. Requests are bounded in
size, in time and in number; pages of a browser cannot reach it (JSON only, and the Host must be this machine).
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.runs import Run
from rpo_kit.serving.messages import Refused, as_completion, as_events, checked_profile, query_of

LARGEST_BODY = 1_000_000  # bytes, ours
MOST_AT_ONCE = 16  # requests being read or waiting for the model, ours
PATIENCE = 30.0  # seconds for a client to send its request
KEY_VARIABLE = "RPO_SERVE_KEY"
HERE = ("127.0.0.1", "localhost", "::1")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")


@dataclass
class Service:
    """What all requests share: one model, used by one request at a time."""

    personalizer: Personalizer
    profiles: Path | None
    key: str = ""
    name: str = "rpo"
    only_here: bool = True
    model: threading.Lock = field(default_factory=threading.Lock)
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MOST_AT_ONCE))


def make_server(service: Service, host: str = "127.0.0.1", port: int = 8765) -> Server:
    """A server, not yet running. KitError as in `check_place`, or where the port is taken."""
    check_place(host, port, service.profiles, service.key)
    service.only_here = host in HERE
    try:
        return Server((host, port), service)
    except (OSError, UnicodeError) as error:  # a name of letters that no host can have is a UnicodeError
        why = getattr(error, "strerror", None) or error
        raise KitError(f"Port {port} on {host} cannot be used ({why}): choose another --port or --host.") from None


def check_place(host: str, port: int, profiles: Path | None, key: str) -> None:
    """What can be seen before any model is loaded; KitError where it would be open to other machines without a key."""
    if not 0 <= port <= 65535:
        raise KitError(f"There is no port {port}: choose a --port from 1 to 65535, or 0 for any that is free.")
    if profiles and not profiles.is_dir():
        raise KitError(f"There is no folder {profiles}: --profiles takes one with a USER.json for each user.")
    if host not in HERE and not key:
        raise KitError(
            f"On {host} other machines can ask, and read what the profiles hold: set the environment variable "
            f"{KEY_VARIABLE} to a key which clients must send, or leave --host at 127.0.0.1."
        )


def answer(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The completion for a request's body; Refused where the request is at fault, KitError where the base model is."""
    if body.get("n") not in (None, 1):
        raise Refused(400, "One choice a request: leave n out.")
    query = query_of(service.personalizer.task, body.get("messages"))
    profile = profile_of(service, body)
    with service.model:
        rewrite = service.personalizer(query, profile)
    return as_completion(service.name, rewrite)


def profile_of(service: Service, body: dict[str, Any]) -> list[Item]:
    """The history in the request, or in the user's file."""
    if body.get("profile") is not None:
        return checked_profile(service.personalizer.task, body["profile"], "`profile`")
    user = body.get("user")
    if user is None:
        raise Refused(400, "Say whose answer it shall be: `user` with a file among the profiles, or `profile`.")
    if not isinstance(user, str) or not _USER.fullmatch(user):  # no path can be made of it
        raise Refused(400, "`user` must be a name of letters, digits and _ . @ -")
    path = service.profiles / f"{user}.json" if service.profiles else None
    if path is None or not path.is_file():
        raise Refused(404, f"There is no profile of {user!r} here.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return checked_profile(service.personalizer.task, content, "the file")
    except (OSError, ValueError, RecursionError, Refused) as error:  # not the client's fault, and not its business
        print(f"rpo_kit serve: the profile {path} cannot be used: {error}", file=sys.stderr, flush=True)
        raise Refused(500, f"The profile of {user!r} cannot be used; the server's log says why.") from None


# ---- HTTP ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A thread a request; all share the service."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is nothing to write about
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: GET /v1/models or POST /v1/chat/completions."""

    server: Server
    server_version, sys_version = "rpo_kit", ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(PATIENCE)

    def do_GET(self) -> None:
        self.reply(self.models)

    def do_POST(self) -> None:
        self.reply(self.completion)

    def reply(self, found: Callable[[], tuple[str, str]]) -> None:
        """Send what is found, or a sentence with a status. Where all places are taken: 503, come back later."""
        service = self.server.service
        if not service.room.acquire(blocking=False):
            return self.send(503, *_error("All places are taken; try again in a moment."))
        try:
            check_sender(service, self.headers)
            self.send(200, *found())
        except Refused as refused:
            self.send(refused.status, *_error(refused.why))
        except KitError as error:  # the base model, or a query too long for the module
            self.send(502, *_error(str(error)))
        except TimeoutError:
            self.send(408, *_error(f"The request did not come in within {PATIENCE:g} s."))
        finally:
            service.room.release()

    def models(self) -> tuple[str, str]:
        self.check_path("/v1/models")
        name = self.server.service.name
        return _json({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "rpo_kit"}]})

    def completion(self) -> tuple[str, str]:
        self.check_path("/v1/chat/completions")
        body = read_body(self.headers, self.rfile)
        found = answer(self.server.service, body)
        return ("text/event-stream", as_events(found)) if body.get("stream") else _json(found)

    def check_path(self, known: str) -> None:
        if self.path != known:
            raise Refused(404, "There is GET /v1/models and POST /v1/chat/completions.")

    def send(self, status: int, kind: str, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self.close_connection = True
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # who asked what is nobody else's business


def check_sender(service: Service, headers: Any) -> None:
    """The key where there is one; and, where only this machine may ask, no page of a browser that found a way here."""
    sent = (headers.get("Authorization") or "").removeprefix("Bearer ")
    if service.key and not hmac.compare_digest(sent.encode(), service.key.encode()):
        raise Refused(401, "The key is missing or wrong: send it as Authorization: Bearer KEY.")
    try:
        host = urlsplit(f"//{headers.get('Host') or ''}").hostname
    except ValueError:
        raise Refused(400, "The Host of the request is no address.") from None
    if service.only_here and host not in HERE:
        raise Refused(403, "This server is for this machine: ask it as 127.0.0.1 or localhost.")


def read_body(headers: Any, stream: Any) -> dict[str, Any]:
    """The JSON object of a request, read only where it says that it is one and is not too large."""
    if (headers.get("Content-Type") or "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Send JSON, with Content-Type: application/json.")
    length = headers.get("Content-Length") or ""
    if not length.isascii() or not length.isdigit():
        raise Refused(411, "Send the length of the body (Content-Length).")
    if len(length) > 12 or int(length) > LARGEST_BODY:  # Python reads no number of more than 4,300 digits
        raise Refused(413, f"The request is too large: at most {LARGEST_BODY:,} bytes are read.")
    try:
        body = json.loads(stream.read(int(length)))
    except (ValueError, RecursionError):
        raise Refused(400, "The body is no JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.")
    return body


def _json(content: Any) -> tuple[str, str]:
    return "application/json", json.dumps(content)


def _error(why: str) -> tuple[str, str]:
    return _json({"error": {"message": why, "type": "rpo_kit", "code": None}})


def serve(run: Run, stage: str, profiles: Path | None, host: str, port: int) -> None:
    """Load the run's base model and its trained module, and answer until Ctrl-C."""
    key = os.environ.get(KEY_VARIABLE, "")
    check_place(host, port, profiles, key)
    personalizer = Personalizer.of(run, stage)
    service = Service(personalizer, profiles, key)
    with make_server(service, host, port) as server:
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{server.server_address[1]}/v1"
        print(f"{personalizer.task.title} at {address} (model {service.name}); Ctrl-C ends it")
        server.serve_forever()
