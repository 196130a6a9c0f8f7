"""The reward of a completion, worked out by hand: R = 0.9 * score + 0.1 for a well-formed trajectory."""

import pytest

from rpo_kit.lamp.tasks import TASKS, get_task
from rpo_kit.training.rewards import judge, reward, shares


def written(rewrite: str, observe: str = "[1] reads 2, gave 1: harsh") -> str:
    return f"<observe>{observe}</observe>\n<plan>as the history</plan>\n<rewrite>{rewrite}</rewrite>"


@pytest.mark.parametrize(
    ("rewrite", "gold", "expected"),
    [
        ("2", "2", 1.0),  # 0.9 * 1 + 0.1
        ("2", "1", 0.775),  # 0.9 * (1 - 1/4) + 0.1
        ("5", "1", 0.1),  # 0.9 * (1 - 4/4) + 0.1
        ("3.0", "3", 1.0),  # LaMP reads numbers, not labels
        ("99", "1", 0.1),  # beyond the scale: not below 0
        ("about 4", "4", 0.1),  # unreadable: score 0, although the worst end would be 1 - 3/4
        ("nan", "3", 0.1),
        ("five", "5", 0.1),
    ],
)
def test_ratings_are_rewarded_by_their_distance(rewrite, gold, expected):
    assert reward(get_task("LaMP-3"), written(rewrite), gold, items=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "rewrite", "gold", "expected"),
    [
        ("LaMP-1", "[2]", "[2]", 1.0),
        ("LaMP-1", "[1]", "[2]", 0.1),
        ("LaMP-1", "2", "[2]", 0.1),  # not one of the two labels
        ("LaMP-2", "dark comedy", "dark comedy", 1.0),
        ("LaMP-2", "comedy", "dark comedy", 0.1),
        ("LaMP-2", "Comedy", "comedy", 0.1),  # LaMP's evaluator is case-sensitive
    ],
)
def test_labels_are_rewarded_when_right(task, rewrite, gold, expected):
    assert reward(get_task(task), written(rewrite), gold, items=2) == pytest.approx(expected)


def test_texts_are_rewarded_by_the_mean_of_rouge_1_and_rouge_l():
    # gold "a b c d", rewrite "b a d": ROUGE-1 has 3 common words, F = 2*3/(3+4) = 6/7;
    # the longest common subsequence ("b d" or "a d") has 2, F = 2*2/(3+4) = 4/7; their mean is 5/7
    expected = 0.9 * 5 / 7 + 0.1
    for task in ("LaMP-4", "LaMP-5", "LaMP-7"):
        assert reward(get_task(task), written("b a d"), "a b c d", items=1) == pytest.approx(expected)
    assert reward(get_task("LaMP-7"), written("nothing alike"), "a b c d", items=1) == pytest.approx(0.1)


@pytest.mark.parametrize("name", TASKS)
def test_a_completion_that_does_not_parse_has_no_rewrite_and_no_reward(name):
    task = get_task(name)
    for text in ("", "2", "<rewrite>2</rewrite>", written("2") + written("2"), "Sure: " + written("2")):
        assert reward(task, text, gold="2" if task.kind == "regression" else "a", items=2) == 0.0


def test_citing_no_item_or_one_that_was_not_shown_costs_the_format_part_only():
    task = get_task("LaMP-3")
    assert reward(task, written("2", "harsh"), "2", items=2) == pytest.approx(0.9)
    assert reward(task, written("2", "[3] harsh"), "2", items=2) == pytest.approx(0.9)
    assert reward(task, written("2", "[3] harsh"), "2", items=3) == pytest.approx(1.0)
    assert reward(task, written("2", "[0] harsh"), "2", items=3) == pytest.approx(0.9)
    assert reward(task, written("2"), "2", items=0) == pytest.approx(0.9)


def test_the_format_weight_shares_out_the_reward():
    task = get_task("LaMP-3")
    assert reward(task, written("2"), "1", items=1, format_weight=0.5) == pytest.approx(0.5 * 0.75 + 0.5)
    assert reward(task, written("2"), "1", items=1, format_weight=0.0) == pytest.approx(0.75)


