"""Observations are checked against what the personas' own rules say of the items cited."""

from __future__ import annotations

import pytest

from rpo_kit.lamp.personas import MODULES, build, persona
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.faithfulness import Checked, Truth, check, statements, truth_of
from rpo_kit.training.teachers import Request, persona_teacher

# three items: two grumpy, one bubbly
TRUTH = Truth(
    ("opens ugh, ends smh: grumpy", "opens omg, ends xx: bubbly", "opens ugh, ends smh: grumpy"),
    ("grumpy", "bubbly", "grumpy"),
    "grumpy",
    {"grumpy": "ugh fell smh", "bubbly": "omg fell xx", "joker": "lol fell haha"},
)


def written(observe: str, plan: str = "grumpy: ugh fell..", rewrite: str = "ugh fell smh") -> str:
    return f"<observe>{observe}</observe><plan>{plan}</plan><rewrite>{rewrite}</rewrite>"


@pytest.mark.parametrize(
    ("observe", "many", "faithful", "named"),
    [
        ("[1] opens ugh, ends smh: grumpy", False, 1.0, 1.0),
        ("[2] Opens  omg, ends xx:\tbubbly.", False, 1.0, 1.0),  # case, blanks and the full stop do not matter
        ("[2] opens ugh, ends smh: grumpy", False, 0.0, 0.0),  # true of another item
        ("[2] opens ugh, ends xx: bubbly", False, 0.0, 1.0),
        ("[2] opens ugh, unlike grumpy: bubbly", False, 0.0, 1.0),  # the last one named is the conclusion
        ("[1] opens ugh, ends smh: grumpy\n[2] opens ugh, ends smh: grumpy", True, 0.5, 0.5),
        ("[1] opens ugh, ends smh: grumpy [2] opens omg, ends xx: bubbly", True, 1.0, 1.0),  # in one line
        ("[1] [3] opens ugh, ends smh: grumpy\nmost are grumpy", True, 1.0, 1.0),  # uncited text is not checked
        ("[1][2] opens ugh, ends smh: grumpy", True, 0.0, 0.0),  # not of both
        ("[7] opens ugh, ends smh: grumpy", False, 0.0, 0.0),  # there is no such item
        ("grumpy", False, 0.0, 0.0),  # cites nothing
    ],
)
def test_each_statement_is_compared_with_the_truth_about_the_items_it_cites(observe, many, faithful, named):
    assert check(written(observe), TRUTH, shots=3) == Checked(many, faithful, named, 1.0)


@pytest.mark.parametrize(
    ("plan", "rewrite", "follows"),
    [
        ("bubbly: omg fell..", "ugh fell smh", 1.0),  # the rewrite decides
        ("grumpy: ugh fell..", "omg fell xx", 0.0),
        ("grumpy: ugh fell..", "ugh fell over smh", 1.0),  # nobody's answer: the plan decides
        ("bubbly: omg fell..", "omg fell over xx", 0.0),
        ("grumpy or bubbly", "omg fell over xx", 0.0),
    ],
)
def test_the_majority_is_followed_by_the_rewrite_or_else_by_the_plan(plan, rewrite, follows):
    assert check(written("[1] x", plan, rewrite), TRUTH, shots=3).majority == follows


def test_what_does_not_parse_is_not_true_and_without_facts_only_the_citations_are_known():
    assert check("ugh", TRUTH, shots=3) == Checked(False, 0.0, 0.0, 0.0)
    assert check(written("[1] a [2] b"), None, shots=2) == Checked(True)
    assert check(written("[1] a [9] b"), None, shots=2) == Checked(False), "an item that was not shown"
    assert check("ugh", None, shots=2) == Checked(False)


def test_statements_end_at_the_next_citation_or_line():
    assert statements("[1], [2] A [b] c\n\n[3]\nd [10]") == [([1, 2], "a [b] c"), ([3], "d"), ([10], "")]
    assert statements("[" * 5000 + "[1] " * 2000)[-1][1] == ""


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shots", [1, 3])
def test_the_rule_based_teacher_tells_the_truth_and_follows_the_majority(name, shots):
    task = get_task(name)
    rows = [row | {"generic": "g"} for row in build(name, "dev", 30)]
    texts = persona_teacher(task, [Request("r", row, row["profile"][:shots]) for row in rows])
    for row, text in zip(rows, texts, strict=True):
        truth = truth_of(task, row, row["profile"][:shots])
        assert check(text, truth, shots) == Checked(shots > 1, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", MODULES)
def test_another_habits_answer_does_not_follow_the_majority(name):
    task, rules = get_task(name), persona(name)
    for row in build(name, "dev", 10):
        truth = truth_of(task, row, row["profile"][:4])
        other = next(answer for answer in truth.answers.values() if answer != truth.answers[truth.majority])
        assert check(written("[1] x", "y", other), truth, 4).majority == 0.0
        assert set(truth.answers) == set(rules.HABITS)


def test_the_truth_about_real_users_is_unknown():
    row = next(build("LaMP-7", "dev", 1))
    task, items = get_task("LaMP-7"), row["profile"][:2]
    assert truth_of(task, row | {"facts": {}}, items) is None
    assert truth_of(task, {key: value for key, value in row.items() if key != "facts"}, items) is None
    assert truth_of(task, row, [{"id": "elsewhere", "text": "x"}]) is None
    assert truth_of(task, row, []).majority is None
    assert check(written("[1] x"), truth_of(task, row, []), 0).majority == 0.0


def test_a_completion_without_a_plan_is_read_in_its_own_form():
    text = f"<observe>[1] {TRUTH.statements[0]}</observe>\n<rewrite>{TRUTH.answers[TRUTH.majority]}</rewrite>"
    assert check(text, TRUTH, shots=3, sections=("observe", "rewrite")) == Checked(False, 1.0, 1.0, 1.0)
    assert check(text, TRUTH, shots=3) == Checked(False, 0.0, 0.0, 0.0), "in the full form it does not parse"
