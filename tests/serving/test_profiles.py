"""A user's history can be uploaded by that user, and is nobody else's."""

from __future__ import annotations

import json
import os
import stat
import threading
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from asking import ASK, PROFILE, TASK, Echo, client, create, raw, serving
from openai import AuthenticationError, PermissionDeniedError

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.serving import profiles
from rpo_kit.serving.access import token_of
from rpo_kit.serving.messages import MAX_ITEMS, RequestError
from rpo_kit.serving.profiles import Profiles, check_folder
from rpo_kit.serving.service import Service

KEY = "a long random key"
ANN, BOB = token_of(KEY, "ann"), token_of(KEY, "bob")
OWN = [{"id": "1", "text": "so tired", "score": "4"}]


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path, monkeypatch):
    """A server with a key that keeps profiles in memory, or in a folder."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Service(Echo(), tmp_path if request.param == "folder" else None, KEY)) as there:
        yield there


def send(there: SimpleNamespace, method: str, user: str, key: str | None = KEY, body: object = None, **headers: str):
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    own = {} if key is None else {"Authorization": f"Bearer {key}"}
    return raw(there, content, method, f"/v1/profiles/{user}", **own, **headers)


def test_a_profile_is_uploaded_described_used_replaced_and_deleted(store):
    about = {"id": "ann", "object": "rpo.profile", "task": "LaMP-3", "items": 1}
    assert send(store, "PUT", "ann", ANN, OWN) == (201, about)
    assert send(store, "GET", "ann", ANN) == (200, about)
    ask = {"model": "rpo", "messages": ASK["messages"]}
    client(store, ANN).chat.completions.create(**ask)
    client(store, KEY).chat.completions.create(**ask, user="ann")
    assert [profile for _, profile in store.asked] == [OWN, OWN], "a token names its user; the key speaks for everyone"
    assert send(store, "PUT", "ann", KEY, OWN * 2) == (200, about | {"items": 2})
    assert send(store, "DELETE", "ann", ANN) == (200, {"id": "ann", "object": "rpo.profile", "deleted": True})
    assert send(store, "DELETE", "ann", ANN)[0] == 404
    assert send(store, "GET", "ann", ANN)[0] == 404


def test_a_profile_may_be_lines_of_text(store):
    text = "\ufeffBroke twice. -> 1\r\n\r\nFür 3 € gut. -> 5\n".encode()
    assert send(store, "PUT", "ann", ANN, text, **{"Content-Type": "text/plain; charset=utf-8"})[0] == 201
    assert [(item["text"], item["score"]) for item in store.service.store.read("ann")] == [
        ("Broke twice.", "1"), ("Für 3 € gut.", "5")
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_nobody_reaches_the_profile_of_another_user(store, method):
    assert send(store, "PUT", "ann", ANN, OWN)[0] == 201
    wrong = [None, "", "none", "ann", "ann.", f"bob.{ANN.partition('.')[2]}", ANN[:-1], ANN + "0", f"x{ANN}", KEY[:-1]]
    for key in wrong:
        status, response = send(store, method, "ann", key, [{"text": "not hers", "score": "1"}])
        assert (status, response["error"]["type"]) == (401, "authentication_error"), key
    for user in ("ann", "nobody"):  # which users there are is not told either
        status, response = send(store, method, user, BOB, [{"text": "not hers", "score": "1"}])
        assert (status, response["error"]["type"]) == (403, "permission_error")
    assert store.service.store.read("ann") == OWN


def test_nobody_asks_with_the_profile_of_another_user(store):
    send(store, "PUT", "ann", ANN, OWN)
    ask = {"model": "rpo", "messages": ASK["messages"]}
    with pytest.raises(PermissionDeniedError, match="This token belongs to another user"):
        client(store, BOB).chat.completions.create(**ask, user="ann")
    with pytest.raises(PermissionDeniedError):
        client(store, BOB).chat.completions.create(**ask, extra_body={"rpo": {"user": "ann", "items": OWN}})
    with pytest.raises(PermissionDeniedError):
        client(store, BOB).chat.completions.create(**ask, extra_headers={"X-RPO-User": "ann"})
    with pytest.raises(AuthenticationError):
        client(store, "none").chat.completions.create(**ask, user="ann")
    assert store.asked == []
    client(store, BOB).chat.completions.create(**ask, extra_body={"rpo": {"items": OWN}})
    assert len(store.asked) == 1, "a history of one's own can come along"


def test_a_server_without_a_key_stores_nothing(served):
    for method in ("PUT", "GET", "DELETE"):
        status, response = send(served, method, "ann", None, PROFILE)
        assert status == 401
        assert "start it with RPO_SERVE_KEY set" in response["error"]["message"]
    assert send(served, "PUT", "ann", token_of("", "ann"), PROFILE)[0] == 401
    assert create(served, user="ann").choices[0].message.content == "2", "it still reads the folder"


@pytest.mark.parametrize("user", ["../secret", "..", ".ann", "a/b", "a\\b", "a b", "", "ä", "a\0", "a" * 101, "-a"])
def test_a_user_is_a_name_and_never_a_path(store, tmp_path, user):
    status, _ = send(store, "PUT", quote(user, safe=""), KEY, OWN)
    assert status in (400, 404)
    assert list(tmp_path.iterdir()) == []
    assert store.service.store.kept == {}


@pytest.mark.parametrize("user", ["ann@example.org", "a.b_c-d", "310", "A" * 100])
def test_usual_names_are_possible(store, user):
    assert send(store, "PUT", quote(user), token_of(KEY, user), OWN)[0] == 201
    assert store.service.store.read(user) == OWN


@pytest.mark.parametrize(
    ("body", "kind", "status", "why"),
    [
        (b"{", "application/json", 400, "The body is not JSON"),
        (b"{}", "application/json", 400, "the profile must be a JSON list"),
        (b'["so tired"]', "application/json", 400, "Item 0 of the profile is a plain text"),
        (b'[{"text": "so tired"}]', "application/json", 400, "Item 0 of the profile must have text and score"),
        (b"so tired", "text/plain", 400, "the profile: Line 1 is not of the form `text -> score`"),
        (b"so tired -> 9", "text/plain", 400, "write one of 1, 2, 3, 4, 5 after ->"),
        (b"\xff\xfe", "text/plain", 400, "The text is not UTF-8"),
        (b"x", "text/html", 415, "neither application/json nor text/plain"),
        (json.dumps([{}] * (MAX_ITEMS + 1)).encode(), "application/json", 413, "has 2,001 items: at most 2,000"),
        (b"so tired -> 4\n" * (MAX_ITEMS + 1), "text/plain", 413, "has 2,001 items: at most 2,000"),
        (b"[" + b" " * 1_000_000 + b"]", "application/json", 413, "at most 1,000,000 bytes are read"),
    ],
)
def test_an_upload_that_is_no_profile_or_too_large_is_refused(store, body, kind, status, why):
    actual, response = send(store, "PUT", "ann", ANN, body, **{"Content-Type": kind})
    assert actual == status
    assert why in response["error"]["message"]
    assert send(store, "GET", "ann", ANN)[0] == 404, "nothing was stored"


def test_the_number_of_profiles_is_limited(store, monkeypatch):
    monkeypatch.setattr(profiles, "MAX_USERS", 2)
    assert [send(store, "PUT", user, KEY, OWN)[0] for user in ("a", "b")] == [201, 201]
    status, response = send(store, "PUT", "c", KEY, OWN)
    assert (status, "There are 2 profiles already" in response["error"]["message"]) == (413, True)
    assert send(store, "PUT", "a", KEY, OWN)[0] == 200, "one that is there can be replaced"
    assert send(store, "DELETE", "b", KEY)[0] == 200
    assert send(store, "PUT", "c", KEY, OWN)[0] == 201


def test_uploads_at_once_do_not_pass_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "MAX_USERS", 3)
    store, refused = Profiles(TASK, tmp_path), []

    def upload(user):
        try:
            store.write(user, OWN)
        except RequestError as error:
            refused.append(error.status)

    threads = [threading.Thread(target=upload, args=(f"u{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (refused, len(list(tmp_path.iterdir()))) == ([413] * 5, 3)


def test_a_file_holds_the_known_fields_and_is_its_owners_alone(tmp_path):
    store = Profiles(TASK, tmp_path)
    store.write("ann", [OWN[0] | {"date": "2020", "secret": "not a field"}])
    assert json.loads((tmp_path / "ann.json").read_text()) == [OWN[0] | {"date": "2020"}]
    assert [path.name for path in tmp_path.iterdir()] == ["ann.json"], "no temporary file is left"
    assert stat.S_IMODE(os.stat(tmp_path / "ann.json").st_mode) == 0o600
    assert Profiles(TASK, tmp_path).read("ann") == [OWN[0] | {"date": "2020"}], "another server finds it"


def test_a_folder_that_cannot_be_written_is_a_sentence_for_the_client_and_a_line_in_the_log(tmp_path, capfd):
    store = Profiles(TASK, tmp_path)
    (tmp_path / "ann.json").mkdir()
    with pytest.raises(RequestError, match=r"The profile of 'ann' cannot be changed; the server's log says why"):
        store.write("ann", OWN)
    assert f"the profile {tmp_path}/ann.json cannot be changed" in capfd.readouterr().err


def test_a_file_system_that_does_not_tell_ann_from_another_ann_is_refused(tmp_path):
    (tmp_path / "profiles").mkdir()
    check_folder(tmp_path / "profiles")
    (tmp_path / "PROFILES").symlink_to(tmp_path / "profiles")  # found under both names, as on such a file system
    with pytest.raises(KitError, match="takes `ann` and `Ann` for one user: choose a folder on another"):
        check_folder(tmp_path / "profiles")


def test_an_upload_leaves_no_text_in_the_log_or_in_the_response(store, capfd):
    status, response = send(store, "PUT", "ann", ANN, [{"text": "Xyzzy plugh.", "score": "1"}])
    assert status == 201
    store.service.personalizer.bug = ValueError("Xyzzy plugh.")
    assert raw(store, json.dumps(ASK).encode(), Authorization=f"Bearer {ANN}")[0] == 500
    out, err = capfd.readouterr()
    assert "plugh" not in json.dumps(response) + json.dumps(send(store, "GET", "ann", ANN)[1]) + out + err


def test_the_command_line_prints_a_users_token(monkeypatch, capsys):
    monkeypatch.setenv("RPO_SERVE_KEY", f" {KEY}\n")
    assert main(["serve", "--token", "ann"]) == 0
    assert capsys.readouterr().out == f"{ANN}\n"
    assert main(["serve", "--token", "../ann"]) == 2
    monkeypatch.delenv("RPO_SERVE_KEY")
    assert main(["serve", "--token", "ann"]) == 2
    err = capsys.readouterr().err
    assert "--token ../ann: `user` must consist of" in err
    assert "set RPO_SERVE_KEY as for the server" in err


def test_a_token_depends_on_user_and_key():
    assert len({token_of(key, user) for key in ("k", "l") for user in ("ann", "bob")}) == 4
    assert token_of("k", "ann").startswith("ann.")
