"""A client that streams gets OpenAI's chunks, errors included, and holds up nobody."""

from __future__ import annotations

import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from asking import ASK, Echo, client, create, raw
from openai import APIError, BadRequestError, InternalServerError, NotFoundError

from rpo_kit.serving import streaming
from rpo_kit.serving.service import MAX_WAITING


@pytest.fixture
def slow(served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server whose personalizer waits for `gate`; its streams open at once."""
    monkeypatch.setattr(streaming, "GRACE", 0.01)
    monkeypatch.setattr(streaming, "KEEP_ALIVE", 0.02)
    served.gate = served.service.personalizer.gate = threading.Event()
    yield served
    served.gate.set()


def opened(served: SimpleNamespace, **more: Any) -> socket.socket:
    """A connection on which a stream has been asked for."""
    body = json.dumps(ASK | {"user": "ann", "stream": True} | more).encode()
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_the_text_comes_between_the_role_and_the_reason_why_it_ends(served):
    chunks = list(create(served, user="ann", stream=True))
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "2", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]
    assert {(chunk.id, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, "rpo", "chat.completion.chunk")
    }
    assert [hasattr(chunk, "rpo") for chunk in chunks] == [False, False, True]


def test_what_the_response_says_under_rpo_is_the_same_in_a_stream(served):
    wanted = {"user": "ann", "temperature": 0.5, "extra_body": {"rpo": {"explain": True}}}
    whole, last = create(served, **wanted), list(create(served, stream=True, **wanted))[-1]
    assert last.rpo == whole.rpo
    assert last.rpo["observations"] == ["[1] gave 1"]
    assert last.rpo["ignored"] == ["temperature"]


def test_the_tokens_come_last_if_they_are_asked_for(served):
    chunks = list(create(served, user="ann", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 493
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all("usage" not in chunk.model_fields_set for chunk in create(served, user="ann", stream=True))


def test_a_stream_ends_in_done_and_is_not_held_back_by_a_proxy(served):
    text = opened(served).makefile("rb").read().decode()
    head, _, body = text.partition("\r\n\r\n")
    assert "Content-Type: text/event-stream" in head
    assert "X-Accel-Buffering: no" in head
    assert body.endswith("data: [DONE]\n\n")
    events = body.removesuffix("data: [DONE]\n\n").split("\n\n")
    assert all(json.loads(event.removeprefix("data: "))["id"] for event in events if event)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"text": "too long", "user": "ann"}, BadRequestError),
        ({"model": "gpt", "user": "ann"}, NotFoundError),
        ({"text": "fail", "user": "ann"}, InternalServerError),
        ({"user": "ann", "n": 2}, BadRequestError),
    ],
)
def test_an_error_that_shows_at_once_has_an_http_status(served, more, error):
    with pytest.raises(error):
        create(served, stream=True, **more)


def test_while_the_models_work_comments_keep_the_connection_alive(slow):
    with opened(slow) as connection:
        lines = connection.makefile("rb")
        found = [next(line for line in lines if line.startswith(b": ")) for _ in range(3)]
        assert found == [b": working\n"] * 3
        slow.gate.set()
        assert b"data: [DONE]\n" in list(lines)


@pytest.mark.parametrize(("text", "message"), [("fail", "did not answer 1 of 1"), ("too long", "The input is too lo")])
def test_a_later_error_is_an_event_that_the_client_raises(slow, text, message):
    stream = create(slow, text, user="ann", stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    slow.gate.set()
    with pytest.raises(APIError, match=message):
        next(stream)


def test_a_bug_behind_a_stream_that_is_open_is_an_event_too(slow, capfd):
    slow.service.personalizer.bug = ValueError("a secret of ann's")
    stream = create(slow, user="ann", stream=True)
    next(stream)
    slow.gate.set()
    with pytest.raises(APIError, match=r"The personalizer failed \(ValueError\)"):
        next(stream)
    log = capfd.readouterr().err
    assert "ValueError" in log
    assert "asking.py" in log, "where it was raised"
    assert "secret" not in log, "the message may quote a user's text"


def test_a_client_that_hangs_up_cancels_no_other(slow, capfd):
    other = create(slow, user="ann", stream=True)
    for _ in range(MAX_WAITING + 2):
        before = len(slow.asked)
        with opened(slow) as connection:
            answered = connection.recv(200)
        assert b" 200 " in answered or b" 503 " in answered
        assert len(slow.asked) - before <= 1
    slow.gate.set()
    assert [chunk.choices[0].delta.content for chunk in other] == ["", "2", None]
    until = time.monotonic() + 10
    while slow.service.slots._value < MAX_WAITING and time.monotonic() < until:
        time.sleep(0.01)
    assert slow.service.slots._value == MAX_WAITING, "each slot was given back"
    assert "Traceback" not in capfd.readouterr().err


def test_a_busy_server_says_so_before_the_stream_opens(slow):
    slow.service.slots = threading.Semaphore(0)
    status, response = raw(slow, json.dumps(ASK | {"user": "ann", "stream": True}).encode())
    assert (status, response["error"]["type"]) == (503, "server_error")


def test_a_stream_can_be_read_while_another_request_is_answered(slow):
    stream = create(slow, user="ann", stream=True)
    slow.service.models["rpo-sft"].gate = None
    asked = client(slow).chat.completions.create(model="rpo-sft", user="ann", messages=ASK["messages"])
    assert asked.choices[0].message.content == "2"
    assert isinstance(slow.service.models["rpo-sft"], Echo)
    slow.gate.set()
    assert len(list(stream)) == 3
