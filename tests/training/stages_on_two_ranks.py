"""Both trainings of a run, as `accelerate launch -m rpo_kit sft` and `rl` do them; for test_processes.py."""

import os
import sys
from pathlib import Path

from rpo_kit.runs import existing_run
from rpo_kit.training.reinforce import train_rl
from rpo_kit.training.sft import train_sft


def main(root: Path) -> None:
    run, seen = existing_run("r", root), []
    train_sft(run, seen.append)
    train_rl(run, seen.append)
    (root / f"rank-{os.environ['RANK']}").write_text(
        f"{len(seen)} logs, {run.stage('rl').joinpath('adapter').exists()}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
