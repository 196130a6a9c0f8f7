"""LaMP's JSON files on disk: a bad download becomes a sentence, and no crash leaves half a file.

Used by `stream` (questions, which may be gigabytes), `data` and `metrics` (outputs and predictions, which have one
shape and are small enough to be read whole). Left out: what is inside the questions.

In: `dev_outputs.json` with `{"task": "LaMP_3", "golds": [{"id": "310", "output": "5"}]}`.
Out of `read_outputs`: `("LaMP_3", {"310": "5"})`.
"""

import json
import logging
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.runs import write_text

log = logging.getLogger(__name__)

AGAIN = "download it again (--data official does that)"


def read_json(path: Path) -> object:
    """The content of a JSON file. Raises KitError if it is missing, empty, a web page, truncated or not UTF-8."""
    check_present(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start) from error
    if text.lstrip().startswith("<"):
        raise web_page(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise not_json(path, error.msg, error.pos, len(text)) from error


def check_present(path: Path) -> None:
    if path.is_dir():
        raise KitError(f"{path} is a folder, not a file; {_listing(path)}. Give the file itself.")
    if not path.is_file():
        raise KitError(f"There is no file {path}; {_listing(path.parent)}. Correct the path, or put the file there.")


def not_utf8(path: Path, byte: int) -> KitError:
    return KitError(f"{path} is not UTF-8 text (byte {byte}): {AGAIN}, and unpack it if it is packed.")


def not_json(path: Path, what: str, position: int, size: int) -> KitError:
    return KitError(
        f"{path} is not complete JSON: {what.removesuffix(' at')} at character {position} of {size}. Most likely the "
        f"download broke off: {AGAIN}."
    )


def web_page(path: Path) -> KitError:
    return KitError(
        f"{path} is a web page and not JSON; for a wrong address LaMP's server sends one with status 200. Check the "
        f"address on LaMP's download page (movies are LaMP_2/new) and {AGAIN}."
    )


def _listing(folder: Path) -> str:
    """What the folder has instead, so that a wrong folder is recognised."""
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "that folder is empty"
    return "that folder has " + ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step: the old file stays until the new one is complete."""
    write_text(path, json.dumps(content) + "\n")  # ASCII escapes: any string, even broken Unicode, is read back as is


def as_text(value: object, where: str) -> str:
    """A field as text. LaMP's values are strings; numbers are accepted too, as by LaMP's evaluator."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise KitError(f"{where} is {str(value)[:40]!r}, which is not text: correct it, or {AGAIN}.")
    text = str(value)
    if text.isascii():  # gigabytes are; encoding would copy them
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape it, but no table and no tokenizer can hold it
        log.warning("%s has half a character (a lone surrogate); it is read as U+FFFD, the rest stays as it is.", where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_outputs(path: Path) -> tuple[str, dict[str, str]]:
    """(task name, {id: output}) of a file of outputs or predictions; each row needs an id of its own."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list) or "task" not in content:
        raise KitError(
            f'{path} is not a LaMP outputs file: it should be {{"task": "LaMP_3", "golds": [{{"id": …, "output": …}}]'
            "}. Questions and outputs may have been swapped."
        )
    outputs: dict[str, str] = {}
    repeated: list[str] = []
    for number, row in enumerate(content["golds"]):
        where = f"Row {number} of {path}"
        if not isinstance(row, dict) or not {"id", "output"} <= set(row):
            raise KitError(f'{where} lacks "id" or "output": complete it, or {AGAIN}.')
        key = as_text(row["id"], f'"id" of row {number} of {path}')
        if key in outputs:
            repeated.append(key)
        outputs[key] = as_text(row["output"], f'"output" of id {key!r} in {path}')
    if repeated:  # LaMP's script would silently take the last of them
        raise KitError(
            f"{path} has {len(content['golds'])} rows but only {len(outputs)} ids: {len(repeated)} rows repeat one, "
            f"such as {repeated[0]!r}. Keep one row per id."
        )
    return as_text(content["task"], f'"task" in {path}'), outputs


def write_outputs(path: Path, task_name: str, outputs: dict[str, str]) -> None:
    """Write `{id: output}` in the shape of LaMP's outputs, which is also the shape of a submission."""
    golds = [{"id": key, "output": output} for key, output in outputs.items()]
    write_json(path, {"task": task_name, "golds": golds})
