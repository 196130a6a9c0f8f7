"""A chat model that records what it is asked, and an OpenAI-compatible server on this machine that also answers as the
test wants, errors included.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rpo_kit.models.chat import Completion, Conversation

HANG, CUT = "hang", "cut"  # replies: no answer until the server is closed; a connection cut in the middle
GARBAGE = (200, "<html>not what you asked for")
Reply = tuple[int, Any] | str


def completion(text: str | None, finish_reason: str = "stop", usage: bool = True) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    found: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1}
    found["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    if usage:
        found["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return found


def error(status: int, message: str, code: str | None = None) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "code": code}}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections made at once


class Endpoint:
    """`reply` turns a request body into (status, JSON), (status, text), `HANG` or `CUT`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.sent_headers: list[dict[str, str]] = []
        self.headers: dict[str, str] = {}
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: (200, completion("echo " + last(body)))
        self.closing = threading.Event()
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def keys(self) -> list[str]:
        return [headers.get("authorization", "") for headers in self.sent_headers]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.paths.append(self.path)
                endpoint.sent_headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = endpoint.reply(body)
                if isinstance(reply, str):
                    self.fail(reply)
                else:
                    if isinstance(reply[1], dict) and "choices" in reply[1]:
                        reply[1].setdefault("model", body["model"])
                    self.answer(*reply)

            def fail(self, how: str) -> None:
                self.close_connection = True
                if how == HANG:
                    endpoint.closing.wait(30)
                else:
                    self.wfile.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
                    )

            def answer(self, status: int, content: Any) -> None:
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **endpoint.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def last(body: dict[str, Any]) -> str:
    """The text of the last message."""
    return str(body["messages"][-1]["content"])


class FakeModule:
    """A reflection module that writes what the test wants, with a real tokenizer, for all stages: see `KeptModule`."""

    def __init__(self, tokenizer_folder: Any) -> None:
        from transformers import AutoTokenizer

        from rpo_kit.models.local import LoadedModel

        self.loaded = LoadedModel(None, AutoTokenizer.from_pretrained(tokenizer_folder), 2048)  # type: ignore[arg-type]
        self.good = "<observe>[1] reads 2, gave 1: harsh</observe><plan>one lower</plan><rewrite>2</rewrite>"
        self.writes: Callable[[Any], str] = lambda conversation: self.good
        self.asked: list[Any] = []
        self.asked_at: list[str] = []
        self.temperatures: list[float] = []
        self.random: list[float] = []

    def at(self, stage: str) -> Any:
        self.asked_at.append(stage)
        return self.loaded

    def generate(self, model: Any, conversations: Any, *, temperature: float = 0.0, **_: Any) -> list[Any]:
        """In place of `reflection.generate`."""
        import torch

        from rpo_kit.models.chat import Completion

        self.asked += conversations
        if temperature:
            self.temperatures.append(temperature)
            self.random.append(torch.rand(1).item())
        return [Completion(self.writes(conversation), True, 7, 5) for conversation in conversations]


@dataclass
class RecordingChat:
    """A chat model that answers with `answer(conversation)` and records every conversation."""

    answer: Callable[[Conversation], str] = lambda conversation: "3"
    name: str = "recording"
    asked: list[Conversation] = field(default_factory=list)

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        self.asked += conversations
        return [Completion(self.answer(c), True, 1, 1) for c in conversations]
