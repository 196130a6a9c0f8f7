"""RL steps of a tiny model, for tests that need processes of their own and for those that do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.local import LoadedModel, prompt_ids
from rpo_kit.presets import RLSettings
from rpo_kit.training import checkpoints, reinforce
from rpo_kit.training.rewards import Judged
from rpo_kit.training.rollouts import Prompt, Rollout

SETTINGS = RLSettings(
    steps=1,
    prompts_per_step=2,
    group_size=3,
    learning_rate=1e-2,
    beta=0.1,
    temperature=0.7,
    max_new_tokens=12,
    save_every=1,
)
MANY_ENDS = list(range(2, 400, 12))  # so many end tokens that completions have different lengths
TEXTS = ("a short one", "a prompt which is quite a bit longer than the others are", "another")


def some_prompts(loaded: LoadedModel, golds: Sequence[str]) -> list[Prompt]:
    """One prompt per gold, of different lengths."""
    prompts = []
    for n, gold in enumerate(golds):
        messages = [{"role": "user", "content": f"{TEXTS[n % 3]} {n}"}]
        prompts.append(Prompt(str(n), messages, prompt_ids(loaded.tokenizer, messages), gold, "3", ["1"] * (2 + n)))
    return prompts


def judge_by_text(task: Task, text: str, gold: str, items: int, *weights_and_texts: object) -> Judged:
    """A reward that differs within a group and has nothing to do with the task; 0.5 where the gold is "same"."""
    value = 0.5 if gold == "same" else (sum(text.encode()) % 17) / 16
    return Judged(value, value, 0.0, text, (), None)


def run_step(
    loaded: LoadedModel, settings: RLSettings = SETTINGS, golds: Sequence[str] = ("a", "b"), steps: int = 1
) -> tuple[dict[str, float], list[Rollout], checkpoints.Training]:
    """The last step's log row and rollouts, and the state of the training; `reinforce.judge` gives the rewards."""
    training = reinforce.start_training(loaded, settings)
    prompts = some_prompts(loaded, golds)
    for _ in range(steps):
        row, records = reinforce.rl_step(loaded, training, prompts, get_task("LaMP-3"), settings)
    return row, records, training


def adapter_of(model: torch.nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    return {
        key.replace(f".{name}.", "."): parameter.detach().clone()
        for key, parameter in model.named_parameters()
        if f".{name}." in key
    }
