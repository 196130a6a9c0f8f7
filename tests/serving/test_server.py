"""The personalizer as an endpoint: any OpenAI client gets the rewrite, and nothing gets more than it should."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from asking import ASK, PROFILE, TASK, Echo, client, create, raw, rejected
from fakes import completion, last
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import APIStatusError, OpenAI
from transformers import AutoTokenizer

from rpo_kit.errors import KitError
from rpo_kit.models.chat import Completion
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat
from rpo_kit.rewriting import reflection
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.serving import messages as messages_module
from rpo_kit.serving import server as server_module
from rpo_kit.serving.server import make_server
from rpo_kit.serving.service import MAX_WAITING, Service


def test_an_openai_client_gets_the_rewrite_and_how_it_was_made(served):
    response = create(served, user="ann", extra_body={"rpo": {"explain": True}})
    assert response.choices[0].message.content == "2"
    assert response.rpo == {
        "generic": "3",
        "items": ["7"],
        "observations": ["[1] gave 1"],
        "cited": [["7"]],
        "plan": "one lower",
        "complaint": None,
        "kept_generic": None,
        "shortened": False,
        "seconds": {"retrieval": 0.1, "base": 0.2, "reflection": 0.3},
        "tokens": {"base": {"prompt": 60, "new": 2}, "reflection": {"prompt": 400, "new": 31}},
    }
    used = response.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (460, 33, 493), "of both models"
    assert served.asked == [(TASK.make_input(text="It leaks."), PROFILE)]
    assert [model.id for model in client(served).models.list()] == ["rpo", "rpo-sft", "rpo-untrained"]


def test_the_history_can_come_with_the_request_and_the_query_as_a_lamp_input(served):
    input = TASK.make_input(text="It leaks.")
    create(served, input, extra_body={"profile": [{"text": "fine", "score": 4}]})
    assert served.asked == [(input, [{"id": "0", "text": "fine", "score": "4"}])]


@pytest.mark.parametrize("content", ["no json", '{"a": 1}', '[{"text": "no score"}]', "[" * 100_000, "\ud800"])
def test_a_broken_profile_file_is_reported_in_the_servers_log_and_not_to_the_client(served, content, capfd):
    path = served.service.profiles / "broken.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    status, message = rejected(served, **ASK, user="broken")
    assert (status, message) == (500, "The profile of 'broken' cannot be used; the server's log says why.")
    assert f"rpo_kit serve: the profile {path} cannot be used: " in capfd.readouterr().err


def test_a_text_in_parts_no_number_of_choices_and_odd_ids_are_understood(served):
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "leaks."}]
    nested = json.loads("[" * 500 + "]" * 500)
    body = {"messages": [{"role": "user", "content": parts}], "n": None, "profile": [PROFILE[0] | {"id": nested}]}
    assert raw(served, json.dumps(body).encode())[0] == 200
    assert served.asked == [(TASK.make_input(text="It leaks."), [PROFILE[0] | {"id": "0"}])]


FOUR = 4.0  # as a table with missing values has it


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_profile_file_may_have_a_byte_order_mark(served, encoding):
    profile = [PROFILE[0] | {"text": "Zerbrach zweimal, für 3 €."}]
    (served.service.profiles / "bob.json").write_bytes(json.dumps(profile, ensure_ascii=False).encode(encoding))
    create(served, user="bob")
    assert served.asked[0][1] == profile


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.integers(-(10**14), 10**14), st.sampled_from([1, FOUR, 3.5, "4", "4.0"]), st.none() | st.integers(2000, 2030))
def test_numbers_of_a_profile_may_be_numbers_as_in_lamps_files(served, id_, score, date):
    item = {"id": id_, "text": "fine", "score": score} | ({} if date is None else {"date": date})
    assert raw(served, json.dumps(ASK | {"profile": [item]}).encode())[0] == 200
    texts = {
        "id": str(id_),
        "text": "fine",
        "score": "4" if score == 4.0 and not isinstance(score, str) else str(score),
    }
    assert served.asked[-1][1] == [texts | ({} if date is None else {"date": str(date)})]


@pytest.mark.parametrize("score", [None, True, [1], {"a": 1}, float("nan"), float("inf"), 10**300])
def test_a_field_that_is_neither_text_nor_number_is_rejected_with_a_correct_item(served, score):
    status, message = rejected(served, **ASK, profile=[PROFILE[0], {"id": "8", "text": "fine", "score": score}])
    assert status == 400
    assert message == (
        "Item 1 of `profile` must have text and score, each a text or a number, as in "
        '{"id": "7", "text": "…", "score": "…"}.'
    )


def test_a_profile_of_plain_texts_is_rejected_with_a_correct_item(served):
    status, message = rejected(served, **ASK, profile=["Broke twice.", "Fine."])
    assert status == 400
    assert (
        "Item 0 of `profile` is a plain text: it must have text and score, each a text or a number, as in {" in message
    )


def test_an_item_keeps_its_date_which_recency_ranks_by():
    items = [{"text": "Broke.", "score": 1, "date": "2011-05-03"}, {"text": "Fine.", "score": 5}]
    assert messages_module.checked_profile(TASK, items, "the file") == [
        {"id": "0", "text": "Broke.", "score": "1", "date": "2011-05-03"},
        {"id": "1", "text": "Fine.", "score": "5"},
    ]


def test_a_client_that_hangs_up_leaves_no_trace_in_the_log(served, monkeypatch, capfd):
    def hung_up(*_):
        raise BrokenPipeError

    monkeypatch.setattr(server_module.Handler, "end_headers", hung_up)
    with pytest.raises(http.client.HTTPException):
        raw(served)
    served.service.slots.acquire(timeout=5)  # the request is over
    assert "Traceback" not in capfd.readouterr().err


def test_a_base_model_that_fails_is_reported_in_a_sentence_and_not_retried(served):
    again = OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=2)
    with pytest.raises(APIStatusError, match="did not answer 1 of 1 queries") as caught:
        again.chat.completions.create(model="rpo", user="ann", messages=[{"role": "user", "content": "fail"}])
    assert caught.value.status_code == 502
    assert len(served.asked) == 1


def test_a_query_that_is_too_long_is_the_clients_fault(served):
    with pytest.raises(APIStatusError, match="The input is too long") as caught:
        create(served, "too long", user="ann")
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("CUDA out of memory"),
        MemoryError(),
        RecursionError(),
        KeyError("score"),
        TimeoutError("the model took too long"),
        ConnectionResetError("a database went away"),
        ValueError("not a KitError"),
        SystemExit(1),
        BaseException("a panic in Rust"),
    ],
)
def test_a_personalizer_that_raises_is_500_and_the_next_request_is_answered(served, capfd, bug):
    served.service.personalizer.bug = bug
    name = type(bug).__name__
    status, response = raw(served, json.dumps(ASK | {"user": "ann"}).encode())
    assert (status, response["error"]["message"]) == (
        500,
        f"The personalizer failed ({name}); the server's log says more.",
    )
    assert name in capfd.readouterr().err
    served.service.personalizer.bug = None
    for _ in range(MAX_WAITING + 1):
        assert raw(served, json.dumps(ASK | {"user": "ann"}).encode())[0] == 200, "each slot was given back"


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({}, 400, "`messages` must be a list"),
        ({"messages": []}, 400, "`messages` must be a list"),
        ({"messages": ["hi"], "user": "ann"}, 400, "`messages` must be a list"),
        ({"messages": [{"role": "system", "content": "x"}], "user": "ann"}, 400, "the last one from the user"),
        (ASK, 400, "The request names no user"),
        (ASK | {"user": "bob"}, 404, "There is no profile of 'bob': check the name"),
        (ASK | {"user": "../secret"}, 400, "`user` must consist of"),
        (ASK | {"user": "a/../../secret"}, 400, "`user` must consist of"),
        (ASK | {"user": ".ann"}, 400, "`user` must consist of"),
        (ASK | {"user": ["ann"]}, 400, "`user` must consist of"),
        (ASK | {"profile": {}}, 400, "`profile` must be a JSON list of at most 2,000 items"),
        (ASK | {"profile": [{}] * 2001}, 400, "`profile` must be a JSON list of at most 2,000 items"),
        (ASK | {"profile": [{"text": "fine"}]}, 400, "Item 0 of `profile` must have text and score"),
        (ASK | {"profile": None}, 400, "The request names no user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "with texts"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, 400, "with texts"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, 400, "with texts"),
        (ASK | {"user": "ann", "n": 2}, 400, "`n` must be 1"),
        (ASK | {"user": "ann", "n": True}, 400, "`n` must be 1"),
        (ASK | {"user": "ann", "tools": [{"type": "function"}]}, 400, "`tools` is not supported"),
        (ASK | {"user": "ann", "tool_choice": "required"}, 400, "`tool_choice` is not supported"),
        (ASK | {"user": "ann", "functions": [{"name": "f"}]}, 400, "`functions` is not supported"),
        (ASK | {"user": "ann", "response_format": {"type": "json_object"}}, 400, "`response_format` is not supported"),
        (ASK | {"user": "ann", "logprobs": True}, 400, "`logprobs` is not supported"),
        (ASK | {"user": "ann", "modalities": ["text", "audio"]}, 400, "`modalities` is not supported"),
        (ASK | {"user": True}, 400, "`user` must consist of"),
        (ASK | {"metadata": {"user_id": "../secret"}}, 400, "`user` must consist of"),
        (ASK | {"user": "ann", "metadata": {"user_id": "bob"}}, 400, "name different users"),
    ],
)
def test_a_request_at_fault_gets_the_reason_and_reaches_no_model(served, body, status, why):
    actual, message = rejected(served, **body)
    assert actual == status
    assert why in message
    assert served.asked == []


@pytest.mark.parametrize(
    "naming",
    [
        {"user": "ann"},
        {"metadata": {"user_id": "ann"}},
        {"metadata": {"user": "ann", "trace": "x"}},
        {"extra": {"user": "ann"}},
        {"user": "ann", "metadata": {"user_id": "ann"}},
        {"user": None, "metadata": None, "extra": 3, "extra_body": {"user_id": "ann"}},
    ],
)
def test_a_client_that_does_not_send_user_can_name_the_user_elsewhere(served, naming):
    assert raw(served, json.dumps(ASK | naming).encode())[0] == 200
    assert served.asked[0][1] == PROFILE


def test_the_user_may_come_in_a_header_and_be_a_number(served):
    (served.service.profiles / "310.json").write_text(json.dumps(PROFILE))
    assert raw(served, json.dumps(ASK).encode(), **{"x-rpo-user": "ann"})[0] == 200
    assert raw(served, json.dumps(ASK | {"user": 310}).encode(), **{"X-RPO-USER": "310"})[0] == 200
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), **{"X-RPO-User": "310"})[0] == 400
    assert raw(served, json.dumps(ASK).encode(), **{"X-RPO-User": "../secret"})[0] == 400


def test_fields_without_effect_are_listed(served):
    earlier = [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hello."}]
    response = client(served).chat.completions.create(
        model="rpo",
        messages=[*earlier, *ASK["messages"]],
        user="ann",
        temperature=0.7,
        max_tokens=5,
        stop=["x"],
        seed=3,
    )
    ignored = ["max_tokens", "messages before the last one", "seed", "stop", "temperature"]
    assert response.rpo["ignored"] == ignored
    assert response.model == "rpo"
    harmless = {"n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False}
    assert "ignored" not in create(served, user="ann", **harmless).rpo
    nothing = dict.fromkeys(["temperature", "tools", "response_format", "n", "max_tokens"])
    assert "ignored" not in raw(served, json.dumps(ASK | {"user": "ann"} | nothing).encode())[1]["rpo"]


FIELDS = st.text(max_size=8) | st.sampled_from(sorted(messages_module._READ))


@given(st.dictionaries(FIELDS, st.integers() | st.text(max_size=3)))
def test_every_field_is_read_rejected_or_listed(body):
    refused = False
    try:
        messages_module.check_supported(body)
    except messages_module.RequestError as error:
        refused = error.status == 400
    ignored = messages_module.ignored_fields(body)
    assert refused or all(name in ignored or name in messages_module._READ for name in body)


def test_the_size_of_a_request_is_bounded_before_it_is_read(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", "1000001")):
        connection.putheader(name, value)
    connection.endheaders()  # not one byte of the body
    response = connection.getresponse()
    assert response.status == 413
    assert "at most 1,000,000 bytes are read" in response.read().decode()
    assert raw(served, b"", **{"Content-Length": "9" * 5000})[0] == 413


def test_a_body_that_is_not_a_json_object_is_rejected(served):
    assert raw(served, b"[1]")[0] == 400
    assert raw(served, b"{")[0] == 400
    assert raw(served, b"[" * 100_000)[0] == 400
    assert raw(served, b'{"messages":' * 50_000)[0] == 400
    assert raw(served, b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert raw(served, b"{}", path="/v1/other")[0] == 404
    assert raw(served, b"", "GET", "/")[0] == 404
    assert raw(served, iter([b"{}"]), **{"Transfer-Encoding": "chunked"})[0] == 411


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "Application/JSON; charset=UTF-8"},
        {"content-type": "application/json ;charset=utf-8"},
        {"Authorization": "bearer right"},
        {"Authorization": "BEARER   right "},
        {"authorization": "Bearer right"},
        {"Host": "LOCALHOST"},
        {"Host": "localhost.:8765"},
    ],
)
def test_headers_and_schemes_are_case_insensitive(served, headers):
    served.service.key = "right"
    status, response = raw(
        served, json.dumps(ASK | {"user": "ann"}).encode(), **{"Authorization": "Bearer right"} | headers
    )
    assert status == 200, response


@pytest.mark.parametrize(
    "sent", ["Bearer wrong", "right2", "Basic right", "Bearer", "", "Bearer right x", "Bearer RIGHT"]
)
def test_another_key_stays_wrong(served, sent):
    served.service.key = "right"
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Authorization=sent)[0] == 401


def test_a_path_with_a_slash_or_a_query_at_its_end_is_found(served):
    for path in ("/v1/chat/completions/", "/v1/chat/completions?api-version=1"):
        assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), path=path)[0] == 200


def test_a_web_page_in_a_browser_is_rejected(served):
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host="evil.example")[0] == 403
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host="[::1")[0] == 400
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host=f"localhost:{served.port}")[0] == 200


@pytest.fixture
def impatient(served, monkeypatch):
    """The address of a server that waits a moment only, with one slot."""
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.6)
    served.service.slots = threading.Semaphore(1)
    server = make_server(served.service, port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server.server_address
    server.shutdown()
    server.server_close()
    thread.join()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_client_that_sends_nothing_more_is_not_waited_for(impatient):
    with socket.create_connection(impatient, timeout=10) as slow:
        slow.sendall(HEAD + b"Content-Length: 10\r\n\r\n{")
        assert b"408" in slow.recv(1000)


@pytest.mark.parametrize("start", [HEAD + b"Content-Length: 900000\r\n\r\n{", HEAD + b"X-Slow: ", b"POST"])
def test_a_client_that_drips_is_not_waited_for_either(impatient, start):
    started = time.monotonic()
    with socket.create_connection(impatient, timeout=10) as slow:
        slow.sendall(start)
        with suppress(ConnectionError):
            while time.monotonic() - started < 8:  # a byte now and then keeps no connection open
                slow.sendall(b" ")
                time.sleep(0.05)
    assert time.monotonic() - started < 6


def test_clients_that_drip_take_no_slot(impatient):
    with ExitStack() as open_connections:
        for _ in range(40):
            slow = open_connections.enter_context(socket.create_connection(impatient, timeout=10))
            slow.sendall(HEAD + b"Content-Length: 900000\r\n\r\n{")
        connection = http.client.HTTPConnection(*impatient, timeout=10)
        body = json.dumps(ASK | {"user": "ann"})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200


def test_when_all_slots_are_taken_the_client_is_asked_to_retry(served):
    served.service.slots = threading.Semaphore(0)
    assert raw(served, json.dumps(ASK).encode())[0] == 503
    assert raw(served, b"{")[0] == 400, "the body has been read before"
    assert raw(served, b"", "GET", "/v1/models")[0] == 200


@pytest.mark.parametrize(("status", "headers"), [(401, {}), (413, {}), (415, {"Content-Type": "text/plain"})])
def test_a_client_that_sends_a_large_body_gets_the_error(served, status, headers):
    """A connection that is closed while bytes arrive is reset, and the response may be lost."""
    served.service.key = "right" if status == 401 else ""
    body = b" " * (1_500_000 if status == 413 else 900_000)
    for _ in range(5):
        assert raw(served, body, **headers)[0] == status


def test_a_body_that_ends_early_is_reported(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as short:
        short.sendall(HEAD + b"Content-Length: 10\r\n\r\n{}")
        short.shutdown(socket.SHUT_WR)
        assert b"shorter than its Content-Length" in short.makefile("rb").read()


def test_many_clients_can_connect_at_once(served):
    server = make_server(served.service, port=0)  # it does not accept yet
    with ExitStack() as open_connections:
        open_connections.callback(server.server_close)
        clients = [open_connections.enter_context(socket.socket()) for _ in range(100)]
        for connection in clients:
            connection.settimeout(5)
            connection.connect(server.server_address)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        open_connections.callback(server.shutdown)
        for connection in clients:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert all(b" 200 " in connection.recv(100) for connection in clients)


def test_a_base_model_at_an_endpoint_answers_several_users_at_once(endpoint, tiny_llama, monkeypatch):
    """One answer is held back until the others have arrived and been rewritten."""
    others, slow = threading.Event(), []
    together = threading.Barrier(4, timeout=10)

    def reply(body):
        if "slow" in last(body):
            slow.append(others.wait(20))
        else:
            together.wait()  # four queries are on their way at the same moment
        return 200, completion("3")

    at_work = threading.Lock()

    def generate(model, asked, **_):
        assert at_work.acquire(blocking=False), "the module works for one request at a time"
        time.sleep(0.02)
        at_work.release()
        return [Completion("<observe>[1] a</observe><plan>p</plan><rewrite>2</rewrite>", True, 1, 1)] * len(asked)

    endpoint.reply = reply
    monkeypatch.setattr(reflection, "generate", generate)
    module = LoadedModel(None, AutoTokenizer.from_pretrained(tiny_llama), 4096)
    personalizer = Personalizer(open_chat(f"{endpoint.url}#m"), module, TASK)
    server = make_server(Service(personalizer, None), port=0)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    there = SimpleNamespace(port=server.server_address[1])
    statuses = []

    def send(text):
        body = {"messages": [{"role": "user", "content": text}], "profile": PROFILE}
        statuses.append(raw(there, json.dumps(body).encode())[0])

    late = threading.Thread(target=send, args=("slow",))
    late.start()
    quick = [threading.Thread(target=send, args=(f"quick {n}",)) for n in range(4)]
    for thread in quick:
        thread.start()
    for thread in quick:
        thread.join()
    assert statuses == [200] * 4
    others.set()
    late.join()
    assert (statuses, slow) == ([200] * 5, [True])
    server.shutdown()
    server.server_close()


def test_other_machines_need_a_key(served):
    with pytest.raises(KitError, match="set the environment variable RPO_SERVE_KEY"):
        make_server(Service(Echo(), None), host="0.0.0.0", port=0)
    served.service.key = "right"
    with pytest.raises(APIStatusError, match="The key is missing or wrong"):
        create(served, user="ann")
    asked = client(served, "right").chat.completions.create(model="rpo", user="ann", messages=ASK["messages"])
    assert asked.choices[0].message.content == "2"


def test_a_port_that_is_taken_is_named(served):
    with pytest.raises(KitError, match=f"Port {served.port} on 127.0.0.1 cannot be used .*choose another --port"):
        make_server(served.service, port=served.port)


def test_an_impossible_address_is_rejected_before_a_model_is_loaded(prepared, tmp_path):
    run = prepared()
    with pytest.raises(KitError, match="--port 99999 is not a port: choose one from 1 to 65535"):
        server_module.serve(run, "rl", None, "127.0.0.1", 99999)
    with pytest.raises(KitError, match=r"--profiles .*/none is not a folder: name one that holds a USER\.json"):
        server_module.serve(run, "rl", tmp_path / "none", "127.0.0.1", 0)
    with pytest.raises(KitError, match=r"Port 0 on a\.\.b cannot be used .*choose another --port or --host"):
        make_server(Service(Echo(), None, key="k"), host="a..b", port=0)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_listens_on_this_machines_ipv6_address(served):
    server = make_server(served.service, host="::1", port=0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    connection = http.client.HTTPConnection("::1", server.server_address[1], timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    server.shutdown()
    server.server_close()


def test_serving_a_run_that_is_not_trained_says_what_to_run(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit rl --run r`"):
        server_module.serve(prepared(), "rl", None, "127.0.0.1", 0)
