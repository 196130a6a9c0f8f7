"""Examples that are shown live are chosen by their data, never by what the module made of them."""

import pytest

from rpo_kit.lamp import personas
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import get_task
from rpo_kit.study.examples import clearness, from_clear_to_hard, most_shared, why_chosen

TASK = get_task("LaMP-7")


@pytest.fixture
def examples():
    """Ten users whose generic answer is the query, unchanged."""
    rows = personas.build("LaMP-7", "dev", 10, items_per_user=6)
    return [row | {"ranking": list(range(6)), "generic": TASK.query_text(row["input"])} for row in rows]


def showing(example, k):
    rules = personas.persona("LaMP-7")
    return [rules.shown_habit(item, example["facts"]["items"][item["id"]]) for item in example["profile"][:k]]


def test_the_clearest_is_the_one_whose_items_agree_with_its_habit(examples):
    chosen = from_clear_to_hard(TASK, examples, k=6, count=10)
    shares = [showing(example, 6).count(example["facts"]["habit"]["name"]) for example in chosen]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 6 > shares[-1]
    assert sorted(example["id"] for example in chosen) == sorted(example["id"] for example in examples)


def test_a_generic_answer_without_the_content_or_that_is_the_gold_makes_it_less_clear(examples):
    first = from_clear_to_hard(TASK, examples, k=6)[0]
    assert clearness(TASK, first, 6) == (True, 1.0, 1.0)
    assert clearness(TASK, first | {"generic": "I had a nice day."}, 6)[2] < 0.5
    assert clearness(TASK, first | {"generic": first["output"]}, 6)[0] is False
    others = [example for example in examples if example is not first]
    nothing_to_change = first | {"generic": first["output"]}
    assert from_clear_to_hard(TASK, [nothing_to_change, *others], k=6, count=10)[-1] == nothing_to_change


def test_several_examples_lie_at_even_distances_from_clear_to_hard(examples):
    whole = from_clear_to_hard(TASK, examples, k=3, count=10)
    assert from_clear_to_hard(TASK, examples, k=3, count=4) == [whole[place] for place in (0, 3, 6, 9)]
    assert from_clear_to_hard(TASK, examples, k=3, count=99) == whole
    assert from_clear_to_hard(TASK, examples[:1], k=3, count=6) == examples[:1]


def test_it_says_what_made_an_example_clear(examples):
    first = from_clear_to_hard(TASK, examples, k=6)[0]
    said = "6 of 6 items show the user's habit; the generic answer keeps 100% of the query's content"
    assert why_chosen(TASK, first, 6) == said


def test_for_users_whose_habits_are_unknown_the_rest_decides(examples):
    """As for LaMP's own users, and for labels, which keep no content."""
    unknown = [example | {"facts": {}} for example in examples]
    short = unknown[0] | {"generic": "No."}
    assert from_clear_to_hard(TASK, [short, *unknown[1:]], k=6, count=10)[-1] == short
    ratings = get_task("LaMP-3")
    row = next(personas.build("LaMP-3", "dev", 1)) | {"facts": {}, "ranking": [0], "generic": "0"}
    assert clearness(ratings, row, 1) == (True, 0.0, 0.0)
    assert why_chosen(ratings, row, 1) == "the generic answer is not the gold"


def test_the_user_on_whom_retrievers_agree_most_has_the_most_items_in_common(examples):
    names = ["bm25", "recency", "random"]

    def common(example):
        return len(set.intersection(*(set(rank(TASK, [example], name)[0][:3]) for name in names)))

    chosen = most_shared(TASK, examples, names, k=3)
    assert common(chosen) == max(map(common, examples)) > min(map(common, examples))
    assert most_shared(TASK, examples[1:2], names, k=3) == examples[1]
