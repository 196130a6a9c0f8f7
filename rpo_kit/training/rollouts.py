"""RL's prompts, and its rollouts: every completion in `rl/rollouts.jsonl`, one line each.

    pd.read_json(run.stage("rl") / "rollouts.jsonl", lines=True, dtype=False).query("step == 3")

Append-only, in the order of training: a step's lines are written together, after its update. A resumed training first
removes the steps that it will repeat. Beyond `rl.rollouts_mb`, whole steps are left out and counted in the log's column
`rollouts_left_out`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Conversation
from rpo_kit.rewriting.faithfulness import Truth, check, shares_of
from rpo_kit.runs import append_records, write_bytes
from rpo_kit.setting_rules import SECTIONS
from rpo_kit.training.rewards import Judged, shares
from rpo_kit.training.shared_prefix import Group

FILE = "rollouts.jsonl"


@dataclass(frozen=True)
class Prompt:
    """One prompt slot of the training, with what its reward depends on."""

    example: str  # id
    messages: Conversation
    ids: list[int]  # its tokens
    gold: str
    generic: str
    history: list[str]  # the gold of each history item shown
    query: str = ""
    truth: Truth | None = None  # what is true of the items shown; None if it is unknown
    sections: tuple[str, ...] = SECTIONS  # of a trajectory

    @property
    def shots(self) -> int:
        return len(self.history)


class Rollout(TypedDict):
    """One completion and what came of it."""

    step: int
    k: int  # history items shown
    example: str  # id
    completion: int  # its number in the group
    text: str
    rewrite: str | None  # null if the text does not parse
    parse_error: str | None
    cited: list[int]
    reward: float
    score: float
    format: float
    content: float | None  # share of content kept; null for labels and ratings, or without a rewrite
    advantage: float
    tokens: int  # with the end token
    ended: bool  # false: cut off at rl.max_new_tokens


def records(
    step: int,
    prompts: Sequence[Prompt],
    groups: Sequence[Group],
    texts: Sequence[Sequence[str]],
    judged: Sequence[Judged],
    advantages: Sequence[float],
    ends: Collection[int],
) -> list[Rollout]:
    """A step's rollouts: group by group; `judged` and `advantages` hold one value per completion."""
    rollouts: list[Rollout] = []
    for prompt, (_, completions), own_texts in zip(prompts, groups, texts, strict=True):
        for number, (tokens, text) in enumerate(zip(completions, own_texts, strict=True)):
            one = judged[len(rollouts)]
            rollout = Rollout(
                step=step,
                k=prompt.shots,
                example=prompt.example,
                completion=number,
                text=text,
                rewrite=one.rewrite,
                parse_error=one.parse_error,
                cited=list(one.cited),
                reward=one.reward,
                score=one.score,
                format=one.format,
                content=one.content,
                advantage=advantages[len(rollouts)],
                tokens=len(tokens),
                ended=bool(tokens) and tokens[-1] in ends,
            )
            rollouts.append(rollout)
    return rollouts


def summary(rollouts: Sequence[Rollout], prompts: Sequence[Prompt], task: Task) -> dict[str, float]:
    """The log's columns for a step's rollouts, in which those of one prompt are consecutive."""
    group = len(rollouts) // len(prompts)
    rewards = [rollout["reward"] for rollout in rollouts]
    spreads = [stdev(rewards[n : n + group]) for n in range(0, len(rewards), group)]
    repeated = [prompt for prompt in prompts for _ in range(group)]
    return {
        "reward": fmean(rewards),
        "reward_std": fmean(spreads),  # within the groups
        "frac_reward_zero_std": fmean(spread < 1e-8 for spread in spreads),
        "completions/mean_length": fmean(rollout["tokens"] for rollout in rollouts),
        "completions/clipped_ratio": fmean(not rollout["ended"] for rollout in rollouts),
        "shots": fmean(prompt.shots for prompt in prompts),
        **shares(
            task,
            [rollout["rewrite"] for rollout in rollouts],
            [prompt.generic for prompt in repeated],
            [prompt.history for prompt in repeated],
        ),
        **_content(rollouts, task),
        **_reading(rollouts, repeated),
    }


def _content(rollouts: Sequence[Rollout], task: Task) -> dict[str, float]:
    """The share of content kept, for texts; of completions without a rewrite 0."""
    return {"content_kept": fmean(r.get("content") or 0.0 for r in rollouts)} if task.kind == "generation" else {}


def _reading(rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> dict[str, float]:
    """How the completions use the items: shares that cite several and, if the truth is known, that read them right."""
    pairs = zip(rollouts, prompts, strict=True)
    return shares_of([check(rollout["text"], prompt.truth, prompt.shots, prompt.sections) for rollout, prompt in pairs])


def append(folder: Path, rollouts: Sequence[Rollout], limit_mb: float) -> int:
    """Append a step's rollouts; returns how many were left out because the file would exceed the limit."""
    path = folder / FILE
    size = path.stat().st_size if path.exists() else 0
    size += sum(len(json.dumps(rollout, ensure_ascii=False).encode()) + 1 for rollout in rollouts)
    if size > limit_mb * 1e6:
        return len(rollouts)
    append_records(path, [dict(rollout) for rollout in rollouts])
    return 0


def cut_after(folder: Path, step: int) -> None:
    """Keep the rollouts of the first `step` steps; lines that a crash left incomplete or garbled are dropped too."""
    path = folder / FILE
    if not path.exists():
        return
    complete = path.read_bytes().split(b"\n")[:-1]
    kept = [line for line in complete if _step_of(line) <= step]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
