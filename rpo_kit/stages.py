"""Stages of a run: skipped when done, resumed when interrupted, run again for a stated reason.

A stage works in its folder of the run and writes `manifest.json` last: the fingerprints of its inputs and of the files
it wrote, with settings, packages, commit and machine. A finished result is only replaced by a finished one: what was
made from other inputs, finished or not, moves to `<name>.kept-<hash>` and comes back with its inputs. Items that failed
are asked again in a copy, which takes the place of the result when it is done.

    with stage(run, "prepare", settings=run.preset.data) as folder:      # None if the stage is done already
        if folder: ...
    require(run, "prepare", settings=run.preset.data)                    # its folder; KitError if it is not finished
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.presets import as_dict
from rpo_kit.processes import disk_errors_explained, is_main, locked, wait_for
from rpo_kit.provenance import fingerprint, provenance
from rpo_kit.runs import Run, read_json, write_json
from rpo_kit.stage_inputs import MODELS, Inputs, changes, equal, named, without_models

_STARTED, _MANIFEST = "started.json", "manifest.json"
_KEEP = 5  # ours: results of other inputs that are kept per stage


@contextmanager
def stage(
    run: Run, name: str, *, every_rank: bool = False, retry: bool = False, **inputs: Any
) -> Iterator[Path | None]:
    """Yield the folder to work in, or None if there is nothing to do.

    `inputs` are settings, file paths or plain values; each is fingerprinted. What an interrupted call with the same
    inputs left is kept, so the stage can resume. With `retry` a finished stage is taken up again, for items that
    failed. Of several ranks only the main one works; with `every_rank` (training) the others work between its start
    and its end.

    Raises:
        KitError: another process works on this stage, or the disk cannot be written.
    """
    folder, wanted = run.stage(name), fingerprints(inputs)
    if not is_main():
        yield from _other_rank(folder, name, wanted, every_rank)
        return
    if not retry and is_finished(folder, wanted):
        _note_later(run, folder, wanted)
        print(f"{name}: done already, in {os.path.relpath(folder)}")
        yield None
        return
    lock = run.folder / ".locks" / name.replace("/", "-")
    with disk_errors_explained(run.folder), locked(lock, f"The stage {name!r} of run {run.name!r}"):
        work = _open_work(folder, name, wanted, retry)
        yield work
        if work is not None:
            manifest = {"stage": name, "inputs": wanted, "outputs": _outputs(work), "preset": as_dict(run.preset)}
            write_json(work / _MANIFEST, manifest | provenance())
            if work != folder:
                _discard(folder)
                work.rename(folder)


def _other_rank(folder: Path, name: str, wanted: Inputs, every_rank: bool) -> Iterator[Path | None]:
    if not every_rank or is_finished(folder, wanted):
        yield None
        return
    wait_for(lambda: equal(_inputs(folder / _STARTED), wanted), f"starts {name}")
    yield None if equal(_made_from(folder), wanted) else folder
    wait_for(lambda: equal(_made_from(folder), wanted), f"finishes {name}")


def take_over(run: Run, name: str, source: Path, begin_with: Sequence[str] = (), **inputs: Any) -> bool:
    """Let a stage find the result that another run's folder `source` holds, if it was made from the same inputs; if it
    was not, let it begin with these files of it. Returns whether a finished result is there.

    It waits beside the stage's folder, where a result of other inputs waits, and the stage's next call takes it.
    """
    folder, wanted = run.stage(name), fingerprints(inputs)
    waiting = _kept(folder, wanted)
    if is_finished(folder, wanted) or is_finished(waiting, wanted):
        return True
    if not is_main() or equal(_inputs(folder / _STARTED), wanted) or waiting.exists():
        return False
    finished = is_finished(source, wanted)
    files = [file for file in begin_with if (source / file).exists()]
    if not finished and not files:
        return False
    with disk_errors_explained(run.folder):
        part = waiting.with_name(f"{waiting.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        if finished:
            shutil.copytree(source, part, copy_function=link, ignore=_inner_stages)
        else:
            part.mkdir(parents=True)
            for file in files:
                shutil.copy2(source / file, part / file)
            write_json(part / _STARTED, {"inputs": wanted})
        part.rename(waiting)
    return finished


def _inner_stages(folder: str, names: list[str]) -> list[str]:
    """Folders that are stages of their own."""
    return [name for name in names if (Path(folder) / name / _STARTED).exists()]


def require(run: Run, name: str, **inputs: Any) -> Path:
    """The folder of a finished stage that was made from `inputs`; without inputs, whatever it was made from.

    Raises:
        KitError: the stage is not finished, was made from something else, or lacks a file that it wrote.
    """
    folder = run.stage(name)
    stored, why = _made_from(folder), "is not finished"
    if stored is not None:
        wanted = fingerprints(inputs)
        changed = [key for key in changes(stored, wanted) if key in wanted]
        missing = [file for file in _stored(folder / _MANIFEST, "outputs", {}) if not (folder / file).exists()]
        if not changed and not missing:
            return folder
        why = f"was made from other inputs ({named(changed)} changed)" if changed else f"lacks {missing[0]}"
    raise KitError(
        f"The stage {name!r} of run {run.name!r} {why}: first run `python -m rpo_kit {name} --run {run.name}`."
    )


def made_from(folder: Path) -> Inputs:
    """The fingerprints of a finished stage's inputs."""
    return _made_from(folder) or {}


