"""What `make gpu-check` checks: each function does one thing and returns a row per measurement.

They run on a GPU with the bundled model and with random models of real shapes, and on a CPU with tiny ones, where
test_gpu_check.py exercises them. A check that fails raises.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import random_model
import rl_step

from rpo_kit.lamp.tasks import get_task
from rpo_kit.memory import SLACK, Shape, estimate, lora_parameters, rewriting, weights
from rpo_kit.memory import rl_step as rl_step_bytes
from rpo_kit.models.local import LoadedModel, load_trainable, prompt_tokens, sample
from rpo_kit.models.lora import merged_adapter
from rpo_kit.models.sampling import Decoder, attention, sample_groups
from rpo_kit.models.unsloth_loader import load_unsloth_trainable
from rpo_kit.pipeline import stage_function
from rpo_kit.presets import ModelSettings, Preset
from rpo_kit.runs import Run, open_run
from rpo_kit.training import reinforce
from rpo_kit.training.rollouts import Prompt

if TYPE_CHECKING:
    from torch import Tensor

Overrides = Mapping[str, str | int | bool]
OURS, UNSLOTHS = "ours", "Unsloth's trainer"


@dataclass
class Row:
    """One measurement. GB are 10^9 bytes that torch holds of the GPU at most, and uses at most; None on a CPU."""

    check: str
    what: str
    seconds: float
    gb: float | None = None
    used_gb: float | None = None
    estimated_gb: float | None = None
    note: str = ""


class Measured:
    """Seconds and GB of a block: `with Measured() as spent: ...`."""

    seconds: float
    gb: tuple[float | None, float | None] = (None, None)  # held, used

    def __enter__(self) -> Measured:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.gb = (torch.cuda.max_memory_reserved() / 1e9, torch.cuda.max_memory_allocated() / 1e9)
        self.seconds = time.perf_counter() - self.start


def limit_memory(gb: float | None) -> None:
    """Let this process take no more of the GPU than a smaller card has."""
    if gb is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gb * 1e9 / total))


# ---- greedy texts -------------------------------------------------------------------------------------------------


def greedy(settings: ModelSettings, new: int) -> list[Row]:
    """Greedy tokens with a CUDA graph are those of the same steps without one, and of buffers that are read as they
    fill. (On a CPU the last two.) The last comparison may differ in bf16 where two words are equally likely.
    """
    loaded = load_trainable(settings, None, seed=0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)  # a new LoRA does nothing
    texts = ["Name a color.", "Write one sentence about the sea.", "What is 2 and 3? Answer with a number."]
    ids = [loaded.tokenizer(text)["input_ids"] for text in texts]
    longest, device = max(map(len, ids)), loaded.model.device
    prompts = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
    loaded.model.eval()
    rows, written = [], {}
    ways: dict[str, Callable[[], Tensor]] = {"full": lambda: of_full_buffers(loaded, prompts, mask, new)}
    for graph in (False, True) if torch.cuda.is_available() else (False,):
        ways["graph" if graph else "filling"] = lambda graph=graph: sample_groups(
            loaded.model, prompts, mask, 3, new, 0.0, [], graph=graph
        )
    name = "4-bit" if settings.load_in_4bit else str(loaded.model.dtype).removeprefix("torch.")
    for way, write in ways.items():
        with Measured() as spent:
            written[way] = write()
        rate = f"{written[way].numel() / spent.seconds:.0f} new tokens per second"
        rows.append(
            Row("greedy", f"{name}, 3 prompts x 3 x {new} tokens, buffers: {way}", spent.seconds, *spent.gb, note=rate)
        )
    if "graph" in written and not torch.equal(written["graph"], written["full"]):
        raise AssertionError(f"{name}: the graph writes other tokens than the steps that it has recorded")
    share = float((written["filling"] == written["full"]).float().mean())
    if share < (1.0 if loaded.model.dtype == torch.float32 else 0.8):
        raise AssertionError(
            f"{name}: only {share:.0%} of the tokens equal those of buffers that are read as they fill"
        )
    rows[-1].note += f"; {share:.0%} of the tokens equal"
    return rows


@torch.no_grad()
def of_full_buffers(loaded: LoadedModel, prompts: Tensor, mask: Tensor, new: int) -> Tensor:
    """What a graph replays, step by step without one."""
    decoder = Decoder(loaded.model, prompts, mask, torch.zeros(len(prompts), 3, new, device=prompts.device), 0.0, [])
    decoder.cache.length = decoder.cache.capacity
    with attention(decoder.model, "rpo_cache"):
        for _ in range(new - 1):
            decoder.step()
    return decoder.written


# ---- the stages ---------------------------------------------------------------------------------------------------


def open_tiny(root: Path, name: str, overrides: Overrides) -> Run:
    """A run of the `tiny` preset with three RL steps, each with a checkpoint."""
    return open_run(name, "tiny", {"rl.steps": 3, "rl.save_every": 1} | dict(overrides), root=root)


def stages(root: Path, name: str, overrides: Overrides, names: list[str]) -> list[Row]:
    """Some stages of a run, in this process. On a GPU SFT needs one of its own."""
    run, rows = open_tiny(root, name, overrides), []
    for stage in names:
        with Measured() as spent:
            stage_function(stage)(run)
        if not (run.stage(stage) / "manifest.json").exists():
            raise AssertionError(f"{stage} has not finished")
        rows.append(Row("stages", f"{name}: {stage}", spent.seconds, *spent.gb))
    if "evaluate" in names:
        scores = pd.read_csv(run.stage("evaluate") / "metrics.csv")
        rows[-1].note = f"{len(scores)} systems"
    return rows


# ---- resuming -----------------------------------------------------------------------------------------------------


def interrupted(root: Path, name: str, overrides: Overrides, kill: bool) -> list[Row]:
    """A copy of the run trains RL until after its second step, and is then killed (in a process of its own), or, for
    tests, interrupted.
    """
    run = copy_without_rl(root, name, overrides)

    def stop(log: list[dict[str, float]]) -> None:
        if len(log) == 2:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt

    try:
        reinforce.train_rl(run, stop)
    except KeyboardInterrupt:
        return []
    raise AssertionError("RL has not been interrupted")


def copy_without_rl(root: Path, name: str, overrides: Overrides) -> Run:
    """A run named NAME-resumed that has what the run has but RL, or what an earlier call has left of it."""
    target = root / f"{name}-resumed"
    if not target.exists():
        shutil.copytree(root / name, target, ignore=shutil.ignore_patterns("rl", "evaluate"))
    return open_tiny(root, target.name, overrides)


def resumed(root: Path, name: str, overrides: Overrides) -> list[Row]:
    """It goes on from its first checkpoint: each step once, and the log of the uninterrupted run."""
    run = copy_without_rl(root, name, overrides)
    checkpoints = sorted(path.name for path in (run.stage("rl") / "checkpoints").glob("checkpoint-*"))
    if checkpoints != ["checkpoint-1"]:
        raise AssertionError(f"the interrupted run has left {checkpoints}")
    with Measured() as spent:
        reinforce.train_rl(run)
    logs = [pd.read_csv(root / one / "rl" / "log.csv") for one in (name, run.name)]
    columns = ["step", "shots", "reward", "loss", "kl"]
    apart = (logs[0][columns] - logs[1][columns]).abs()
    worst = apart.to_numpy().max()
    # On a GPU sums are not always added in the same order, and one other token makes another reward.
    if apart[["step", "shots"]].to_numpy().any() or (worst > 1e-5 and not torch.cuda.is_available()):
        raise AssertionError(f"the resumed log is another one:\n{logs[0][columns]}\n{logs[1][columns]}")
    note = f"killed after step 2, resumed from step 1; largest difference {worst:.2g}"
    return [Row("resume", f"{name}: rl", spent.seconds, *spent.gb, note=note)]


# ---- memory -------------------------------------------------------------------------------------------------------


def make_model(folder: Path, shape: Shape, tokenizer: Path) -> list[Row]:
    """A random model of this shape, for the checks after it."""
    with Measured() as spent:
        random_model.make(shape, folder, tokenizer)
    return [Row("memory", f"make a random model of {weights(shape, False) / 2e9:.2f}B parameters", spent.seconds)]


def rl_memory(folder: Path, preset: Preset, shape: Shape, gb: float | None, lengths: Sequence[int]) -> list[Row]:
    """RL steps at the preset's settings on prompts of these lengths, and a batch of its rewrites, within `gb`."""
    limit_memory(gb)
    model, rl, evaluation = replace(preset.reflection, name=str(folder)), preset.rl, preset.evaluation
    loaded = load_trainable(model, None, seed=0)
    training, rows = reinforce.start_training(loaded, rl), []
    for length in lengths:
        prompts = noise_prompts(rl.prompts_per_step, length)
        reinforce.rl_step(loaded, training, prompts, get_task("LaMP-7"), rl)  # warms up
        with Measured() as spent:
            row, _ = reinforce.rl_step(loaded, training, prompts, get_task("LaMP-7"), rl)
        what = f"{preset.name}: rl, {rl.prompts_per_step} x {rl.group_size}, {length} + {rl.max_new_tokens} tokens"
        note = f"sampling {row['seconds_sampling']:.2f} s; limit {gb} GB"
        estimated = SLACK * rl_step_bytes(shape, model, rl, length) / 1e9
        rows.append(Row("memory", what, spent.seconds, *spent.gb, estimated, note))

    ids = [prompt.ids for prompt in noise_prompts(evaluation.batch_size, max(lengths))]
    with Measured() as spent, torch.no_grad(), merged_adapter(loaded.model):  # as `generate`
        sample(loaded, ids, 1, evaluation.max_new_tokens, 0.0)
    training_too = 16 * lora_parameters(shape, model)
    estimated = SLACK * (rewriting(shape, model, evaluation, max(lengths)) + training_too) / 1e9
    what = f"{preset.name}: {evaluation.batch_size} rewrites, {max(lengths)} + {evaluation.max_new_tokens} tokens"
    return [*rows, Row("memory", what, spent.seconds, *spent.gb, estimated, f"limit {gb} GB")]


