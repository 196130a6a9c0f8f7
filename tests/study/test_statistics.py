"""Gains over runs with users of their own, intervals of few users, and which systems are compared."""

import numpy as np
import pytest

from rpo_kit.study.significance import ONE_SEED, compare, over_runs
from rpo_kit.study.statistics import bootstrap_interval, compared


def test_means_of_runs_have_the_interval_of_students_t() -> None:
    found = over_runs([0.01, 0.02, 0.03, 0.04, 0.05])
    error = np.std([0.01, 0.02, 0.03, 0.04, 0.05], ddof=1) / np.sqrt(5)
    assert found["score"] == pytest.approx(0.03)
    assert (found["low"], found["high"]) == pytest.approx((0.03 - 2.776 * error, 0.03 + 2.776 * error), abs=1e-5)
    assert np.isnan(over_runs([0.1])["low"]), "one run cannot say how others would differ"


def test_runs_without_a_gain_seldom_show_one_even_if_they_are_few() -> None:
    generator = np.random.default_rng(0)
    found = [over_runs(means) for means in generator.normal(0, 0.05, (1000, 2)).tolist()]
    assert 0.03 < np.mean([row["low"] > 0 or row["high"] < 0 for row in found]) < 0.07


def test_the_table_has_a_row_per_run_and_one_for_all(load_script) -> None:
    generator = np.random.default_rng(0)
    sizes = {"a": 100, "b": 100, "c": 20}
    by_run = {name: (0.05 + generator.normal(0, 0.2, n), [str(i) for i in range(n)]) for name, n in sizes.items()}
    table = load_script("gain_over_seeds").table(by_run).set_index("run")
    assert list(table.index) == ["a", "b", "c", "all"]
    assert table.loc["all", "difference"] == pytest.approx(table["difference"][:3].mean()), "runs count alike"
    assert table.loc["a", "mde"] == pytest.approx(2.8 * by_run["a"][0].std() / 10, rel=0.05)
    assert (table.low < table.difference).all()
    assert (table.difference < table.high).all()
    assert table.loc["all", "examples"] == 220


def test_queries_of_one_user_are_not_counted_as_users(load_script) -> None:
    values = np.repeat(np.random.default_rng(0).normal(0, 0.2, 20), 10)
    alone, together = ([str(n) for n in range(200)], [str(n // 10) for n in range(200)])
    rows = {name: (values, users) for name, users in (("alone", alone), ("together", together))}
    table = load_script("gain_over_seeds").table(rows).set_index("run")
    width = table["high"] - table["low"]
    assert width["together"] == pytest.approx(width["alone"] * np.sqrt(10), rel=0.15)


def test_one_user_has_no_interval() -> None:
    values = np.array([0.1, 0.2, 0.3])
    assert np.isnan(bootstrap_interval(values, ["ann"] * 3)).all()
    row = compare(values[None], ["ann"] * 3, ONE_SEED, 1, 100, 0)
    assert np.isnan([row["low"], row["high"], row["mde"]]).all()
    assert row["p"] == 1


@pytest.mark.parametrize(
    "names", [["base", "echo", "sft", "rl"], ["rl", "sft", "base", "echo"], ["echo", "rl", "base", "sft"]]
)
def test_the_order_of_the_settings_does_not_decide_what_is_compared(names: list[str]) -> None:
    assert set(compared(names)) == {
        ("echo", "base"), ("sft", "base"), ("rl", "base"), ("rl", "sft"), ("rl", "echo"),
    }  # fmt: skip
