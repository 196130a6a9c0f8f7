"""`forget`: delete what `mine` made from a person's texts, and say what was deleted and what cannot be.

Deleted: the run's folder with its texts, models, answers, notebooks and results; its forks, which hold the same texts;
conversions of its files in the cache folder; and the endpoints' replies in the store beside the runs that the run holds
too. Files that were given to `mine` are never touched, and neither is a run that `mine` did not make.

    forget("mine", yes=True)        # deleted  /…/runs/mine   212 files, 61.3 MB
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.lamp_files import TASK
from rpo_kit.lamp.table import conversion_of
from rpo_kit.lamp.tasks import get_task
from rpo_kit.machine import cache_root
from rpo_kit.model_spec import parse_spec
from rpo_kit.models.open import ANSWERS
from rpo_kit.processes import locked
from rpo_kit.rewriting.own_voice import FOLDER, is_own
from rpo_kit.runs import read_json, read_records, run_file

_MEGABYTE = 1e6


def forget(name: str, yes: bool = False) -> None:
    """Delete the run `name` and all that stems from it; asks first unless `yes`.

    Raises:
        KitError: there is no such run, `mine` did not make it, a stage of it is at work, or nobody can be asked.
    """
    folder = run_file(name, None).parent
    runs = _with_forks(folder)
    paths = [*runs, *_conversions(folder)]
    print("This will be deleted:\n" + "\n".join(f"  {path}   {_size(path)}" for path in paths))
    if not yes and not _agreed():
        print("Nothing was deleted.")
        return
    stored = [_settings(run) for run in runs]
    endpoints = sorted({spec for settings in stored for spec in _endpoints(settings)})
    with ExitStack() as stack:
        for run in runs:
            for lock in sorted((run / ".locks").glob("*")) if (run / ".locks").is_dir() else []:
                stack.enter_context(locked(lock, f"The run {run.name!r}", patience=0.0))
        replies = _forget_replies(folder.parent / ANSWERS, {text for run in runs for text in _replies(run)})
        for path in paths:
            size = _size(path)
            _delete(path)
            print(f"deleted  {path}   {size}")
    if replies:
        print(f"deleted  {replies} replies in {folder.parent / ANSWERS}")
    print("\n".join(_beyond(endpoints, any(_has_vectors(settings) for settings in stored))))


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise KitError("Nothing was deleted, because nobody can be asked here: add --yes.")
    try:
        return input("Delete all of it? This cannot be undone. [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _with_forks(folder: Path) -> list[Path]:
    """The run, and the runs that were forked from it: their data are in its folder."""
    if not folder.is_dir():
        known = sorted(path.parent.name for path in folder.parent.glob("*/run.json") if is_own(path.parent))
        there = f"those of own texts are {', '.join(known)}" if known else "there is none of own texts"
        raise KitError(f"There is no run {folder.name!r} in {folder.parent}; {there}.")
    _refuse_links([folder])
    if not is_own(folder):
        what = f"The run {folder.name!r} is not of own texts, so it is not deleted"
        raise KitError(f"{what}: delete {folder} yourself if you mean it.")
    forks = [
        path
        for path in sorted(folder.parent.iterdir())
        if path != folder and path.is_dir() and Path(_source(_settings(path))).parent == folder
    ]
    _refuse_links(forks)
    return [folder, *forks]


def _refuse_links(runs: Sequence[Path]) -> None:
    """Raise KitError for a run that is a link: what it points to would stay."""
    for run in runs:
        if run.is_symlink():
            raise KitError(f"{run} is a link to {run.resolve()}, so nothing is deleted: delete both yourself.")


def _settings(run: Path) -> dict[str, dict[str, object]]:
    """Those of the run, or of one of its stages: a fork that was killed while it was made has no run.json."""
    for file in (run / "run.json", *sorted(run.glob("*/manifest.json"))):
        stored = read_json(file)
        preset = stored.get("preset") if isinstance(stored, dict) else None
        if isinstance(preset, dict):
            return preset
    return {}


def _source(settings: dict[str, dict[str, object]]) -> str:
    return str(settings.get("data", {}).get("source", ""))


def _conversions(folder: Path) -> list[Path]:
    """Conversions of the run's files that `read_lamp` keeps in the cache folder, whatever version they are of."""
    found: list[Path] = []
    for split in ("train", "dev"):
        questions = folder / FOLDER / f"{split}_questions.json"
        for option in ("drop_gold=False", "drop_gold=True"):
            outputs = questions.with_name(f"{split}_outputs.json")
            named = conversion_of(questions, outputs, get_task(TASK), option, None) if questions.exists() else None
            if named:
                found += named.arrow.parent.glob(f"{named.arrow.stem.rpartition('-')[0]}-*")
    return sorted(found)


def _has_vectors(settings: dict[str, dict[str, object]]) -> bool:
    return str(settings.get("data", {}).get("retriever", "")).startswith("dense:")


def _endpoints(settings: dict[str, dict[str, object]]) -> Iterator[str]:
    teacher = settings.get("synthesis", {}).get("teacher", "")
    for spec in (str(settings.get("base", "")), str(teacher)):
        try:
            if parse_spec(spec):
                yield spec
        except KitError:
            continue


# ---- replies in the store that all runs share ---------------------------------------------------------------------


def _replies(run: Path) -> Iterator[str]:
    """What models wrote for the run, as its records hold it."""
    for path in run.rglob("*.jsonl"):
        for record in read_records(path):
            yield from (str(record[key]) for key in ("raw", "text", "summary", "answer") if record.get(key))


def _forget_replies(store: Path, texts: set[str]) -> int:
    """Delete the rows of the store whose reply is one of these texts; how many there were."""
    if not store.is_file() or not texts:
        return 0
    database = sqlite3.connect(store)
    try:
        database.execute("PRAGMA secure_delete=ON")  # overwrite, not only unlink
        rows = database.execute("SELECT key, CAST(answer AS TEXT) FROM answers").fetchall()
        keys = [(key,) for key, answer in rows if _text_of(answer) in texts]
        with database:
            database.executemany("DELETE FROM answers WHERE key = ?", keys)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        print(
            f"The replies in {store} could not be searched ({error}): delete that file, which only costs asking again."
        )
        return 0
    finally:
        database.close()
    return len(keys)


def _text_of(answer: str) -> str:
    try:
        value = json.loads(answer)
    except (ValueError, TypeError):
        return ""
    return str(value.get("text", "")) if isinstance(value, dict) else ""


# ---- files --------------------------------------------------------------------------------------------------------


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()] if path.is_dir() else [path]
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / _MEGABYTE:.1f} MB"


def _delete(path: Path) -> None:
    """Raises KitError if something cannot be deleted."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise KitError(f"{error.filename or path} cannot be deleted ({error.strerror}): delete it by hand.") from None


def _beyond(endpoints: Sequence[str], has_vectors: bool) -> list[str]:
    """What is not deleted."""
    lines = [
        "Not deleted: the files that you gave to `mine`; what you copied or exported from the run (notebooks, figures, "
        "adapters, runs in another RPO_RUNS); backups, and what a disk keeps of deleted files."
    ]
    if has_vectors:
        vectors = cache_root() / "dense"
        lines.append(f"Not deleted: vectors of the texts, without their words, in {vectors}: delete it yourself.")
    if endpoints:
        lines.append(f"Out of reach: what the servers of {', '.join(endpoints)} logged of the passages they were sent.")
    return lines