def fingerprints(inputs: Mapping[str, Any]) -> Inputs:
    """{name of the input: its fingerprint}."""
    return {key: fingerprint(value) for key, value in inputs.items()}


def is_finished(folder: Path, wanted: Inputs) -> bool:
    """Whether the folder holds the result of these inputs, as it was written."""
    return equal(_made_from(folder), wanted) and not damaged(folder)


def damaged(folder: Path) -> list[str]:
    """Files and folders of a finished stage that are missing or not as they were written.

    Of records (JSONL) only the presence counts: a correction by hand is intended, and later stages see it.
    """
    bad = []
    for name, (size, mtime, sha256) in _stored(folder / _MANIFEST, "outputs", {}).items():
        path = folder / name
        if not path.is_file():
            bad.append(name)
        elif path.suffix != ".jsonl":
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (size, mtime) and fingerprint(path) != sha256:
                bad.append(name)
    return list(dict.fromkeys(name.partition("/")[0] for name in bad))


def result_state(folder: Path) -> dict[str, Any]:
    """What identifies the result in a stage's folder, stages inside of it included; {} if there is none."""
    manifests = sorted(folder.rglob(_MANIFEST))
    state: dict[str, Any] = {
        path.relative_to(folder).as_posix(): [fingerprint(path), damaged(path.parent)] for path in manifests
    }
    if folder / _MANIFEST not in manifests:  # a sweep has tables of its own beside its stages
        state |= {path.name: fingerprint(path) for path in sorted(folder.glob("*")) if path.is_file()}
    return state


def _outputs(folder: Path) -> dict[str, tuple[int, int, str]]:
    """{file: (size in bytes, time of change in ns, sha256)} of all that the stage wrote; not of stages inside of it."""
    outputs = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parents
        if path.is_file() and path.name not in (_STARTED, _MANIFEST):
            if any((folder / parent / _STARTED).exists() for parent in list(inside)[:-1]):
                continue
            stat = path.stat()
            outputs[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns, fingerprint(path))
    return outputs


# ---- results of other inputs --------------------------------------------------------------------------------------


def _open_work(folder: Path, name: str, wanted: Inputs, retry: bool) -> Path | None:
    """The folder to work in, with what there is of this work already; None if a finished result was restored."""
    _clear_discarded(folder)
    retried = _retried(folder, wanted)
    if not retried.exists() and _retried(folder, without_models(wanted)).exists():
        retried = _retried(folder, without_models(wanted))
    current = _inputs(folder / _STARTED)
    if not equal(current, wanted):
        if _exchange(folder, name, wanted, current):
            return None
    elif equal(_inputs(folder / _MANIFEST), wanted):
        if retry and not damaged(folder):
            return retried if retried.exists() else _copied(folder, retried)
        for entry in damaged(folder):
            print(f"{name}: {entry} is missing or was changed after it was written; it is made again")
            _discard(folder / entry)
        (folder / _MANIFEST).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _STARTED, {"inputs": wanted})
    return folder


