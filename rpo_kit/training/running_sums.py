"""What SFT's trainer has summed up since the last line of its log, kept beside a checkpoint.

transformers and TRL hold these sums in attributes and write none of them into a checkpoint. After a resume `num_tokens`
would count from 0 again, and the first logged loss would lack the steps between the last line and the checkpoint. RL
needs nothing like it: each row of its log is of one step alone.

    save(trainer, checkpoint)            # running_sums.json: {"loss": 0.53, "logged_step": 48, "tokens": 91022, …}
    restore(trainer, checkpoint, rows)   # the sums go on from there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo_kit.processes import is_main
from rpo_kit.runs import read_json, write_json

FILE = "running_sums.json"
_FIRST, _LAST = ("loss", "grad_norm", "learning_rate"), ("epoch", "step")  # as the trainer logs them
Row = dict[str, float]


def save(trainer: Any, checkpoint: Path) -> None:
    """Write the sums into the checkpoint's folder; of several ranks all take part and the main one writes."""
    sums = {
        "loss": float(trainer.accelerator.gather(trainer._tr_loss).mean()),
        "logged_step": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
    }
    if is_main():
        write_json(checkpoint / FILE, sums)


def restore(trainer: Any, checkpoint: Path, rows: Sequence[Row]) -> None:
    """Put the sums back once the trainer has set its own to 0. A checkpoint of an earlier version has none: then the
    tokens in the last of the logged `rows` count, which leaves out the steps after it.
    """
    sums = read_json(checkpoint / FILE)
    if sums is None:
        trainer._total_train_tokens = int(rows[-1].get("num_tokens", 0)) if rows else 0
        return
    trainer._tr_loss.fill_(sums["loss"])
    trainer._globalstep_last_logged = sums["logged_step"]
    trainer._total_train_tokens = sums["tokens"]
    for name, values in sums["metrics"].items():
        trainer._metrics["train"][name] = list(values)


def in_order(row: Mapping[str, float]) -> Row:
    """The row with its columns in the order in which the trainer logs them; a checkpoint has them by the alphabet."""
    others = sorted(set(row) - {*_FIRST, *_LAST})
    return {name: row[name] for name in (*_FIRST, *others, *_LAST) if name in row}
