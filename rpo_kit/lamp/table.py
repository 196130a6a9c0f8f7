"""Rows into an Arrow file and back as a `datasets.Dataset`, with flat memory; large files are converted once.

Rows are written in batches as they come and read by mapping the file into memory, so that neither direction needs more
than a batch. A questions file above `LARGE` is kept as `$RPO_CACHE/lamp/<file>-<version>.arrow` (or ~/.cache/rpo_kit)
and opened from there the next time; a version is the size and time of both of LaMP's files, so a changed file is read
anew and the old conversion goes. The notes beside it are written last: without them a conversion does not count.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset, Features, Value

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task
from rpo_kit.runs import write_text

LARGE = 2**26  # bytes; smaller files are read in a second or two, and kept in memory
VERSION = 3  # raise it when a conversion changes what it writes
COLUMNS: tuple[Literal["id", "user_id", "input", "output"], ...] = ("id", "user_id", "input", "output")
_BATCH = 2**24  # characters of profiles written at a time

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Conversion:
    """A place for one conversion: the Arrow file and, beside it, the notes that make it count."""

    arrow: Path

    @property
    def notes(self) -> Path:
        return self.arrow.with_suffix(".json")

    def is_there(self) -> bool:
        return self.notes.exists() and self.arrow.exists()


def conversion_of(questions: Path, outputs: Path, task: Task, options: str, folder: Path | None) -> Conversion | None:
    """Where the conversion of these two files belongs; None for a small file, unless a folder is given."""
    if folder is None and questions.stat().st_size < LARGE:
        return None
    folder = folder or Path(os.environ.get("RPO_CACHE") or "~/.cache/rpo_kit").expanduser().absolute() / "lamp"
    seen = [(file.stat().st_size, file.stat().st_mtime_ns) for file in (questions, outputs) if file.exists()]
    name = f"{task.name}-{questions.stem}-{_short_hash(str(questions.resolve()) + options)}"
    return Conversion(folder / f"{name}-{_short_hash(json.dumps([VERSION, seen]))}.arrow")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_rows(
    task: Task, rows: Iterable[Row], place: Conversion | None, notes: Callable[[], dict[str, Any]]
) -> Dataset:
    """All rows as a dataset; in the file where a place is given, else in memory. `notes` are asked for at the end."""
    batches = _batches(rows)
    first = next(batches, [])
    dated = any("date" in item for row in first for item in row["profile"])  # then all are: the reader has seen to it
    if place is None:
        sink = pa.BufferOutputStream()
        _write(task, chain([first], batches), dated, sink)
        return _with_notes(Dataset.from_buffer(sink.getvalue()), notes())
    with _new_file(place) as temporary:
        with pa.OSFile(str(temporary), "wb") as file:
            _write(task, chain([first], batches), dated, file)
        found = notes()
        os.replace(temporary, place.arrow)
    write_text(place.notes, json.dumps(found))
    return open_rows(place)


def open_rows(place: Conversion) -> Dataset:
    """A conversion that is there, mapped into memory."""
    found = json.loads(place.notes.read_text(encoding="utf-8"))
    return _with_notes(Dataset.from_file(str(place.arrow)), found)


def _with_notes(dataset: Dataset, notes: dict[str, Any]) -> Dataset:
    """The notes travel in the description, which saving and selecting keep. "users", found at the end, is a column."""
    users = notes.get("users")
    if users is not None:
        dataset = dataset.remove_columns("user_id").add_column("user_id", users).select_columns([*COLUMNS, "profile"])
    dataset.info.description = json.dumps({name: value for name, value in notes.items() if name != "users"})
    return dataset


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(text) for item in row["profile"] for text in item.values())
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(task: Task, batches: Iterable[list[Row]], dated: bool, sink: Any) -> None:
    fields = ("id", *task.fields, *(("date",) if dated else ()))
    text = Value("string")
    features = Features(dict.fromkeys(COLUMNS, text) | {"profile": [dict.fromkeys(fields, text)]})
    schema = features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


@contextmanager
def _new_file(place: Conversion) -> Iterator[Path]:
    """A temporary file in the folder, gone if anything fails; conversions of older versions of the same file go too."""
    folder = place.arrow.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    except OSError as error:
        raise KitError(
            f"Cannot write into {folder} ({error.strerror}): set RPO_CACHE to a folder you may write in."
        ) from None
    os.close(handle)
    try:
        for old in folder.glob(f"{place.arrow.stem.rpartition('-')[0]}-*"):
            old.unlink(missing_ok=True)
        yield Path(name)
    except OSError as error:
        raise KitError(f"Cannot write into {folder} ({error.strerror}): free space there, or set RPO_CACHE.") from error
    finally:
        Path(name).unlink(missing_ok=True)
