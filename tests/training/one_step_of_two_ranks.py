"""Two RL steps on several ranks for each list of golds ("a,b"), for test_reinforce.py. Run by torchrun.

What rank N has after the steps with M golds goes to FOLDER/M-N.pt.
"""

import sys
from pathlib import Path

import torch
from one_step import MANY_ENDS, adapter_of, judge_by_text, run_step
from random_models import random_policy

from rpo_kit.training import ranks, reinforce


def main(tokenizer: Path, folder: Path, *cases: str) -> None:
    reinforce.judge = judge_by_text
    ranks.start()
    for case in cases:
        take_steps(tokenizer, folder, case.split(","))
    ranks.gather([0])  # no rank leaves while another is at work


def take_steps(tokenizer: Path, folder: Path, golds: list[str]) -> None:
    loaded = random_policy("llama", tokenizer, MANY_ENDS)
    row, records, _ = run_step(loaded, golds=golds, steps=2)
    seconds = {name for name in row if name.startswith("seconds")}
    row = {name: value for name, value in row.items() if name not in seconds}
    path = folder / f"{len(golds)}-{ranks.world()[0]}.pt"
    torch.save({"row": row, "records": records, "adapter": adapter_of(loaded.model)}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
