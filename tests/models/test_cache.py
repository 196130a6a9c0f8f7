"""The store of answers: claims that hold while somebody asks, and damage that costs no more than what it hit."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import last
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_kit.errors import KitError
from rpo_kit.models import cache as cache_module
from rpo_kit.models.budget import Ledger, Usage
from rpo_kit.models.cache import AnswerCache, open_answers, open_database
from rpo_kit.models.chat import Completion
from rpo_kit.models.open import open_chat
from rpo_kit.presets import EndpointSettings

ANSWER = {"text": "4", "finished": True, "prompt_tokens": 7, "new_tokens": 3, "failure": None}
ROOT = Path(__file__).resolve().parents[2]


def opened(path: Path) -> AnswerCache:
    return AnswerCache(open_answers(path))


def ask(endpoint, texts):
    chat = open_chat(f"{endpoint.url}#m", settings=EndpointSettings(backoff=0.001))
    return [
        answer.text for answer in chat.complete([[{"role": "user", "content": t}] for t in texts], max_new_tokens=5)
    ]


# ---- claims -------------------------------------------------------------------------------------------------------


def test_a_request_in_flight_is_claimed_until_it_is_released(tmp_path):
    first, second = opened(tmp_path / "a.sqlite"), opened(tmp_path / "a.sqlite")
    assert first.claim("key", 60)
    assert not second.claim("key", 60)
    assert first.claim("key", 60), "it may be extended"
    second.release("key")
    assert not second.claim("key", 60), "only its owner can release it"
    first.release("key")
    assert second.claim("key", 60)


def test_a_claim_that_has_run_out_is_void(tmp_path):
    first, second = opened(tmp_path / "a.sqlite"), opened(tmp_path / "a.sqlite")
    assert first.claim("key", -1)
    assert second.claim("key", 60)
    assert not first.claim("key", 60)


CLAIM = """
import sys
from pathlib import Path
from rpo_kit.models.cache import AnswerCache, open_answers
assert AnswerCache(open_answers(Path(sys.argv[1]))).claim("key", 3600)
print("claimed", flush=True)
sys.stdin.read()
"""


def test_the_claim_of_a_process_holds_as_long_as_it_lives(tmp_path):
    path = tmp_path / "a.sqlite"
    command, environment = [sys.executable, "-c", CLAIM, str(path)], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "claimed\n"
        assert not opened(path).claim("key", 60)
        other.kill()
    assert opened(path).claim("key", 60)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ("pid = 0, host = 'elsewhere'", True),  # what lives there cannot be seen from here
        ("host = 'elsewhere', until = 0", False),
        (f"pid = {os.getpid()}, owner = 'an earlier process with the same id'", False),
        ("until = 'damaged'", False),
        ("pid = 'damaged', owner = 'x'", False),
    ],
)
def test_a_claim_holds_only_while_its_process_may_be_alive(tmp_path, changes, holds):
    first, second = opened(tmp_path / "a.sqlite"), opened(tmp_path / "a.sqlite")
    first.claim("key", 60)
    first.database.execute(f"UPDATE claims SET {changes}")
    assert second.claim("key", 60) is not holds


def test_of_many_claims_at_once_one_succeeds(tmp_path):
    caches, barrier, got = [opened(tmp_path / "a.sqlite") for _ in range(8)], threading.Barrier(8), []

    def claim(cache: AnswerCache) -> None:
        barrier.wait()
        got.extend(key for key in range(20) if cache.claim(str(key), 60))

    threads = [threading.Thread(target=claim, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(20))


# ---- damage -------------------------------------------------------------------------------------------------------


def filled(path: Path, count: int = 500) -> None:
    cache = opened(path)
    for number in range(count):
        cache.put(f"{number:064d}", ANSWER | {"text": f"{number} " * 40})
    cache.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.database.close()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 20), st.integers(1, 8), st.binary(min_size=1, max_size=4))
def test_wherever_the_file_is_damaged_there_is_an_error_or_the_intact_part_is_read(tmp_path_factory, page, pages, junk):
    path = tmp_path_factory.mktemp("damage") / "answers.sqlite"
    filled(path)
    content = bytearray(path.read_bytes())
    content[page * 4096 : (page + pages) * 4096] = (junk * 4096)[:4096] * pages
    path.write_bytes(content)
    try:
        cache = opened(path)
    except KitError as error:
        told = str(error)
        assert "answers.sqlite cannot be used as the store of answers" in told
        return
    answers = [cache.get(f"{number:064d}") for number in range(500)]
    assert all(answer is None or set(answer) == set(ANSWER) for answer in answers)
    cache.put("new", ANSWER)
    assert cache.claim("another", 60)
    cache.release("another")


def test_answers_in_the_intact_part_of_a_damaged_file_are_used_and_the_damage_is_reported_once(
    endpoint, tmp_path, capsys
):
    texts = [f"question {number}" for number in range(400)]
    ask(endpoint, texts)
    path = tmp_path / "answers.sqlite"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[5 * 4096 : 9 * 4096] = b"\xff" * (4 * 4096)
    path.write_bytes(content)
    before = len(endpoint.requests)
    assert ask(endpoint, texts) == [f"echo {text}" for text in texts]
    assert 0 < len(endpoint.requests) - before < 300
    told = capsys.readouterr().out
    assert (
        told.count(
            "answers.sqlite is not fully usable (database disk image is malformed): answers that can be read are used"
        )
        == 1
    )
    assert "move it away and run again" in told


@pytest.mark.parametrize(
    "row",
    [
        "",
        "{",
        "null",
        "3",
        '{"text": 3}',
        '{"text": "4"}',
        "[" * 100_000,
        b"\xff\xfe",
        "\x00",
        '{"text": "4", "finished": 1}',
    ],
)
def test_a_row_that_is_not_an_answer_is_requested_again_and_replaced(endpoint, tmp_path, row):
    ask(endpoint, ["q"])
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute("UPDATE answers SET answer = CAST(? AS TEXT)", (row,))
    assert ask(endpoint, ["q", "r"]) == ["echo q", "echo r"]
    assert ask(endpoint, ["q"]) == ["echo q"]
    assert [last(body) for body in endpoint.requests].count("q") == 2


def test_if_the_store_is_read_only_its_answers_are_read(endpoint, tmp_path, monkeypatch, capsys):
    ask(endpoint, ["q"])
    sqlite3.connect(tmp_path / "answers.sqlite").execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def refuse(database: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(cache_module, "_use_write_ahead_log", refuse)
    cache = opened(tmp_path / "answers.sqlite")
    assert cache.database.execute("SELECT count(*) FROM answers").fetchone() == (1,)
    assert cache.claim("key", 60)
    cache.put("key", ANSWER)
    assert cache.get("key") is None
    told = capsys.readouterr().out
    assert told.count("answers.sqlite is read-only: its answers are used, new ones are not stored.") == 1
    assert len(told.splitlines()) == 1
    with pytest.raises(KitError, match=r"none\.sqlite cannot be used .* make file and folder writable, or set RPO"):
        opened(tmp_path / "none.sqlite")
    with pytest.raises(KitError, match="make file and folder writable"):
        open_database(tmp_path / "answers.sqlite")  # an account must be written


def test_a_file_that_another_process_has_locked_is_named_and_its_answers_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache_module, "_LOCK_PATIENCE", 0.1)
    path = tmp_path / "answers.sqlite"
    cache = opened(path)
    cache.put("key", ANSWER)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache.put("new", ANSWER)
    assert cache.get("key") == ANSWER
    assert cache.claim("new", 60)
    assert "(database is locked): answers that can be read" in (told := capsys.readouterr().out)
    assert f"end the process that holds it (`fuser {path}` names it)" in told


def test_an_account_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_LOCK_PATIENCE", 0.1)
    path = tmp_path / "spent.sqlite"
    ledger = Ledger(open_database(path), "m", EndpointSettings(max_requests=3))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(KitError, match=r"spent\.sqlite cannot be used .*database is locked\): end the process"):
        ledger.reserve(Usage(1, 2, 3))
    other.execute("COMMIT")
    assert ledger.reserve(Usage(1, 2, 3))
    ledger.database.execute("PRAGMA query_only = ON")
    with pytest.raises(KitError, match=r"spent\.sqlite cannot be used .*readonly database\): make file and folder"):
        ledger.settle(Usage(1, 2, 3), Usage(1, 1, 1))


def test_a_full_disk_is_left_to_the_stage_to_report(tmp_path):
    cache = opened(tmp_path / "answers.sqlite")
    cache.database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        cache.put("key", ANSWER | {"text": "long " * 10_000})


def test_a_stored_answer_may_lack_a_failure_and_have_more_fields(tmp_path):
    cache = opened(tmp_path / "answers.sqlite")
    cache.put("key", {"text": "4", "finished": True, "prompt_tokens": 7, "new_tokens": 3, "since": "a later version"})
    assert Completion(**cache.get("key")) == Completion("4", True, 7, 3)
