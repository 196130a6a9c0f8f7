"""Answers that were paid for once: a SQLite file of JSON values, shared by runs and by processes.

The key is everything that decides an answer: endpoint, model, the messages (with them the filled prompt files, so a
prompt that changes is asked anew), sampling settings, and which sample of the same question it is. Only whole answers
are kept: no errors, no refusals, no empty and no truncated ones. The file holds hashes of questions, not the questions.

    cache = AnswerCache(runs_root() / "answers.sqlite")
    cache.get(answer_key(url="http://localhost:8000/v1", model="m", messages=[…], max_new_tokens=8, …, sample=0))
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (model TEXT PRIMARY KEY, requests INTEGER, prompt_tokens INTEGER,
    new_tokens INTEGER);
"""
_PATIENCE = 60.0  # seconds to wait for the other process's write


def answer_key(**deciding: Any) -> str:
    """Sha256 of the JSON of everything that decides an answer."""
    return hashlib.sha256(
        json.dumps(deciding, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def open_database(path: Path | None) -> sqlite3.Connection:
    """The file (made where it is missing), or a database in memory; what is written survives `kill -9`.

    One shape for both uses: the answers, and the account of a run (`budget.py`).
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        base = sqlite3.connect(path or ":memory:", timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        _keep_a_log(base)
        base.execute("PRAGMA synchronous=NORMAL")  # a commit is safe from a killed process, not from a lost machine
        base.executescript(_TABLES)
    except sqlite3.DatabaseError as error:
        raise KitError(
            f"{path} cannot be used as the store of answers or of spending ({error}): move it away and run again."
        ) from None
    return base


def _keep_a_log(base: sqlite3.Connection) -> None:
    """Switch to SQLite's write-ahead log, in which readers and a writer do not wait for each other.

    SQLite does not wait in the switch itself: of two processes that open a new file at once, one is told "locked".
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            base.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


class AnswerCache:
    """Answers by key, each a small JSON object."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self.base = base

    def get(self, key: str) -> dict[str, Any] | None:
        row = self.base.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        found: dict[str, Any] | None = json.loads(row[0]) if row else None
        return found

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; the first one stays where two processes asked the same."""
        text = json.dumps(answer, ensure_ascii=True, sort_keys=True)
        self.base.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
