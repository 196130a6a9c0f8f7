"""The run folder: what was asked for, what each stage read and wrote, and how a killed run goes on.

A run is `runs/<name>/` with `run.json` and one folder a stage. A stage folder ends with `manifest.json`, written last:
it holds the fingerprints of what the stage read, and with which settings, packages and commit it was made. A stage
whose manifest matches is skipped; one whose inputs changed is redone and says why. Records are append-only JSONL, one
line a finished item, so that `kill -9` loses nothing finished.

    run = open_run("demo", "cpu", {"rl.steps": 4})
    with stage(run, "prepare", settings=run.preset.data) as work:      # work is None where the stage is already done
        if work: ...
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.presets import Preset, as_dict, get_preset, override
from rpo_kit.processes import full_disk_told, is_main, locked, wait_for
from rpo_kit.provenance import fingerprint, provenance

_FOLDERS = {  # settings that may name one, and what stands before it
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
    """Open or make `root/name`. A run that exists keeps its settings but for the overrides, unless a preset is named,
    which replaces them all; a new one takes `cpu`. Stages that a change touches are redone.
    """
    file, overrides = _run_file(name, root), _with_whole_paths(overrides or {})
    kept = preset is None and file.exists()
    run = Run(file.parent, override(_stored_preset(file) if kept else get_preset(preset or "cpu"), overrides))
    if not kept or overrides:
        with full_disk_told(file.parent.parent):
            write_json(file, {"name": name, "preset": as_dict(run.preset)})
    return run


def _with_whole_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The folders among the settings as whole paths: notebooks work in another folder than the command line."""
    changed = dict(overrides)
    for key, prefix in _FOLDERS.items():
        folder = str(changed.get(key, "")).removeprefix(prefix)
        if folder not in ("", "personas", "official", "smollm2") and Path(folder).is_dir():
            changed[key] = f"{prefix}{Path(folder).resolve()}"
    return changed


def existing_run(name: str, root: Path | str | None = None) -> Run:
    """Reopen a run with the settings it has; KitError where there is none."""
    file = check_exists(name, root)
    return Run(file.parent, _stored_preset(file))


def check_exists(name: str, root: Path | str | None = None) -> Path:
    """The run's `run.json`; KitError where there is no such run."""
    file = _run_file(name, root)
    if not file.exists():
        root = file.parent.parent
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/run.json"))) or "none yet"
        make = f"`python -m rpo_kit prepare --run {name}` makes a new one"
        raise KitError(f"There is no run {name!r} in {root}; there are: {known}. {make}.")
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
            f"The settings in {file} cannot be read ({error}): correct the file, or give the command with --preset, "
            "which writes it anew; finished stages stay."
        ) from None


# ---- stages -------------------------------------------------------------------------------------------------------


@contextmanager
def stage(run: Run, name: str, *, every_rank: bool = False, **inputs: Any) -> Iterator[Path | None]:
    """The stage's folder to work in, or None where there is nothing to do.

    `inputs` are settings, file paths or plain values; each is fingerprinted. Work left by an interrupted call with the
    same inputs is kept, so the stage can go on; work made from other inputs is moved away to `<name>.old`. Of several
    ranks the main one works, and with `every_rank` (a training) the others between its beginning and its end.
    """
    folder, wanted = run.stage(name), {key: fingerprint(value) for key, value in inputs.items()}
    if _inputs(folder / "manifest.json") == wanted:
        if is_main():
            print(f"{name}: done already, in {os.path.relpath(folder)}")
        yield None
    elif is_main():
        lock = run.folder / ".locks" / name.replace("/", "-")
        with full_disk_told(run.folder), locked(lock, f"The stage {name!r} of run {run.name!r}"):
            if _is_brought_back(folder, name, wanted):
                yield None
                return
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "started.json", {"inputs": wanted})
            yield folder
            made = {"stage": name, "inputs": wanted, "preset": as_dict(run.preset)}
            write_json(folder / "manifest.json", made | provenance())
    elif every_rank:
        wait_for(lambda: _inputs(folder / "started.json") == wanted, f"begins {name}")
        yield None if _inputs(folder / "manifest.json") == wanted else folder
        wait_for(lambda: _inputs(folder / "manifest.json") == wanted, f"ends {name}")
    else:
        yield None


def _is_brought_back(folder: Path, name: str, wanted: dict[str, str]) -> bool:
    """Move work made from other inputs away, to `.old`; True where what is there already is the work that is wanted.

    Finished work is never lost to unfinished: settings may be tried, stopped and taken back.
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
            print(f"{name}: {changed} changed; what was begun is dropped, the finished result stays in {name}.old")
    if _inputs(back / "manifest.json") == wanted:
        back.rename(folder)
        print(f"{name}: done before with these settings, and brought back from {name}.old")
        return True
    return False


def require(run: Run, name: str, **inputs: Any) -> Path:
    """The folder of a finished stage that was made from `inputs`; without any, whatever it was made from."""
    made, why = _inputs(run.stage(name) / "manifest.json"), "is not finished"
    if made is not None:
        changed = [key for key, value in inputs.items() if fingerprint(value) != made.get(key)]
        if not changed:
            return run.stage(name)
        why = f"was made with other settings ({', '.join(changed)} changed)"
    raise KitError(
        f"The stage {name!r} of run {run.name!r} {why}: first run `python -m rpo_kit {name} --run {run.name}`."
    )


def made_from(folder: Path) -> dict[str, str]:
    """The fingerprints of what a finished stage was made from."""
    return _inputs(folder / "manifest.json") or {}


def _inputs(path: Path) -> dict[str, str] | None:
    """The fingerprints in a manifest.json or started.json; None where there is no such file."""
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    except FileNotFoundError:
        return None
    return found


# ---- files --------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, written as `write_bytes` does it."""
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
        Path(temporary).unlink(missing_ok=True)  # it is gone where it has taken its place


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSONL file. A torn last line (the process was killed while writing) does not count."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def append_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Append finished items, one line each; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def sort_records(path: Path, ids: list[str]) -> None:
    """Bring the records of a finished file into the order of `ids`: what endpoints answer comes in any order, and the
    same work shall give the same bytes.
    """
    records = {record["id"]: record for record in read_records(path)}
    lines = [json.dumps(records[id_], ensure_ascii=False) + "\n" for id_ in ids if id_ in records]
    if records and path.read_text(encoding="utf-8") != "".join(lines):
        write_text(path, "".join(lines))


def _cut_torn_line(file: Any) -> None:
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
