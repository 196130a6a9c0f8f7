"""A personalizer without models, a server around it in a thread, and ways to ask it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from openai import OpenAI

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.personalizer import InputError, Rewrite
from rpo_kit.rewriting.trajectory import Trajectory
from rpo_kit.serving.server import make_server
from rpo_kit.serving.service import Service

TASK = get_task("LaMP-3")
PROFILE = [{"id": "7", "text": "Broke twice.", "score": "1"}]
ASK = {"messages": [{"role": "user", "content": "It leaks."}]}


class Echo:
    """Rewrites nothing: remembers what it was asked, answers "2"; waits first if `gate` is set."""

    task = TASK
    shots, retriever = 6, "bm25"

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.asked_with: list[tuple[int, str]] = []
        self.bug: BaseException | None = None
        self.gate: threading.Event | None = None

    def __call__(self, input: str, profile: Any) -> Rewrite:
        self.asked.append((input, profile))
        self.asked_with.append((self.shots, self.retriever))
        if self.gate:
            self.gate.wait(20)
        if "fail" in input:
            raise KitError("The model m did not answer 1 of 1 queries.")
        if "too long" in input:
            raise InputError("The input is too long.")
        if self.bug:
            raise self.bug
        timings = {"retrieval": 0.1, "base": 0.2, "reflection": 0.3}
        tokens = {"base": (60, 2), "reflection": (400, 31)}
        return Rewrite("2", "3", profile, Trajectory("[1] gave 1", "one lower", "2"), None, timings, tokens)


@contextmanager
def serving(service: Service) -> Iterator[SimpleNamespace]:
    """The service behind a server in a thread: its `port`, and what the personalizer was `asked`."""
    server = make_server(service, port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    asked = getattr(service.personalizer, "asked", [])
    yield SimpleNamespace(service=service, port=server.server_address[1], asked=asked)
    server.shutdown()
    server.server_close()
    thread.join()


def client(served: Any, key: str = "none", **more: Any) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=key, **({"max_retries": 0} | more))


def create(served: Any, text: str = "It leaks.", **more: Any) -> Any:
    settings = {"model": "rpo", "messages": [{"role": "user", "content": text}]} | more
    return client(served).chat.completions.create(**settings)


def raw(
    served: Any, body: Any = b"{}", method: str = "POST", path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, Any]:
    """Status and JSON of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    if not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def rejected(served: Any, **body: Any) -> tuple[int, str]:
    status, response = raw(served, json.dumps(body).encode())
    return status, response["error"]["message"]
