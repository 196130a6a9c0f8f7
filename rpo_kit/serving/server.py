"""`python -m rpo_kit serve`: the personalizer as an OpenAI-compatible endpoint in front of any base model.

A client sends what it would send to OpenAI, and names the user: `"user": "ann"` reads the history from `ann.json` in
the folder of profiles (a JSON list of LaMP items), `"profile": [...]` sends it along; a client that cannot send `user`
can send `"metadata": {"user_id": "ann"}` or the header X-RPO-User. The last message is LaMP's input or the bare query.
The response explains under `rpo` how the rewrite was made and which fields had no effect; its `usage` counts the tokens
of both models, base and reflection. (A base model that does not count adds none; a cached answer counts as when it was
first made.) Details of a broken profile file or a failing model go to stderr, not to the client. Not supported: token
streaming, batching of requests, TLS.

    POST /v1/chat/completions  {"model": "rpo", "user": "ann", "messages": [{"role": "user", "content": "It leaks."}]}
    200                        {"choices": [{"message": {"content": "1"}, …}], "rpo": {"generic": "3", "plan": …}, …}

Status 4xx: the request is at fault. 500: a profile file, or the personalizer. 502: the base model. 503: busy.

By default it listens on this machine only; on any other address it requires a key in RPO_SERVE_KEY. Requests are
limited in size, time and number, and web pages in a browser cannot use it (JSON only, and Host must be this machine).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item
from rpo_kit.rewriting.personalizer import InputError, Personalizer
from rpo_kit.runs import Run
from rpo_kit.serving.incoming import LOOPBACK, MAX_BODY, DeadlineReader, check_sender, read_body
from rpo_kit.serving.messages import (
    USER_HEADER,
    ChatCompletion,
    RequestError,
    as_completion,
    as_events,
    check_supported,
    checked_profile,
    ignored_fields,
    input_of,
    user_of,
)

MAX_WAITING = 16  # ours: requests waiting for a model
REQUEST_TIMEOUT = 30.0  # ours: seconds for a client to send its whole request
KEY_VARIABLE = "RPO_SERVE_KEY"
_LINGER = 2.0  # ours: seconds for which a rejected client may keep sending


@dataclass
class Service:
    """What all requests share; several threads call the personalizer at once."""

    personalizer: Personalizer
    profiles: Path | None
    key: str = ""
    name: str = "rpo"
    local_only: bool = True
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_WAITING))


# ---- a request ----------------------------------------------------------------------------------------------------


def answer(service: Service, body: Mapping[str, object], user_header: str | None = None) -> ChatCompletion:
    """The response to the body of a request.

    Raises:
        RequestError: the request is at fault.
        KitError: the base model did not answer.
    """
    check_supported(body)
    input = input_of(service.personalizer.task, body.get("messages"))
    profile = profile_of(service, body, user_header)
    try:
        rewrite = service.personalizer(input, profile)
    except InputError as error:
        raise RequestError(400, str(error)) from None
    return as_completion(service.name, rewrite, ignored_fields(service.name, body))


def profile_of(service: Service, body: Mapping[str, object], user_header: str | None = None) -> list[Item]:
    """The history in the request, or in the user's file."""
    if body.get("profile") is not None:
        return checked_profile(service.personalizer.task, body["profile"], "`profile`")
    user = user_of(body, user_header)
    if user is None:
        raise RequestError(
            400,
            "The request names no user: name a profile file in `user` (or in metadata.user_id, or in the header "
            f"{USER_HEADER}), or send the history in `profile`.",
        )
    path = service.profiles / f"{user}.json" if service.profiles else None
    if path is None or not path.is_file():
        raise RequestError(404, f"There is no profile of {user!r}: check the name, or send the history in `profile`.")
    try:
        content = json.loads(path.read_bytes())  # UTF-8 or UTF-16, with or without a byte order mark
        return checked_profile(service.personalizer.task, content, "the file")
    except (OSError, ValueError, RecursionError, RequestError) as error:  # neither the client's fault nor its business
        print(f"rpo_kit serve: the profile {path} cannot be used: {error}", file=sys.stderr, flush=True)
        raise RequestError(500, f"The profile of {user!r} cannot be used; the server's log says why.") from None


