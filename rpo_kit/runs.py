"""The run folder: settings, one folder per stage, and how a killed run resumes.

A run is `runs/<name>/` with `run.json` and one folder per stage. A stage (`stages.py`) writes `manifest.json` last: it
holds the fingerprints of the stage's inputs, and the settings, packages and commit it was made with. A stage whose
manifest matches is skipped; one whose inputs have changed is rerun, with the reason printed. Records are append-only
JSONL, one line per finished item, so that `kill -9` loses nothing finished.

    run = open_run("demo", "cpu", {"rl.steps": 4})
    with stage(run, "prepare", settings=run.preset.data) as folder:      # None if the stage is up to date
        if folder: ...
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from rpo_kit.errors import KitError
from rpo_kit.model_spec import with_absolute_files
from rpo_kit.presets import RETIRED, Preset, as_dict, flattened, get_preset, override
from rpo_kit.processes import disk_errors_explained

DEFAULT_RUN = "demo"  # of the commands
LogRows = list[dict[str, float]]
OnLog = Callable[[LogRows], None]  # called with all rows of a stage's log whenever one is added

_FOLDER_SETTINGS = {  # settings that may name a folder, and the prefix before it
    "data.source": "",
    "data.retriever": "dense:",
    "reflection.name": "",
    "base": "local:",
    "synthesis.teacher": "local:",
}

_RUN_NAME = re.compile(r"[^\s./\\{}][^/\\{}]*")  # no braces: papermill would read them as parameters
_REPORTED: set[tuple[Path, int]] = set()  # damaged lines that have been reported


@dataclass(frozen=True)
class Run:
    """One run: its folder and its settings."""

    folder: Path
    preset: Preset
    part_of: Run | None = None  # the run whose arm this is: it pays for the arm's endpoints, and commands name it

    @property
    def name(self) -> str:
        return self.part_of.name if self.part_of else self.folder.name

    def stage(self, name: str) -> Path:
        return self.folder / name


def runs_root() -> Path:
    """The folder of all runs: $RPO_RUNS, else `runs/` in the checkout, else `runs/` in the current folder."""
    checkout = Path(__file__).resolve().parents[1]
    here = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("RPO_RUNS") or here / "runs").expanduser().resolve()


def open_run(
    name: str, preset: str | None = None, overrides: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Run:
    """Open or create `root/name`. An existing run keeps its settings except for the overrides, unless a preset is
    named, which replaces them all; a new run takes `cpu`. Stages affected by a change are rerun.

    Raises:
        KitError: an invalid name, setting or combination of settings (nothing is stored then), or a folder that cannot
            be written.
    """
    run = planned_run(name, preset, overrides, root)
    file = run.folder / "run.json"
    if preset or overrides or not file.exists():
        with disk_errors_explained(file.parent.parent):
            write_json(file, {"name": name, "preset": as_dict(run.preset)})
    return run


def planned_run(
    name: str, preset: str | None = None, overrides: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Run:
    """The run that `open_run` would open, with its settings checked; nothing is written."""
    file, overrides = run_file(name, root), with_absolute_paths(overrides or {})
    stored = preset is None and file.exists()
    return Run(file.parent, override(_stored_preset(file) if stored else get_preset(preset or "cpu"), overrides))


def with_absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Make folders and files in the settings absolute: notebooks run in another folder than the command line."""
    changed = dict(overrides)
    for key, prefix in _FOLDER_SETTINGS.items():
        folder = str(changed.get(key, "")).removeprefix(prefix)
        if folder not in ("", "personas", "official", "smollm2") and Path(folder).is_dir():
            changed[key] = f"{prefix}{Path(folder).resolve()}"
    for key in {"base", "synthesis.teacher"} & changed.keys():
        changed[key] = with_absolute_files(str(changed[key]))
    return changed


def existing_run(name: str, root: Path | str | None = None) -> Run:
    """Reopen a run with its settings.

    Raises:
        KitError: there is no run of this name; the message lists the existing ones.
    """
    file = check_exists(name, root)
    return Run(file.parent, _stored_preset(file))


def check_exists(name: str, root: Path | str | None = None) -> Path:
    """The run's `run.json`. Raises KitError if there is no such run."""
    file = run_file(name, root)
    if not file.exists():
        root = file.parent.parent
        names = sorted(path.parent.name for path in root.glob("*/run.json"))
        close = get_close_matches(name, names, 1)
        known = f"existing runs: {', '.join(names)}" if names else "no runs exist yet"
        raise KitError(
            f"There is no run {name!r} in {root}; {known}.{f' Did you mean {close[0]}?' if close else ''} To create "
            f"it, run `python -m rpo_kit prepare --run {name}`."
        )
    return file


def run_file(name: str, root: Path | str | None) -> Path:
    """The `run.json` of a run of this name, which need not exist. Raises KitError if the name is invalid."""
    if not _RUN_NAME.fullmatch(name) or "\0" in name:
        raise KitError(f"{name!r} cannot be the name of a run: use letters, digits, '-' and '_'.")
    folder = Path(root or runs_root()).resolve()
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file:
        raise KitError(f"Runs cannot be kept in {folder}: {file} is a file. Set RPO_RUNS to a folder.")
    return folder / name / "run.json"


def _stored_preset(file: Path) -> Preset:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["preset"]
        settings = {key: value for key, value in flattened(stored).items() if key not in RETIRED}
        return get_preset(stored["name"], settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KitError(
            f"The settings in {file} cannot be read ({error}): correct the file, or add --preset to the command to "
            "rewrite it; finished stages are kept."
        ) from None


# ---- files --------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write the text in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write atomically: to a temporary file beside `path`, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # file systems without permissions
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # still there only if something failed


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file, without an incomplete last line (the process was killed while writing).

    A damaged line is skipped too, and reported once per process: its item counts as missing and is requested again.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            record = line
        if isinstance(record, dict):
            records.append(record)
        elif record is not None and (path, number) not in _REPORTED:
            _REPORTED.add((path, number))
            print(f"{path}, line {number}, is damaged and skipped; run its stage again to replace it")
    return records


def append_records(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Append finished items, one line each, after removing an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        _cut_incomplete_line(file)
        file.write(b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def sort_records(path: Path, ids: list[str]) -> None:
    """Sort the records of a finished file into the order of `ids`: endpoints answer in any order, and the same answers
    should give the same file.
    """
    records = {record["id"]: record for record in read_records(path)}
    lines = [json.dumps(records[id_], ensure_ascii=False) + "\n" for id_ in ids if id_ in records]
    if records and path.read_text(encoding="utf-8") != "".join(lines):
        write_text(path, "".join(lines))


def _cut_incomplete_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    while size:
        step = min(size, 65536)
        file.seek(size - step)
        at = file.read(step).rfind(b"\n")
        if at >= 0:
            file.truncate(size - step + at + 1)
            return
        size -= step
    file.truncate(0)
