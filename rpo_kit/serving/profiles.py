"""The users' histories: uploaded ones in memory, or in a folder with one USER.json per user.

A user's name is data: it is checked (`messages.checked_user`) before it comes here, so it cannot name another folder.
Files are written atomically, readable by their owner only, and may be written by hand too (a JSON list of LaMP items).
What a profile says appears neither in the log nor in `about`.

    store = Profiles(get_task("LaMP-7"), None)
    store.write("ann", [{"id": "1", "text": "so tired"}])           # True: it is new
    store.read("ann")                                               # [{'id': '1', 'text': 'so tired'}]
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.runs import write_bytes
from rpo_kit.serving.messages import MAX_ITEMS, RequestError, checked_profile
from rpo_kit.study.typed_items import items_of

MAX_USERS = 1_000  # ours: profiles that uploads may add up to


class Profiles:
    """Profiles by user; several threads read and write at once."""

    def __init__(self, task: Task, folder: Path | None) -> None:
        self.task, self.folder = task, folder
        self.kept: dict[str, list[Item]] = {}  # without a folder
        self.lock = threading.Lock()

    def read(self, user: str) -> list[Item]:
        """The user's items. Raises RequestError: 404 if there are none, 500 for a file that cannot be used."""
        found = self._content(user)
        if found is None:
            raise RequestError(
                404, f"There is no profile of {user!r}: check the name, or send the history in `profile`."
            )
        return found

    def write(self, user: str, items: Sequence[Item]) -> bool:
        """Store the user's items in place of earlier ones; whether there were none.

        Raises:
            RequestError: 413 if there are MAX_USERS profiles already, 500 if the folder cannot be written.
        """
        names = ("id", *self.task.fields, "date")
        known = [{name: item[name] for name in names if name in item} for item in items]
        with self.lock:
            is_new = self._missing(user)
            if is_new and self._count() >= MAX_USERS:
                raise RequestError(413, f"There are {MAX_USERS:,} profiles already, which is the most: delete one.")
            if self.folder is None:
                self.kept[user] = known
            else:
                content = json.dumps(known, ensure_ascii=False).encode("utf-8", "replace")
                self._on_disk(user, lambda path: write_bytes(path, content, mode=0o600))
        return is_new

    def delete(self, user: str) -> None:
        """Raises RequestError: 404 if there is no profile of this user, 500 if its file cannot be removed."""
        with self.lock:
            if self._missing(user):
                raise RequestError(404, f"There is no profile of {user!r}.")
            if self.folder is None:
                del self.kept[user]
            else:
                self._on_disk(user, lambda path: path.unlink())

    def about(self, user: str) -> dict[str, object]:
        """What is stored for the user, without the texts."""
        return {"id": user, "object": "rpo.profile", "task": self.task.name, "items": len(self.read(user))}

    def _content(self, user: str) -> list[Item] | None:
        if self.folder is None:
            return self.kept.get(user)
        path = self._path(user)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_bytes())  # UTF-8 or UTF-16, with or without a byte order mark
            return checked_profile(self.task, content, "the file")
        except (OSError, ValueError, RecursionError, RequestError) as error:  # not the client's fault or business
            print(f"rpo_kit serve: the profile {path} cannot be used: {error}", file=sys.stderr, flush=True)
            message = f"The profile of {user!r} cannot be used; the server's log says why."
            raise RequestError(500, message) from None

    def _path(self, user: str) -> Path:
        assert self.folder
        return self.folder / f"{user}.json"

    def _missing(self, user: str) -> bool:
        return user not in self.kept if self.folder is None else not self._path(user).is_file()

    def _count(self) -> int:
        return len(self.kept) if self.folder is None else sum(1 for _ in self.folder.glob("[!.]*.json"))

    def _on_disk(self, user: str, change: Callable[[Path], object]) -> None:
        path = self._path(user)
        try:
            change(path)
        except OSError as error:
            print(f"rpo_kit serve: the profile {path} cannot be changed: {error}", file=sys.stderr, flush=True)
            raise RequestError(500, f"The profile of {user!r} cannot be changed; the server's log says why.") from None


def check_folder(folder: Path) -> None:
    """Raise KitError for a folder that does not exist, or whose file system takes `ann` and `Ann` for one user."""
    if not folder.is_dir():
        raise KitError(f"--profiles {folder} is not a folder: name one that holds a USER.json per user.")
    real = folder.resolve()
    other = real.with_name(real.name.swapcase())
    if other != real and other.exists() and other.samefile(real):
        raise KitError(
            f"--profiles {folder} is on a file system that takes `ann` and `Ann` for one user: choose a folder on "
            "another."
        )


def uploaded_items(task: Task, content: object) -> list[Item]:
    """The items of an upload. Raises RequestError: 413 for too many items, else as `items_in`."""
    count = len(content.splitlines() if isinstance(content, str) else content if isinstance(content, list) else ())
    if count > MAX_ITEMS:
        raise RequestError(413, f"The profile has {count:,} items: at most {MAX_ITEMS:,} are kept.")
    return items_in(task, content, "the profile")


def items_in(task: Task, content: object, source: str) -> list[Item]:
    """The items in a list of LaMP items, or in a text with one item per line (`study/typed_items.py`); `source` names
    it in errors.

    Raises:
        RequestError: 400 for anything that is not an item.
    """
    if not isinstance(content, str):
        return checked_profile(task, content, source)
    try:
        return checked_profile(task, items_of(task, content), source)
    except KitError as error:
        raise RequestError(400, f"{source}: {error}") from None
