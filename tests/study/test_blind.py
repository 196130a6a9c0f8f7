"""The blind test hides which text is which, keeps every answer, and says how sure its win rate is."""

from __future__ import annotations

import json
import math

import pytest

from rpo_kit.errors import KitError
from rpo_kit.runs import Run, append_records, existing_run, read_records
from rpo_kit.stages import stage
from rpo_kit.study import blind
from rpo_kit.study.blind import CHOICES, REWRITE, TIE, BlindTest, Tally, result_text, smallest_rate, wilson
from rpo_kit.study.blind_widgets import blind_test


@pytest.fixture
def evaluated(prepared) -> Run:
    """A run whose rewrites after SFT differ from its generic answers but for the first one."""
    run = prepared({"data.task": "LaMP-7", "data.dev_users": 12})
    with stage(run, "evaluate", settings="any") as folder:
        examples = blind.load_prepared(run, "dev")
        texts = [examples[0]["generic"], *(f"rewrite {n}" for n in range(1, len(examples)))]
        records = [{"id": e["id"], "prediction": text} for e, text in zip(examples, texts, strict=True)]
        append_records(folder / "records" / "sft.jsonl", records)
    return run


def test_pairs_are_those_that_differ_in_an_order_that_a_restart_keeps(evaluated):
    first, again, other = BlindTest(evaluated), BlindTest(evaluated), BlindTest(evaluated, seed=1)
    assert len(first.pairs) == 11
    assert first.pairs == again.pairs
    assert first.pairs != other.pairs
    assert {pair.kinds[0] for pair in first.pairs} == {"generic", "rewrite"}, "either may be A"


def test_an_answer_is_kept_at_once_and_says_which_text_was_preferred(evaluated):
    test = BlindTest(evaluated)
    pair = test.current()
    test.answer("B")
    (record,) = read_records(evaluated.folder / "blind" / "answers.jsonl")
    assert record["preferred"] == pair.kinds[1]
    assert (record["a"], record["b"]) == pair.texts
    restarted = BlindTest(existing_run("r", evaluated.folder.parent))
    assert restarted.answers() == {pair.id: pair.kinds[1]}
    assert restarted.current() != pair


def test_all_answers_in_favour_of_the_rewrite_are_wins(evaluated):
    test = BlindTest(evaluated)
    for number in range(len(test.pairs)):
        pair = test.current()
        test.answer(TIE if number == 3 else CHOICES[pair.kinds.index(REWRITE)])
    assert test.tally() == Tally(10, 0, 1)
    assert "preferred in 10 of 10 (1.00" in test.result()
    with pytest.raises(KitError, match="All pairs are done"):
        test.answer("A")


def test_an_answer_to_other_texts_does_not_count(evaluated):
    test = BlindTest(evaluated)
    pair = test.current()
    test.answer("A")
    path = evaluated.stage("evaluate") / "records" / "sft.jsonl"
    records = [r | {"prediction": "new"} if r["id"] == pair.id else r for r in read_records(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert BlindTest(evaluated).answers() == {}


def test_what_is_missing_is_named(evaluated, new_run):
    with pytest.raises(KitError, match="'rl' of run 'r' was not evaluated"):
        BlindTest(evaluated, "rl")
    with pytest.raises(KitError, match="stage 'evaluate' of run 'raw' is not finished"):
        BlindTest(new_run(name="raw"))
    with pytest.raises(KitError, match="'C' is not an answer"):
        BlindTest(evaluated).answer("C")


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"), [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (81, 263, 0.255, 0.366)]
)
def test_wilsons_interval_is_the_published_one(wins, count, low, high):
    """The last row is the example of Newcombe 1998, table I."""
    assert wilson(wins, count) == pytest.approx((low, high), abs=6e-4)


def test_the_smallest_rate_is_found_in_eight_of_ten_tests():
    for count in (10, 30, 80):
        rate = smallest_rate(count)
        needed = next(wins for wins in range(count + 1) if wilson(wins, count)[0] > 0.5)
        chance = [math.comb(count, n) * rate**n * (1 - rate) ** (count - n) for n in range(needed, count + 1)]
        assert 0.8 <= sum(chance) < 0.82
    assert smallest_rate(80) < smallest_rate(30) < smallest_rate(10)
    assert 0.5 < smallest_rate(3000) < smallest_rate(80)


def test_few_answers_are_called_too_few():
    fewest = next(count for count in range(1, 20) if smallest_rate(count))
    said = result_text(Tally(fewest - 1, 0, 2), 30)
    assert f"{fewest - 1} decided answers are too few to show any preference: the fewest are {fewest}." in said
    assert "no win rate yet" in result_text(Tally(0, 0, 2), 30)


@pytest.mark.parametrize(
    ("tally", "verdict"),
    [
        (Tally(14, 4, 0), "the rewrite is preferred"),
        (Tally(4, 14, 0), "the generic text is preferred"),
        (Tally(9, 9, 0), "not resolved"),
    ],
)
def test_the_verdict_follows_the_interval(tally, verdict):
    assert verdict in result_text(tally, 18)


# ---- the page -----------------------------------------------------------------------------------------------------


def test_the_page_shows_both_texts_but_not_which_is_which(evaluated):
    page = blind_test(evaluated)
    pair = page.test.current()
    for text in (pair.query, *pair.texts):
        assert text in page.page.value
    assert "generic" not in page.page.value.replace(pair.texts[0], "").replace(pair.texts[1], "")
    assert "Pair 1 of 11" in page.page.value
    assert len(pair.history) == 3, "a person whom one does not know is shown by some items"
    assert "what this person wrote before" in page.page.value
    page.buttons["A"].click()
    assert "Pair 2 of 11" in page.page.value
    page.show.click()
    assert "1 of 11 pairs answered" in page.result.value
    page.buttons[TIE].click()
    assert page.result.value == "", "a result that is no longer true goes"
    assert page.test.tally().ties == 1


def test_the_page_ends_with_the_result_and_disabled_buttons(evaluated):
    page = blind_test(evaluated)
    for _ in page.test.pairs:
        page.buttons["B"].click()
    assert "All pairs are answered" in page.page.value
    assert "11 of 11 pairs answered" in page.result.value
    assert all(button.disabled for button in page.buttons.values())
    assert set(page._repr_mimebundle_()) >= {"text/html"}


def test_user_text_is_shown_and_never_interpreted(evaluated):
    path = evaluated.stage("evaluate") / "records" / "sft.jsonl"
    records = [record | {"prediction": "<b>bold</b>"} for record in read_records(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "&lt;b&gt;bold&lt;/b&gt;" in blind_test(evaluated).page.value


def test_where_nothing_can_be_compared_the_page_says_why(new_run, evaluated):
    assert "notebook 05_evaluate" in blind_test(new_run(name="raw")).page.value
    path = evaluated.stage("evaluate") / "records" / "sft.jsonl"
    generic = {example["id"]: example["generic"] for example in blind.load_prepared(evaluated, "dev")}
    same = [record | {"prediction": generic[record["id"]]} for record in read_records(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in same))
    page = blind_test(evaluated)
    assert "nothing can be compared" in page.page.value
    page.choose("A")
    assert not (evaluated.folder / "blind").exists()