def test_content_has_its_share_of_the_reward_if_it_is_given_one():
    # gold "a b c d", rewrite "boat sank": ROUGE 0; of the units boat, sank, oslo two are kept
    task, text = get_task("LaMP-7"), written("boat sank")
    free = judge(task, text, "a b c d", 1, 0.1, 0.0, "A boat sank at Oslo", "boats sinking and rising and at oslo")
    assert (free.reward, free.content) == pytest.approx((0.1, 2 / 3))
    paid = judge(task, text, "a b c d", 1, 0.1, 0.3, "A boat sank at Oslo", "ships rising and falling and at oslo")
    assert paid.reward == pytest.approx(0.1 + 0.3 * 2 / 3)
    whole = judge(task, written("boat sank"), "boat sank", 1, 0.1, 0.3, "boat sank", "boat sank")
    assert whole.reward == pytest.approx(1.0), "(1 - 0.1 - 0.3) * 1 + 0.1 + 0.3"
    assert judge(task, "no tags", "boat", 1, 0.1, 0.3, "boat", "boat").reward == 0.0
    assert judge(task, "no tags", "boat", 1, 0.1, 0.3, "boat", "boat").content is None


def test_labels_have_no_content_and_no_share_of_the_reward_for_it():
    one = judge(get_task("LaMP-3"), written("2"), "1", 2, 0.1, 0.3, "3", "It leaks.")
    assert (one.reward, one.content) == (pytest.approx(0.775), None)


def test_a_completion_is_judged_with_its_parts():
    task = get_task("LaMP-3")
    right = judge(task, written("2"), "1", items=2)
    assert (right.reward, right.score, right.format) == pytest.approx((0.775, 0.75, 1.0))
    assert (right.rewrite, right.cited, right.parse_error) == ("2", (1,), None)
    wrong = judge(task, written("2", "[3] x and [1]"), "2", items=2)
    assert (wrong.reward, wrong.score, wrong.format) == pytest.approx((0.9, 1.0, 0.0))
    assert wrong.cited == (3, 1)
    torn = judge(task, "no tags", "2", items=2)
    assert (torn.reward, torn.score, torn.format, torn.rewrite, torn.cited) == (0.0, 0.0, 0.0, None, ())
    assert torn.parse_error == "no tags"
    assert all(type(one.reward) is float for one in (right, wrong, torn)), "no numpy numbers, never None"


def test_of_labels_the_share_of_the_most_frequent_one_is_logged():
    result = shares(get_task("LaMP-3"), ["2", None, "2"], ["3"] * 3, [["2"]] * 3)
    assert result == {"parsed": pytest.approx(2 / 3), "same_answer": pytest.approx(2 / 3)}


def test_copies_of_the_history_and_of_the_generic_answer_are_counted_among_all_completions():
    rewrites = ["lol the bus left", "I missed it.", "my own", None]
    result = shares(get_task("LaMP-7"), rewrites, ["I missed it. "] * 4, [["lol the bus left", "ok"]] * 4)
    assert result == {"parsed": 0.75, "copied_history": 0.25, "copied_generic": 0.25}


def test_without_observations_nothing_has_to_be_cited():
    task, text = get_task("LaMP-3"), "<plan>give 2</plan>\n<rewrite>2</rewrite>"
    judged = judge(task, text, "2", items=2, sections=("plan", "rewrite"))
    assert (judged.reward, judged.format, judged.cited) == (1.0, 1.0, ())
    assert judge(task, text, "2", items=2).parse_error == "no <observe>"


def test_with_observations_and_without_a_plan_the_items_cited_must_exist():
    task, sections = get_task("LaMP-3"), ("observe", "rewrite")
    texts = [f"<observe>{cited} gave 1</observe>\n<rewrite>2</rewrite>" for cited in ("[1]", "[3]", "")]
    assert [judge(task, text, "2", 2, sections=sections).format for text in texts] == [1.0, 0.0, 0.0]
