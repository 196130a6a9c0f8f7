"""Do the trajectories fit the token limits of the later stages? Counted with the module's own tokenizer.

A trajectory that is longer than `rl.max_new_tokens` earns no reward in RL, and one longer than
`evaluation.max_new_tokens` does not parse in `evaluate`; both stages would reveal that only after a long time.
`synthesize` is the first stage that can check.

    report_lengths(run, read_records(run.stage("synthesize") / "trajectories.jsonl"))
    # 400 trajectories, the longest of 190 tokens: 31 exceed rl.max_new_tokens=80, so such texts would be cut off …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from rpo_kit.models.local import load_tokenizer
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.runs import Run

_ROUND = 16  # ours: suggested limits are multiples of it


def token_lengths(run: Run, records: Sequence[Mapping[str, str]]) -> list[int]:
    """Tokens of each trajectory as the module has to write it, its end token included."""
    tokenizer = load_tokenizer(run.preset.reflection)
    sections = run.preset.reflection.sections
    texts = [render(Trajectory(r["observe"], r["plan"], r["rewrite"]), sections) for r in records]
    return [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def report_lengths(run: Run, records: Sequence[Mapping[str, str]]) -> None:
    """Print how many trajectories are longer than the limits of `rl` and `evaluate`, and the settings that fit."""
    lengths = token_lengths(run, records)
    limits = {
        "rl.max_new_tokens": run.preset.rl.max_new_tokens,
        "evaluation.max_new_tokens": run.preset.evaluation.max_new_tokens,
    }
    too_long = {key: count for key, limit in limits.items() if (count := sum(n > limit for n in lengths))}
    if not too_long:
        return
    enough = _ROUND * ceil(max(lengths) / _ROUND)
    over = " and ".join(f"{count} exceed {key}={limits[key]}" for key, count in too_long.items())
    fitting = " ".join(f"--set {key}={enough}" for key in too_long)
    print(
        f"{len(lengths)} trajectories, the longest of {max(lengths)} tokens: {over}, so such texts would be cut off "
        f"there. Add {fitting} to the next command."
    )