def noise_prompts(count: int, length: int) -> list[Prompt]:
    tokens = torch.randint(10, 300, (count, length), generator=torch.Generator().manual_seed(0))
    return [Prompt(str(n), [], ids, "gold", "generic", ["item"]) for n, ids in enumerate(tokens.tolist())]


def sft_memory(folder: Path, preset: Preset, gb: float | None, work: Path) -> list[Row]:
    """Two SFT steps by Unsloth at the preset's settings on rows as long as they may be, within `gb`."""
    limit_memory(gb)
    from datasets import Dataset

    model = replace(preset.reflection, name=str(folder))
    loaded = load_unsloth_trainable(model, 0)
    from rpo_kit.training import sft
    from rpo_kit.training.progress import run_trainer

    settings = replace(preset.sft, steps=2)
    completion = [{"role": "assistant", "content": "a rewrite of some words " * 8}]
    room = loaded.max_seq_length - len(loaded.tokenizer(completion[0]["content"])["input_ids"]) - 16
    words = room - prompt_tokens(loaded.tokenizer, [{"role": "user", "content": ""}])
    text = loaded.tokenizer.decode(loaded.tokenizer("sea " * 2 * words)["input_ids"][:words])
    row = {"prompt": [{"role": "user", "content": text}], "completion": completion}
    rows = Dataset.from_list([row] * settings.batch_size * settings.accumulate * 2)
    trainer = sft.make_trainer(loaded, rows, settings, work, None)
    with Measured() as spent:
        run_trainer(trainer, work)
    what = f"{preset.name}: sft, {settings.batch_size} x {settings.accumulate} rows of {room} tokens, 2 steps"
    estimated = estimate(replace(preset, reflection=model)).get("sft")
    return [Row("memory", what, spent.seconds, *spent.gb, estimated, f"limit {gb} GB; compiles in the first step")]


# ---- the step against another trainer -----------------------------------------------------------------------------


def step_time(model: ModelSettings, ours: bool, shape: Mapping[str, int], checkpointing: bool) -> list[Row]:
    """Mean seconds and peak GB of our step, or of Unsloth's trainer's (on a CPU: stock TRL's). A process each."""
    dtype = "bf16" if torch.cuda.is_available() else "fp32"
    with Measured() as spent:
        figures = rl_step.measure(shared=ours, dtype=dtype, model=model, checkpointing=checkpointing, **shape)
    note = f"sampling {figures['sampling']:.2f} s, prompts of {figures['prompt']:.0f} tokens, {shape}"
    what = (OURS + (", with gradient checkpointing" if checkpointing else "")) if ours else UNSLOTHS
    return [Row("step", what, figures["whole"], *spent.gb, note=note)]
