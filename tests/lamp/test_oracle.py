"""The oracle says that the benchmark is worth training on: more items help, and no shortcut does."""

import numpy as np
import pytest

from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.personas import MODULES, build, persona
from rpo_kit.lamp.personas.oracle import believed_habit, best_guesses, ceiling, metrics_by_k, oracle_table, predict
from rpo_kit.lamp.tasks import TASKS

ALL = list(MODULES)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {task: list(build(task, "dev", 300, items_per_user=6)) for task in ALL}


def rater(*shows: str) -> tuple[dict, list[dict[str, str]]]:
    """A row of LaMP-3 whose items show these habits, in this order, and whose query reads 3."""
    score = {"harsh": "2", "fair": "3", "generous": "4"}
    items = [{"id": str(number), "text": "…", "score": score[habit]} for number, habit in enumerate(shows)]
    facts = {"query": {"reads": 3}, "items": {item["id"]: {"reads": 3} for item in items}}
    return {"facts": facts, "profile": items}, items


def test_the_most_shown_habit_wins_and_a_tie_goes_to_the_item_ranked_first():
    assert believed_habit("LaMP-3", *rater("harsh", "fair", "fair")) == "fair"
    assert believed_habit("LaMP-3", *rater("generous", "harsh")) == "generous"
    assert believed_habit("LaMP-3", *rater("harsh", "generous", "fair", "fair", "generous")) == "generous"
    assert predict("LaMP-3", *rater("harsh", "harsh", "fair")) == "2"


def test_an_empty_profile_gets_the_habit_in_the_middle():
    assert predict("LaMP-3", *rater()) == "3"


def test_metrics_by_k_are_lamps_metrics_and_the_mean_score():
    row, _ = rater("harsh", "fair", "fair")
    # k=1 says 2, one off; k=3 says 3, the gold.
    scores = metrics_by_k("LaMP-3", [row | {"output": "3"}], [1, 3])
    assert scores == {1: {"MAE": 1.0, "RMSE": 1.0, "score": 0.75}, 3: {"MAE": 0.0, "RMSE": 0.0, "score": 1.0}}


@pytest.mark.parametrize("task", ALL)
def test_six_items_leave_less_than_half_the_loss_of_one_and_the_true_habit_leaves_none(task, rows):
    by_k = metrics_by_k(task, rows[task], [1, 4, 6])
    best = ceiling(task, rows[task])["score"]
    loss = {k: best - scores["score"] for k, scores in by_k.items()}
    assert best == 1.0
    assert 0 < loss[6] < loss[4] < loss[1]
    assert loss[6] < loss[1] / 2


@pytest.mark.parametrize("task", ALL)
def test_copying_the_first_item_is_far_worse_than_reading_it(task, rows):
    gold_field = TASKS[task].gold_field
    copied = example_scores(
        TASKS[task], [row["output"] for row in rows[task]], [row["profile"][0][gold_field] for row in rows[task]]
    )
    read = metrics_by_k(task, rows[task], [1])[1]["score"]
    assert float(np.mean(copied)) < {"LaMP-3": 0.8}.get(task, 0.3)
    assert read - float(np.mean(copied)) > {"LaMP-3": 0.15}.get(task, 0.4)


@pytest.mark.parametrize("task", ["LaMP-2", "LaMP-3"])
def test_no_constant_answer_comes_near_one_item(task, rows):
    golds = [row["output"] for row in rows[task]]
    constants = [example_scores(TASKS[task], golds, [label] * len(golds)).mean() for label in TASKS[task].labels]
    assert max(constants) < metrics_by_k(task, rows[task], [1])[1]["score"] - 0.1


@pytest.mark.parametrize("task", ALL)
def test_no_answer_that_does_not_know_the_user_beats_the_best_guess_which_one_item_beats(task, rows):
    golds = [row["output"] for row in rows[task]]
    queries = [row["facts"]["query"] for row in rows[task]]
    ignorant = [[persona(task).apply(habit, query) for query in queries] for habit in persona(task).HABITS]
    if "echo" in TASKS[task].baselines:
        ignorant.append([TASKS[task].query_text(row["input"]) for row in rows[task]])
    guess = example_scores(TASKS[task], golds, best_guesses(task, rows[task])).mean()
    by_chance = {"LaMP-1": 0.03}.get(task, 0.01)  # LaMP-1: any answer is right in half of the cases
    assert max(example_scores(TASKS[task], golds, answers).mean() for answers in ignorant) <= guess + by_chance
    assert guess < metrics_by_k(task, rows[task], [1])[1]["score"] - 0.05


def test_the_table_has_one_row_per_k():
    table = oracle_table("LaMP-3", users=30, ks=(1, 6))
    assert [list(line) for line in table] == [["task", "k", "MAE", "RMSE", "score", "ceiling"]] * 2
    assert [line["k"] for line in table] == [1, 6]
