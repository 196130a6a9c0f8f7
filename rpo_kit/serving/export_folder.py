"""The folder of an export: it appears whole or not at all, and replaces nothing that is not an export.

check_replaceable(folder, force)
with in_one_step(folder) as part:
    …                                                  # write into `part`, NOTE among the files
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpo_kit.errors import KitError

NOTE = "export.json"  # what an export was made from


def files_of(folder: Path) -> list[Path]:
    """The files of an export, without the note."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NOTE]


def check_replaceable(folder: Path, force: bool) -> None:
    """Raise KitError if the folder holds something that must not be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / NOTE).is_file():
        raise KitError(f"{folder} exists and is not an export: choose another folder with --out.")
    if not force:
        raise KitError(
            f"{folder} holds an export that was made from something else, or was changed since: add --force to replace "
            "it, or choose another folder with --out."
        )


@contextmanager
def in_one_step(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `folder` at the end; after an error nothing is left of it."""
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    _make_empty(part)
    try:
        yield part
        for path in files_of(part):
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)  # safetensors writes 0600
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        try:
            part.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _make_empty(part: Path) -> None:
    """Raises KitError if the folder cannot be made."""
    shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise KitError(
            f"{part.parent} cannot be written ({error.strerror}): choose another folder with --out."
        ) from None
