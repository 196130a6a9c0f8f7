"""One RL step, stock TRL and ours in turn, in one process: `python tests/benchmarks/rl_step.py [--prompts 4]`.

Both train the bundled model with the same rows, rewards and settings; only `shares_prefix` differs. Prints seconds a
step (the first, which warms up, is left out), the ratio, and the peak memory after each. Not a timed test.
"""

import argparse
import dataclasses
import platform
import resource
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset

from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import get_preset
from rpo_kit.rewriting.reflection import load_trainable, reflection_messages
from rpo_kit.training import reinforce
from rpo_kit.training.progress import autocast_casts


def rows(task_name: str, count: int, shots: int) -> Dataset:
    task = get_task(task_name)
    made = [
        {
            "prompt": reflection_messages(task, row["input"], "", row["profile"][:shots]),
            "gold": row["output"],
            "k": shots,
            "generic": "",
            "history": [],
        }
        for row in build(task_name, "train", count)
    ]
    return Dataset.from_list(made)


def seconds_a_step(shared: bool, options: argparse.Namespace) -> float:
    preset = get_preset("cpu")
    sequences = options.prompts * options.group
    settings = dataclasses.replace(
        preset.rl,
        steps=1 + options.steps,
        prompts_per_step=options.prompts,
        group_size=options.group,
        micro_batch=sequences,
        max_new_tokens=options.new_tokens,
    )
    loaded = load_trainable(preset.reflection, None, seed=0)
    data = rows(options.task, settings.steps * options.prompts, options.shots)
    with tempfile.TemporaryDirectory() as folder, patch.object(reinforce, "shares_prefix", lambda model: shared):
        trainer = reinforce.make_trainer(loaded, get_task(options.task), data, settings, Path(folder), None)
        trainer.generation_config.min_new_tokens = options.new_tokens  # stock: the same number of tokens for both
        trainer.eos_token_ids = []  # ours: nothing ends early
        times: list[float] = []
        step = trainer.training_step

        def timed(*args: object, **kwargs: object) -> torch.Tensor:
            start = time.perf_counter()
            out = step(*args, **kwargs)
            times.append(time.perf_counter() - start)
            return out

        trainer.training_step = timed
        with autocast_casts(loaded.model) if shared else nullcontext():
            trainer.train()
    return sum(times[1:]) / len(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="LaMP-1")
    for name, default in (("prompts", 2), ("group", 8), ("shots", 6), ("new-tokens", 48), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {vars(options)}")
    found = {}
    for name, shared in (("ours", True), ("stock TRL", False)):
        found[name] = seconds_a_step(shared, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:10} {found[name]:6.2f} s a step, peak memory so far {peak:.1f} GB", flush=True)
    print(f"stock TRL / ours = {found['stock TRL'] / found['ours']:.2f}")


if __name__ == "__main__":
    main()
