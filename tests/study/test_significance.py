"""Users and seeds are crossed: the intervals count both, and the tests hold their level with few of each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rpo_kit.study.significance import (
    ONE_SEED,
    compare,
    crossed_bootstrap,
    degrees_of_freedom,
    holm,
    seed_variance,
    sign_flip_test,
    t_quantile,
    t_tails,
    t_test,
)
from rpo_kit.study.statistics import bootstrap_interval

USERS = [f"u{n}" for n in range(100)]


def test_with_one_seed_it_is_the_bootstrap_over_users() -> None:
    values, users = np.random.default_rng(0).normal(size=30), [f"u{n // 2}" for n in range(30)]
    for adapters in (1, 2):
        means = crossed_bootstrap(values[None], users, ONE_SEED, adapters, 500, 3)
        drawn = np.random.default_rng(3).integers(15, size=(500, 15))  # users, of two examples each
        by_hand = values.reshape(15, 2)[sorted(range(15), key=lambda n: f"u{n}")].sum(1)[drawn].sum(1) / 30
        wider = math.sqrt(15 / 14)  # as a variance with n - 1
        assert means == pytest.approx(values.mean() + (by_hand - values.mean()) * wider)
    row = compare(values[None], users, seed_variance([values[None]], users), 1, 500, 3)
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(values, users, 500, 3))
    assert row["mde"] == pytest.approx(2.8 * means.std() * t_quantile(14) / 1.959964)


def test_few_users_seldom_show_a_difference_that_is_not_there() -> None:
    """Without the two corrections 19 of 100 intervals over four users, and 49 over two, would exclude the truth."""
    generator = np.random.default_rng(0)
    for count, most in ((2, 0.08), (4, 0.08), (12, 0.08)):
        users = [f"u{n}" for n in range(count)]
        rows = [compare(generator.normal(size=(1, count)), users, ONE_SEED, 1, 400, n) for n in range(300)]
        assert np.mean([row["low"] > 0 or row["high"] < 0 for row in rows]) <= most


def test_the_variance_between_seeds_is_found_without_the_noise_of_the_users() -> None:
    generator = np.random.default_rng(0)
    users = [f"u{n}" for n in range(200)]
    ability, effects = generator.normal(0, 0.3, 200), generator.normal(0, 0.1, (40, 5, 1))
    found = seed_variance(list(ability + effects + generator.normal(0, 0.5, (40, 5, 200))), users)
    assert found.variance == pytest.approx(0.01, rel=0.25)
    assert found.observed == pytest.approx(0.01 + 0.25 / 200, rel=0.25)
    assert found.degrees == 40 * 4
    assert np.var(found.effects) == pytest.approx(found.variance), "shrunk to what is between seeds"
    noise = seed_variance(list(ability + generator.normal(0, 0.5, (40, 5, 200))), users)
    assert noise.variance < 0.0005


def test_seeds_that_differ_cannot_be_outweighed_by_users() -> None:
    arms = [np.repeat([[-0.1], [0.0], [0.1], [0.2]], 100, axis=1) for _ in range(5)]
    seeds = seed_variance(arms, USERS)
    means = crossed_bootstrap(arms[0], USERS, seeds, 1, 4000, 0)
    assert means.std() == pytest.approx(np.std([-0.1, 0.0, 0.1, 0.2], ddof=1) / 2, rel=0.05), "error of four means"
    both = crossed_bootstrap(arms[0] - arms[1], USERS, seeds, 2, 4000, 0)
    assert both.std() == pytest.approx(means.std() * math.sqrt(2), rel=0.05), "two adapters: twice the variance"
    row = compare(arms[0], USERS, seeds, 1, 4000, 0)
    assert row["low"] < 0 < row["score"] < row["high"]
    assert row["p"] > 0.3
    assert sign_flip_test(arms[0], USERS, 0) < 0.001, "users alone would call it certain"


def test_seeds_that_agree_leave_the_users() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 100)
    arms = [np.stack([values] * 3)] * 5
    row, alone = (compare(v, USERS, seed_variance([v] * 5, USERS), 1, 2000, 0) for v in (arms[0], values[None]))
    assert row["high"] - row["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.03)
    assert row["mde"] == pytest.approx(alone["mde"], rel=0.03)


def test_equal_answers_have_no_interval_and_are_no_evidence() -> None:
    same = np.zeros((3, 100))
    row = compare(same, USERS, seed_variance([same], USERS), 1, 200, 0)
    assert row == {"score": 0, "low": 0, "high": 0, "mde": 0, "p": 1}


def test_signs_are_flipped_by_user() -> None:
    five, ten = np.ones((1, 5)), np.ones((1, 10))
    assert sign_flip_test(five, list("abcde"), 0) == pytest.approx(2 / 2**5, abs=0.01), "all of five have one sign"
    assert sign_flip_test(ten, list("aabbccddee"), 0) == pytest.approx(2 / 2**5, abs=0.01), "ten queries of five users"


def test_students_t_is_that_of_the_tables() -> None:
    for freedom, at_5_percent in ((1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (600, 1.964), (math.inf, 1.960)):
        assert t_quantile(freedom) == pytest.approx(at_5_percent, abs=6e-4)
    assert t_tails(0.0, 7) == pytest.approx(1)
    assert t_tails(4.587, 10) == pytest.approx(0.001, rel=0.01)
    assert t_test(0.0, 0.0, 3) == 1
    assert t_test(0.1, 0.0, 3) == 0


def test_few_seeds_have_few_degrees_of_freedom() -> None:
    arms = [np.random.default_rng(n).normal(0, 1, (2, 100)) + np.array([[0.0], [1.0]]) for n in range(5)]
    seeds = seed_variance(arms, USERS)
    assert degrees_of_freedom(0.0001, 100, seeds, 1, 2) == pytest.approx(5, rel=0.2), (
        "the seeds prevail: 5 arms x (2 - 1)"
    )
    assert degrees_of_freedom(10.0, 100, seeds, 1, 2) == pytest.approx(99, rel=0.1), "the users prevail"
    assert degrees_of_freedom(10.0, 100, ONE_SEED, 1, 1) == pytest.approx(99), "there are no others"


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(…, "holm")
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def null(generator: np.random.Generator, arms: int, seeds: int, users: int, spread: float) -> np.ndarray:
    """Binary scores (arms, seeds, users) of adapters that differ by chance alone: seeds move them by `spread`."""
    share = generator.beta(2, 1, users)
    return (generator.random((arms, seeds, users)) < share) + generator.normal(0, spread, (arms, seeds, 1))


@pytest.mark.parametrize(
    ("arms", "seeds", "users", "spread"),
    [(2, 1, 12, 0.0), (2, 1, 100, 0.0), (2, 2, 100, 0.05), (5, 3, 12, 0.05), (5, 2, 600, 0.05), (5, 5, 100, 0.05)],
)
def test_a_true_null_hypothesis_is_rejected_in_at_most_5_of_100_cases(
    arms: int, seeds: int, users: int, spread: float
) -> None:
    """At 5 %, 16 or more of 150 have a chance below 0.5 %. A test over users alone rejects up to 58 of 100 times."""
    generator, names, rejected = np.random.default_rng(0), [f"u{n}" for n in range(users)], 0
    for _ in range(150):
        scores = null(generator, arms, seeds, users, spread)
        variance = seed_variance(list(scores), names)
        p = t_or_flip(scores[0] - scores[1], names, variance)
        rejected += p <= 0.05
    assert rejected < 16


def t_or_flip(values_SE: np.ndarray, users: list[str], seeds: object) -> float:
    return compare(values_SE, users, seeds, 2, 100, 0)["p"]  # type: ignore[arg-type]
