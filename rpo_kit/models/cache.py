"""The cache of paid answers: a SQLite file of JSON values, shared by runs and by processes.

The key is a hash of everything that determines an answer: endpoint, model, messages (with the prompt, so that a changed
prompt misses the cache), sampling settings, and the number of the sample. Only complete answers are stored: no errors,
no refusals, nothing empty or truncated. The file holds no prompts, only their hashes.

A process claims a request before it sends it, so that others wait for the answer instead of paying for it again. The
claim of a process that has died is void. If the file is damaged or read-only, the answers that can be read are used.

    cache = AnswerCache(open_answers(runs_root() / "answers.sqlite"))
    cache.get(answer_key(url="http://localhost:8000/v1", model="m", messages=[…], max_new_tokens=8, …, sample=0))
    # {'text': '4', 'finished': True, 'prompt_tokens': 61, 'new_tokens': 2, 'failure': None}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rpo_kit.errors import KitError

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (model TEXT PRIMARY KEY, requests INTEGER, prompt_tokens INTEGER,
    new_tokens INTEGER);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT, pid INTEGER, until REAL)
    WITHOUT ROWID;
"""
_GET = "SELECT CAST(answer AS BLOB) FROM answers WHERE key = ?"  # bytes, because a damaged row may not be text
_CLAIM = """INSERT INTO claims VALUES (:key, :owner, :host, :pid, :until) ON CONFLICT DO UPDATE SET
    owner = :owner, host = :host, pid = :pid, until = :until WHERE owner = :before"""
_LOCK_PATIENCE = 60.0  # seconds to wait for another process to finish writing
_WRITABLE = "make file and folder writable, or set RPO_RUNS to a folder that is"
_THIS_PROCESS, _numbers = uuid.uuid4().hex, itertools.count()  # process ids are reused


class StoredAnswer(TypedDict):
    """The fields of a `Completion`."""

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int
    failure: str | None


def answer_key(**parts: object) -> str:
    """Sha256 of the JSON of everything that determines an answer."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---- the file -----------------------------------------------------------------------------------------------------


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open or create the database; None: in memory. What is written survives `kill -9`.

    The same tables serve both uses: the answers, and the account of a run (`budget.py`).

    Raises:
        KitError: the file is not a usable database.
    """
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # check_same_thread: `EndpointChat.stream` reads and writes in the thread of its event loop
        database = sqlite3.connect(
            path or ":memory:", timeout=_LOCK_PATIENCE, isolation_level=None, check_same_thread=False
        )
        _use_write_ahead_log(database)
        database.execute("PRAGMA synchronous=NORMAL")  # commits survive a killed process, not a power cut
        database.executescript(_TABLES)
    except (sqlite3.DatabaseError, OSError) as error:
        raise store_error(error, str(path)) from None
    return database


def open_answers(path: Path) -> sqlite3.Connection:
    """Open the database of answers, read-only if it cannot be written."""
    try:
        return open_database(path)
    except ReadOnlyError as error:
        if not path.is_file():
            raise
        database = sqlite3.connect(  # immutable: no files beside it, which SQLite could not create here
            f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False, factory=_ReadOnly
        )
        try:
            database.execute("SELECT 1 FROM answers LIMIT 1").fetchone()
        except sqlite3.DatabaseError:
            raise error from None
        print(f"{path} is read-only: its answers are used, new ones are not stored. To store them, {_WRITABLE}.")
        return database


class ReadOnlyError(KitError):
    """The store cannot be written."""


class _ReadOnly(sqlite3.Connection):
    """The connection to a store that cannot be written."""


def store_error(error: Exception, path: str) -> KitError:
    """SQLite's error as a KitError that says what to do."""
    kind = ReadOnlyError if _remedy(error, path) == _WRITABLE else KitError
    return kind(f"{path} cannot be used as the store of answers or of spending ({error}): {_remedy(error, path)}.")


def _remedy(error: Exception, path: str) -> str:
    words = str(error)
    if "full" in words or "No space" in words:
        return "make room on the disk and run again"
    if "locked" in words or "busy" in words:
        return f"end the process that holds it (`fuser {path}` names it) and run again"
    if isinstance(error, OSError) or any(sign in words for sign in ("readonly", "unable to open", "I/O", "denied")):
        return _WRITABLE
    return f"move it away and run again; `sqlite3 {path} .recover` prints what can be saved"


