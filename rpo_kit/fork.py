"""`fork`: a new run from an old one, with some settings changed and every finished stage that the change leaves valid.

A stage is taken over if it is finished and its inputs are the same under the new settings: `fork(…, {"rl.steps": 40})`
keeps `prepare`, `synthesize` and `sft`. Files that are never changed in place are hard-linked, so that a fork takes no
time and little space; records are copied. Of a sweep or a component study, whose trials are stages of their own, the
trials go along, and each is checked again when the stage runs. The new run appears in one step, or not at all.

    fork("few", existing_run("demo"), {"sft.steps": 20})
    # fork: 'few' is 'demo' with sft.steps=20
    #   taken over     prepare, synthesize
    #   to be computed sft (settings changed), rl (builds on sft), …
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES, Stage, all_inputs, refusals
from rpo_kit.presets import as_dict, override
from rpo_kit.processes import disk_errors_explained, locked
from rpo_kit.runs import Run, existing_run, read_json, run_file, with_absolute_paths, write_json
from rpo_kit.stage_inputs import changes, named
from rpo_kit.stages import damaged, fingerprints, link, made_from

_MANIFEST = "manifest.json"
_UNFINISHED = ("*.kept-*", "*.retry-*", "*.part", ".discarded-*", "*.old")  # what stages put aside
_PLAN = "plan.json"  # of a sweep or component study: written before its first trial, it belongs to the trials


def fork(name: str, old: Run, overrides: Mapping[str, Any] | None = None, *, reuse: bool = False) -> Run:
    """Create the run `name` beside `old`, with its settings but for the overrides; print what was taken over.

    With `reuse` an existing run of that name is returned if it has exactly these settings, so that a notebook can be
    run again.

    Raises:
        KitError: the name is taken or invalid, a setting is invalid, or a stage would refuse the settings.
    """
    root, overrides = old.folder.parent, with_absolute_paths(overrides or {})
    folder, preset = run_file(name, root).parent, override(old.preset, overrides)
    if reuse and (folder / "run.json").exists() and existing_run(name, root).preset == preset:
        print(f"fork: {name!r} exists already, with these settings")
        return existing_run(name, root)
    what = f"The fork {name!r}"
    with disk_errors_explained(root), locked(root / ".locks" / f"fork-{name}", what):
        _check_free(folder)
        part = Run(root / f".fork-{name}", preset)
        _remove(part.folder)  # what a killed call left
        try:
            reasons = _take_over(old, part)
            _check_new_refusals(old, part, reasons)
            write_json(part.folder / "run.json", {"name": name, "preset": as_dict(preset)})
            _check_free(folder)
            part.folder.rename(folder)
        finally:
            _remove(part.folder)
    print(_report(name, old, overrides, reasons))
    return Run(folder, preset)


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise KitError(
            f"There is a run {folder.name!r} in {folder.parent} already: choose another name for the fork, or delete "
            "that folder."
        )


def _check_new_refusals(old: Run, new: Run, stages: Collection[str]) -> None:
    """Raise KitError if one of the stages would refuse the settings, and not those of `old` for the same reason."""
    known = set(refusals(old).values())
    for reason in refusals(new, *stages).values() if stages else ():
        if reason not in known:
            raise KitError(reason)


def _take_over(old: Run, new: Run) -> dict[str, str]:
    """Share the valid stages of `old` with `new`; {stage: why it has to be computed} of the others."""
    new.folder.mkdir(parents=True)
    reasons: dict[str, str] = {}
    for row in STAGES.values():
        with locked(old.folder / ".locks" / row.name, f"The stage {row.name!r} of run {old.name!r}"):
            why = _why_not(old, new, row, next(iter(reasons), ""))
            if not why:
                _share(old.stage(row.name), new.stage(row.name))
            elif row.marker != _MANIFEST and "builds on" not in why:
                trials = _share_trials(old.stage(row.name), new.stage(row.name))
                why += f"; its {trials} finished trials went along and are checked then" if trials else ""
        if why:
            reasons[row.name] = why
    return reasons


def _why_not(old: Run, new: Run, row: Stage, missing: str) -> str:
    """Why a stage of `old` is not the stage of `new`; "" if it is. `missing` is the first stage that `new` lacks."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what a stage says of its settings it says when it runs
            wanted = fingerprints(all_inputs(new, row.name))
    except KitError as error:
        return f"builds on {missing}" if missing else str(error)
    folder = old.stage(row.name)
    if not (folder / row.marker).exists():
        return f"not finished in {old.name!r}"
    if row.marker != _MANIFEST:
        return _why_not_tables(folder, new, row)
    changed = [key for key in changes(made_from(folder), wanted) if key in wanted]
    if changed:
        return f"{named(changed)} changed"
    bad = damaged(folder)
    return f"{bad[0]} is damaged in {old.name!r}" if bad else ""


def _why_not_tables(folder: Path, new: Run, row: Stage) -> str:
    """The same for a stage of many trials, whose tables depend on nearly all settings."""
    stored = (read_json(folder / row.marker) or {}).get("preset", {})
    others = {other.name for other in STAGES.values() if other.marker != _MANIFEST} - {row.name}
    left, right = (_deciding(preset, others) for preset in (stored, as_dict(new.preset)))
    changed = sorted(key for key in left.keys() | right if left.get(key) != right.get(key))
    if changed:
        return f"{', '.join(changed)} changed"
    made = (folder / row.marker).stat().st_mtime_ns
    read = [new.stage(path.partition("/")[0]) / _MANIFEST for path in row.reads.values()]
    return "older than what it reads" if any(path.stat().st_mtime_ns > made for path in read) else ""


def _deciding(preset: Mapping[str, Any], others: set[str]) -> dict[str, Any]:
    """The settings that can decide a table."""
    return {key: value for key, value in preset.items() if key not in {"name", "about", "endpoint", *others}}


def _share(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(*_UNFINISHED))
    except (shutil.Error, FileNotFoundError) as error:
        if not source.exists() or isinstance(error, FileNotFoundError):
            raise KitError(f"{source} was moved while it was copied: fork again when its stage is done.") from error
        raise


def _share_trials(source: Path, target: Path) -> int:
    """Share the trials without the tables made of them; the number of trials with a finished part."""
    trials = [path for path in sorted(source.glob("[!.]*")) if path.is_dir() and any(path.rglob(_MANIFEST))]
    trials = [path for path in trials if not any(path.match(pattern) for pattern in _UNFINISHED)]
    for path in trials:
        _share(path, target / path.name)
    if trials and (source / _PLAN).exists():
        shutil.copy2(source / _PLAN, target / _PLAN)
    return len(trials)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _report(name: str, old: Run, overrides: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    changed = ", ".join(f"{key}={_plain(value)}" for key, value in overrides.items())
    taken = [stage for stage in STAGES if stage not in reasons]
    lines = [f"fork: {name!r} is {old.name!r} with {changed or 'the same settings'}"]
    lines += [f"  taken over      {', '.join(taken) or 'nothing'}"]
    lines += [f"  to be computed  {stage}: {why}" for stage, why in reasons.items()]
    if reasons:
        lines += [f"  next            python -m rpo_kit {next(iter(reasons))} --run {name}"]
    return "\n".join(lines)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
