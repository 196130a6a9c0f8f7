"""`python -m rpo_kit serve`: the personalizer as an OpenAI-compatible endpoint in front of any base model.

A client sends what it would send to OpenAI, and names the user, whose history is stored (`profiles.py`), or sends the
history along. `model` chooses the stage, `rpo` the number of items and more (`messages.py`). The last message is LaMP's
input or the bare query. The response says under `rpo` how the rewrite was made and which fields had no effect; its
`usage` counts the tokens of both models, base and reflection. (A base model that does not count adds none; a cached
answer counts as when it was first made.) Details of a broken profile file or a failing model go to stderr, not to the
client. Not supported: TLS.

    POST   /v1/chat/completions  {"model": "rpo", "user": "ann", "messages": [{"role": "user", "content": "It leaks."}]}
    200                          {"choices": [{"message": {"content": "1"}, …}], "rpo": {"seconds": …}, …}
    PUT    /v1/profiles/ann      [{"id": "7", "text": "Broke twice.", "score": "1"}]; also GET and DELETE
    GET    /v1/models            {"object": "list", "data": [{"id": "rpo", …}, …]}; also /v1/models/rpo

Status 4xx: the request is at fault. 500: a profile file, or the personalizer. 502: the base model. 503: busy.

By default it listens on this machine only; on any other address it requires a key in RPO_SERVE_KEY. Requests are
limited in size, time and number, and web pages in a browser cannot use it (JSON only, and Host must be this machine).
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from rpo_kit.errors import KitError
from rpo_kit.models.chat import answers_at_once
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.runs import Run
from rpo_kit.serving.access import KEY_VARIABLE, key_from_environment, owner_of, sender_of
from rpo_kit.serving.incoming import LOOPBACK, MAX_BODY, DeadlineReader, check_origin, read_body, read_profile
from rpo_kit.serving.messages import USER_HEADER, RequestError
from rpo_kit.serving.profiles import check_folder, uploaded_items
from rpo_kit.serving.responses import ChatCompletion, as_error, as_model, as_models
from rpo_kit.serving.service import Service, answer, explained, name_of
from rpo_kit.serving.stages import models_of
from rpo_kit.serving.streaming import events, started, wants_usage
from rpo_kit.serving.together import MAX_BATCH, Together

Content = TypeVar("Content")

REQUEST_TIMEOUT = 30.0  # ours: seconds for a client to send its whole request
_LINGER = 2.0  # ours: seconds for which a rejected client may keep sending
_CHAT, _MODELS, _PROFILES = "/v1/chat/completions", "/v1/models", "/v1/profiles"
_UNKNOWN = (
    f"Unknown path: this server has POST {_CHAT}, GET {_MODELS} and {_MODELS}/ID, and PUT, GET and DELETE "
    f"{_PROFILES}/USER."
)


@dataclass(frozen=True)
class Reply:
    """What is sent: a text, or the pieces of a stream."""

    content: str | Iterator[str]
    status: int = 200
    content_type: str = "application/json"


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
    """One request."""

    server: Server
    server_version, sys_version = "rpo_kit", ""
    disable_nagle_algorithm = True  # the pieces of a stream are small and must not wait for each other

    def setup(self) -> None:
        super().setup()
        self.rfile = BufferedReader(DeadlineReader(self.connection, time.monotonic() + REQUEST_TIMEOUT))
        self.all_read = False  # whether the whole request has been read

    def do_GET(self) -> None:
        self.all_read = True
        self.respond()

    do_DELETE = do_GET

    def do_POST(self) -> None:
        self.respond()

    do_PUT = do_POST

    def respond(self) -> None:
        """Send the reply to this request, or an error with its status."""
        service = self.server.service
        try:
            sender = sender_of(service.key, self.headers)
            check_origin(service.local_only, self.headers)
            make = self.route(sender)
            try:
                reply = make()
            except BaseException as error:  # even a panic in Rust; the next request may succeed
                raise explained(error) from None
        except RequestError as error:
            reply = _as_reply(error)
        except TimeoutError:
            reply = _as_reply(RequestError(408, f"The request did not arrive within {REQUEST_TIMEOUT:g} s."))
        self.send(reply)

    def route(self, sender: str | None) -> Callable[[], Reply]:
        """What makes the reply; the body has been read then.

        Raises:
            RequestError: the path is unknown, the sender may not do this, or the body cannot be read.
            TimeoutError: the body did not arrive in time.
        """
        path = self.path.partition("?")[0].rstrip("/")
        folder, _, name = path.rpartition("/")
        if (self.command, path) == ("POST", _CHAT):
            body = self.read(read_body)
            return lambda: self.completion(body, sender)
        if (self.command, path) == ("GET", _MODELS):
            return self.models
        if (self.command, folder) == ("GET", _MODELS):
            return lambda: self.model(unquote(name))
        if folder == _PROFILES and self.command != "POST":
            user = owner_of(self.server.service.key, sender, unquote(name))
            content = self.read(read_profile) if self.command == "PUT" else None
            return lambda: self.profile(user, content)
        raise RequestError(404, _UNKNOWN)

    def read(self, reader: Callable[..., Content]) -> Content:
        content = reader(self.headers, self.rfile)
        self.all_read = True
        return content

    # ---- what a client can ask for ----

    def models(self) -> Reply:
        service = self.server.service
        return _json(as_models(service.names, service.created))

    def model(self, name: str) -> Reply:
        service = self.server.service
        return _json(as_model(name_of(service, {"model": name}), service.created))

    def profile(self, user: str, content: object) -> Reply:
        """Store the profile, say what is stored, or remove it."""
        store = self.server.service.store
        if self.command == "PUT":
            is_new = store.write(user, uploaded_items(store.task, content))
            return _json(store.about(user), 201 if is_new else 200)
        if self.command == "GET":
            return _json(store.about(user))
        store.delete(user)
        return _json({"id": user, "object": "rpo.profile", "deleted": True})

    def completion(self, body: Mapping[str, object], sender: str | None) -> Reply:
        service, header = self.server.service, self.headers.get(USER_HEADER)

        def work() -> ChatCompletion:
            if not service.slots.acquire(blocking=False):
                raise RequestError(503, "The server is busy; try again in a moment.")
            try:
                return answer(service, body, header, sender)
            finally:
                service.slots.release()

        if not body.get("stream"):
            return _json(work())
        stream = events(started(work), name_of(service, body), wants_usage(body), explained)
        return Reply(stream, content_type="text/event-stream")

    # ---- sending ----

    def send(self, reply: Reply) -> None:
        self.close_connection = True
        self.connection.settimeout(REQUEST_TIMEOUT)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Connection", "close")
        if reply.status in (500, 502):  # else OpenAI's client would retry, and pay, three times
            self.send_header("x-should-retry", "false")
        if reply.status == 503:
            self.send_header("Retry-After", "1")
        if isinstance(reply.content, str):
            content = reply.content.encode("utf-8", "replace")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Accel-Buffering", "no")  # or nginx would hold the pieces back
        self.end_headers()
        for piece in reply.content:
            self.wfile.write(piece.encode("utf-8", "replace"))

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


def _json(content: object, status: int = 200) -> Reply:
    return Reply(json.dumps(content), status)


def _as_reply(error: RequestError) -> Reply:
    return _json(as_error(error), error.status)


# ---- starting -----------------------------------------------------------------------------------------------------


def serve(
    run: Run,
    stage: str,
    profiles: Path | None,
    host: str,
    port: int,
    base: str | None = None,
    batch: int = MAX_BATCH,
) -> None:
    """Load the run's base model, or `base`, and the trained module, and serve until Ctrl-C.

    Up to `batch` requests are answered together if the base model is in this process.
    """
    key = key_from_environment()
    check_address(host, port, profiles, key, batch)  # before loading a model, which takes a while
    models = models_of(run, stage, base)
    personalizer = models.pop("rpo")
    assert isinstance(personalizer, Personalizer)
    together = None if batch == 1 or answers_at_once(personalizer.base) else Together(batch)
    service = Service(personalizer, profiles, key, models=models, together=together)
    with make_server(service, host, port) as server:
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}/v1"
        about = f"run {run.name!r}, stage {stage}, {personalizer.task.title}"
        print(f"{about} at {address}; {'with a' if key else 'without a'} key; press Ctrl-C to stop")
        print(f"models: {', '.join(service.names)}", flush=True)
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


def check_address(host: str, port: int, profiles: Path | None, key: str, batch: int = 1) -> None:
    """Check address, profiles, key and size of batches before a model is loaded.

    Raises:
        KitError: an impossible port or batch, a missing folder, or other machines let in without a key.
    """
    if batch < 1:
        raise KitError(f"--batch {batch} is not a number of requests: choose 1 or more.")
    if not 0 <= port <= 65535:
        raise KitError(f"--port {port} is not a port: choose one from 1 to 65535, or 0 for any free one.")
    if profiles:
        check_folder(profiles)
    if host not in LOOPBACK and not key:
        raise KitError(
            f"--host {host} lets other machines send requests, and so learn what the profiles contain: set the "
            f"environment variable {KEY_VARIABLE} to a key that clients must send, or leave --host at 127.0.0.1."
        )
