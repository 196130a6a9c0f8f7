"""One RL step on two ranks, for test_reinforce.py: writes what rank N saw to FOLDER/N.pt. Run by torchrun."""

import os
import sys
from pathlib import Path

import torch
from one_step import adapter_of, train_one_step

from rpo_kit.models.local import load_trainable
from rpo_kit.presets import ModelSettings


def main(llama: str, folder: Path) -> None:
    rank = os.environ["RANK"]
    loaded = load_trainable(ModelSettings(llama, max_seq_length=2048, lora_rank=4, lora_alpha=8), None, seed=0)
    _, seen = train_one_step(loaded, folder / rank)
    torch.save(seen | {"adapter": adapter_of(loaded.model)}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
