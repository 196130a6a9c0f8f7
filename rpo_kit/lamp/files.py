"""LaMP's JSON files on disk: a bad download gives a readable error, and a crash never leaves half a file.

Used by `stream` (question files, which may be gigabytes), `data` and `metrics` (golds and predictions, which have one
format and are small enough to be read at once). The content of question files is the subject of `data`.

In: `dev_outputs.json` with `{"task": "LaMP_3", "golds": [{"id": "310", "output": "5"}]}`.
Out of `read_outputs`: `("LaMP_3", {"310": "5"})`.
"""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.runs import write_text

log = logging.getLogger(__name__)

AGAIN = "download it again (--data official does that)"


@dataclass(frozen=True)
class Role:
    """What a file is for, so that a message can name it and the remedy."""

    name: str
    remedy: str
    cause: str  # why it may be incomplete


QUESTIONS = Role("question file", AGAIN, "the download broke off")
GOLDS = Role("gold file", AGAIN, "the download broke off")
PREDICTIONS = Role("prediction file", "write it again", "it was not written to its end")


def _read_json(path: Path, role: Role) -> object:
    """The content of a JSON file.

    Raises:
        KitError: it is missing, empty, a web page, truncated, not UTF-8, nested too deeply, or repeats a key.
    """
    check_present(path, role)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start, role) from error
    if text.lstrip().startswith("<"):
        raise web_page(path, role)
    try:
        return json.loads(text, object_pairs_hook=reject_repeated_keys)
    except json.JSONDecodeError as error:
        raise not_json(path, error.msg, error.pos, len(text), role) from error
    except ValueError as error:
        raise not_usable(path, str(error), role) from error
    except RecursionError as error:
        raise not_usable(path, "its brackets are nested too deeply", role) from error


def reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a repeated key; `json` would silently keep the last value."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        id_ = f", id {shown(content['id'])}," if "id" in content else ""
        raise ValueError(f"an object{id_} has the key {shown(twice)} twice")
    return content


def shown(value: object) -> str:
    """A value for a message: a short `repr`, which works however deeply the value is nested."""
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def check_present(path: Path, role: Role) -> None:
    if path.is_dir():
        raise KitError(f"{path} is a folder, not a file; {_listing(path)}. Give the file itself.")
    if not path.is_file():
        raise KitError(
            f"The {role.name} is missing: there is no file {path}; {_listing(path.parent)}. Correct the path, or put "
            "the file there."
        )


def not_utf8(path: Path, byte: int, role: Role) -> KitError:
    return KitError(
        f"The {role.name} {path} is not UTF-8 text (byte {byte}): {role.remedy}, and decompress it if it is compressed."
    )


def not_json(path: Path, what: str, position: int, size: int, role: Role) -> KitError:
    if what.startswith("Extra data"):
        return KitError(
            f"The {role.name} {path} holds more than one JSON value, as a file with one per line does (character "
            f"{position} of {size}): it should be a single one."
        )
    return KitError(
        f"The {role.name} {path} is not complete JSON: {what.removesuffix(' at')} at character {position} of {size}. "
        f"Most likely {role.cause}: {role.remedy}."
    )


def not_usable(path: Path, what: str, role: Role) -> KitError:
    return KitError(f"The {role.name} {path} cannot be read: {what}. Correct it, or {role.remedy}.")


def web_page(path: Path, role: Role) -> KitError:
    if role.remedy != AGAIN:
        return KitError(f"The {role.name} {path} is a web page and not JSON: {role.remedy}.")
    return KitError(
        f"The {role.name} {path} is a web page and not JSON; for a wrong address LaMP's server sends one with status "
        f"200. Check the address on LaMP's download page (movies are LaMP_2/new) and {AGAIN}."
    )


def _listing(folder: Path) -> str:
    """What the folder has instead, so that the user recognizes a wrong folder."""
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "that folder is empty"
    return "that folder has " + ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step: the old file stays until the new one is complete."""
    write_text(path, json.dumps(content) + "\n")  # ASCII escapes: any string, even broken Unicode, survives


def as_text(value: object, where: str, *, numbers: bool = True, remedy: str = AGAIN) -> str:
    """A field as text. LaMP's values are strings; `numbers` accepts 5 for "5", as LaMP's evaluator does.

    Raises:
        KitError: it is missing (null, or the NaN that pandas writes), or not text.
    """
    if isinstance(value, str) and value.isascii():  # gigabytes are; encoding would copy them
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise KitError(f"{where} is {value}, as pandas writes a missing value, and not text: correct it, or {remedy}.")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise KitError(f"{where} is {shown(value)}, which is not text: correct it, or {remedy}.")
    if not numbers and not isinstance(value, str):
        raise KitError(f"{where} is the number {shown(value)}, where text is expected: write it in quotes.")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape it, but neither Arrow nor a tokenizer accepts it
        log.warning("%s has half a character (a lone surrogate); it is read as U+FFFD, the rest is unchanged.", where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_id(value: object, where: str, *, remedy: str = AGAIN) -> str:
    """An id or a user as text: any non-empty text, even "NA" and "null"."""
    text = as_text(value, where, remedy=remedy)
    if not text.strip():
        raise KitError(f"{where} is empty: fill it in, or {remedy}.")
    return text


def read_outputs(path: Path, role: Role) -> tuple[str, dict[str, str]]:
    """(task name, {id: output}) of a file of golds or predictions; ids must be unique."""
    name, rows = raw_outputs(path, role)
    texts = {key: as_text(output, where, remedy=role.remedy) for key, output, where in rows}
    return name, texts


def raw_outputs(path: Path, role: Role) -> tuple[str, Iterator[tuple[str, object, str]]]:
    """The task's name, and (id, unconverted output, its place for messages) of each row; ids are unique."""
    content = _read_json(path, role)
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list) or "task" not in content:
        raise KitError(
            f'The {role.name} {path} is not a LaMP outputs file: it should be {{"task": "LaMP_3", "golds": '
            '[{"id": …, "output": …}]}. Question file and outputs file may have been swapped.'
        )
    rows: dict[str, tuple[object, str]] = {}
    repeated: list[str] = []
    for number, row in enumerate(content["golds"]):
        if not isinstance(row, dict) or not {"id", "output"} <= set(row):
            raise KitError(
                f'Row {number} of the {role.name} {path} lacks "id" or "output": complete it, or {role.remedy}.'
            )
        key = as_id(row["id"], f'"id" of row {number} of the {role.name} {path}', remedy=role.remedy)
        if key in rows:
            repeated.append(key)
        rows[key] = (row["output"], f'"output" of id {shown(key)} in the {role.name} {path}')
    if repeated:  # LaMP's script would silently take the last of them
        raise KitError(
            f"The {role.name} {path} has {len(content['golds'])} rows but only {len(rows)} ids: {len(repeated)} rows "
            f"repeat one, such as {shown(repeated[0])}. Keep one row per id."
        )
    name = as_text(content["task"], f'"task" in the {role.name} {path}', remedy=role.remedy)
    return name, ((key, output, where) for key, (output, where) in rows.items())


def write_outputs(path: Path, task_name: str, outputs: dict[str, str]) -> None:
    """Write `{id: output}` in the format of LaMP's outputs files, which is also that of a submission."""
    golds = [{"id": key, "output": output} for key, output in outputs.items()]
    write_json(path, {"task": task_name, "golds": golds})
