"""The run folder: settings, one folder per stage, and how a killed run resumes.

A run is `runs/<name>/` with `run.json` and one folder per stage. A stage writes `manifest.json` last: it holds the
fingerprints of the stage's inputs, and the settings, packages and commit it was made with. A stage whose manifest
matches is skipped; one whose inputs changed is run again, with the reason printed. Records are append-only JSONL, one
line per finished item, so that `kill -9` loses nothing finished.

    run = open_run("demo", "cpu", {"rl.steps": 4})
    with stage(run, "prepare", settings=run.preset.data) as folder:      # None if the stage is done already
        if folder: ...
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rpo_kit.errors import KitError
from rpo_kit.presets import Preset, as_dict, get_preset, override
from rpo_kit.processes import full_disk_told, is_main, locked, wait_for
from rpo_kit.provenance import fingerprint, provenance

_FOLDER_SETTINGS = {  # settings that may name a folder, and the prefix before it
    "data.source": "",
    "data.retriever": "dense:",
    "reflection.name": "",
    "base": "local:",
    "synthesis.teacher": "local:",
}


@dataclass(frozen=True)
class Run:
    """One run: its folder and its settings."""

    folder: Path
    preset: Preset

    @property
    def name(self) -> str:
        return self.folder.name

    def stage(self, name: str) -> Path:
        return self.folder / name


def runs_root() -> Path:
    """Where runs live: $RPO_RUNS, else `runs/` in the checkout, else `runs/` here."""
    checkout = Path(__file__).resolve().parents[1]
    here = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("RPO_RUNS") or here / "runs").resolve()


def open_run(
    name: str, preset: str | None = None, overrides: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Run:
    """Open or create `root/name`. An existing run keeps its settings except for the overrides, unless a preset is
    named, which replaces them all; a new run takes `cpu`. Stages affected by a change are run again.
    """
    file, overrides = _run_file(name, root), _with_absolute_paths(overrides or {})
    keep = preset is None and file.exists()
    run = Run(file.parent, override(_stored_preset(file) if keep else get_preset(preset or "cpu"), overrides))
    if not keep or overrides:
        with full_disk_told(file.parent.parent):
            write_json(file, {"name": name, "preset": as_dict(run.preset)})
    return run


def _with_absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Make folders among the settings absolute: notebooks run in another folder than the command line."""
    changed = dict(overrides)
    for key, prefix in _FOLDER_SETTINGS.items():
        folder = str(changed.get(key, "")).removeprefix(prefix)
        if folder not in ("", "personas", "official", "smollm2") and Path(folder).is_dir():
            changed[key] = f"{prefix}{Path(folder).resolve()}"
    return changed


def existing_run(name: str, root: Path | str | None = None) -> Run:
    """Reopen a run with its settings.

    Raises:
        KitError: there is no run of this name; the message lists those there are.
    """
    file = check_exists(name, root)
    return Run(file.parent, _stored_preset(file))


def check_exists(name: str, root: Path | str | None = None) -> Path:
    """The run's `run.json`; KitError if there is no such run."""
    file = _run_file(name, root)
    if not file.exists():
        root = file.parent.parent
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/run.json"))) or "none yet"
        raise KitError(
            f"There is no run {name!r} in {root}; there are: {known}. To create it, run "
            f"`python -m rpo_kit prepare --run {name}`."
        )
    return file


def _run_file(name: str, root: Path | str | None) -> Path:
    if not name or name != Path(name).name or name.startswith("."):
        raise KitError(f"{name!r} cannot be the name of a run: use letters, digits, '-' and '_'.")
    return Path(root or runs_root()).resolve() / name / "run.json"


def _stored_preset(file: Path) -> Preset:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["preset"]
        groups = {name: value for name, value in stored.items() if isinstance(value, dict)}
        flat = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        flat |= {key: value for key, value in stored.items() if key not in (*groups, "name", "about")}
        return get_preset(stored["name"], flat)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KitError(
            f"The settings in {file} cannot be read ({error}): correct the file, or add --preset to the command, "
            "which writes it again; finished stages stay."
        ) from None


# ---- stages -------------------------------------------------------------------------------------------------------


