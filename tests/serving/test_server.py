"""The personalizer as an endpoint: any OpenAI client gets the rewrite, and nothing gets more than it should."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from types import SimpleNamespace

import pytest
from openai import APIStatusError, OpenAI

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.personalizer import Rewrite
from rpo_kit.rewriting.trajectory import Trajectory
from rpo_kit.serving import server as server_module
from rpo_kit.serving.server import Service, make_server

TASK = get_task("LaMP-3")
PROFILE = [{"id": "7", "text": "Broke twice.", "score": "1"}]


class Echo:
    """Rewrites nothing: remembers what it was asked, answers "2"."""

    task = TASK

    def __init__(self):
        self.asked = []

    def __call__(self, query, profile):
        self.asked.append((query, profile))
        if "fail" in query:
            raise KitError("The model m did not answer 1 of 1 queries.")
        timings = {"retrieval": 0.1, "base": 0.2, "reflection": 0.3}
        tokens = {"base": (60, 2), "reflection": (400, 31)}
        return Rewrite("2", "3", profile, Trajectory("[1] gave 1", "one lower", "2"), None, timings, tokens)


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "ann.json").write_text(json.dumps(PROFILE))
    (tmp_path / "secret.json").write_text(json.dumps(PROFILE))
    service = Service(Echo(), folder)
    server = make_server(service, port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield SimpleNamespace(service=service, port=server.server_address[1], asked=service.personalizer.asked)
    server.shutdown()
    server.server_close()
    thread.join()


def client(served, key="none"):
    return OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=key, max_retries=0)


def create(served, text="It leaks.", **more):
    return client(served).chat.completions.create(model="rpo", messages=[{"role": "user", "content": text}], **more)


def raw(served, body=b"{}", method="POST", path="/v1/chat/completions", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def rejected(served, **body):
    status, response = raw(served, json.dumps(body).encode())
    return status, response["error"]["message"]


ASK = {"messages": [{"role": "user", "content": "It leaks."}]}


def test_an_openai_client_gets_the_rewrite_and_how_it_came_about(served):
    response = create(served, user="ann")
    assert response.choices[0].message.content == "2"
    assert response.rpo == {
        "generic": "3",
        "items": ["7"],
        "observations": ["[1] gave 1"],
        "plan": "one lower",
        "complaint": None,
        "shortened": False,
        "seconds": {"retrieval": 0.1, "base": 0.2, "reflection": 0.3},
        "tokens": {"base": {"prompt": 60, "new": 2}, "reflection": {"prompt": 400, "new": 31}},
    }
    used = response.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (460, 33, 493), "of both models"
    assert served.asked == [(TASK.make_input(text="It leaks."), PROFILE)]
    assert [model.id for model in client(served).models.list()] == ["rpo"]


def test_the_history_can_come_with_the_request_and_the_query_as_a_lamp_input(served):
    query = TASK.make_input(text="It leaks.")
    create(served, query, extra_body={"profile": [{"text": "fine", "score": 4}]})
    assert served.asked == [(query, [{"id": "0", "text": "fine", "score": "4"}])]


@pytest.mark.parametrize("content", ["no json", '{"a": 1}', '[{"text": "no score"}]', "[" * 100_000, "\ud800"])
def test_a_profile_file_at_fault_is_named_in_the_servers_log_and_not_to_the_client(served, content, capfd):
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


def test_an_item_keeps_its_date_which_recency_ranks_by():
    items = [{"text": "Broke.", "score": 1, "date": "2011-05-03"}, {"text": "Fine.", "score": 5}]
    assert server_module.checked_profile(TASK, items, "the file") == [
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


def test_a_client_that_streams_gets_one_chunk(served):
    chunks = list(create(served, user="ann", stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["2"]


def test_a_base_model_that_fails_is_reported_in_a_sentence(served):
    with pytest.raises(APIStatusError, match="did not answer 1 of 1 queries") as caught:
        create(served, "fail", user="ann")
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({}, 400, "`messages` must be a list"),
        ({"messages": []}, 400, "`messages` must be a list"),
        ({"messages": ["hi"], "user": "ann"}, 400, "`messages` must be a list"),
        ({"messages": [{"role": "system", "content": "x"}], "user": "ann"}, 400, "the last one from the user"),
        (ASK, 400, "Say who is asking"),
        (ASK | {"user": "bob"}, 404, "There is no profile of 'bob' here"),
        (ASK | {"user": "../secret"}, 400, "`user` must be a name"),
        (ASK | {"user": "a/../../secret"}, 400, "`user` must be a name"),
        (ASK | {"user": ".ann"}, 400, "`user` must be a name"),
        (ASK | {"user": ["ann"]}, 400, "`user` must be a name"),
        (ASK | {"profile": {}}, 400, "`profile` must be a JSON list of at most 2,000 items"),
        (ASK | {"profile": [{}] * 2001}, 400, "`profile` must be a JSON list of at most 2,000 items"),
        (ASK | {"profile": [{"text": "fine"}]}, 400, "Item 0 of `profile` must have text and score"),
        (ASK | {"profile": None}, 400, "Say who is asking"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "with texts"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, 400, "with texts"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, 400, "with texts"),
        (ASK | {"user": "ann", "n": 2}, 400, "one choice per request"),
    ],
)
def test_a_request_at_fault_is_told_why_and_reaches_no_model(served, body, status, why):
    actual, message = rejected(served, **body)
    assert actual == status
    assert why in message
    assert served.asked == []


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


def test_what_is_not_a_json_object_is_rejected(served):
    assert raw(served, b"[1]")[0] == 400
    assert raw(served, b"{")[0] == 400
    assert raw(served, b"[" * 100_000)[0] == 400
    assert raw(served, b'{"messages":' * 50_000)[0] == 400
    assert raw(served, b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert raw(served, b"{}", path="/v1/other")[0] == 404
    assert raw(served, b"", "GET", "/")[0] == 404
    assert raw(served, iter([b"{}"]), **{"Transfer-Encoding": "chunked"})[0] == 411


def test_a_web_page_in_a_browser_is_rejected(served):
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host="evil.example")[0] == 403
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host="[::1")[0] == 400
    assert raw(served, json.dumps(ASK | {"user": "ann"}).encode(), Host=f"localhost:{served.port}")[0] == 200


def test_a_client_that_sends_nothing_more_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(server_module, "PATIENCE", 0.1)
    server = make_server(served.service, port=0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(server.server_address, timeout=10) as slow:
        slow.sendall(head + b"Content-Length: 10\r\n\r\n{")
        assert b"408" in slow.recv(1000)
    server.shutdown()
    server.server_close()


def test_when_all_slots_are_taken_the_client_is_asked_to_come_back(served):
    served.service.slots = threading.Semaphore(0)
    assert raw(served, json.dumps(ASK).encode())[0] == 503


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
    with pytest.raises(KitError, match="There is no port 99999: choose a --port from 1 to 65535"):
        server_module.serve(run, "rl", None, "127.0.0.1", 99999)
    with pytest.raises(KitError, match=r"There is no folder .*/none: --profiles takes one with a USER\.json"):
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
