"""Answers that were paid for once: a SQLite file of JSON values, shared by runs and by processes.

The key is a hash of everything that decides an answer: endpoint, model, messages (they hold the filled prompt file, so
a changed prompt is asked anew), sampling settings, and which sample of the same conversation it is. Only complete
answers are stored: no errors, no refusals, nothing empty or truncated. The file holds no questions, only their hashes.

    cache = AnswerCache(open_database(runs_root() / "answers.sqlite"))
    cache.get(answer_key(url="http://localhost:8000/v1", model="m", messages=[…], max_new_tokens=8, …, sample=0))
    # {'text': '4', 'finished': True, 'prompt_tokens': 61, 'new_tokens': 2, 'failure': None}
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rpo_kit.errors import KitError

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (model TEXT PRIMARY KEY, requests INTEGER, prompt_tokens INTEGER,
    new_tokens INTEGER);
"""
_LOCK_PATIENCE = 60.0  # seconds to wait for another process to finish writing


class StoredAnswer(TypedDict):
    """The fields of a `Completion`."""

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int
    failure: str | None


def answer_key(**parts: object) -> str:
    """Sha256 of the JSON of everything that decides an answer."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open or create the file, or a database in memory; what is written survives `kill -9`.

    The same tables serve both uses: the answers, and the account of a run (`budget.py`).

    Raises:
        KitError: the file is not a usable database.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # check_same_thread: `EndpointChat.stream` reads and writes in the thread of its event loop
        database = sqlite3.connect(
            path or ":memory:", timeout=_LOCK_PATIENCE, isolation_level=None, check_same_thread=False
        )
        _use_write_ahead_log(database)
        database.execute("PRAGMA synchronous=NORMAL")  # commits survive a killed process, not a power cut
        database.executescript(_TABLES)
    except sqlite3.DatabaseError as error:
        raise KitError(
            f"{path} cannot be used as the store of answers or of spending ({error}): move it away and run again."
        ) from None
    return database


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    """Switch to SQLite's write-ahead log, in which readers and a writer do not wait for each other.

    SQLite does not wait in the switch itself: of two processes that open a new file at once, one gets "locked".
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class AnswerCache:
    """Answers by key, each a small JSON object."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def get(self, key: str) -> StoredAnswer | None:
        row = self.database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        answer: StoredAnswer | None = json.loads(row[0]) if row else None
        return answer

    def put(self, key: str, answer: Mapping[str, object]) -> None:
        """Store an answer; if two processes asked for the same one, the first stays."""
        text = json.dumps(answer, ensure_ascii=True, sort_keys=True)
        self.database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
