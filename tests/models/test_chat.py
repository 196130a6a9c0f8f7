"""Chat models: one string names one, answers come in order, and a key goes to its own server and nowhere else."""

from __future__ import annotations

import asyncio
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Endpoint, Reply, completion, error
from transformers import AutoModelForCausalLM

from rpo_kit.errors import KitError
from rpo_kit.model_spec import EndpointSpec, parse_spec
from rpo_kit.models import keys, local
from rpo_kit.models.chat import Completion, PricedChat, StreamingChat, WindowedChat, reporting_cost, stream_completions
from rpo_kit.models.local import LocalChat
from rpo_kit.models.open import open_chat
from rpo_kit.presets import EndpointSettings

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def key_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_an_endpoint_answers_each_conversation_in_order(endpoint):
    model = open_chat(f"{endpoint.url}#my-model")
    answers = model.complete([ask(str(n)) for n in range(12)], max_new_tokens=9, temperature=0.5)
    assert answers == [Completion(f"echo {n}", True, 7, 3) for n in range(12)]
    assert endpoint.paths[0] == "/v1/chat/completions"
    first = endpoint.requests[0]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("my-model", 9, 0.5)


def test_openai_is_sent_the_new_name_of_the_token_limit_and_other_servers_the_old_one(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    for spec in ("openai:gpt-5-mini", f"{endpoint.url}#m"):
        open_chat(spec).complete([ask("q")], max_new_tokens=9)
    sent = [{name: body.get(name) for name in ("max_completion_tokens", "max_tokens")} for body in endpoint.requests]
    assert sent == [
        {"max_completion_tokens": 9, "max_tokens": None},
        {"max_completion_tokens": None, "max_tokens": 9},
    ]


def test_an_answer_cut_off_at_the_token_limit_is_marked(endpoint):
    endpoint.reply = lambda body: (200, completion("half an", "length"))
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)[0].finished is False


def test_a_server_that_counts_no_tokens_is_understood(endpoint):
    endpoint.reply = lambda body: (200, completion("yes", usage=False))
    assert open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2) == [Completion("yes", True, 0, 0)]


def test_broken_unicode_is_sent_and_received_as_text(endpoint):
    endpoint.reply = lambda body: (200, completion(f"{body['messages'][0]['content']} \ud800"))
    assert open_chat(f"{endpoint.url}#m").complete([ask("a\udfffb\x00")], max_new_tokens=2)[0].text == "a?b\x00 ?"


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_openais_key_is_not_sent_to_another_server(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)
    assert endpoint.keys == ["Bearer not-needed"]
    assert not any(secret in str(endpoint.sent_headers) for secret in (KEY, "org-of-mine"))


