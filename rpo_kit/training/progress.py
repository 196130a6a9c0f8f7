"""What both training stages share: the log that survives a kill, the callback that a live plot hangs on, the resume.

`log.csv` is rewritten whole at every logged step from the trainer's own state, which a checkpoint carries; so after a
resume it holds each step once.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rpo_kit.presets import RLSettings, SFTSettings
from rpo_kit.processes import is_main
from rpo_kit.runs import write_text

OnLog = Callable[[list[dict[str, float]]], None]


def log_callback(path: Path, shown: str, on_log: OnLog | None = None) -> Any:
    """A trainer callback: a progress bar with the value `shown`, the log in `path` (CSV), all its rows to `on_log`; of
    several ranks on the main one.
    """
    from transformers import TrainerCallback

    class KeepLog(TrainerCallback):
        bar = tqdm(disable=True)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done, total = state.global_step, state.max_steps
            self.bar = tqdm(total=total, initial=done, desc="training", unit="step", disable=not is_main())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(1)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not is_main():
                return
            rows = [row for row in state.log_history if "loss" in row]
            write_text(path, pd.DataFrame(rows).to_csv(index=False))
            if rows:
                self.bar.set_postfix({shown: f"{rows[-1][shown]:.3f}"})
            if on_log:
                on_log(rows)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return KeepLog()


def common_arguments(settings: SFTSettings | RLSettings, work: Path) -> dict[str, Any]:
    """The trainer fields that both stages share. The bar is ours: the trainer's table of losses, near 0 by construction
    in RL, would mislead.
    """
    return {
        "output_dir": str(work / "checkpoints"),
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        **precision(),
    }


def only_our_progress(trainer: Any) -> None:
    """Take out the callback that prints every log line."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole, or None."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest:
        print(f"going on from {newest.name}")
    return str(newest) if newest else None


def _is_json(path: Path) -> bool:
    """Whether the file is there and whole. The trainer writes trainer_state.json last, and not atomically."""
    try:
        json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def is_trained(work: Path) -> bool:
    """Whether training ended here before the process was killed; then only the stage's manifest is missing."""
    if not (work / "adapter").exists():  # it is put in place whole, see finish_training
        return False
    if is_main():
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return True


def finish_training(model: Any, tokenizer: Any, work: Path) -> None:
    """Keep the adapter (safetensors) and drop the checkpoints, whose optimiser states nobody needs any more. All ranks
    have the same adapter; the main one writes.
    """
    if not is_main():
        return
    temporary = work / "adapter.part"
    model.save_pretrained(temporary, selected_adapters=["default"])
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(work / "adapter", ignore_errors=True)
    os.replace(temporary, work / "adapter")
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def precision() -> dict[str, Any]:
    """bf16 where the hardware computes in it, fp16 on older GPUs such as a T4, full precision on older CPUs."""
    import torch

    if torch.cuda.is_available():
        bf16 = torch.cuda.get_device_capability()[0] >= 8
        return {"bf16": bf16, "fp16": not bf16}
    return {"bf16": _cpu_has_bf16(), "fp16": False}


def train(trainer: Any, work: Path) -> None:
    """Train from the last whole checkpoint in `work` on."""
    with autocast_casts(trainer.model):
        trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))


@contextmanager
def autocast_casts(model: Any) -> Iterator[None]:
    """Leave the casting of LoRA inputs to autocast, where it is on: PEFT would cast them to fp32 first, and autocast
    back again (measured: a fifth of an SFT step on a CPU with all seven LoRA targets).
    """
    from peft.helpers import disable_input_dtype_casting

    arguments = precision()
    with disable_input_dtype_casting(model, arguments["bf16"] or arguments["fp16"]):
        yield


def give_back_memory() -> None:
    """Hand freed memory back to the system. glibc keeps it in pieces that the next step's tensors, each of another
    length, do not fit into (measured: four RL steps held 5.5 GB, of which 4 GB were free; left alone it goes on).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such call
    if trim:
        trim(0)


def _cpu_has_bf16() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and any(flag in cpu.read_text() for flag in ("avx512_bf16", "amx_bf16"))
