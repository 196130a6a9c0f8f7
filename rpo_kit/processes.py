"""What must hold where a stage is not alone: the ranks of one training, a second call of the same stage, a full disk.

Under torchrun or `accelerate launch` every rank runs the same command; the main one writes, the others wait for its
files. That needs no process group, which begins only inside the training libraries. A lock is the kernel's own (flock),
so `kill -9` releases it.

    with locked(run.folder / ".locks" / "rl", "The stage 'rl' of run 'demo'"), full_disk_told(run.folder): ...
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

from safetensors import SafetensorError

from rpo_kit.errors import KitError

_LOOK_AGAIN = 0.05  # seconds
_LOCK_PATIENCE = 10.0  # seconds: the notebook kernel of a `demo` that was killed needs some to notice
_TELL_AFTER = 60.0  # seconds of waiting for the main process
_FULL = ("No space left", "Disk quota exceeded", "os error 28", "database or disk is full", "inline_container")


def is_main() -> bool:
    """Whether this process writes: the first rank of several, or the only process."""
    return int(os.environ.get("WORLD_SIZE") or 1) < 2 or os.environ.get("RANK", "0") == "0"


def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Wait, in another rank, until the main process has come to this point; says so where it takes long. Without a
    limit, because the main process may be at minutes of work of its own; if it fails, the launcher ends all ranks.
    """
    tell = time.monotonic() + _TELL_AFTER
    while not holds():
        if time.monotonic() > tell:
            print(f"rank {os.environ['RANK']} waits until the main process {what} (both must see the same run folder)")
            tell = float("inf")
        time.sleep(_LOOK_AGAIN)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; KitError about `what` where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        until = time.monotonic() + _LOCK_PATIENCE
        while not _take(file):
            if time.monotonic() > until:
                file.seek(0)
                raise KitError(
                    f"{what} is being worked on by process {file.read()} now: wait for it, or stop it first."
                )
            time.sleep(_LOOK_AGAIN)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(f"the disk of {file.name} knows no locks: do not start the same stage twice")
    return True


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turn what Python, SQLite, torch and safetensors say about a full disk into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, sqlite3.OperationalError, SafetensorError) as error:
        if not any(sign in str(error) for sign in _FULL):
            raise
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / 1e9
        raise KitError(
            f"{folder} could not be written: the disk is full ({free:.2f} GB free now). Make room and give the same "
            "command again; it goes on where it was."
        ) from error
