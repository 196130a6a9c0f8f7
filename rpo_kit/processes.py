"""Guards for concurrent use: several ranks of one training, a second call of the same stage, a full disk.

Under torchrun or `accelerate launch` every rank runs the same command; the main one writes, the others wait for its
files. That needs no process group, which only the training libraries start. Locks are the kernel's (flock), so that
`kill -9` releases them.

    with locked(run.folder / ".locks" / "rl", "The stage 'rl' of run 'demo'"), disk_errors_explained(run.folder): ...
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rpo_kit.errors import KitError

try:
    from safetensors import SafetensorError
except ImportError:  # so that `doctor` can run and report it
    SafetensorError = OSError  # type: ignore[misc, assignment]

_POLL = 0.05  # seconds
_LOCK_PATIENCE = 10.0  # seconds: the notebook kernel of a killed `demo` needs some to end
_REPORT_AFTER = 60.0  # seconds of waiting for the main process
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_DISK_FULL = ("No space left", "Disk quota exceeded", "os error 28", "database or disk is full", "inline_container")


def is_main() -> bool:
    """Whether this process writes: it is the first of several ranks, or the only process."""
    return int(os.environ.get("WORLD_SIZE") or 1) < 2 or os.environ.get("RANK", "0") == "0"


def wait_for(is_done: Callable[[], bool], what: str) -> None:
    """Wait, in another rank, until the main process has reached this point; print a line if it takes long.

    There is no time limit, because the main process may be busy for minutes; if it fails, the launcher ends all ranks.
    """
    report_at = time.monotonic() + _REPORT_AFTER
    while not is_done():
        if time.monotonic() > report_at:
            print(f"rank {os.environ['RANK']} waits until the main process {what} (both must see the same run folder)")
            report_at = float("inf")
        time.sleep(_POLL)


@contextmanager
def locked(path: Path, what: str, patience: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`; wait up to `patience` seconds for another process to release it.

    Raises:
        KitError: another process holds it; the message says that `what` is in use.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        until = time.monotonic() + (_LOCK_PATIENCE if patience is None else patience)
        while not _acquire(file):
            if time.monotonic() > until:
                file.seek(0)
                raise KitError(f"{what} is in use by process {file.read()}: wait for that process, or stop it first.")
            time.sleep(_POLL)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _acquire(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(f"the file system of {file.name} does not support locks: do not run the same stage twice at once")
    return True


@contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """Turn the errors of Python, SQLite, torch and safetensors on a full or read-only disk into a KitError."""
    try:
        yield
    except (OSError, RuntimeError, sqlite3.OperationalError, SafetensorError) as error:
        if any(sign in str(error) for sign in _DISK_FULL):
            parent = next(path for path in (folder, *folder.parents) if path.exists())
            free = shutil.disk_usage(parent).free / 1e9
            raise KitError(
                f"{folder} could not be written: the disk is full ({free:.2f} GB free now). Free some space and run "
                "the same command again to resume."
            ) from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise KitError(
                f"{error.filename or folder} cannot be written ({error.strerror}): set RPO_RUNS to a folder that "
                "you may write to, or change its permissions."
            ) from error
        raise
