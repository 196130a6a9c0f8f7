"""The client libraries that people use work against the server: OpenAI's own, LiteLLM and LangChain."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import PROFILE, Echo, client, serving
from openai import (
    APIConnectionError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
)

from rpo_kit.lamp.tasks import get_task
from rpo_kit.serving.access import token_of
from rpo_kit.serving.service import Service

MESSAGES = [{"role": "user", "content": "It leaks."}]
EXPLAIN = {"rpo": {"user": "ann", "k": 1, "explain": True}}


@pytest.fixture
def url(served: SimpleNamespace) -> str:
    return f"http://127.0.0.1:{served.port}/v1"


# ---- openai -------------------------------------------------------------------------------------------------------


def test_openai_asks_lists_and_streams(served):
    chat = client(served).chat.completions
    whole = chat.create(model="rpo-sft", messages=MESSAGES, extra_body=EXPLAIN)
    assert (whole.choices[0].message.content, whole.rpo["items"]) == ("2", ["7"])
    with chat.create(model="rpo", messages=MESSAGES, stream=True, extra_body=EXPLAIN) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "2"
    with client(served).chat.completions.stream(model="rpo", messages=MESSAGES, extra_body=EXPLAIN) as events:
        final = events.get_final_completion()  # its own accumulation of the chunks
    assert final.choices[0].message.content == "2"
    assert client(served).models.retrieve("rpo").id == "rpo"


def test_openai_asks_asynchronously(url):
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key="none") as asking:
            whole = [asking.chat.completions.create(model="rpo", messages=MESSAGES, user="ann") for _ in range(4)]
            texts = [answer.choices[0].message.content for answer in await asyncio.gather(*whole)]
            stream = await asking.chat.completions.create(model="rpo", messages=MESSAGES, user="ann", stream=True)
            return [*texts, *[chunk.choices[0].delta.content or "" async for chunk in stream]]

    assert "".join(asyncio.run(ask())) == "22222"


@pytest.mark.parametrize(
    ("key", "more", "error"),
    [
        ("k", {"user": "ann", "n": 2}, BadRequestError),
        ("k", {"user": "ann", "model": "gpt"}, NotFoundError),
        ("k", {"user": "nobody"}, NotFoundError),
        ("wrong", {"user": "ann"}, AuthenticationError),
        (token_of("k", "bob"), {"user": "ann"}, PermissionDeniedError),
        ("k", {"user": "ann", "messages": [{"role": "user", "content": "fail"}]}, InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_raises_its_own_errors(served, key, more, error, stream):
    served.service.key = "k"
    settings = {"model": "rpo", "messages": MESSAGES, "stream": stream} | more
    with pytest.raises(error) as caught:
        client(served, key).chat.completions.create(**settings)
    assert len(caught.value.body["message"]) > 20, "a sentence"


def test_openai_tries_again_while_the_server_is_busy_and_not_after_a_failure(served):
    served.service.slots = threading.Semaphore(0)
    threading.Timer(0.3, served.service.slots.release).start()
    patient = client(served, max_retries=3)
    answered = patient.chat.completions.create(model="rpo", messages=MESSAGES, user="ann")
    assert answered.choices[0].message.content == "2"
    with pytest.raises(InternalServerError):
        patient.chat.completions.create(model="rpo", user="ann", messages=[{"role": "user", "content": "fail"}])
    assert len(served.asked) == 2, "one answer and one failure"
    with pytest.raises(APIConnectionError):
        client(SimpleNamespace(port=1)).models.list()


# ---- LiteLLM ------------------------------------------------------------------------------------------------------


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list of prices
    library = pytest.importorskip("litellm", exc_type=ImportError)
    library.suppress_debug_info = True
    library.telemetry = False
    settings = {"model": "openai/rpo", "api_base": url, "api_key": "none", "messages": MESSAGES, "num_retries": 0}
    return SimpleNamespace(ask=lambda **more: library.completion(**(settings | more)), errors=library.exceptions)


@pytest.mark.interop
def test_litellm_asks_and_streams(litellm):
    whole = litellm.ask(extra_body=EXPLAIN)
    assert (whole.choices[0].message.content, whole.rpo["observations"]) == ("2", ["[1] gave 1"])
    assert whole.usage.total_tokens == 493
    assert litellm.ask(model="openai/rpo-sft", extra_headers={"X-RPO-User": "ann"}).choices[0].message.content == "2"
    chunks = list(litellm.ask(extra_body=EXPLAIN, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "2"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.interop
@pytest.mark.parametrize("stream", [False, True])
def test_litellm_raises_its_own_errors(litellm, served, stream):
    with pytest.raises(litellm.errors.BadRequestError, match=r"`rpo\.k` must be"):
        litellm.ask(extra_body={"rpo": {"k": -1}}, stream=stream)
    with pytest.raises(litellm.errors.NotFoundError, match="There is no model 'gpt'"):
        litellm.ask(model="openai/gpt", extra_body=EXPLAIN, stream=stream)
    served.service.key = "k"
    with pytest.raises(litellm.errors.AuthenticationError):
        litellm.ask(extra_body=EXPLAIN, stream=stream)


# ---- LangChain ----------------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(url: str) -> Any:
    library = pytest.importorskip("langchain_openai", exc_type=ImportError)
    settings = {"model": "rpo", "base_url": url, "api_key": "none", "max_retries": 0, "extra_body": EXPLAIN}
    return lambda **more: library.ChatOpenAI(**(settings | more))


@pytest.mark.interop
def test_langchain_asks_and_streams(langchain, served):
    message = langchain().invoke("It leaks.")
    assert (message.content, message.usage_metadata["total_tokens"]) == ("2", 493)
    assert message.response_metadata["model_name"] == "rpo"
    assert "".join(chunk.content for chunk in langchain(stream_usage=True).stream("It leaks.")) == "2"
    batch = langchain(model="rpo-sft").batch(["It leaks.", "It broke."])
    assert [answer.content for answer in batch] == ["2", "2"]
    assert langchain(extra_body=None, model_kwargs={"user": "ann"}).invoke("It leaks.").content == "2"
    assert [profile for _, profile in served.asked] == [PROFILE] * 3


@pytest.mark.interop
def test_langchain_raises_openais_errors(langchain, served):
    with pytest.raises(BadRequestError, match=r"`rpo\.k` must be"):
        langchain(extra_body={"rpo": {"k": -1}}).invoke("It leaks.")
    with pytest.raises(BadRequestError):
        list(langchain(extra_body={"rpo": {"k": -1}}).stream("It leaks."))
    with pytest.raises(NotFoundError):
        langchain(model="gpt").invoke("It leaks.")
    served.service.key = "k"
    with pytest.raises(AuthenticationError):
        langchain().invoke("It leaks.")


# ---- docs/serving.md ----------------------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.mark.interop
@pytest.mark.parametrize("library", ["openai", "litellm", "langchain_openai"])
def test_the_examples_in_the_docs_run(library, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    pytest.importorskip(library, exc_type=ImportError)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if re.match(rf"(import|from) {library}\b", block)]
    personalizer = Echo()
    personalizer.task = get_task("LaMP-7")
    service = Service(personalizer, None, "k", models={"rpo-sft": personalizer})
    service.store.write("ann", [{"id": "1", "text": "lol"}])
    with serving(service) as there:
        code = code.replace("127.0.0.1:8765", f"127.0.0.1:{there.port}")
        names = {"token": token_of("k", "ann"), "messages": MESSAGES, "query": "It leaks."}
        exec(code, names)
    said = capsys.readouterr().out
    expected = {"openai": "2 ['[1] gave 1']\n2", "litellm": "2 one lower\n", "langchain_openai": "2\n"}
    assert said == expected[library]
    if library == "openai":
        assert service.store.read("ann") == [{"id": "0", "text": "so tired"}]
