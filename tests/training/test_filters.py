"""The quality gates: each reason against a trajectory, worked out by hand."""

import pytest

from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.trajectory import Trajectory
from rpo_kit.training.filters import RULES, Filters, leaks_gold, matches, rejection_reason

HEADLINES, RATINGS, MOVIES, CITATIONS = (get_task(name) for name in ("LaMP-4", "LaMP-3", "LaMP-2", "LaMP-1"))
TITLE = "Why the old bandstand lost its director"
ITEM = {"id": "1", "text": "The bridge closes on Monday.", "title": "Why the bridge closes on Monday"}
EXAMPLE = {
    "input": HEADLINES.make_input(text="The director of the bandstand leaves after a petition."),
    "output": TITLE,
    "generic": "Director leaves bandstand",
}


def reason(rewrite=TITLE, observe="[3] title opens with Why", plan="open with Why", gates=None):
    trajectory = Trajectory(observe, plan, rewrite)
    return rejection_reason(HEADLINES, EXAMPLE, [(3, ITEM)], trajectory, gates or Filters())


def test_a_trajectory_that_passes_every_filter_is_not_rejected():
    assert reason() is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"observe": "title opens with Why"}, "cites no item"),
        ({"observe": "[1] title opens with Why"}, "cites an item that was not shown"),
        ({"rewrite": "Bandstand without a director"}, "does not end in the gold"),
        ({"observe": "[3] the old bandstand lost its director"}, "observe leaks the gold"),
        ({"observe": "[3] the user's own answer opens with Why"}, "observe leaks the gold"),
        ({"plan": "so and " * 100}, "longer than 200 words"),
    ],
)
def test_each_filter_names_its_reason(changed, why):
    assert reason(**changed) == why


def test_a_copy_of_a_shown_item_teaches_copying():
    example = EXAMPLE | {"output": "Why the bridge closes on Monday"}
    trajectory = Trajectory("[3] title opens with Why", "open with Why", example["output"])
    assert rejection_reason(HEADLINES, example, [(3, ITEM)], trajectory, Filters()) == "copies a history item"
    assert rejection_reason(HEADLINES, example, [(3, ITEM)], trajectory, RULES) is None


@pytest.mark.parametrize(
    ("task", "target", "rewrite", "close"),
    [
        (RATINGS, "2", " 2 ", True),
        (RATINGS, "2", "2.0", False),  # a rating is one of five words, not a number near another
        (MOVIES, "sci-fi", "Sci-Fi", False),
        (HEADLINES, "a b c d e f g h i", "A b c d e f g h i!", True),  # ROUGE knows neither case nor marks
        (HEADLINES, "a b c d e f g h i j", "a b c d e f g h i", True),  # recall 9/10, precision 1: F 18/19
        (HEADLINES, "a b c d e", "a b c x e", False),  # ROUGE-1 and -L: 4/5
    ],
)
def test_labels_must_match_word_for_word_and_texts_closely(task, target, rewrite, close):
    assert matches(task, target, rewrite, 0.9) is close


def test_at_a_threshold_of_one_a_text_must_match_word_for_word():
    assert not matches(HEADLINES, "a b c", "A b c", 1.0)
    assert matches(HEADLINES, "a b c", "a b c", 1.0)


def test_words_from_the_history_or_the_query_do_not_leak_the_gold():
    example = EXAMPLE | {"output": "Bridge closes on Monday, director leaves"}
    assert not leaks_gold(HEADLINES, example, [ITEM], "[3] writes: Why the bridge closes on Monday")
    assert leaks_gold(HEADLINES, example, [ITEM], "[3] would write: closes on Monday, director leaves")


def test_a_short_gold_leaks_if_it_is_named():
    example = {"input": MOVIES.make_input(text="A heist."), "output": "dark comedy", "generic": "action"}
    shown = [{"id": "1", "description": "A chase.", "tag": "comedy"}]
    assert leaks_gold(MOVIES, example, shown, "[1] likes dark comedy")
    assert not leaks_gold(MOVIES, example, shown, "[1] tagged comedy")


@pytest.mark.parametrize(
    ("task", "output", "observe", "given"),
    [
        (RATINGS, "2", "[1] reads 2, gave 1: harsh", False),
        (RATINGS, "2", "[1] harsh, so the true rating is 2", True),
        (CITATIONS, "[1]", "[1] about graphs", False),
        (CITATIONS, "[1]", "[1] the correct answer is in graphs", True),
    ],
)
def test_numbers_occur_for_other_reasons_so_only_mentioning_the_answer_counts(task, output, observe, given):
    assert leaks_gold(task, {"input": "", "output": output, "generic": ""}, [], observe) is given
