"""One RL step on two ranks, for test_reinforce.py: writes what rank N saw to FOLDER/N.pt. Run by torchrun."""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset

from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import ModelSettings, RLSettings
from rpo_kit.rewriting.reflection import load_trainable
from rpo_kit.training import progress, reinforce


def main(llama: str, folder: Path) -> None:
    progress.precision = lambda: {"bf16": False, "fp16": False}
    rewards: list[float] = []

    def reward(task: object, text: str, gold: str, items: int, weight: float) -> float:
        rewards.append((sum(text.encode()) % 17) / 16)
        return rewards[-1]

    reinforce.reward = reward
    loaded = load_trainable(ModelSettings(llama, max_seq_length=2048, lora_rank=4, lora_alpha=8), None, seed=0)
    loaded.model.generation_config.eos_token_id = list(range(2, 400, 12))  # completions of different lengths
    rank = int(os.environ["RANK"])
    rows = [{"role": "user", "content": text} for text in ("a short one", "a prompt which is quite a bit longer")]
    made = [{"prompt": [row], "gold": "1", "k": 2, "generic": "3", "history": ["1"]} for row in rows]
    settings = RLSettings(steps=1, prompts_per_step=2, group_size=3, micro_batch=3, max_new_tokens=12, beta=0.1)
    work = folder / str(rank)
    trainer = reinforce.make_trainer(loaded, get_task("LaMP-3"), Dataset.from_list(made), settings, work, None)
    batch, generate = {}, trainer._generate_and_score_completions

    def remember(inputs: object) -> dict[str, torch.Tensor]:
        batch.update(generate(inputs))
        return batch

    trainer._generate_and_score_completions = remember
    trainer.train()
    adapter = {name: p.detach().clone() for name, p in loaded.model.named_parameters() if ".default." in name}
    seen = {"advantages": batch["advantages"], "lengths": batch["completion_mask"].sum(1)}
    torch.save(seen | {"rewards": torch.tensor(rewards), "adapter": adapter}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
