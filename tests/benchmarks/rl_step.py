"""The RL step, ours and stock TRL's in turn: `python tests/benchmarks/rl_step.py [--curve]`.

Both train the bundled model with the same rows, rewards and settings; only `shares_prefix` differs. Each has a process
of its own, so that its peak memory is its own. Prints, for bf16 and fp32, seconds of a whole step (the first, which
warms up, is left out), of sampling, of the rest (scoring, loss, backward, optimiser), the share of bookkeeping
(rewards, advantages, log), the ratios, and the peak memory. `--curve` adds group sizes and prompt lengths. `--micro`
cuts the step into micro-batches of so many rewrites and compares, in place of stock TRL, with ours as it was when TRL's
shuffle tore the groups apart. Not a timed test.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset

from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import LoadedModel, load_trainable, prompt_tokens
from rpo_kit.presets import get_preset
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.training import progress, reinforce

TASK = "LaMP-1"
GROUPS, LENGTHS = (2, 4, 8, 16), (100, 200, 800)  # and 400 with 8


def rows(loaded: LoadedModel, count: int, length: int) -> Dataset:
    """Prompts of so many tokens, cut from a long text of six items, query and their repetition."""
    task, made = get_task(TASK), []
    empty = prompt_tokens(loaded.tokenizer, [{"role": "user", "content": ""}])
    for row in build(TASK, "train", count):
        text = reflection_messages(task, row["input"], "", row["profile"][:6])[1]["content"]
        ids = loaded.tokenizer(" ".join([text] * 8), add_special_tokens=False)["input_ids"][: length - empty]
        prompt = [{"role": "user", "content": loaded.tokenizer.decode(ids)}]
        made.append({"prompt": prompt, "gold": row["output"], "k": 6, "generic": "", "history": []})
    return Dataset.from_list(made)


def measure(
    *, shared: bool, dtype: str, prompts: int, group: int, length: int, new: int, steps: int, micro: int, torn=False
) -> Any:
    """Mean seconds of a step's parts, and the peak memory in GB, in this process."""
    preset = get_preset("cpu")
    settings = dataclasses.replace(
        preset.rl,
        steps=1 + steps,
        prompts_per_step=prompts,
        group_size=group,
        micro_batch=micro or prompts * group,
        max_new_tokens=new,
    )
    loaded = load_trainable(preset.reflection, None, seed=0)
    if dtype == "fp32":
        loaded.model.float()
    data = rows(loaded, settings.steps * prompts, length)
    arguments = {"bf16": dtype == "bf16", "fp16": False}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        patches.enter_context(patch.object(progress, "precision", lambda: arguments))
        patches.enter_context(patch.object(reinforce, "shares_prefix", lambda model: shared))
        if torn:
            patches.enter_context(patch.object(reinforce, "group_by_prompt", lambda batches: batches))
        trainer = reinforce.make_trainer(loaded, get_task(TASK), data, settings, Path(folder), None)
        trainer.generation_config.min_new_tokens = new  # stock: the same number of tokens for both
        trainer.eos_token_ids = []  # ours: nothing ends early
        spent = watch(trainer, patches)
        if shared:
            patches.enter_context(progress.autocast_casts(loaded.model))
        trainer.train()
    found = {name: sum(times[1:]) / steps for name, times in spent.items()}
    tokens = sum(prompt_tokens(loaded.tokenizer, prompt) for prompt in data["prompt"]) / len(data)
    return found | {"prompt": tokens, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def watch(trainer: Any, patches: ExitStack) -> dict[str, list[float]]:
    """Lists of seconds, one value a step, of its parts; filled while it trains."""
    from transformers import TrainerCallback

    spent: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, call: Callable[..., Any], new_step: bool = False) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = call(*args, **kwargs)
            seconds = time.perf_counter() - start
            if new_step:
                spent[name].append(seconds)
            else:
                spent[name][-1] += seconds
            return out

        return run

    class Whole(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            spent["whole"].append(time.perf_counter() - self.start)

    trainer._generate_single_turn = timed("sampling", trainer._generate_single_turn, new_step=True)
    trainer._calculate_rewards = timed("bookkeeping", trainer._calculate_rewards, new_step=True)
    patches.enter_context(patch.object(reinforce, "advantages", timed("bookkeeping", reinforce.advantages)))
    trainer.log = timed("bookkeeping", trainer.log)
    trainer.add_callback(Whole())
    return spent


def in_a_process(**wanted: Any) -> Any:
    command = [sys.executable, __file__, "--child", json.dumps(wanted)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def compare(label: str, measured: Callable[..., Any], **wanted: Any) -> None:
    """Ours, then the other way; a line each, and a line of ratios."""
    other = {"shared": True, "torn": True} if wanted["micro"] else {"shared": False}
    ours, stock = (measured(**how, **wanted) for how in ({"shared": True}, other))
    parts = ("whole", "sampling", "rest")
    for name, found in (("ours", ours), ("torn" if wanted["micro"] else "stock", stock)):
        found["rest"] = found["whole"] - found["sampling"] - found["bookkeeping"]
        seconds = "  ".join(f"{part} {found[part]:6.2f} s" for part in parts)
        share = found["bookkeeping"] / found["whole"]
        print(f"{label:10} {name:5}  {seconds}  bookkeeping {share:.2%}  peak {found['memory']:.1f} GB")
    ratios = "  ".join(f"{part} {stock[part] / ours[part]:6.2f}  " for part in parts)
    print(f"{label:10} ratio  {ratios}  (prompts of {ours['prompt']:.0f} tokens)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompts", 2), ("group", 8), ("length", 400), ("new", 48), ("steps", 2), ("micro", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--curve", action="store_true", help="also over group sizes and prompt lengths, in bf16")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    child, curve = options.pop("child"), options.pop("curve")
    if child:
        print(json.dumps(measure(**child)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options}")
    for dtype in ("bf16", "fp32"):
        compare(dtype, in_a_process, dtype=dtype, **options)
    if curve:
        print("the curve: one prompt a step, in one process, so the peak is the highest so far")
        options |= {"dtype": "bf16", "steps": 1, "prompts": 1}
        for group in GROUPS:
            compare(f"G = {group}", measure, **options | {"group": group})
        for length in LENGTHS:
            compare(f"{length} tokens", measure, **options | {"length": length})


if __name__ == "__main__":
    main()
