"""Two RL steps on several ranks, for test_reinforce.py: what rank N then has goes to FOLDER/N.pt. Run by torchrun."""

import sys
from pathlib import Path

import torch
from one_step import MANY_ENDS, adapter_of, judge_by_text, run_step
from random_models import random_policy

from rpo_kit.training import ranks, reinforce


def main(tokenizer: Path, folder: Path, *golds: str) -> None:
    reinforce.judge = judge_by_text
    ranks.start()
    loaded = random_policy("llama", tokenizer, MANY_ENDS)
    row, records, _ = run_step(loaded, golds=golds, steps=2)
    seconds = {name for name in row if name.startswith("seconds")}
    row = {name: value for name, value in row.items() if name not in seconds}
    torch.save({"row": row, "records": records, "adapter": adapter_of(loaded.model)}, folder / f"{ranks.world()[0]}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