def path_of(database: sqlite3.Connection) -> str:
    """The database's file, for messages."""
    try:
        return str(database.execute("PRAGMA database_list").fetchone()[2]) or "The store in memory"
    except sqlite3.Error:
        return "The store"


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    """Switch to SQLite's write-ahead log, under which readers and a writer do not wait for each other.

    SQLite itself does not wait during the switch: of two processes that open a new file at once, one gets "locked".
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


# ---- the answers --------------------------------------------------------------------------------------------------


class AnswerCache:
    """Answers by key, each a small JSON object, and claims on requests. Thread-safe."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database, self.path = database, path_of(database)
        self.owner = f"{_THIS_PROCESS}-{os.getpid()}-{next(_numbers)}"
        self.writable = not isinstance(database, _ReadOnly)  # until a write fails
        self._reported, self._lock = False, threading.Lock()

    def get(self, key: str) -> StoredAnswer | None:
        """The answer; None if there is none or it is damaged."""
        try:
            with self._lock:
                row = self.database.execute(_GET, (key,)).fetchone()
            return _stored(row[0] or b"") if row else None
        except sqlite3.DatabaseError as error:
            self._report(error)
        except ValueError:  # damaged; deleting the row makes room for the next answer
            self._write("DELETE FROM answers WHERE key = ?", (key,))
        return None

    def put(self, key: str, answer: Mapping[str, object]) -> None:
        """Store an answer, unless another process has stored one already."""
        text = json.dumps(answer, ensure_ascii=True, sort_keys=True)
        self._write("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))

    def claim(self, key: str, seconds: float) -> bool:
        """Claim a request, or extend the claim, for `seconds` at most; False if another caller holds it."""
        if not self.writable:
            return True
        try:
            with self._lock:
                row = self.database.execute(
                    "SELECT owner, host, pid, until FROM claims WHERE key = ?", (key,)
                ).fetchone()
        except sqlite3.DatabaseError as error:
            self._report(error)
            return True
        before = row[0] if row else ""
        if row and before != self.owner and _holds(*row):
            return False
        now = {"host": socket.gethostname(), "pid": os.getpid(), "until": time.time() + seconds}
        written = self._write(_CLAIM, {"key": key, "owner": self.owner, "before": before} | now)
        return written != 0  # 0: another process was faster

    def release(self, key: str) -> None:
        self._write("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner))

    def _write(self, statement: str, values: Mapping[str, object] | tuple[str, ...]) -> int | None:
        """The number of rows written; None if the file cannot be written (any more).

        Raises:
            sqlite3.OperationalError: the disk is full; `stages.stage` turns that into a KitError.
        """
        if not self.writable:
            return None
        try:
            with self._lock:
                return self.database.execute(statement, values).rowcount
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise
            self.writable = False
            self._report(error)
            return None

    def _report(self, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            print(
                f"The store of answers {self.path} is not fully usable ({error}): answers that can be read are used, "
                f"others are requested again. To repair it, {_remedy(error, self.path)}."
            )


def _stored(content: bytes) -> StoredAnswer:
    """The answer in a row. Raises ValueError if it is not one."""
    try:
        row = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    types: dict[str, type] = {"text": str, "finished": bool, "prompt_tokens": int, "new_tokens": int}
    if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in types.items()):
        raise ValueError("not an answer")
    return {
        "text": row["text"],
        "finished": row["finished"],
        "prompt_tokens": row["prompt_tokens"],
        "new_tokens": row["new_tokens"],
        "failure": row.get("failure"),
    }


def _holds(owner: str, host: str, pid: int, until: float) -> bool:
    """Whether a claim is still valid: not expired, and its process alive as far as this machine can tell."""
    if not isinstance(until, int | float) or until < time.time():
        return False
    if host != socket.gethostname():
        return True
    if pid == os.getpid():  # unless an earlier process had this one's id
        return owner.startswith(_THIS_PROCESS)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except OSError:  # alive, but another user's
        pass
    return True
