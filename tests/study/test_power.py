"""`plan`: the users and seeds needed to detect a difference follow from the spread on each level of a pilot."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.runs import open_run
from rpo_kit.study import ablation, comparisons
from rpo_kit.study.evaluation import evaluate
from rpo_kit.study.pilot import Costs, Pilot, pilot_of_evaluation, pilot_of_sweep
from rpo_kit.study.power import Spread, choices, plan_report, seed_spread_of, spread_of, standard_errors

DATA = Path(__file__).parents[2] / "figures" / "data"
COSTS = Costs(seconds_per_step=36.0, steps=100, seconds_per_example=0.1, arms=5, shots=3)


def pilot(differences_SE: np.ndarray, users: list[str] | None = None, arms: tuple[np.ndarray, ...] = ()) -> Pilot:
    names = users or [f"u{n}" for n in range(differences_SE.shape[1])]
    return Pilot("a pilot", differences_SE, names, COSTS, arms)


def test_a_difference_is_found_at_2_8_standard_errors() -> None:
    assert standard_errors(0.8) == pytest.approx(2.80, abs=0.002)
    assert standard_errors(0.9) == pytest.approx(3.24, abs=0.002)


def test_users_follow_from_the_spread_between_them() -> None:
    spread = Spread(user=0.25**2)
    users = spread.users(0.02, 0.8, queries=1, seeds=1)
    assert users == math.ceil((2.8016 * 0.25 / 0.02) ** 2)
    assert standard_errors(0.8) * math.sqrt(spread.variance(users, 1, 1)) <= 0.02
    assert spread.users(0.9, 0.8, 1, 1) == 6, "fewer cannot be significant in a sign-flip test"


def test_queries_help_against_their_own_spread_only() -> None:
    spread = Spread(user=0.01, query=0.04)
    one, four = (spread.users(0.02, 0.8, queries, 1) for queries in (1, 4))
    assert four / one == pytest.approx((0.01 + 0.04 / 4) / 0.05, rel=0.01)


def test_too_few_seeds_are_not_made_up_for_by_users() -> None:
    spread = Spread(user=0.01, seed=0.02**2)
    assert spread.users(0.02, 0.8, 1, 7) is None, "2.8 x 0.02 / sqrt(7) is 0.0212"
    assert spread.users(0.02, 0.8, 1, 8) > 100
    table = choices(pilot(np.zeros((1, 20))), spread, 0.02, 0.8).set_index("seeds")
    assert table.loc[5, "users"] == "too few seeds"
    assert table.loc[8, "users"] == spread.users(0.02, 0.8, 1, 8), "the fewest seeds have a row"


def test_the_levels_of_a_pilot_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    users, queries, seeds, arms = 2000, 3, 4, 20
    of_user, of_query = generator.normal(0, 0.3, (users, 1)), generator.normal(0, 0.4, (users, queries))
    values = np.ravel(of_user + of_query)
    of_arms = [values + generator.normal(0, 0.1, (seeds, 1)) for _ in range(arms)]
    names = [f"u{n // queries}" for n in range(users * queries)]
    found = spread_of(pilot(of_arms[0], names, tuple(of_arms)))
    assert found.user == pytest.approx(0.09, rel=0.1)
    assert found.query == pytest.approx(0.16, rel=0.05)
    assert found.seed == pytest.approx(0.01, rel=0.4)
    assert found.interaction == pytest.approx(0, abs=1e-9)


def test_one_query_per_user_and_one_seed_leave_two_levels_unknown() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.2, (1, 400))
    found = spread_of(pilot(differences))
    assert (found.query, found.seed) == (None, None)
    assert found.user == pytest.approx(0.04, rel=0.1)
    text = plan_report(pilot(differences), 0.02, 0.8)
    assert "between seeds unknown, as the pilot has one: taken as 0" in text
    assert "between seeds 0.010, as stated" in plan_report(pilot(differences), 0.02, 0.8, 0.01)


def test_the_advice_is_the_cheapest_choice_and_no_hundred_seeds() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.2, (1, 100))
    told = plan_report(pilot(differences), 0.05, 0.8, 0.049)
    table = choices(pilot(differences), Spread(user=0.04, seed=0.049**2), 0.05, 0.8)
    assert len(table) > 5, "a row with the fewest seeds, which takes many users"
    hours = {int(row["seeds"]): float(row["hours in all"]) for _, row in table.iterrows() if row["hours in all"] != "–"}
    proposed = told.partition("sweep.seeds=[")[2].partition("]")[0].split(", ")
    assert hours[len(proposed)] == min(value for seeds, value in hours.items() if seeds >= 3)
    assert "seeds: plan for a larger difference." in plan_report(pilot(differences), 0.02, 0.8, 0.049)


def test_each_choice_says_what_it_costs() -> None:
    table = choices(pilot(np.zeros((1, 20))), Spread(user=0.04), 0.02, 0.8).set_index("seeds")
    users = table.loc[3, "users"]
    assert table.loc[3, "hours of RL"] == "15.0", "5 arms, 3 seeds, 100 steps of 36 s"
    assert float(table.loc[3, "hours of scoring"]) == pytest.approx(16 * 3 * users * 0.1 / 3600, abs=0.05)
    silent = Pilot("a pilot", np.zeros((1, 20)), list("abcdefghijklmnopqrst"), Costs(None, 5, None, 1, 1))
    assert choices(silent, Spread(user=0.04), 0.02, 0.8)["hours in all"].eq("not recorded").all()


@pytest.mark.parametrize(
    ("differences", "target", "power", "said"),
    [
        (np.array([[0.1]]), 0.02, 0.8, "has one user"),
        (np.zeros((1, 5)), 0.02, 0.8, "its spread is 0"),
        (np.array([[0.1, 0.2]]), 0.0, 0.8, "--difference 0 must be above 0"),
        (np.array([[0.1, 0.2]]), -0.1, 0.8, "--difference -0.1 must be above 0"),
        (np.array([[0.1, 0.2]]), float("nan"), 0.8, "--difference nan must be above 0"),
        (np.array([[0.1, 0.2]]), 0.02, 1.0, "--power 1 must be a share"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(differences: np.ndarray, target: float, power: float, said: str) -> None:
    with pytest.raises(KitError, match=said):
        plan_report(pilot(differences), target, power)


def test_the_spread_between_seeds_is_a_number_or_that_of_stored_runs(tmp_path: Path) -> None:
    assert seed_spread_of("0.05", DATA) == 0.05
    one = pilot(np.random.default_rng(0).normal(0.1, 0.2, (1, 50)))
    assert "between seeds 0.050, as stated\n" in plan_report(one, 0.1, 0.8, 0.05)
    two = plan_report(replace(one, adapters=2), 0.1, 0.8, 0.05)
    assert "between seeds 0.071, as stated for each of two adapters\n" in two
    assert seed_spread_of("gain_LaMP-7_24x16", DATA) == pytest.approx(0.049, abs=0.001)
    assert seed_spread_of("figures/data/gain_LaMP-7_24x16.csv", DATA) == seed_spread_of("gain_LaMP-7_24x16", DATA)
    rows = {"run": ["a", "b", "all"], "difference": [0.1, 0.1, 0.1], "mde": [0.05, 0.05, 0.04]}
    pd.DataFrame(rows).to_csv(tmp_path / "gain_x.csv", index=False)
    assert seed_spread_of("gain_x", tmp_path) == 0
    for wrong, said in (("-1", "at least 0"), ("nan", "at least 0"), ("none", r"stored numbers .*\(gain_x\)")):
        with pytest.raises(KitError, match=said):
            seed_spread_of(wrong, tmp_path)


def test_an_evaluation_is_a_pilot(prepared, tmp_path, monkeypatch, capsys) -> None:
    run = prepared()
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    assert main(["plan", "--run", "r"]) == 2
    assert "'evaluate' of run 'r' is not finished" in capsys.readouterr().err
    evaluate(run, ["base", "constant", "majority"])
    found = pilot_of_evaluation(run, "majority", "base")
    assert (found.seeds, found.user_count, found.queries) == (1, 6, 1)
    assert found.costs.seconds_per_step is None
    capsys.readouterr()
    assert main(["plan", "--run", "r", "--system", "majority", "--difference", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "majority minus base, LaMP-3" in said
    assert "--set sweep.difference=0.1" in said
    steps = f"--set sweep.steps={run.preset.rl.steps} --set sweep.prompts_per_step={run.preset.rl.prompts_per_step}"
    assert steps in said, "the sweep of which the hours are told"
    assert "lack an answer" not in said
    records = run.stage("evaluate") / "records/majority.jsonl"
    records.write_bytes(records.read_bytes()[:-9])  # the disk was full
    assert main(["plan", "--run", "r", "--system", "majority"]) == 0
    assert "without 1 of 6 examples, which lack an answer" in capsys.readouterr().out
    for options, reason in ((["--system", "rl"], "no answers of 'rl'"), (["--system", "base"], "minus itself")):
        assert main(["plan", "--run", "r", "--minus", "base", *options]) == 2
        assert reason in capsys.readouterr().err


def test_answers_of_other_settings_are_no_pilot_and_a_pause_is_no_time_per_answer(prepared, tmp_path) -> None:
    run = prepared()
    evaluate(run, ["base", "majority"])
    base = run.stage("evaluate") / "records/base.jsonl"
    for hours, known in ((14, False), (0.01, True)):
        began = base.with_name("majority.jsonl").stat().st_mtime - 3600 * hours
        os.utime(base, (began, began))
        assert (pilot_of_evaluation(run, "majority", "base").costs.seconds_per_example is not None) == known
    with pytest.raises(KitError, match=r"was evaluated before .*data\.seed.* changed"):
        pilot_of_evaluation(open_run("r", "tiny", {"data.seed": 1}, root=tmp_path))


def test_a_sweep_is_a_pilot_with_several_seeds(new_run) -> None:
    run = new_run({"sweep.seeds": [0, 1], "sweep.eval_shots": [2, 6]})
    with pytest.raises(KitError, match="has no finished sweep"):
        pilot_of_sweep(run)
    for name, gain in (("sft", 0.0), ("fixed-2-seed0", 0.1), ("fixed-2-seed1", 0.2), ("progressive-seed0", 0.3),
                       ("progressive-seed1", 0.5)):  # fmt: skip
        folder = run.stage(f"sweep/{name}/scores")
        folder.mkdir(parents=True)
        rows = [
            {"id": f"e{n}", "user": f"u{n}", "shots": k, "score": gain + n / 100 * (k == 6)}
            for k in (2, 6)
            for n in range(4)
        ]
        pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
        ablation.write_json(folder / ablation.TIMING, {"seconds": 4.0, "examples": 8})
    found = pilot_of_sweep(run)
    assert found.differences_SE == pytest.approx(np.array([[0.3] * 4, [0.5] * 4]))
    assert found.costs.seconds_per_example == 0.5
    assert (found.adapters, pilot_of_sweep(run, minus="fixed-2").adapters) == (1, 2)
    with pytest.raises(KitError, match="has no arm 'reversed': it has SFT only, fixed-2, progressive"):
        pilot_of_sweep(run, "reversed")
    comparisons.write_plan(run)
    pilot_of_sweep(new_run({"sweep.eval_shots": [2, 6]}))
    with pytest.raises(KitError, match=r"computed with other settings \(data.seed, rl.temperature\)"):
        pilot_of_sweep(
            new_run({"sweep.seeds": [0, 1], "sweep.eval_shots": [2, 6], "data.seed": 5, "rl.temperature": 2})
        )
