"""The RL step, ours and stock TRL's in turn: `python tests/benchmarks/rl_step.py [--against PATH] [--roofline]`.

Both train the bundled model on the same prompts with the same rewards and settings, and write the same number of
tokens. Each has a process of its own, so that its peak memory is its own. Prints, for bf16 and fp32, seconds of a whole
step (the first, which warms up, is left out), of sampling, of the rest (log-probabilities, loss, gradient, update), the
share of bookkeeping (parsing, rewards, advantages, records), the ratios, and the peak memory.

    --against PATH   another checkout of the kit (its own copy of this file is run there) in place of stock TRL
    --rounds 3       measure in turn so often: A B A B A B; the medians are compared, the spread is printed
    --roofline       what this machine was measured to do, the step's FLOPs and bytes, and the share of the bound that
                     is reached (roofline.py)
    --demo           the demo's own step: 16 prompts x 8, 80 tokens each, prompts as long as LaMP-7's on average
    --curve          also over group sizes and prompt lengths, in bf16

Runs on the GPU if torch sees one. Not a timed test: measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from datasets import Dataset
from roofline import measure_machine, report, step_work

from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.machine import describe_machine
from rpo_kit.memory import shape_of
from rpo_kit.models import local
from rpo_kit.models.local import LoadedModel, load_trainable, prompt_ids, prompt_tokens
from rpo_kit.models.unsloth_loader import fast_language_model, load_unsloth_trainable
from rpo_kit.presets import ModelSettings, RLSettings, get_preset
from rpo_kit.provenance import git_commit
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.training import reinforce
from rpo_kit.training.rewards import judge
from rpo_kit.training.rollouts import Prompt

P, T = ParamSpec("P"), TypeVar("T")
Figures = dict[str, float]  # seconds of whole, sampling, bookkeeping; tokens of a prompt; GB of memory
TASK = "LaMP-1"
GROUPS, LENGTHS = (2, 4, 8, 16), (100, 200, 800)  # and 400 with 8
DEMO = {"prompts": 16, "group": 8, "length": 220, "new": 80}  # LaMP-7's prompts with 2 to 6 items: 172 to 267 tokens
PARTS = ("whole", "sampling", "rest")
REPOSITORY = Path(__file__).resolve().parents[2]


# ---- one measurement ----------------------------------------------------------------------------------------------


def some_prompts(loaded: LoadedModel, count: int, length: int) -> list[Prompt]:
    """Prompts of so many tokens, cut from a long text of six items, query and their repetition."""
    task, prompts = get_task(TASK), []
    empty = prompt_tokens(loaded.tokenizer, [{"role": "user", "content": ""}])
    for row in build(TASK, "train", count):
        text = reflection_messages(task, row["input"], "", row["profile"][:6])[1]["content"]
        ids = loaded.tokenizer(" ".join([text] * 8), add_special_tokens=False)["input_ids"][: length - empty]
        messages = [{"role": "user", "content": loaded.tokenizer.decode(ids)}]
        prompts.append(Prompt(row["id"], messages, prompt_ids(loaded.tokenizer, messages), row["output"], "", [""] * 6))
    return prompts


def measure(
    *,
    shared: bool,
    dtype: str,
    prompts: int,
    group: int,
    length: int,
    new: int,
    steps: int,
    micro: int,
    model: ModelSettings | None = None,
    checkpointing: bool = False,
) -> Figures:
    """Mean seconds of a step's parts, and the peak memory in GB, in this process. `shared`: ours; else stock TRL's, and
    on a GPU Unsloth's trainer, with the model and adapter that it has patched.
    """
    preset = get_preset("cpu")
    settings = dataclasses.replace(
        preset.rl,
        steps=1 + steps,
        prompts_per_step=prompts,
        group_size=group,
        micro_batch_tokens=micro // group * (length + group * new) if micro else 10**9,
        max_new_tokens=new,
        gradient_checkpointing=checkpointing,
    )
    if not shared:
        fast_language_model()  # gives TRL's head a form that runs on a CPU, and puts its own trainer there on a GPU
    model = model or preset.reflection
    patched = not shared and torch.cuda.is_available()
    loaded = load_unsloth_trainable(model, seed=0) if patched else load_trainable(model, None, seed=0)
    if dtype == "fp32":
        loaded.model.float()
    examples = some_prompts(loaded, settings.steps * prompts, length)
    timed = our_steps if shared else trl_steps
    spent = timed(loaded, examples, settings, micro or prompts * group)
    figures = {name: sum(times[1:]) / steps for name, times in spent.items()}
    tokens = sum(len(prompt.ids) for prompt in examples) / len(examples)
    return figures | {"prompt": tokens, "memory": peak_memory()}


def peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def our_steps(loaded: LoadedModel, examples: Sequence[Prompt], settings: RLSettings, _: int) -> dict[str, list[float]]:
    """Seconds of our steps by part."""
    spent: dict[str, list[float]] = defaultdict(list)
    training = reinforce.start_training(loaded, settings)
    with ExitStack() as patches:
        patches.enter_context(patch.object(local, "end_tokens", lambda loaded: []))  # nothing ends early
        for name, part in (
            ("sample_completions", "sampling"),
            ("accumulate_gradients", "learning"),
            ("update", "learning"),
        ):
            patches.enter_context(patch.object(reinforce, name, timing(spent[part], getattr(reinforce, name))))
        for step in range(settings.steps):
            first = step * settings.prompts_per_step
            mine = examples[first : first + settings.prompts_per_step]
            with stopwatch(spent["whole"]):
                reinforce.rl_step(loaded, training, mine, get_task(TASK), settings)
    learning = [sum(pair) for pair in zip(spent["learning"][::2], spent.pop("learning")[1::2], strict=True)]
    parts = zip(spent["whole"], spent["sampling"], learning, strict=True)
    spent["bookkeeping"] = [whole - sampling - rest for whole, sampling, rest in parts]
    return spent


def trl_steps(
    loaded: LoadedModel, examples: Sequence[Prompt], settings: RLSettings, micro: int
) -> dict[str, list[float]]:
    """Seconds of the same steps by TRL's GRPOTrainer as it is; its own advantages, which cost nothing."""
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    sequences, task = settings.prompts_per_step * settings.group_size, get_task(TASK)
    spent: dict[str, list[float]] = defaultdict(list)

    class Whole(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            spent["whole"].append(time.perf_counter() - self.start)

    def rewards(completions: list[list[dict[str, str]]], gold: list[str], **_: object) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [judge(task, text, one, 6).reward for text, one in zip(texts, gold, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=sequences // micro,
            steps_per_generation=sequences // micro,
            num_generations=settings.group_size,
            max_completion_length=settings.max_new_tokens,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            optim="adamw_torch",
            temperature=settings.temperature,
            top_p=1.0,
            top_k=0,
            loss_type="dapo",
            beta=settings.beta,
            epsilon=settings.clip,
            mask_truncated_completions=False,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=loaded.model.dtype == torch.bfloat16,
            fp16=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_vllm=False,
        )
        trainer = GRPOTrainer(
            model=loaded.model,
            reward_funcs=[rewards],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": one.messages, "gold": one.gold} for one in examples]),
            processing_class=loaded.tokenizer,
            callbacks=[Whole()],
        )
        trainer.generation_config.min_new_tokens = settings.max_new_tokens  # as many tokens as ours
        for name, part in (("_generate_single_turn", "sampling"), ("_calculate_rewards", "bookkeeping")):
            setattr(trainer, name, timing(spent[part], getattr(trainer, name)))
        with open(os.devnull, "w") as nowhere, patch.object(sys, "stdout", nowhere):
            trainer.train()
    return spent


def timing(seconds: list[float], call: Callable[P, T]) -> Callable[P, T]:
    """The function, which notes how long each call of it takes."""

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with stopwatch(seconds):
            return call(*args, **kwargs)

    return run


@contextmanager
def stopwatch(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)


# ---- comparing ----------------------------------------------------------------------------------------------------


def in_a_process(checkout: Path, **wanted: object) -> Figures:
    """`measure` in a new process, by the checkout's own copy of this file and of the kit.

    Raises:
        SystemExit: the process failed; what it said stands above.
    """
    script = checkout / "tests" / "benchmarks" / "rl_step.py"
    if not script.is_file():
        raise SystemExit(f"{checkout} is not a checkout of the kit: {script} is missing.")
    command = [sys.executable, str(script), "--child", json.dumps(wanted)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout, check=False)
    if done.returncode:
        raise SystemExit(f"The step of {checkout} failed (exit code {done.returncode}).")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(label: str, against: Path | None, rounds: int, **wanted: object) -> Figures:
    """Ours and the other in turn; a line each with the medians, and a line of ratios. Returns ours."""
    other = {"shared": True} if against else {"shared": False}
    pairs = [
        (
            in_a_process(REPOSITORY, shared=True, **wanted),
            in_a_process(against or REPOSITORY, **other, **wanted),
        )
        for _ in range(rounds)
    ]
    ours, theirs = (median([pair[side] for pair in pairs]) for side in (0, 1))
    for name, figures in (("ours", ours), ("other" if against else "stock", theirs)):
        seconds = "  ".join(f"{part} {figures[part]:6.2f} s" for part in PARTS)
        share = figures["bookkeeping"] / figures["whole"]
        print(f"{label:10} {name:5}  {seconds}  bookkeeping {share:.2%}  peak {figures['memory']:.1f} GB")
    ratios = "  ".join(f"{part} {theirs[part] / ours[part]:6.2f}  " for part in PARTS)
    spread = [theirs["whole"] / ours["whole"] for ours, theirs in pairs]
    each = f"; of each round {min(spread):.2f} to {max(spread):.2f}" if rounds > 1 else ""
    print(f"{label:10} ratio  {ratios}  (prompts of {ours['prompt']:.0f} tokens{each})", flush=True)
    return ours


def median(figures: Sequence[Figures]) -> Figures:
    """The middle one of each figure, with `rest` = whole - sampling - bookkeeping."""
    middle = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
    return middle | {"rest": middle["whole"] - middle["sampling"] - middle["bookkeeping"]}


def print_roofline(ours: Figures, dtype: str, prompts: int, group: int, new: int, micro: int) -> None:
    """The bound of the step that was measured, and the share of it that was reached."""
    model, length = get_preset("cpu").reflection, round(ours["prompt"])
    shape = shape_of(model.name)
    assert shape is not None  # the bundled model's is known
    rl = RLSettings(
        prompts_per_step=prompts,
        group_size=group,
        max_new_tokens=new,
        micro_batch_tokens=micro // group * (length + group * new) if micro else 10**9,
    )
    machine = measure_machine(torch.float32 if dtype == "fp32" else torch.bfloat16, local.device())
    print(report(step_work(shape, model, rl, length, element=4 if dtype == "fp32" else 2), machine, ours["whole"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompts", 2), ("group", 8), ("length", 400), ("new", 48), ("steps", 2), ("micro", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("bf16", "fp32", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=1, help="how often to measure in turn")
    parser.add_argument("--against", type=Path, help="another checkout of the kit, in place of stock TRL")
    parser.add_argument("--roofline", action="store_true", help="the bound of the step on this machine")
    parser.add_argument("--demo", action="store_true", help="the demo's own step")
    parser.add_argument("--curve", action="store_true", help="also over group sizes and prompt lengths, in bf16")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**options.child)))
        return
    shape = {name: getattr(options, name) for name in ("prompts", "group", "length", "new", "steps", "micro")}
    shape |= DEMO if options.demo else {}
    against = options.against.resolve() if options.against else None
    load = os.getloadavg()[0]
    print(f"{describe_machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {load:.1f}")
    print(f"commit {git_commit()} against {against_name(against)}, {shape}, {options.rounds} rounds")
    for dtype in ("bf16", "fp32") if options.dtype == "both" else (options.dtype,):
        ours = compare(dtype, against, options.rounds, dtype=dtype, **shape)
        if options.roofline:
            print_roofline(ours, dtype, shape["prompts"], shape["group"], shape["new"], shape["micro"])
    if options.curve:
        print("the curve: one prompt per step")
        shape |= {"dtype": "bf16", "steps": 1, "prompts": 1}
        for group in GROUPS:
            compare(f"G = {group}", against, options.rounds, **shape | {"group": group})
        for length in LENGTHS:
            compare(f"{length} tokens", against, options.rounds, **shape | {"length": length})


def against_name(checkout: Path | None) -> str:
    """Stock TRL, or the other checkout with its commit."""
    if checkout is None:
        return "stock TRL"
    git = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return f"{checkout} at {done.stdout.strip() or 'an unknown commit'}"


if __name__ == "__main__":
    main()
