"""Checkpoints of RL, from which an interrupted training resumes: written atomically, the last two kept.

    checkpoints/checkpoint-10/adapter.safetensors      the policy's LoRA
                              optimizer.safetensors    AdamW's two moments and step of each of its tensors
                              state.json               step, log, gradient scaler
                              checksums.json           sha256 of the files above, written last

No random state is stored: what a step draws follows from seed, step and prompt. A checkpoint whose files are not as
they were written (truncated, garbled, missing) is skipped with a message, and the one before it is used. SFT's
checkpoints are TRL's own, with a checksums.json added.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from rpo_kit.runs import LogRows, write_text

_KEEP = 2
_SUMS = "checksums.json"


@dataclass
class Training:
    """The state of RL training, which a checkpoint stores."""

    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    log: LogRows
    step: int = 0
    memory: int = 0  # bytes held after the first step; of this process, so not in checkpoints


def save(folder: Path, training: Training) -> None:
    """Write checkpoint-STEP in `folder` atomically, and delete all but the last two."""
    path = folder / f"checkpoint-{training.step}"
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    moments = training.optimizer.state_dict()["state"]
    names = list(training.parameters)
    save_file(
        {name: tensor.detach().cpu() for name, tensor in training.parameters.items()}, part / "adapter.safetensors"
    )
    optimizer = {f"{key}/{names[n]}": value.cpu() for n, state in moments.items() for key, value in state.items()}
    save_file(optimizer, part / "optimizer.safetensors")
    state = {"step": training.step, "log": training.log, "scaler": training.scaler.state_dict()}
    write_text(part / "state.json", json.dumps(state))
    seal(part)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one of an earlier call
    os.replace(part, path)
    for old in numbered(folder)[:-_KEEP]:
        shutil.rmtree(old)


def restore(folder: Path, training: Training, start: str) -> None:
    """Load the newest intact checkpoint into `training`, in place, and print its name.

    `start` names what training begins from if all are damaged.
    """
    path = newest_intact(folder, start)
    if path is None:
        return
    stored = load_file(path / "adapter.safetensors")
    for name, parameter in training.parameters.items():
        parameter.data.copy_(stored[name])
    moments: dict[int, dict[str, Tensor]] = {}
    numbers = {name: n for n, name in enumerate(training.parameters)}
    for key, value in load_file(path / "optimizer.safetensors").items():
        kind, _, name = key.partition("/")
        moments.setdefault(numbers[name], {})[kind] = value
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    training.scaler.load_state_dict(state["scaler"])
    training.step, training.log[:] = state["step"], state["log"]


def newest_intact(folder: Path, start: str) -> Path | None:
    """The newest checkpoint whose files are as they were written, or None; prints which were skipped."""
    for path in reversed(numbered(folder)):
        damage = damage_of(path)
        if damage is None:
            print(f"resuming from {path.name}")
            return path
        print(f"{path.name} is damaged ({damage}) and skipped")
    if numbered(folder):
        print(f"no checkpoint is intact: training starts again from {start}")
    return None


def numbered(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    paths = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(paths, key=number_of)


def number_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(path: Path) -> None:
    """Flush all files in the folder to the disk and store their sha256."""
    write_text(path / _SUMS, json.dumps(_sums(path, flush=True), indent=1))


def damage_of(path: Path) -> str | None:
    """What is wrong with a sealed folder, or None."""
    try:
        written = json.loads((path / _SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{_SUMS} is missing or cannot be read"
    now = _sums(path)
    changed = [name for name, digest in written.items() if now.get(name) != digest]
    return f"{', '.join(changed)}: truncated, changed or missing" if changed or not written else None


def _sums(path: Path, flush: bool = False) -> dict[str, str]:
    sums = {}
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != _SUMS):
        with open(file, "rb") as opened:
            sums[file.relative_to(path).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
            if flush:
                os.fsync(opened.fileno())
    return sums
