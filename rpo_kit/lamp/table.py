"""Rows into an Arrow file and back as a `datasets.Dataset`, in constant memory; large files are converted once.

Rows are written in batches and read by mapping the file into memory, so neither direction needs more memory than a
batch. A question file above `LARGE` is kept as `$RPO_CACHE/lamp/<file>-<version>.arrow` (or ~/.cache/rpo_kit) and
opened from there the next time; a version is the size and time of both of LaMP's files, so a changed file is read again
and the old conversion is deleted. The notes beside it are written last: without them a conversion is ignored.

    write_rows(task, rows, None, notes)      # a Dataset in memory with the columns id, user_id, input, output, profile
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypedDict, cast

import pyarrow as pa
from datasets import Dataset, Features, Value

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.tasks import Task
from rpo_kit.machine import cache_root
from rpo_kit.runs import write_text

LARGE = 2**26  # bytes; smaller files are read in a second or two, and kept in memory
VERSION = 4  # raise it when a conversion changes what it writes
COLUMNS: tuple[Literal["id", "user_id", "input", "output"], ...] = ("id", "user_id", "input", "output")
_BATCH = 2**24  # characters of profiles written at a time


class Notes(TypedDict, total=False):
    """What is known about a whole file and travels with its dataset."""

    task: str
    split: str
    total: int  # examples, the excluded ones included
    excluded: list[str]  # ids of examples without the task's instruction
    excluded_outputs: dict[str, str]  # their golds, by id
    user_id: bool | None  # whether the file names users; None: it has no example
    date: bool | None  # whether items have dates; None: it has no item
    empty: int  # examples with an empty profile
    gold_in_profile: int  # examples whose own profile gives the gold away
    gold_dropped: int  # items removed because of that
    html_entities: int  # examples with "&amp;" and the like
    foreign_labels: int  # profile items whose label is not one of the task's
    users: list[str]  # the user of each example, if the file does not name them
    users_found: int


@dataclass(frozen=True)
class Conversion:
    """Paths of one conversion: the Arrow file and, beside it, the notes without which it is ignored."""

    arrow: Path

    @property
    def notes(self) -> Path:
        return self.arrow.with_suffix(".json")

    def exists(self) -> bool:
        return self.notes.exists() and self.arrow.exists()


def conversion_of(questions: Path, outputs: Path, task: Task, options: str, folder: Path | None) -> Conversion | None:
    """The paths of the conversion of these two files; None for a small file, unless a folder is given."""
    if folder is None and questions.stat().st_size < LARGE:
        return None
    folder = folder or cache_root() / "lamp"
    versions = [(file.stat().st_size, file.stat().st_mtime_ns) for file in (questions, outputs) if file.exists()]
    name = f"{task.name}-{questions.stem}-{_short_hash(str(questions.resolve()) + options)}"
    return Conversion(folder / f"{name}-{_short_hash(json.dumps([VERSION, versions]))}.arrow")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_rows(
    task: Task, rows: Iterable[Example], conversion: Conversion | None, notes: Callable[[], Notes]
) -> Dataset:
    """All rows as a dataset, in the conversion's file or in memory. `notes` is called after the last row."""
    batches = _batches(rows)
    first = next(batches, [])
    dated = any("date" in item for row in first for item in row["profile"])  # the reader guarantees all or none
    if conversion is None:
        sink = pa.BufferOutputStream()
        _write(task, chain([first], batches), dated, sink)
        return _with_notes(Dataset.from_buffer(sink.getvalue()), notes())
    with _new_file(conversion) as temporary:
        with pa.OSFile(str(temporary), "wb") as file:
            _write(task, chain([first], batches), dated, file)
        content = notes()
        os.replace(temporary, conversion.arrow)
    write_text(conversion.notes, json.dumps(content))
    return open_rows(conversion)


def open_rows(conversion: Conversion) -> Dataset:
    """An existing conversion, mapped into memory."""
    notes: Notes = json.loads(conversion.notes.read_text(encoding="utf-8"))
    return _with_notes(Dataset.from_file(str(conversion.arrow)), notes)


def _with_notes(dataset: Dataset, notes: Notes) -> Dataset:
    """The notes travel in the description, which saving and selecting keep; "users", found at the end, is a column."""
    users = notes.get("users")
    if users is not None:
        dataset = dataset.remove_columns("user_id").add_column("user_id", users).select_columns([*COLUMNS, "profile"])
    dataset.info.description = json.dumps({name: value for name, value in notes.items() if name != "users"})
    return dataset


def notes_of(dataset: Dataset) -> Notes:
    """The notes that travel with a dataset; {} for one that was not read from LaMP's files."""
    return cast(Notes, json.loads(dataset.info.description or "{}"))


def _batches(rows: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(text) for item in row["profile"] for text in item.values())
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(task: Task, batches: Iterable[list[Example]], dated: bool, sink: pa.NativeFile) -> None:
    fields = ("id", *task.fields, *(("date",) if dated else ()))
    text = Value("string")
    features = Features(dict.fromkeys(COLUMNS, text) | {"profile": [dict.fromkeys(fields, text)]})
    schema = features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


@contextmanager
def _new_file(conversion: Conversion) -> Iterator[Path]:
    """A temporary file in the folder, deleted if anything fails. Older conversions of the same file are deleted too."""
    folder = conversion.arrow.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    except OSError as error:
        raise KitError(
            f"The cache folder {folder} cannot be written to ({error.strerror}): set RPO_CACHE to another folder."
        ) from None
    os.close(handle)
    try:
        for old in folder.glob(f"{conversion.arrow.stem.rpartition('-')[0]}-*"):
            old.unlink(missing_ok=True)
        yield Path(name)
    except OSError as error:
        raise KitError(
            f"The cache folder {folder} cannot be written to ({error.strerror}): free space there, or set RPO_CACHE to "
            "another folder."
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)