def _exchange(folder: Path, name: str, wanted: Inputs, current: Inputs | None) -> bool:
    """Put away what is in `folder` and bring back what there is for `wanted`; True if that is a finished result.

    One rename each, and each result carries its inputs with it: a kill in between leaves both where they are found.
    """
    if current is not None:
        changed = named(changes(current, wanted))
        finished = _inputs(folder / _MANIFEST) is not None
        kept = _kept(folder, current)
        _discard(kept)
        folder.rename(kept)
        print(f"{name}: {changed} changed; the {'old' if finished else 'unfinished'} result is in {kept.name}")
        _prune(folder, name)
    elif folder.exists():
        _discard(folder)  # neither finished nor begun: nothing says what it is
    before = folder.with_name(f"{folder.name}.old")  # where older code kept a result
    versions = (wanted, without_models(wanted))
    names = [place(folder, inputs) for place in (_kept, _retried) for inputs in versions]
    for candidate in (*names, before):
        if equal(_inputs(candidate / _STARTED), wanted):
            candidate.rename(folder)
            finished = is_finished(folder, wanted)
            print(
                f"{name}: {'done' if finished else 'begun'} before with these settings; restored from {candidate.name}"
            )
            return finished
    return False


def _kept(folder: Path, inputs: Inputs) -> Path:
    """Where the result of other inputs waits. (A stage's name may hold slashes: sweep/fixed-2-seed0.)"""
    return folder.with_name(f"{folder.name}.kept-{fingerprint(inputs)[:8]}")


def _retried(folder: Path, inputs: Inputs) -> Path:
    """Where failed items of a finished result are asked again."""
    return folder.with_name(f"{folder.name}.retry-{fingerprint(inputs)[:8]}")


def _prune(folder: Path, name: str) -> None:
    """Keep the latest results only; adapters and data are large."""
    kept = sorted(folder.parent.glob(f"{folder.name}.kept-*"), key=lambda path: path.stat().st_ctime_ns)
    for path in kept[:-_KEEP]:
        print(f"{name}: {path.name}, the oldest of {len(kept)} results, is deleted")
        _discard(path)


def _copied(folder: Path, copy: Path) -> Path:
    """A copy to work in; files that are never changed in place are linked, for they may be gigabytes."""
    part = copy.with_name(f"{copy.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part, copy_function=link, ignore=shutil.ignore_patterns(_MANIFEST))
    part.rename(copy)
    return copy


def link(source: str, target: str) -> None:
    """Copy a file of a stage; one that is never changed in place becomes a hard link."""
    try:
        if not source.endswith(".jsonl"):
            os.link(source, target)
            return
    except OSError:  # a file system without hard links
        pass
    shutil.copy2(source, target)


def _discard(path: Path) -> None:
    """Delete a file or folder in one step for whoever looks: it loses its name first."""
    if path.exists():
        away = path.with_name(f".discarded-{uuid.uuid4().hex[:8]}")
        path.rename(away)
        _remove(away)


def _clear_discarded(folder: Path) -> None:
    """Delete what killed calls had begun to delete."""
    for left in [*folder.parent.glob(".discarded-*"), *folder.glob(".discarded-*")]:
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- what is stored -----------------------------------------------------------------------------------------------


def _note_later(run: Run, folder: Path, wanted: Inputs) -> None:
    """Record the model files that a finished result does not name, so that a later change is noticed. This goes into
    started.json, because the manifest must stay as it was written: its hash identifies the result.
    """
    stored = _made_from(folder) or {}
    if wanted.keys() - stored:
        with disk_errors_explained(run.folder):
            write_json(folder / _STARTED, {"inputs": wanted | stored})


def _made_from(folder: Path) -> Inputs | None:
    """The inputs of the finished result in `folder`, with model files recorded later; None if there is none."""
    inputs = _inputs(folder / _MANIFEST)
    if inputs is None:
        return None
    noted = _inputs(folder / _STARTED) or {}
    return {key: value for key, value in noted.items() if key in MODELS} | inputs


def _inputs(path: Path) -> Inputs | None:
    """The fingerprints in a manifest.json or started.json; None if it is missing or damaged."""
    inputs = _stored(path, "inputs", None)
    return inputs if isinstance(inputs, dict) else None


def _stored(path: Path, key: str, default: Any) -> Any:
    """A part of a manifest; `default` if it is missing or damaged, so that the stage counts as unfinished."""
    manifest = read_json(path)
    return manifest.get(key, default) if isinstance(manifest, dict) else default
