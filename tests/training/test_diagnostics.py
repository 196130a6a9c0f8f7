"""What the log of an RL run says in words: each unhealthy sign by its own sentence, and nothing about a healthy run."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit.training.diagnostics import diagnose, warn_on_log

HEALTHY = {
    "reward": 0.5,
    "kl": 0.02,
    "parsed": 0.98,
    "frac_reward_zero_std": 0.3,
    "completions/clipped_ratio": 0.02,
    "completions/mean_length": 50.0,
    "same_answer": 0.55,
    "copied_history": 0.01,
    "copied_generic": 0.1,
    "content_kept": 0.6,
    "faithful": 0.6,
}


def log(steps: int, **changes: float) -> list[dict[str, float]]:
    """A healthy run whose reward rises, with `changes` in its last five steps."""
    rows = [HEALTHY | {"step": n, "reward": 0.5 + 0.01 * n} for n in range(1, steps + 1)]
    return rows[:-5] + [row | changes for row in rows[-5:]]


def test_a_healthy_run_gets_no_warning():
    assert diagnose(log(40)) == {}


@pytest.mark.parametrize(
    ("column", "changes", "told"),
    [
        (
            "completions/clipped_ratio",
            {"completions/clipped_ratio": 0.5},
            "50 % of the completions .* raise rl.max_new",
        ),
        ("frac_reward_zero_std", {"frac_reward_zero_std": 0.8}, "80 % of the groups .* had no variance"),
        ("unparsed", {"parsed": 0.4}, "60 % of the completions .* did not parse"),
        ("kl", {"kl": 0.7}, "The KL to the SFT adapter is 0.70 per token"),
        ("same_answer", {"same_answer": 0.97}, "97 % .* are the same label"),
        ("copied_history", {"copied_history": 0.5}, "50 % .* are a history item word for word"),
        (
            "content_kept",
            {"content_kept": 0.35},
            r"Content is being lost: .* keep 0\.35 of it, and kept 0\.60 .* rl\.content_w",
        ),
        ("copied_generic", {"copied_generic": 0.95}, "95 % .* are the generic answer word for word"),
        ("completions/mean_length", {"completions/mean_length": 95.0}, "gone from 50 to 95 tokens"),
        ("completions/mean_length", {"completions/mean_length": 20.0}, "gone from 50 to 20 tokens"),
        ("reward", {"reward": 0.4}, r"has not risen in 40 steps \(0.530 to 0.400"),
    ],
)
def test_each_sign_has_its_own_sentence_with_a_remedy(column, changes, told):
    found = diagnose(log(40, **changes))
    assert list(found) == [column]
    assert re.search(told, found[column])


def test_one_bad_step_and_the_first_few_steps_are_not_enough():
    assert diagnose([*log(40)[:-1], log(40, parsed=0.0)[-1]]) == {}
    assert diagnose(log(40, parsed=0.0)[-4:]) == {}
    assert "reward" not in diagnose(log(9, reward=0.1)), "10 steps before it is said that nothing is learned"


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("short1_LaMP-7", True),
        ("demo_LaMP-7", False),
        ("gain1_LaMP-7", False),
        ("gain2_LaMP-7", False),
        ("long_LaMP-1", False),
        ("long_LaMP-3", False),
    ],
)
def test_of_the_stored_runs_only_the_one_that_gained_nothing_gets_a_warning(run, told):
    stored = pd.read_csv(Path(__file__).parents[2] / f"figures/data/{run}_rl_log.csv").to_dict("records")
    assert any("reward" in diagnose(stored[:steps]) for steps in range(len(stored) + 1)) == told


def test_a_column_that_the_log_lacks_causes_no_warning():
    assert diagnose([{"step": n, "reward": 0.1 * n} for n in range(30)]) == {}


def test_each_warning_is_printed_once_and_every_row_is_passed_on(capsys):
    seen: list[int] = []
    listen = warn_on_log(lambda rows: seen.append(len(rows)))
    rows = log(40, kl=0.9)
    for steps in (38, 39, 40):
        listen(rows[:steps])
    assert capsys.readouterr().out.count("The KL to the SFT adapter") == 1
    assert seen == [38, 39, 40]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", ["kl", "grad_norm", "loss", "reward", "completions/mean_length"])
def test_nan_and_infinity_are_reported_with_their_first_step_even_among_the_first_steps(column, value):
    rows = log(40)
    rows[2] = rows[2] | {column: value}
    found = diagnose(rows)
    assert list(found) == [column]
    assert f"{column} is not a number since step 3 ({value})" in found[column]
    assert diagnose(rows[:3]) == found


def test_columns_that_a_later_version_added_may_be_missing_in_the_first_rows():
    """A training begun by an earlier version and resumed: its log.csv has blanks there."""
    rows = [row | {"content_kept": float("nan"), "faithful": float("nan")} for row in log(40)[:7]] + log(40)[7:]
    assert diagnose(rows) == {}
    assert list(diagnose([*rows[:-5], *(row | {"content_kept": float("inf")} for row in rows[-5:])])) == [
        "content_kept"
    ]


def test_a_little_less_content_is_no_sign():
    assert diagnose(log(40, content_kept=0.47)) == {}, "0.78 of the first steps: as in a run that lost none"