def test_a_url_gets_the_key_of_the_variable_that_it_names(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", "another-key-987")
    model = open_chat(f"{endpoint.url}#org/m@MY_KEY")
    model.complete([ask("q")], max_new_tokens=2)
    assert endpoint.keys == ["Bearer another-key-987"]
    assert endpoint.requests[0]["model"] == "org/m"
    assert model.name == f"{endpoint.url}#org/m"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(
        KitError, match=r"The environment variable MY_KEY, .* is not set: set it \(on Colab: a secret of that name"
    ):
        open_chat(f"{endpoint.url}#org/m@MY_KEY")


def test_openai_means_the_server_that_the_environment_names_and_needs_a_key(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    assert open_chat("openai:gpt-4o-mini").complete([ask("q")], max_new_tokens=2)[0].text == "echo q"
    assert endpoint.requests[0]["model"] == "gpt-4o-mini"
    assert endpoint.keys == [f"Bearer {KEY}"]
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(
        KitError, match=r"The environment variable OPENAI_API_KEY, .* is not set: set it .* or name a server"
    ):
        open_chat("openai:gpt-4o-mini")


def test_a_redirect_does_not_send_the_prompt_elsewhere(endpoint):
    elsewhere = Endpoint()
    endpoint.headers = {"Location": f"{elsewhere.url}/chat/completions"}
    endpoint.reply = lambda body: (307, {})
    answer = open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)[0]
    elsewhere.close()
    assert answer.failure.startswith("status 307")
    assert elsewhere.requests == []


def test_a_key_that_was_typed_in_stays_in_memory_and_a_colab_secret_is_found(monkeypatch):
    monkeypatch.setattr(keys.getpass, "getpass", lambda prompt: f" {KEY}2 ")
    monkeypatch.setenv("MY_KEY", "")
    keys.ask_for_key("MY_KEY")
    assert os.environ["MY_KEY"] == f"{KEY}2"
    monkeypatch.setattr(keys, "_colab_secret", {"OTHER": "from-colab"}.get)
    assert keys.key_in("OTHER") == "from-colab"


def test_a_server_that_repeats_the_key_does_not_get_it_into_an_answer_or_a_failure(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    endpoint.reply = lambda body: (200, completion(f"your key is {KEY}"))
    assert open_chat("openai:m").complete([ask("q")], max_new_tokens=2)[0].text == "your key is …"
    endpoint.reply = lambda body: error(400, f"bad request of {KEY}")
    assert "bad request of …" in open_chat("openai:m").complete([ask("r")], max_new_tokens=2)[0].failure
    endpoint.reply = lambda body: error(401, f"Incorrect API key provided: {KEY}.")
    with pytest.raises(KitError, match=r"the key was rejected .*Incorrect API key provided: ….*correct this") as caught:
        open_chat("openai:m").complete([ask("s")], max_new_tokens=2)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None, "a traceback would show the server's words"
    assert caught.value.__suppress_context__


# ---- which model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "endpoint_spec"),
    [
        ("http://localhost:8000/v1#my-model", EndpointSpec("http://localhost:8000/v1", "my-model", "")),
        ("https://h/v1#org/m:free@SOME_KEY", EndpointSpec("https://h/v1", "org/m:free", "SOME_KEY")),
        ("https://h/v1#@cf/meta/llama", EndpointSpec("https://h/v1", "@cf/meta/llama", "")),
        ("https://h/v1#claude@20240620", EndpointSpec("https://h/v1", "claude@20240620", "")),
        (
            "http://[::1]:8000/v1#claude@20240620@A_KEY",
            EndpointSpec("http://[::1]:8000/v1", "claude@20240620", "A_KEY"),
        ),
        ("openai:gpt-4o-mini", EndpointSpec("", "gpt-4o-mini", "OPENAI_API_KEY")),
    ],
)
def test_a_string_names_server_model_and_the_variable_with_the_key(spec, endpoint_spec):
    assert parse_spec(spec) == endpoint_spec


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("http://me:secret@h/v1#m", "addresses are stored"),
        ("http://me:secret@h/v1", "addresses are stored"),  # names no model either
        ("http://me:1/secret@h/v1#m", "addresses are stored"),
        ("https://h/v1?api_key=secret#m", "addresses are stored"),
        ("http://me:sec#ret-secret@h/v1#m", "port from 1 to 65535"),
        ("http://h/v1#m@secret", "must be the name of an environment variable"),
        ("http://h/v1#m@Secret_1", "must be the name of an environment variable"),
        ("http://h/v1#m@SECRET4SECRET4SECRET", "looks like a key"),
        ("http://h/v1#m@sk-secret-0123456789", "looks like a key"),
        ("openai:m@secret", "must be the name of an environment variable"),
        ("openai:m@MY_SECRET", "only after a URL"),
        ("openai:sk-secret-0123456789", "looks like a key"),
        ("gsk_secret0123456789", "looks like a key"),
    ],
)
def test_a_secret_in_the_name_of_a_model_is_rejected_not_repeated_and_nothing_is_written(spec, why, new_run, tmp_path):
    for setting in ("base", "synthesis.teacher"):
        with pytest.raises(KitError, match=why) as refused:
            new_run({setting: spec})
        with pytest.raises(KitError, match=why) as caught:
            open_chat(spec)
        assert "secret" not in f"{refused.value} {caught.value}".lower()
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_address_from_the_environment_is_refused_too(monkeypatch, tmp_path):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@127.0.0.1/v1")
    with pytest.raises(KitError, match="OPENAI_BASE_URL contains a user, a password") as caught:
        open_chat("openai:m")
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["sk-pasted\u200bwith-a-blank", "sk-two words", "sk-line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_reported_but_not_shown(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(KitError, match="The key in MY_KEY contains a character that no key has") as caught:
        keys.key_in("MY_KEY")
    assert key[:4] not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://h:99999/v1", "http://h:port/v1", "http://h:0/v1", "http://[::1/v1", "http:///v1", "ftp://h"]
)
def test_an_invalid_address_is_rejected(url):
    with pytest.raises(
        KitError, match=r"The address of a model is not a valid address: write http://HOST:PORT/v1, with a port"
    ):
        open_chat(f"{url}#m")


