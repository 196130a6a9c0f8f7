"""The health of an RL run, from its training log: warnings with a remedy (Figure 2, bottom).

The reward alone is not enough: it can rise because the policy copies the history, or stall because no group has any
variance. Input: the rows of `rl/log.csv`; the thresholds are ours. A held-out metric can show
more: see `evaluate`.

    >>> diagnose([{"step": n, "reward": 0.1 * n, "kl": 0.0, "frac_reward_zero_std": 0.9} for n in range(1, 9)])
    {'frac_reward_zero_std': '90 % of the groups of the last 5 steps had no variance, so their prompts taught nothing: \
raise rl.group_size or rl.temperature, or train SFT for fewer steps.'}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from rpo_kit.runs import OnLog

Rows = Sequence[Mapping[str, float]]

WINDOW = 5  # ours: steps averaged before a warning

# column: (the average above which there is a warning, the warning)
_ABOVE = {
    "completions/clipped_ratio": (
        0.3,
        "{share} of the completions of the last {window} steps were cut off at the token limit and earn nothing: raise "
        "rl.max_new_tokens.",
    ),
    "frac_reward_zero_std": (
        0.75,
        "{share} of the groups of the last {window} steps had no variance, so their prompts taught nothing: raise "
        "rl.group_size or rl.temperature, or train SFT for fewer steps.",
    ),
    "unparsed": (
        0.3,
        "{share} of the completions of the last {window} steps did not parse: train SFT for more steps, or lower "
        "rl.learning_rate if this share was lower at the start.",
    ),
    "kl": (
        0.5,
        "The KL to the SFT adapter is {value:.2f} per token: the policy has drifted far from the SFT adapter; lower "
        "rl.learning_rate or raise rl.beta.",
    ),
    "same_answer": (
        0.9,
        "{share} of the rewrites of the last {window} steps are the same label: the policy no longer reads the "
        "query; raise rl.prompts_per_step, lower rl.learning_rate, or train SFT until it reads better.",
    ),
    "copied_history": (
        0.3,
        "{share} of the rewrites of the last {window} steps are a history item word for word: the reward is being "
        "hacked or the items resemble the golds too much; look at samples, raise rl.beta.",
    ),
    "copied_generic": (
        0.9,
        "{share} of the rewrites of the last {window} steps are the generic answer word for word: the module does not "
        "change it; check that the SFT trajectories do.",
    ),
}
# Columns that later versions added: a log that was begun before has no value in its first rows.
_ADDED = ("content_kept", "cites_many", "faithful", "habit_named", "majority")
_OF_SKIPPED = "grad_norm"  # NaN in a step that fp16's gradient scaler skipped
_LOST = 0.7  # ours: what content_kept may fall to, relative to the first steps; measured: 0.79 where none was lost
_DRIFT = 1.6  # ours: by what factor the length of completions may change


def diagnose(rows: Rows) -> dict[str, str]:
    """Warnings, one sentence per column; {} for a healthy run.

    In the first few steps, only NaN and infinity are reported.
    """
    warnings = _not_finite(rows)
    if len(rows) < WINDOW or warnings:
        return warnings
    for column, (limit, sentence) in _ABOVE.items():
        value = _mean(rows[-WINDOW:], column)
        if value is not None and value > limit:
            warnings[column] = sentence.format(share=f"{value:.0%}".replace("%", " %"), window=WINDOW, value=value)
    return warnings | _drift(rows) | _content(rows) | _standstill(rows)


def warn_on_log(on_log: OnLog | None = None) -> OnLog:
    """A log hook that prints each warning once, when it first applies, and passes the rows on to `on_log`."""
    warned: set[str] = set()

    def listen(rows: list[dict[str, float]]) -> None:
        for column, sentence in diagnose(rows).items():
            if column not in warned:
                tqdm.write(f"step {rows[-1]['step']:.0f}: {sentence}")
            warned.add(column)
        if on_log:
            on_log(rows)

    return listen


def _not_finite(rows: Rows) -> dict[str, str]:
    """Columns that hold NaN or infinity, and since which step; other warnings are then meaningless."""
    warnings: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        for column, value in row.items():
            missing = math.isnan(value) and (column in _ADDED or (column == _OF_SKIPPED and row.get("skipped") == 1))
            if isinstance(value, int | float) and not missing and not math.isfinite(value) and column not in warnings:
                warnings[column] = (
                    f"{column} is not a number since step {row.get('step', number):.0f} ({value}): training has failed "
                    "there; lower rl.learning_rate, raise rl.beta, or check the rewards of that step's rollouts."
                )
    return warnings


def _drift(rows: Rows) -> dict[str, str]:
    column = "completions/mean_length"
    first, last = _mean(rows[:WINDOW], column), _mean(rows[-WINDOW:], column)
    if not first or not last or 1 / _DRIFT <= last / first <= _DRIFT:
        return {}
    return {
        column: f"Completions have gone from {first:.0f} to {last:.0f} tokens: reward may depend on length; look at "
        "samples, and check that the task's metric does not reward length alone."
    }


def _content(rows: Rows) -> dict[str, str]:
    column = "content_kept"
    first, last = _mean(rows[:WINDOW], column), _mean(rows[-WINDOW:], column)
    if first is None or last is None or last >= _LOST * first:
        return {}
    return {
        column: f"Content is being lost: the rewrites keep {last:.2f} of it, and kept {first:.2f} in the first steps. "
        "Look at samples; set rl.content_weight=0.1, or lower rl.learning_rate."
    }


def _standstill(rows: Rows) -> dict[str, str]:
    """The reward of the last window is not above that of the first. Measured: holds for 20 steps of 6 prompts, in
    which RL gains nothing, and at no step of the demo and the longer runs, in which it gains
    (figures/data/*_rl_log.csv).
    """
    first, last = _mean(rows[:WINDOW], "reward"), _mean(rows[-WINDOW:], "reward")
    if len(rows) < 2 * WINDOW or first is None or last is None or last > first:
        return {}
    return {
        "reward": f"The reward has not risen in {len(rows)} steps ({first:.3f} to {last:.3f}; more history items can "
        "also make it harder): raise rl.learning_rate or rl.prompts_per_step, or look at the groups without variance."
    }


def _mean(rows: Rows, column: str) -> float | None:
    """The mean of a column over the rows; None if the log lacks it. "unparsed" is 1 - "parsed"."""
    if column == "unparsed":
        parsed = _mean(rows, "parsed")
        return None if parsed is None else 1 - parsed
    values = [row[column] for row in rows if column in row and not (column in _ADDED and math.isnan(row[column]))]
    return sum(values) / len(values) if values else None
