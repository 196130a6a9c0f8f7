"""`python -m rpo_kit export`: the trained reflection module as files that other programs read.

    adapter   the LoRA weights, their base model named so that other machines find it
    merged    base model and LoRA in one, as safetensors
    gguf      the same in one file, for llama.cpp
    ollama    the same with a Modelfile
    vllm      the adapter with the command that serves it

Each folder holds a model card made from the run (`card.py`) and export.json, which says what it was made from. A folder
appears whole or not at all. Not exported: the base model that writes the generic answers, and retrieval; the card shows
the prompt that they fill.

    export(existing_run("demo"), "gguf", dtype="q8_0")      # runs/demo/exports/rl-gguf-q8_0
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.machine import cache_root
from rpo_kit.model_files import module_files
from rpo_kit.models.adapter_files import portable_name
from rpo_kit.presets import as_dict
from rpo_kit.processes import disk_errors_explained, locked
from rpo_kit.provenance import git_commit
from rpo_kit.rewriting.personalizer import trained_adapter
from rpo_kit.runs import Run, read_json, write_json
from rpo_kit.serving import card
from rpo_kit.serving.export_files import Export, write_adapter, write_gguf_file, write_merged, write_ollama, write_vllm
from rpo_kit.serving.export_folder import NOTE, check_replaceable, files_of, in_one_step
from rpo_kit.stages import damaged, fingerprints, made_from

DTYPES = {  # what a target's weights can be stored as, the default first
    "adapter": (),
    "merged": ("f32", "bf16", "f16"),
    "gguf": ("f16", "q8_0", "bf16", "f32"),
    "ollama": ("f16", "q8_0", "bf16", "f32"),
    "vllm": (),
}
_WRITERS: dict[str, Callable[[Export, Path], object]] = {
    "adapter": write_adapter,
    "merged": write_merged,
    "gguf": write_gguf_file,
    "ollama": write_ollama,
    "vllm": write_vllm,
}


def export(
    run: Run,
    to: str,
    stage: str = "rl",
    out: Path | None = None,
    dtype: str | None = None,
    base: str | None = None,
    force: bool = False,
) -> Path:
    """Write what `stage` trained in the form `to`, and return its folder; one made from the same inputs is kept.

    `dtype` is one of DTYPES; `base` names the base model for other machines if the run's is a folder of this one;
    `force` replaces an export that was made from other inputs.

    Raises:
        KitError: the stage is not finished, the base model is needed and missing, or the folder cannot be written or
            holds something else.
    """
    planned = _planned(run, to, stage, dtype, base)
    default = run.folder / "exports" / "-".join(filter(None, [stage, to, planned.dtype]))
    folder = (out or default).expanduser().resolve()
    inputs = _inputs(planned)
    with _one_at_a_time(folder), disk_errors_explained(folder):
        if _is_done(folder, inputs):
            print(f"export: done already, in {os.path.relpath(folder)}")
            return folder
        check_replaceable(folder, force)
        with in_one_step(folder) as part:
            _WRITERS[to](planned, part)
            card.write(planned, part)
            files = {path.relative_to(part).as_posix(): path.stat().st_size for path in files_of(part)}
            write_json(part / NOTE, {"made_from": inputs, "files": files, "commit": git_commit()})
    print(_report(planned, folder))
    return folder


def _planned(run: Run, to: str, stage: str, dtype: str | None, base: str | None) -> Export:
    known = DTYPES[to]
    if dtype and dtype not in known:
        forms = f"takes --dtype {', '.join(known)}" if known else "copies the weights as they are: leave --dtype out"
        raise KitError(f"--to {to} {forms}; {dtype!r} is not possible.")
    adapter = trained_adapter(run, stage)
    broken = damaged(run.stage(stage))
    if broken:
        raise KitError(
            f"{broken[0]} in {run.stage(stage)} is not as the stage wrote it: run `python -m rpo_kit {stage} --run "
            f"{run.name}` to train it again."
        )
    name = base or portable_name(run.preset.reflection.name)
    return Export(run, to, stage, adapter, name, dtype or next(iter(known), None))


def _inputs(planned: Export) -> dict[str, str]:
    """Fingerprints of all that decides the files, the card's numbers included."""
    run = planned.run
    values: dict[str, Any] = {
        "form": [planned.to, planned.stage, planned.dtype, planned.base],
        "adapter": planned.adapter,
        "settings": as_dict(run.preset),
        "evaluation": made_from(run.stage("evaluate")),
    }
    return fingerprints(values | module_files(run))


def _is_done(folder: Path, inputs: dict[str, str]) -> bool:
    """Whether the folder holds this export, with files of the sizes that were written."""
    note = read_json(folder / NOTE)
    if not isinstance(note, dict) or note.get("made_from") != inputs:
        return False
    return note.get("files") == {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_of(folder)}


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    with locked(cache_root() / "exports" / f"{name}.lock", f"The export {folder}"):
        yield


def _report(planned: Export, folder: Path) -> str:
    files = files_of(folder)
    size = sum(path.stat().st_size for path in files) / 1e6
    run = f"run {planned.run.name!r}, stage {planned.stage}"
    lines = [f"export: {run}, as {planned.to}, in {os.path.relpath(folder)} ({len(files)} files, {size:,.0f} MB)"]
    if planned.base_is_renamed:
        lines.append(
            f"  The base model was a folder of this machine; the export calls it {planned.base!r}. If it has another "
            "name on the hub, export again with --base-name ORGANIZATION/MODEL."
        )
    if planned.run.preset.reflection.load_in_4bit and planned.to in ("merged", "gguf", "ollama"):
        lines.append("  The base was loaded in 4-bit, so the LoRA was merged into its unpacked 4-bit weights.")
    return "\n".join([*lines, f"  Read {os.path.relpath(folder / 'README.md')} for how to use it."])
