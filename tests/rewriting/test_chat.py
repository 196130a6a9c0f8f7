"""Chat models: one string names one, an endpoint's answers come back in order, and its failures as sentences."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rpo_kit.errors import KitError
from rpo_kit.rewriting import chat, reflection
from rpo_kit.rewriting.chat import Completion, EndpointChat, LocalChat, open_chat

KEY = "sk-not-a-real-key-0123456789"
Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class Endpoint:
    """An OpenAI-compatible server on this machine; `reply` turns a request body into (status, response body)."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.reply: Reply = lambda body: (200, completion(f"echo {body['messages'][-1]['content']}"))
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.paths.append(self.path)
                endpoint.keys.append(self.headers["Authorization"])
                status, answer = endpoint.reply(body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "1")  # the openai client would wait half a second otherwise
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def completion(text: str | None, finish_reason: str = "stop", usage: bool = True) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    found: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    found["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    if usage:
        found["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return found


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_an_endpoint_answers_each_conversation_in_order(endpoint):
    model = open_chat(f"{endpoint.url}#my-model")
    answers = model.complete([ask(str(n)) for n in range(12)], max_new_tokens=9, temperature=0.5)
    assert answers == [Completion(f"echo {n}", True, 7, 3) for n in range(12)]
    assert endpoint.paths[0] == "/v1/chat/completions"
    first = endpoint.requests[0]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("my-model", 9, 0.5)
    assert endpoint.keys[0] == f"Bearer {KEY}", "the key comes from the environment"


def test_an_answer_cut_off_at_the_token_limit_is_marked(endpoint):
    endpoint.reply = lambda body: (200, completion("half an", "length"))
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)[0].finished is False


def test_a_server_that_counts_no_tokens_is_understood(endpoint):
    endpoint.reply = lambda body: (200, completion("yes", usage=False))
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2) == [Completion("yes", True, 0, 0)]


def test_a_server_error_is_tried_again_before_it_counts(endpoint):
    replies = iter([(500, {"error": {"message": "overloaded"}}), (200, completion("at last"))])
    endpoint.reply = lambda body: next(replies)
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)[0].text == "at last"


def test_a_server_that_keeps_failing_ends_in_a_sentence_after_three_tries(endpoint):
    endpoint.reply = lambda body: (500, {"error": {"message": "overloaded"}})
    with pytest.raises(KitError, match=r"#m did not answer \(.*overloaded.*What is finished is kept; run again"):
        open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("answer", [completion(""), completion(None), {**completion("x"), "choices": []}])
def test_an_empty_answer_is_an_error_and_no_rewrite(endpoint, answer):
    endpoint.reply = lambda body: (200, answer)
    with pytest.raises(KitError, match=r"#m sent an empty answer"):
        open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)


def test_a_server_that_is_not_there_is_named(endpoint):
    endpoint.server.server_close()
    model = open_chat(f"{endpoint.url}#m")
    with pytest.raises(KitError, match=r"The model http://127\.0\.0\.1:\d+/v1#m did not answer"):
        model.complete([ask("q")], max_new_tokens=2)


def test_the_key_never_stands_in_an_error_text_not_even_when_the_server_repeats_it(endpoint):
    endpoint.reply = lambda body: (401, {"error": {"message": f"Incorrect API key provided: {KEY}."}})
    with pytest.raises(KitError, match="did not answer") as caught:
        open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)
    assert KEY not in str(caught.value)
    assert "Incorrect API key provided" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback would show the server's words"


@pytest.mark.parametrize("empty", [True, False])
def test_without_a_key_a_server_of_ones_own_is_asked_and_openai_is_not(endpoint, monkeypatch, empty):
    monkeypatch.setenv("OPENAI_API_KEY", "") if empty else monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)[0].text == "echo q"
    with pytest.raises(KitError, match="Set the environment variable OPENAI_API_KEY, or point to a server"):
        open_chat("openai:gpt-4o-mini")


def test_openai_means_the_server_that_the_environment_names(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    model = open_chat("openai:gpt-4o-mini")
    assert model.complete([ask("q")], max_new_tokens=2)[0].text == "echo q"
    assert endpoint.requests[0]["model"] == "gpt-4o-mini"


def test_inside_a_notebook_whose_event_loop_runs_already_it_works_too(endpoint):
    async def cell() -> list[Completion]:
        return EndpointChat(endpoint.url, "m").complete([ask("q")], max_new_tokens=2)

    assert asyncio.run(cell())[0].text == "echo q"


@pytest.mark.parametrize("spec", ["", "smollm2", "local:", "openai:", "http://host/v1", "gpt:4", "file:///model#m"])
def test_a_string_that_names_no_model_is_told_the_three_forms(spec):
    with pytest.raises(KitError, match=r"names no model: write local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL"):
        open_chat(spec)


def test_a_local_model_is_loaded_once_and_generates(monkeypatch):
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(reflection, "load_base", lambda name, length: loaded.append((name, length)) or "model")
    monkeypatch.setattr(
        reflection, "generate", lambda model, conversations, **sampling: [(model, c, sampling) for c in conversations]
    )
    model = open_chat("local:org/name", 512)
    assert isinstance(model, LocalChat)
    assert model.complete([ask("q")], max_new_tokens=4) == [
        ("model", ask("q"), {"max_new_tokens": 4, "temperature": 0.0})
    ]
    assert loaded == [("org/name", 512)]
    assert model.name == "local:org/name"


def test_no_more_requests_run_at_once_than_allowed(endpoint):
    running, most, lock = [0], [0], threading.Lock()
    meet = threading.Barrier(2, timeout=5)

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        meet.wait()  # each answer waits for a second request, so the two really overlap
        with lock:
            running[0] -= 1
        return 200, completion("ok")

    endpoint.reply = reply
    chat.EndpointChat(endpoint.url, "m", concurrency=2).complete([ask(str(n)) for n in range(6)], max_new_tokens=2)
    assert most[0] == 2
