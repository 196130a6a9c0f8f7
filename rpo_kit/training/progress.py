"""What both training stages share: the log and its live plot, the finished adapter, and SFT's trainer arguments.

`log.csv` is rewritten whole at every logged step from rows that a checkpoint carries; so after a resume it holds each
step once.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.models.adapter_files import make_portable
from rpo_kit.models.attention import blocks_on_cpu
from rpo_kit.models.local import compute_dtype
from rpo_kit.presets import SFTSettings
from rpo_kit.processes import is_main
from rpo_kit.runs import LogRows, OnLog, write_text
from rpo_kit.training import running_sums
from rpo_kit.training.checkpoints import newest_intact, number_of, seal

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )


class ProgressLog:
    """Shows a progress bar with the column `shown`, writes the log to `path` (CSV) and passes its rows to `on_log`. Of
    several ranks, only the main one does so.
    """

    def __init__(self, path: Path, shown: str, steps: int, done: int, on_log: OnLog | None = None) -> None:
        self.path, self.shown, self.on_log, self.is_main = path, shown, on_log, is_main()
        self.bar = tqdm(total=steps, initial=done, desc="training", unit="step", disable=not self.is_main)

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, rows: LogRows) -> None:
        """One more step is done; `rows` are those of all steps so far."""
        self.bar.update(1)
        self.write(rows)

    def write(self, rows: LogRows) -> None:
        if not self.is_main or not rows:
            return
        write_text(self.path, pd.DataFrame(rows).to_csv(index=False))
        self.bar.set_postfix({self.shown: f"{rows[-1][self.shown]:.3f}"})
        if self.on_log:
            self.on_log(rows)


# ---- the finished adapter -----------------------------------------------------------------------------------------


def is_trained(stage_dir: Path) -> bool:
    """Whether training ended here before the process was killed; then only the stage's manifest is missing."""
    if not (stage_dir / "adapter").exists():  # it is put in place whole, see finish_training
        return False
    if is_main():
        shutil.rmtree(stage_dir / "checkpoints", ignore_errors=True)
    return True


def finish_training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stage_dir: Path) -> None:
    """Keep the adapter (safetensors) and drop the checkpoints, whose optimizer states nobody needs any more. All ranks
    have the same adapter; the main one writes.

    Raises:
        KitError: the adapter holds NaN or infinity.
    """
    refuse_non_finite_adapter(model)
    if not is_main():
        return
    temporary = stage_dir / "adapter.part"
    model.save_pretrained(temporary, selected_adapters=["default"])
    make_portable(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(stage_dir / "adapter", ignore_errors=True)
    os.replace(temporary, stage_dir / "adapter")
    shutil.rmtree(stage_dir / "checkpoints", ignore_errors=True)


def refuse_non_finite_adapter(model: Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise KitError(
                f"The weights of {name} have become NaN or infinite. Training stops, and the last good checkpoint is "
                "kept: lower sft.learning_rate or rl.learning_rate and run again."
            )


def release_memory(usual: int) -> int:
    """Hand freed memory back to the system once the process holds half as much again as `usual` bytes (0: not known
    yet). Returns what it usually holds. glibc keeps freed memory in pieces that the next step's tensors, each of
    another length, do not fit into (measured: four RL steps held 5.5 GB, of which 4 GB were free; left alone it goes
    on). Not at every step: fetching the pages anew takes 5 % of it (measured).
    """
    held = int(psutil.Process().memory_info().rss)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such call
    if trim and usual and held > 1.5 * usual:
        trim(0)
    return usual or held


# ---- SFT's trainer (transformers) ---------------------------------------------------------------------------------


def log_callback(path: Path, shown: str, on_log: OnLog | None = None) -> TrainerCallback:
    """A trainer callback: progress bar, log and `on_log`; checkpoints get checksums; NaN ends the training."""
    from transformers import TrainerCallback

    class KeepLog(TrainerCallback):
        progress: ProgressLog | None = None
        trainer: Trainer | None = None  # set by whoever makes it; its running sums go into the checkpoints

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            self.progress = ProgressLog(path, shown, state.max_steps, state.global_step, on_log)
            if self.trainer and state.global_step:
                running_sums.restore(self.trainer, _checkpoint(args, state), _logged(state))

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            if self.progress:
                self.progress.bar.update(1)

        def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
            rows = _logged(state)
            _refuse_non_finite_row(rows)
            (self.progress or ProgressLog(path, shown, 0, 0, on_log)).write(rows)

        def on_save(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Module
        ) -> None:
            if self.trainer:
                running_sums.save(self.trainer, _checkpoint(args, state))
            if is_main():
                refuse_non_finite_adapter(others["model"])
                seal(_checkpoint(args, state))

        def on_train_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            if self.progress:
                self.progress.bar.close()

    return KeepLog()


def _refuse_non_finite_row(rows: LogRows) -> None:
    for name in ("loss", "grad_norm"):
        if rows and not math.isfinite(rows[-1].get(name, 0.0)):
            raise KitError(
                f"Step {rows[-1]['step']}: {name} is not a number (NaN or infinite). Training stops; the last "
                "checkpoint is kept. Lower sft.learning_rate."
            )


def _logged(state: TrainerState) -> LogRows:
    return [running_sums.in_order(row) for row in state.log_history if "loss" in row]


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "") / f"checkpoint-{state.global_step}"


def common_arguments(settings: SFTSettings, stage_dir: Path) -> dict[str, Any]:
    """Trainer fields that are not SFT's own. The bar is ours, so the trainer's table of losses is off."""
    return {
        "output_dir": str(stage_dir / "checkpoints"),
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
        "logging_nan_inf_filter": False,  # else a NaN would be logged as the loss before it
        **precision(),
    }


def precision() -> dict[str, bool]:
    """Which type autocast computes in while SFT trains; both false: fp32."""
    import torch

    dtype = compute_dtype()
    return {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


def remove_printer_callback(trainer: Trainer) -> None:
    """Take out the callback that prints every log line."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def run_trainer(trainer: Trainer, stage_dir: Path) -> None:
    """Train from the last whole checkpoint in `stage_dir` on."""
    checkpoint = newest_intact(stage_dir / "checkpoints", "a new adapter")
    assert trainer.model is not None
    if checkpoint and number_of(checkpoint) >= trainer.args.max_steps:  # the trainer would do one step more
        trainer._load_from_checkpoint(str(checkpoint))
        return
    model: Any = trainer.model
    with skip_peft_input_cast(model), blocks_on_cpu(model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


@contextmanager
def skip_peft_input_cast(model: Module) -> Iterator[None]:
    """Leave the casting of LoRA inputs to autocast, where it is on: PEFT would cast them to fp32 first, and autocast
    back again (measured: a fifth of an SFT step on a CPU with all seven LoRA targets).
    """
    from peft.helpers import disable_input_dtype_casting

    arguments = precision()
    with disable_input_dtype_casting(model, arguments["bf16"] or arguments["fp16"]):
        yield
