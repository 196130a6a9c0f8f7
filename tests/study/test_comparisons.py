"""A sweep's comparisons are written down before its first trial; what changes later is recorded and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import Run, write_json, write_text
from rpo_kit.study.ablation import begin
from rpo_kit.study.comparisons import (
    PLAN,
    change_sentence,
    differences_text,
    families,
    resolved,
    with_holm,
    with_verdict,
    write_plan,
)
from rpo_kit.study.html import show_table
from rpo_kit.study.results import gain_over_trivial

DATA = Path(__file__).parents[2] / "figures" / "data"


def table(**columns: list[float]) -> pd.DataFrame:
    rows = {"arm": ["a", "b", "progressive"], "minus": ["SFT only", "SFT only", "a"], "score": [0.1, 0.2, 0.3]}
    return pd.DataFrame(rows | {"low": [0.01, -0.1, 0.1], "high": [0.2, 0.3, 0.5]} | columns)


def stored(run: Run) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run.stage("sweep") / PLAN).read_text())
    return plan


def score(run: Run, trial: str) -> None:
    write_text(run.stage(f"sweep/{trial}/scores") / "manifest.json", "{}")


def test_the_comparisons_are_each_arm_minus_sft_and_progressive_minus_each_other_arm() -> None:
    first, second = families(["fixed-2", "progressive", "random"], [6]).values()
    assert first == [("fixed-2", "SFT only"), ("progressive", "SFT only"), ("random", "SFT only")]
    assert second == [("progressive", "fixed-2"), ("progressive", "random")]
    assert list(families(["random"], [6]).values()) == [[("random", "SFT only")], []]


def test_with_several_k_each_arm_is_compared_with_itself_on_fewest_items() -> None:
    *_, items = families(["fixed-2"], [4, 1, 6]).values()
    assert items == [("SFT only", "k = 1"), ("fixed-2", "k = 1")]


def test_holm_counts_the_comparisons_of_a_family() -> None:
    assert with_holm(table(p=[0.01, 0.03, 0.04]))["p_holm"].tolist() == pytest.approx([0.02, 0.03, 0.04])


def test_a_difference_is_resolved_by_its_adjusted_p_or_where_none_is_stored_by_its_interval() -> None:
    assert resolved(table(p_holm=[0.2, 0.01, 0.05])).tolist() == [False, True, False]
    assert resolved(table()).tolist() == [True, False, True]
    assert with_verdict(table())["verdict"].tolist() == ["", "not resolved", ""]


def test_the_text_marks_with_words_what_is_not_resolved() -> None:
    lines = differences_text(table(mde=[0.1, 0.1, 0.1])).splitlines()
    assert lines[0] == (
        "Differences, paired on the same users (not resolved: the 95 % interval contains 0; a difference below mde may "
        "be missed):"
    )
    assert [line.endswith("not resolved") for line in lines[2:]] == [False, True, False]
    assert "Holm-adjusted p is 0.05 or more" in differences_text(table(p_holm=[1, 1, 1]))
    assert differences_text(table()[:0]) == ""


@pytest.mark.parametrize("path", sorted(DATA.glob("*_differences.csv")), ids=lambda path: path.name)
def test_stored_differences_have_a_verdict(path: Path) -> None:
    assert len(differences_text(pd.read_csv(path)).splitlines()) == 2 + len(pd.read_csv(path))


def test_the_plan_says_what_is_compared_how_and_on_whom(new_run: Callable[..., Run]) -> None:
    run = new_run({"sweep.seeds": [0, 1], "sweep.difference": 0.02})
    write_plan(run)
    plan = stored(run)["plan"]
    assert (plan["task"], plan["metric"], plan["users"], plan["seeds"]) == ("LaMP-3", "1 - |error| / 4", 4, [0, 1])
    assert plan["comparisons"]["progressive minus each other arm"] == [["progressive", "fixed-2"]]
    assert "sign-flip" in plan["test"]
    assert "Holm" in plan["correction"]
    assert plan["difference"] == 0.02
    assert stored(run)["before_first_trial"] is True
    assert change_sentence(stored(run)) == ""


def test_before_a_trial_is_scored_the_plan_follows_the_settings(new_run: Callable[..., Run]) -> None:
    write_plan(new_run())
    score(new_run(), "sft")
    write_plan(new_run({"sweep.seeds": [0, 1]}))
    assert (stored(new_run())["plan"]["seeds"], stored(new_run())["changes"]) == ([0, 1], [])


@pytest.mark.parametrize("trial", ["fixed-2-seed0", "fixed-2-seed0.kept-0a1b2c3d"])
def test_after_a_trial_was_scored_the_first_plan_stays_and_the_change_is_told(
    new_run: Callable[..., Run], trial: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(new_run())
    first = stored(new_run())
    score(new_run(), trial)
    write_plan(new_run())
    assert stored(new_run()) == first, "killed and resumed: nothing is new"
    for _ in range(2):
        write_plan(new_run({"sweep.seeds": [0, 1], "sweep.dev_users": 6}))
    assert stored(new_run())["plan"] == first["plan"]
    assert len(stored(new_run())["changes"]) == 1
    said = "Comparisons changed after the first trial: seeds 0 → 0, 1; users 4 → 6."
    assert change_sentence(stored(new_run())) == said
    assert said in capsys.readouterr().out
    write_plan(new_run({"sweep.seeds": [0], "sweep.dev_users": 4}))
    assert len(stored(new_run())["changes"]) == 2
    assert "changed back" in change_sentence(stored(new_run()))


def test_the_plan_counts_the_users_that_the_run_has(new_run, as_trained, capsys) -> None:
    prepare(run := new_run({"sweep.dev_users": 390}))
    as_trained(run)
    begin(run)
    assert stored(run)["plan"]["users"] == 6
    assert "sweep: sweep.dev_users=390, but this run has 6 dev users: all are scored" in capsys.readouterr().out


def test_a_plan_that_comes_after_the_first_trial_says_so(new_run: Callable[..., Run]) -> None:
    score(new_run(), "fixed-2-seed0")
    write_plan(new_run())
    assert change_sentence(stored(new_run())) == "Comparisons were written down after the first trial."
    assert change_sentence(None) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"data.dev_users": 9}, "data.dev_users 6 → 9"), ({"rl.learning_rate": 0.5}, "rl.learning_rate 0.0001 → 0.5")],
)
def test_a_setting_that_moves_the_scores_belongs_to_the_plan(
    new_run: Callable[..., Run], changed: dict[str, float], said: str
) -> None:
    score(new_run(), "fixed-2-seed0")
    write_plan(new_run())
    write_plan(new_run({"rl.save_every": 99, "rl.micro_batch_tokens": 9000}))
    assert stored(new_run())["changes"] == [], "these move no score"
    write_plan(new_run(changed))
    told = change_sentence(stored(new_run()))
    assert told.startswith("Comparisons were written down after the first trial. Comparisons changed")
    assert said in told


def test_a_plan_without_the_comparison_of_k_says_that_it_was_added(new_run: Callable[..., Run]) -> None:
    run = new_run({"sweep.eval_shots": [2, 6]})
    score(run, "fixed-2-seed0")
    write_plan(run)
    old = stored(run)
    del old["plan"]["comparisons"]["most items minus fewest"]
    write_json(run.stage("sweep") / "plan.json", old)
    write_plan(run)
    assert change_sentence(stored(run)).endswith("changed after the first trial: added most items minus fewest.")


def test_a_plan_of_an_earlier_version_that_holds_no_settings_has_not_changed(new_run: Callable[..., Run]) -> None:
    score(new_run(), "fixed-2-seed0")
    write_plan(new_run())
    path = new_run().stage("sweep") / "plan.json"
    old = stored(new_run())
    del old["plan"]["settings"]
    write_json(path, old)
    write_plan(new_run())
    assert stored(new_run()) == old


def test_a_table_in_a_notebook_shows_in_grey_what_is_not_resolved() -> None:
    rows = show_table(with_verdict(table()), grey=~resolved(table())).data.split("<tbody>")[1].split("</tr>")[:-1]
    assert ["opacity" in row and "italic" in row for row in rows] == [False, True, False]
    assert "font-style:italic" not in show_table(table()).data


def test_the_gain_over_the_best_trivial_baseline_says_if_it_is_not_resolved() -> None:
    metrics = pd.DataFrame({"system": ["echo", "rl"], "score": [0.5, 0.6]})
    paired = pd.DataFrame({"system": ["rl"], "minus": ["echo"], "score": [0.1], "low": [-0.1], "high": [0.3]})
    assert "+0.100 (-0.100 to 0.300; not resolved), " in gain_over_trivial(metrics, paired)
    assert "not resolved" not in gain_over_trivial(metrics, paired.assign(low=0.01))
