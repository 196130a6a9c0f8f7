"""The tables and records that commands write and other commands read, checked before they are used.

A table that was cut, or saved by a spreadsheet with other separators or number formats, must not become a traceback,
nor other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from rpo_kit.errors import KitError
from rpo_kit.stages import damaged

SCORES = {"dtype": {"id": str, "user": str}, "keep_default_na": False}  # options: a user may be called "NA" or "null"


def read_table(
    path: Path | str, numbers: Sequence[str], text: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """The table in a CSV file, which must have these columns of numbers and of text; `options` are those of pandas.

    Raises:
        KitError: the file is missing, cut or changed by another program.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        table = pd.read_csv(path, **options or {})
    except FileNotFoundError:
        raise KitError(f"The file {path} is missing: run the command that writes it.") from None
    except ValueError as error:  # of pandas (no columns, other numbers of values in a row) or of the encoding
        raise _unreadable(path, str(error).strip()) from None
    lacking = [name for name in (*text, *numbers) if name not in table]
    if lacking:
        raise _unreadable(path, f"it has no column {lacking[0]!r}")
    if not content.endswith(b"\n"):
        raise _unreadable(path, "its last line is cut")
    for name in numbers:
        if len(table) and not is_numeric_dtype(table[name]):
            raise _unreadable(path, f"not all values of its column {name!r} are numbers")
    if path.name in damaged(path.parent):
        raise _unreadable(path, "it is not as its stage wrote it")
    return table


def read_record(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file. Raises KitError if the file is missing, cut or changed by another program."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitError(f"The file {path} is missing: run the command that writes it.") from None
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(record, dict):
        raise _unreadable(path, "it holds no JSON object")
    return record


def _unreadable(path: Path, why: str) -> KitError:
    return KitError(
        f"The file {path} was cut, or changed after it was written ({why}): run the command that wrote it again; a "
        "file of figures/data can also be restored from Git."
    )