def test_an_address_without_http_in_the_environment_is_rejected(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with pytest.raises(KitError, match="OPENAI_BASE_URL is not a valid address: write http://HOST:PORT/v1"):
        open_chat("openai:m")


@pytest.mark.parametrize("spec", ["", "smollm2", "local:", "openai:", "http://host/v1", "gpt:4", "file:/model#m"])
def test_a_string_that_does_not_name_a_model_is_rejected_with_the_three_forms(spec):
    with pytest.raises(
        KitError, match=r"does not name a model: write local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL"
    ):
        open_chat(spec)


def test_a_local_model_is_loaded_once_and_generates(monkeypatch):
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(local, "load_base", lambda name, length: loaded.append((name, length)) or "model")
    monkeypatch.setattr(
        local, "generate", lambda model, conversations, **sampling: [(model, c, sampling) for c in conversations]
    )
    model = open_chat("local:org/name", 512)
    assert isinstance(model, LocalChat)
    assert model.complete([ask("q")], max_new_tokens=4) == [
        ("model", ask("q"), {"max_new_tokens": 4, "temperature": 0.0})
    ]
    assert loaded == [("org/name", 512)]
    assert model.name == "local:org/name"


@pytest.mark.parametrize("name", ["/no/such", "./no-such"])
def test_a_folder_without_a_model_is_named(name):
    with pytest.raises(
        KitError, match=rf"{name} does not contain a model \(config\.json is missing\): name the folder of one"
    ):
        open_chat(f"local:{name}")


def test_a_hub_id_that_cannot_be_loaded_is_reported(monkeypatch):
    def from_pretrained(path: str, **_: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(
        KitError, match=r"The model no/such cannot be loaded \(We couldn't .* to load the files\.\): check"
    ):
        open_chat("local:no/such")


# ---- many at once -------------------------------------------------------------------------------------------------


def test_it_works_in_a_notebook_whose_event_loop_is_running(endpoint):
    async def cell() -> list[Completion]:
        return open_chat(f"{endpoint.url}#m").complete([ask("q")], max_new_tokens=2)

    assert asyncio.run(cell())[0].text == "echo q"


def test_no_more_requests_run_at_once_than_allowed(endpoint):
    running, most, lock = [0], [0], threading.Lock()
    meet = threading.Barrier(2, timeout=5)

    def reply(body: dict[str, Any]) -> Reply:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        meet.wait()  # each answer waits for a second request, so the two really overlap
        with lock:
            running[0] -= 1
        return 200, completion("ok")

    endpoint.reply = reply
    model = open_chat(f"{endpoint.url}#m", settings=EndpointSettings(concurrency=2))
    model.complete([ask(str(n)) for n in range(6)], max_new_tokens=2)
    assert most[0] == 2


def test_answers_can_be_read_while_others_are_awaited(endpoint):
    taken = threading.Event()
    endpoint.reply = lambda body: (200, completion("ok" if "fast" in str(body) or taken.wait(5) else "too late"))
    model = open_chat(f"{endpoint.url}#m")
    batches = stream_completions(model, [ask("slow"), ask("fast")], max_new_tokens=2)
    first = next(batches)
    taken.set()
    assert [index for index, _ in first] == [1]
    assert [(index, answer.text) for batch in batches for index, answer in batch] == [(0, "ok")]


def test_a_reader_who_stops_early_leaves_nothing_running(endpoint):
    batches = stream_completions(open_chat(f"{endpoint.url}#m"), [ask(str(n)) for n in range(2000)], max_new_tokens=2)
    next(batches)
    assert "requests" in {thread.name for thread in threading.enumerate()}, "the thread with the event loop"
    batches.close()
    assert "requests" not in {thread.name for thread in threading.enumerate()}
    assert len(endpoint.requests) < 2000


def test_any_other_model_answers_in_chunks(recording_chat):
    base = recording_chat(lambda conversation: conversation[0]["content"])
    batches = list(stream_completions(base, [ask(str(n)) for n in range(5)], max_new_tokens=2, chunk=2))
    assert [[(index, answer.text) for index, answer in batch] for batch in batches] == [
        [(0, "0"), (1, "1")],
        [(2, "2"), (3, "3")],
        [(4, "4")],
    ]


class Plain:
    """The least that a model can be."""

    name = "plain"

    def complete(self, conversations, *, max_new_tokens, temperature=0.0):
        return [Completion(conversation[-1]["content"], True, 0, 0) for conversation in conversations]


def test_a_model_with_a_name_and_complete_is_enough(capsys):
    assert not any(isinstance(Plain(), protocol) for protocol in (StreamingChat, PricedChat, WindowedChat))
    with reporting_cost(Plain(), [ask("q")], 2):
        ((answer,),) = stream_completions(Plain(), [ask("q")], max_new_tokens=2)
    assert answer == (0, Completion("q", True, 0, 0))
    assert capsys.readouterr().out == "", "it has no price"


def test_an_endpoint_streams_and_has_a_price_and_a_local_model_has_a_window(endpoint):
    remote, near = open_chat(f"{endpoint.url}#m"), LocalChat(SimpleNamespace(tokenizer=None, max_seq_length=8))
    assert [isinstance(remote, protocol) for protocol in (StreamingChat, PricedChat, WindowedChat)] == [
        True,
        True,
        False,
    ]
    assert [isinstance(near, protocol) for protocol in (StreamingChat, PricedChat, WindowedChat)] == [
        False,
        False,
        True,
    ]


def test_a_model_that_leaves_out_an_answer_is_not_taken_for_complete(monkeypatch):
    monkeypatch.setattr(Plain, "complete", lambda self, conversations, **_: [Completion("3", True, 0, 0)])
    with pytest.raises(ValueError, match="shorter"):
        list(stream_completions(Plain(), [ask("a"), ask("b")], max_new_tokens=2))
