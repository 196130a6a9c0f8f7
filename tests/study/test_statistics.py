"""Intervals over several runs count both levels: the runs, and the users of each."""

import numpy as np
import pytest

from rpo_kit.study.statistics import bootstrap_runs


def test_runs_that_differ_are_as_uncertain_as_their_means_however_many_users_they_have() -> None:
    levels = [-0.1, 0.0, 0.1, 0.2]
    means = bootstrap_runs([np.full(500, level) for level in levels], resamples=4000)
    assert means.mean() == pytest.approx(0.05, abs=0.01)
    assert means.std() == pytest.approx(np.std(levels) / 2, rel=0.05), "standard error of four means"


def test_runs_that_agree_are_as_uncertain_as_their_users() -> None:
    users = np.repeat([0.0, 1.0], 50)
    means = bootstrap_runs([users] * 4, resamples=4000)
    assert means.std() == pytest.approx(0.5 / np.sqrt(400), rel=0.05)


def test_the_table_has_a_row_per_run_and_one_for_all(load_script) -> None:
    generator = np.random.default_rng(0)
    by_run = {name: 0.05 + generator.normal(0, 0.2, 100) for name in ("a", "b", "c")}
    table = load_script("gain_over_seeds").table(by_run).set_index("run")
    assert list(table.index) == ["a", "b", "c", "all"]
    assert table.loc["all", "difference"] == pytest.approx(table["difference"][:3].mean())
    assert table.loc["a", "mde"] == pytest.approx(2.8 * by_run["a"].std() / 10, rel=0.05)
    assert (table.low < table.difference).all()
    assert (table.difference < table.high).all()
    assert table.loc["all", "examples"] == 300