@contextmanager
def stage(run: Run, name: str, *, every_rank: bool = False, **inputs: Any) -> Iterator[Path | None]:
    """Yield the stage's folder to work in, or None if there is nothing to do.

    `inputs` are settings, file paths or plain values; each is fingerprinted. What an interrupted call with the same
    inputs left is kept, so the stage can resume; what was made from other inputs is moved to `<name>.old`. Of several
    ranks only the main one works; with `every_rank` (training) the others work between its start and its end.
    """
    folder, wanted = run.stage(name), {key: fingerprint(value) for key, value in inputs.items()}
    if _inputs(folder / "manifest.json") == wanted:
        if is_main():
            print(f"{name}: done already, in {os.path.relpath(folder)}")
        yield None
    elif is_main():
        lock = run.folder / ".locks" / name.replace("/", "-")
        with full_disk_told(run.folder), locked(lock, f"The stage {name!r} of run {run.name!r}"):
            if _restore(folder, name, wanted):
                yield None
                return
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "started.json", {"inputs": wanted})
            yield folder
            manifest = {"stage": name, "inputs": wanted, "preset": as_dict(run.preset)}
            write_json(folder / "manifest.json", manifest | provenance())
    elif every_rank:
        wait_for(lambda: _inputs(folder / "started.json") == wanted, f"starts {name}")
        yield None if _inputs(folder / "manifest.json") == wanted else folder
        wait_for(lambda: _inputs(folder / "manifest.json") == wanted, f"finishes {name}")
    else:
        yield None


def _restore(folder: Path, name: str, wanted: dict[str, str]) -> bool:
    """Move what was made from other inputs to `.old`; True if `.old` held the wanted result and it is back in place.

    A finished result is never lost to an unfinished one: settings may be tried, interrupted and taken back.
    """
    aside = folder.with_name(f"{folder.name}.old")  # a stage's name may hold slashes: sweep/fixed-2-seed0
    back, before = folder.with_name(f"{folder.name}.back"), _inputs(folder / "started.json")
    if before == wanted:
        return False
    if _inputs(aside / "manifest.json") == wanted:
        aside.rename(back)
    if before:
        changed = ", ".join(sorted(key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key)))
        if (folder / "manifest.json").exists() or not (aside / "manifest.json").exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{name}: {changed} changed; the old result is in {name}.old")
        else:
            shutil.rmtree(folder)
            print(f"{name}: {changed} changed; the unfinished result is dropped, the finished one stays in {name}.old")
    if _inputs(back / "manifest.json") == wanted:
        back.rename(folder)
        print(f"{name}: done before with these settings; restored from {name}.old")
        return True
    return False


def require(run: Run, name: str, **inputs: Any) -> Path:
    """The folder of a finished stage that was made from `inputs`; without inputs, whatever it was made from.

    Raises:
        KitError: the stage is not finished, or was made from something else.
    """
    stored, why = _inputs(run.stage(name) / "manifest.json"), "is not finished"
    if stored is not None:
        changed = [key for key, value in inputs.items() if fingerprint(value) != stored.get(key)]
        if not changed:
            return run.stage(name)
        why = f"was made with other settings ({', '.join(changed)} changed)"
    raise KitError(
        f"The stage {name!r} of run {run.name!r} {why}: first run `python -m rpo_kit {name} --run {run.name}`."
    )


def made_from(folder: Path) -> dict[str, str]:
    """The fingerprints of a finished stage's inputs."""
    return _inputs(folder / "manifest.json") or {}


def _inputs(path: Path) -> dict[str, str] | None:
    """The fingerprints in a manifest.json or started.json; None if there is no such file."""
    try:
        inputs: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    except FileNotFoundError:
        return None
    return inputs


# ---- files --------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write the text in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write whole or not at all: a temporary file beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # still there only if something failed


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file. A torn last line (the process was killed while writing) is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def append_records(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Append finished items, one line each; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def sort_records(path: Path, ids: list[str]) -> None:
    """Sort the records of a finished file into the order of `ids`: endpoints answer in any order, and the same work
    should give the same bytes.
    """
    records = {record["id"]: record for record in read_records(path)}
    lines = [json.dumps(records[id_], ensure_ascii=False) + "\n" for id_ in ids if id_ in records]
    if records and path.read_text(encoding="utf-8") != "".join(lines):
        write_text(path, "".join(lines))


def _cut_torn_line(file: BinaryIO) -> None:
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
