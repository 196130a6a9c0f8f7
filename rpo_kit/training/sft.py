"""Stage 3, `sft`: fine-tune the reflection module on the trajectories (Figure 2, top right).

TRL's SFTTrainer on Unsloth with LoRA; the loss counts the completion only. Several processes (torchrun, `accelerate
launch`) share out the sequences of a step, so that it is the step of one process.

    in:  prompt = system + a few history items + query + generic answer;  completion = the trajectory
    out: `sft/adapter` (LoRA, safetensors), `sft/log.csv`
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.item import items_by_id
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.unsloth_loader import load_unsloth_trainable
from rpo_kit.pipeline import inputs_of, refuse
from rpo_kit.presets import SFTSettings
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import DoesNotFitError, fitting_messages
from rpo_kit.rewriting.trajectory import Form, Trajectory, render
from rpo_kit.runs import OnLog, Run, read_records
from rpo_kit.stages import stage
from rpo_kit.training import ranks
from rpo_kit.training.progress import (
    common_arguments,
    finish_training,
    is_trained,
    log_callback,
    remove_printer_callback,
    run_trainer,
)


def train_sft(run: Run, on_log: OnLog | None = None) -> None:
    """Train the adapter; after an interruption, resume from the last checkpoint."""
    settings = run.preset.sft
    refuse(run, "sft")
    with stage(run, "sft", every_rank=True, **inputs_of(run, "sft")) as work:
        if work is None or is_trained(work):
            return
        loaded = load_unsloth_trainable(run.preset.reflection, settings.seed)
        trainer = make_trainer(loaded, sft_dataset(run, loaded), settings, work, on_log)
        try:
            run_trainer(trainer, work)
        except torch.OutOfMemoryError as error:
            raise KitError(_needs_less_memory(settings, loaded.max_seq_length)) from error
        finish_training(trainer.model, loaded.tokenizer, work)


def _needs_less_memory(settings: SFTSettings, max_seq_length: int) -> str:
    lower = f"lower reflection.max_seq_length (now {max_seq_length})"
    if settings.batch_size > 1:
        of_step = settings.batch_size * settings.accumulate
        half = settings.batch_size // 2
        lower = f"set sft.batch_size={half} and sft.accumulate={of_step // half}, which makes the same step, or {lower}"
    return f"The GPU does not have enough memory for an SFT step: {lower}, and run again; SFT then starts again."


def sft_dataset(run: Run, loaded: LoadedModel) -> Dataset:
    """One row per trajectory: `prompt` and `completion` as conversations.

    What is too long is shortened or left out, and counted.
    """
    examples = {example["id"]: example for example in load_prepared(run, "train")}
    records = read_records(run.stage("synthesize") / "trajectories.jsonl")
    rows, shortened, left_out = [], 0, []
    for record in records:
        try:
            row, cut = _row(run, loaded, examples[record["example"]], record)
        except DoesNotFitError as error:
            left_out.append(str(error))
            continue
        rows.append(row)
        shortened += cut
    if shortened:
        print(f"{shortened} of {len(records)} prompts were shortened to fit {loaded.max_seq_length} tokens")
    if left_out:
        print(f"{len(left_out)} of {len(records)} trajectories are left out, the first because: {left_out[0]}")
    if not rows:
        raise KitError(
            f"None of the {len(records)} trajectories fits into {loaded.max_seq_length} tokens: raise "
            "reflection.max_seq_length."
        )
    return Dataset.from_list(rows)


def _row(run: Run, loaded: LoadedModel, example: Example, record: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    profile = items_by_id(example["profile"], example["id"])
    items = [profile[item_id] for item_id in record["items"]]
    form = Form.of(run.preset.reflection)
    text = render(Trajectory(record["observe"], record["plan"], record["rewrite"]), form.sections)
    limit = loaded.max_seq_length - len(loaded.tokenizer(text)["input_ids"]) - 8
    task = get_task(run.preset.data.task)
    prompt, cut = fitting_messages(loaded.tokenizer, limit, task, example, items, record["first"], form)
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}, cut


def shares_of_step(settings: SFTSettings, processes: int) -> tuple[int, int]:
    """Sequences per pass and passes per step of each of several processes, which together take the step of one.

    Raises:
        KitError: the sequences of a step cannot be shared out evenly.
    """
    of_step = settings.batch_size * settings.accumulate
    own, left = divmod(of_step, processes)
    if left or not own:
        raise KitError(
            f"The {of_step} sequences of an SFT step (sft.batch_size={settings.batch_size} times "
            f"sft.accumulate={settings.accumulate}) cannot be shared out evenly to {processes} processes: start "
            "another number of processes, or change one of the two."
        )
    batch = max(size for size in range(1, settings.batch_size + 1) if own % size == 0)
    return batch, own // batch


def training_order(lengths: Sequence[int], settings: SFTSettings) -> list[int]:
    """The numbers of the rows that training reads, one after the other: all of them, shuffled, again and again.

    The rows of one step stand in order of length. So its micro-batches hold rows of like length, which are padded less,
    and the step's gradient is the same.
    """
    of_step = settings.batch_size * settings.accumulate
    draw, order = random.Random(f"sft/{settings.seed}"), list[int]()
    while len(order) < settings.steps * of_step:
        order += draw.sample(range(len(lengths)), len(lengths))
    steps = (order[n : n + of_step] for n in range(0, settings.steps * of_step, of_step))
    return [row for step in steps for row in sorted(step, key=lambda row: lengths[row])]


def lengths_of(rows: Dataset) -> list[int]:
    """Characters of each row."""
    return [sum(len(message["content"]) for message in row["prompt"] + row["completion"]) for row in rows]


def make_trainer(loaded: LoadedModel, rows: Dataset, settings: SFTSettings, work: Path, on_log: OnLog | None) -> Any:
    """TRL's trainer. Every field that decides something is set, because Unsloth changes the defaults."""
    from trl import SFTConfig, SFTTrainer  # after Unsloth, which `loaded` has imported

    batch_size, accumulate = shares_of_step(settings, ranks.world()[1])
    config = SFTConfig(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup * settings.steps),
        max_length=loaded.max_seq_length,
        completion_only_loss=True,
        packing=False,
        train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,  # every LoRA weight has a gradient
        logging_steps=max(1, settings.steps // 40),
        **common_arguments(settings, work),
    )
    log: Any = log_callback(work / "log.csv", "loss", on_log)
    ordered = rows.select(training_order(lengths_of(rows), settings))
    trainer = SFTTrainer(
        model=loaded.model, args=config, train_dataset=ordered, processing_class=loaded.tokenizer, callbacks=[log]
    )
    log.trainer = trainer
    remove_printer_callback(trainer)
    return trainer
