"""How many history items at which step, and which prompts in which order: known before training starts."""

from collections import Counter

import pytest

from rpo_kit.errors import KitError
from rpo_kit.training.curriculum import prompt_order, shots_plan


def test_progressive_grows_in_equal_stages():
    assert shots_plan("progressive", 10) == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert shots_plan("progressive", 5) == [2, 3, 4, 5, 6]
    assert shots_plan("progressive", 7) == [2, 2, 3, 4, 4, 5, 6]  # 2 + floor(5 t / 7)
    assert shots_plan("progressive", 3) == [2, 3, 5]  # too few steps for all stages, still growing
    assert shots_plan("progressive", 4, first=1, last=2) == [1, 1, 2, 2]


def test_reversed_is_the_same_backwards():
    assert shots_plan("reversed", 10) == [6, 6, 5, 5, 4, 4, 3, 3, 2, 2]


def test_fixed_never_changes():
    assert shots_plan("fixed-4", 3) == [4, 4, 4]
    assert shots_plan("fixed-12", 2) == [12, 12]


def test_random_draws_every_k_about_equally_often_and_depends_on_the_seed_only():
    plan = shots_plan("random", 1000)
    assert set(plan) == {2, 3, 4, 5, 6}
    assert min(Counter(plan).values()) > 150  # 200 expected each
    assert plan == shots_plan("random", 1000)
    assert plan != shots_plan("random", 1000, seed=1)


def test_a_custom_list_is_followed_in_stages_of_equal_length():
    assert shots_plan("2,6,3", 6) == [2, 2, 6, 6, 3, 3]
    assert shots_plan("1, 12", 3) == [1, 1, 12]


@pytest.mark.parametrize(
    "plan", ["2,", "2,0", "2,x", "", "growing", "fixed", "fixed-", "fixed-0", "fixed--2", "fixed-2.5", "Progressive"]
)
def test_an_unknown_curriculum_is_rejected_with_the_known_ones(plan):
    with pytest.raises(KitError, match=r"no curriculum.*progressive, reversed, random, fixed-K.* or a list"):
        shots_plan(plan, 4)


@pytest.mark.parametrize(("first", "last"), [(6, 2), (0, 6), (-1, 2)])
def test_shots_that_do_not_grow_are_rejected(first, last):
    with pytest.raises(KitError, match=f"shots_from={first} and rl.shots_to={last}"):
        shots_plan("progressive", 4, first, last)


def test_each_pass_over_the_pool_visits_every_example_once_in_a_new_order():
    pool = [{"id": str(n)} for n in range(8)]
    order = [example["id"] for example in prompt_order(pool, 20)]
    first, second, third = order[:8], order[8:16], order[16:]
    assert sorted(first) == sorted(second) == [str(n) for n in range(8)]
    assert first != second
    assert len(set(third)) == len(third) == 4


def test_the_order_depends_on_the_seed_and_a_longer_run_begins_with_a_shorter_one():
    pool = [{"id": str(n)} for n in range(8)]
    assert prompt_order(pool, 20)[:5] == prompt_order(pool, 5)
    assert prompt_order(pool, 8, seed=1) != prompt_order(pool, 8, seed=0)


def test_an_empty_pool_is_an_error_and_not_an_endless_loop():
    with pytest.raises(KitError, match="no training example"):
        prompt_order([], 3)


def test_a_list_that_is_longer_than_the_training_is_refused():
    with pytest.raises(KitError, match="'2,6,2' has 3 values for 2 steps"):
        shots_plan("2,6,2", 2)
