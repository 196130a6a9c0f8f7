"""A completion as a stream of events, in OpenAI's format.

A rewrite cannot be sent word by word: only when it is complete is it known whether it parses and whether it is used
(`rewriting/keep_generic.py`), and what has been sent cannot be taken back. So the stream opens at once, comments keep
the connection alive while the models work, and the text follows in one piece. An error that shows within GRACE seconds
(a bad request shows at once) gets an HTTP status of its own; a later one is an event, which clients raise too.

    data: {"object": "chat.completion.chunk", "choices": [{"delta": {"role": "assistant", "content": ""}, …}], …}
    : working
    data: {… "choices": [{"delta": {"content": "lol so tired"}, "finish_reason": null, …}]}
    data: {… "choices": [{"delta": {}, "finish_reason": "stop", …}], "rpo": {…}}
    data: [DONE]
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait

from rpo_kit.serving.messages import RequestError
from rpo_kit.serving.responses import ChatCompletion, as_error

GRACE = 0.5  # ours: seconds in which an error still gets an HTTP status
KEEP_ALIVE = 5.0  # ours: seconds between comments; proxies give up after 30 or 60 without a byte


def in_background(work: Callable[[], ChatCompletion]) -> Future[ChatCompletion]:
    """The completion that `work` will give, in a thread of its own; a server that ends does not wait for it."""
    future: Future[ChatCompletion] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def started(work: Callable[[], ChatCompletion]) -> Future[ChatCompletion]:
    """`in_background` after the first GRACE seconds. Raises what `work` raises in them."""
    future = in_background(work)
    wait([future], GRACE)
    if future.done():
        future.result()
    return future


def events(
    future: Future[ChatCompletion], name: str, with_usage: bool, explained: Callable[[BaseException], RequestError]
) -> Iterator[str]:
    """The stream of a completion of the model `name`; `explained` gives the error that the client sees."""
    head: dict[str, object] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk"}
    head |= {"created": int(time.time()), "model": name} | ({"usage": None} if with_usage else {})
    yield _chunk(head, {"role": "assistant", "content": ""})
    while not wait([future], KEEP_ALIVE).done:
        yield ": working\n\n"
    try:
        completion = future.result()
    except BaseException as error:  # the status is long sent: the client reads it in the stream
        yield _event(as_error(explained(error)))
        return
    choice = completion["choices"][0]
    yield _chunk(head, {"content": choice["message"]["content"]})
    yield _chunk(head | {"rpo": completion["rpo"]}, {}, choice["finish_reason"])
    if with_usage:
        yield _event(head | {"choices": [], "usage": completion["usage"]})
    yield "data: [DONE]\n\n"


def wants_usage(body: Mapping[str, object]) -> bool:
    """Whether the request asks for a last chunk with the tokens (`stream_options.include_usage`)."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _chunk(head: Mapping[str, object], delta: Mapping[str, str], finish_reason: str | None = None) -> str:
    return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _event(content: Mapping[str, object]) -> str:
    return f"data: {json.dumps(content)}\n\n"