# ---- HTTP ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """One thread per request; all share the service."""

    daemon_threads = True
    request_queue_size = 128  # ours: connections waiting to be accepted

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a client that hangs up is not an error
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: GET /v1/models or POST /v1/chat/completions."""

    server: Server
    server_version, sys_version = "rpo_kit", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = BufferedReader(DeadlineReader(self.connection, time.monotonic() + REQUEST_TIMEOUT))
        self.all_read = False  # whether the whole request has been read

    def do_GET(self) -> None:
        self.all_read = True
        self.respond(lambda: {}, self.models)

    def do_POST(self) -> None:
        self.respond(self.read_request, self.completion)

    def respond(
        self, read: Callable[[], Mapping[str, object]], make: Callable[[Mapping[str, object]], tuple[str, str]]
    ) -> None:
        """Send what `make` returns (content type, text) for the body from `read`, or an error with its status."""
        service, status = self.server.service, 200
        try:
            check_sender(service.key, service.local_only, self.headers)
            body = read()
            try:
                content = make(body)
            except (RequestError, KitError):
                raise
            except BaseException as error:  # even a panic in Rust; the next request may succeed
                traceback.print_exc(file=sys.stderr)
                name = type(error).__name__
                raise RequestError(500, f"The personalizer failed ({name}); the server's log says more.") from None
        except RequestError as error:
            status, content = error.status, _error(error.message)
        except KitError as error:  # the base model
            status, content = 502, _error(str(error))
        except TimeoutError:
            status, content = 408, _error(f"The request did not arrive within {REQUEST_TIMEOUT:g} s.")
        self.send(status, *content)

    def read_request(self) -> dict[str, object]:
        self.check_path("/v1/chat/completions")
        body = read_body(self.headers, self.rfile)
        self.all_read = True
        return body

    def models(self, body: Mapping[str, object]) -> tuple[str, str]:
        self.check_path("/v1/models")
        name = self.server.service.name
        return _json({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "rpo_kit"}]})

    def completion(self, body: Mapping[str, object]) -> tuple[str, str]:
        service = self.server.service
        if not service.slots.acquire(blocking=False):
            raise RequestError(503, "The server is busy; try again in a moment.")
        try:
            completion = answer(service, body, self.headers.get(USER_HEADER))
        finally:
            service.slots.release()
        return ("text/event-stream", as_events(completion)) if body.get("stream") else _json(completion)

    def check_path(self, known: str) -> None:
        if self.path.partition("?")[0].rstrip("/") != known:
            raise RequestError(404, "Unknown path: this server has GET /v1/models and POST /v1/chat/completions.")

    def send(self, status: int, content_type: str, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self.close_connection = True
        self.connection.settimeout(REQUEST_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        if status in (500, 502):  # else OpenAI's client would retry, and pay, three times
            self.send_header("x-should-retry", "false")
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        """Read for a while what the client still sends: closing the connection at once could lose the response."""
        super().finish()
        if self.all_read:
            return
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            rest, left = DeadlineReader(self.connection, time.monotonic() + _LINGER), 4 * MAX_BODY
            while left > 0 and (count := rest.readinto(bytearray(65_536))):
                left -= count

    def log_message(self, format: str, *args: object) -> None:
        pass  # requests are private


def _json(content: object) -> tuple[str, str]:
    return "application/json", json.dumps(content)


def _error(message: str) -> tuple[str, str]:
    return _json({"error": {"message": message, "type": "rpo_kit", "code": None}})


# ---- starting -----------------------------------------------------------------------------------------------------


def serve(run: Run, stage: str, profiles: Path | None, host: str, port: int, base: str | None = None) -> None:
    """Load the run's base model, or `base`, and the trained module, and serve until Ctrl-C."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    check_address(host, port, profiles, key)  # before loading a model, which takes a while
    personalizer = Personalizer.of(run, stage, base)
    service = Service(personalizer, profiles, key)
    with make_server(service, host, port) as server:
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}/v1"
        print(f"{personalizer.task.title} at {address} (model {service.name}); press Ctrl-C to stop")
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
    except (OSError, UnicodeError) as error:  # UnicodeError: an impossible host name, such as a..b
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"Port {port} on {host} cannot be used ({reason}): choose another --port or --host.") from None


def check_address(host: str, port: int, profiles: Path | None, key: str) -> None:
    """Check address, profiles and key before a model is loaded.

    Raises:
        KitError: an impossible port, a missing folder, or other machines let in without a key.
    """
    if not 0 <= port <= 65535:
        raise KitError(f"--port {port} is not a port: choose one from 1 to 65535, or 0 for any free one.")
    if profiles and not profiles.is_dir():
        raise KitError(f"--profiles {profiles} is not a folder: name one that holds a USER.json per user.")
    if host not in LOOPBACK and not key:
        raise KitError(
            f"--host {host} lets other machines send requests, and so learn what the profiles contain: set the "
            f"environment variable {KEY_VARIABLE} to a key that clients must send, or leave --host at 127.0.0.1."
        )
