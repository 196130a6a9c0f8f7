"""One RL step of a tiny model, for the tests that need a process of their own: what it drew, and what came of it."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import Trainer

from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import LoadedModel
from rpo_kit.presets import RLSettings
from rpo_kit.training import progress, reinforce
from rpo_kit.training import rewards as rewards_module


def train_one_step(loaded: LoadedModel, folder: Path) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """The trainer after two groups of three; advantages, lengths and rewards (6,) as it had them."""
    progress.precision = lambda: {"bf16": False, "fp16": False}
    rewards: list[float] = []

    def reward(task: object, text: str, gold: str, items: int, weight: float) -> float:
        rewards.append((sum(text.encode()) % 17) / 16)
        return rewards[-1]

    rewards_module.reward = reward
    loaded.model.generation_config.eos_token_id = list(range(2, 400, 12))  # completions of different lengths
    rows = [{"role": "user", "content": text} for text in ("a short one", "a prompt which is quite a bit longer")]
    made = [{"prompt": [row], "gold": "1", "k": 2, "generic": "3", "history": ["1"]} for row in rows]
    settings = RLSettings(steps=1, prompts_per_step=2, group_size=3, micro_batch=3, max_new_tokens=12, beta=0.1)
    trainer = reinforce.make_trainer(loaded, get_task("LaMP-3"), Dataset.from_list(made), settings, folder, None)
    batch, generate = {}, trainer._generate_and_score_completions

    def remember(inputs: object) -> dict[str, torch.Tensor]:
        batch.update(generate(inputs))
        return batch

    trainer._generate_and_score_completions = remember
    trainer.train()
    lengths = batch["completion_mask"].sum(1)
    return trainer, {"advantages": batch["advantages"], "lengths": lengths, "rewards": torch.tensor(rewards)}


def adapter_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}
