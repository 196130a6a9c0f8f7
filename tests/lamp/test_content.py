"""What of a text's content survives a rewrite: the metric on texts whose answer can be counted by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_kit.lamp.content import content_kept, rewrite_content, units

TRAM = "We missed the last tram, so Ann walked 2 miles."


def test_content_words_numbers_and_names_are_counted_by_hand() -> None:
    # units: miss, last, tram, Ann, walk, mile, 2; all but Ann are there: 6 of 7
    kept = content_kept(TRAM, "ugh missed last tram.. walked two miles smh")
    assert kept.share == pytest.approx(6 / 7)
    assert (kept.words, kept.numbers, kept.names, kept.negation) == (pytest.approx(5 / 6), 1.0, 0.0, None)
    assert (kept.units, kept.lost) == (7, ("Ann",))
    # 10 words before and 8 after, of which missed, last, tram, walked, miles are in both
    assert kept.changed == pytest.approx(1 - 5 / 10)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("missed boxes", "misses a box"),
        ("he hoped and cried", "hoping, I cry"),
        ("we were running", "run"),
        ("a cool cat", "coooool cat"),
        ("Ann met Bob", "ann met bob"),
        ("it took twelve hours", "took 12 hours"),
        ("1,200 people", "1200 people"),
        ("I went to work with you and Ann before four", "went 2 work w u n ann b4 4"),
        ("so gone 2 work 4 Ann", "gone to work for ann"),
        ("I didn't sleep", "never slept, no sleep"),
        ("我昨天没有吃饭", "我昨天没有吃饭 哈哈"),
        ("so happy, I love this nice morning", "soooo happyyyy i loveee this niceee morningggg"),
        ("free the bus, boss: yes, all of them", "freeeee the buses bosses yesss alll of them"),
        ("no sleep", "nooooo sleep"),
        ("twenty-five people", "25 people"),
        ("two hundred thousand trees", "200,000 trees"),
        ("1.5 million trees", "1,500,000 trees"),
        ("he is fifty one", "51"),
        ("I have 1 dog", "i have one dog"),
        ("a $1.5bn loan at 10:30pm", "a loan of 1.5 bn at 10:30 pm"),
        ("lunch was $5.00", "lunch was $5"),
        ("2.50 of 1,000.50", "2.5 of 1000.5"),
        ("at 7:00", "at 7"),
        ("10k people", "10,000 people"),
        ("two hundred and fifty-five trees", "255 trees"),
        ("IT IS LATE FOR US", "late"),
        ("1.000,50 euro", "1000.50 euro"),
        ("0,125 mm of 10.000", "0.125 mm of 10,000"),
        ("10 20 five", "5 20 10"),
        ("I didn‘t sleep", "i didn't sleep"),
    ],
)
def test_spelling_endings_case_and_numerals_lose_nothing(before: str, after: str) -> None:
    assert content_kept(before, after).share == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I don&#39;t like pizza", "I don't like pizza"),
        ("He said &quot;yes&quot; &lt;3", 'he said "yes" <3'),
        ("I don´t like pizza", "i don't like pizza"),
        ("we _really_ love _pizza_", "we really love pizza"),
        ("Zo\u00eb ate cr\u00e8me", "Zoe\u0308 ate cre\u0300me"),
        ("we shan't go", "we shan’t go"),
    ],
)
def test_the_same_words_written_otherwise_lose_nothing(one: str, other: str) -> None:
    for before, after in ((one, other), (other, one)):
        kept = content_kept(before, after)
        assert kept.share == 1
        assert kept.negation in (None, 1)
    assert content_kept("we shan't go", "we go").negation == 0


def test_a_lost_negation_number_or_word_is_a_loss() -> None:
    assert content_kept("I did not sleep", "i slept").negation == 0.0
    assert content_kept("I can't swim", "i cant swim").negation == 1.0
    assert content_kept("nope, I daren't swim", "I swim").negation == 0.0
    assert content_kept("The US and IT won", "we won it").lost == ("US", "IT")
    assert content_kept("5 m wide", "5 million wide").numbers == 0.0
    assert content_kept("a hundred men and 6 dogs", "106 dogs").numbers == 0.0, "no one number"
    assert content_kept("2 dogs", "to the dogs to").numbers == 1.0, "as in 'gone 2 work': more to's than before"
    assert content_kept("I went to 2 dogs", "went to dogs").numbers == 0.0
    assert content_kept("A $1.5bn loan", "a $1.9bn loan").numbers == 0.0
    assert content_kept("ran 2.5km in 40min", "ran 2.6km in 40 min").numbers == 0.5
    assert content_kept("twenty-five", "twenty, five").numbers == 0.0
    assert content_kept("हाँ", "है").share == 0.0, "vowel signs are part of a word"
    assert content_kept("The boiler broke", "the cooker broke").lost == ("boiler",)


def test_names_are_capitals_inside_sentences_and_none_are_seen_in_title_case_or_lower_case() -> None:
    assert content_kept("Then Ann left. Bob stayed with Eve at home.", "ann").names == 0.5, "Bob begins a sentence"
    assert content_kept("Council Votes To Drain Pool", "x").names is None
    assert content_kept("ann left home", "x").names is None


def test_a_text_without_content_can_lose_nothing() -> None:
    for empty in ("", "😀😀", "it was", "…"):
        kept = content_kept(empty, TRAM)
        assert (kept.share, kept.words, kept.numbers, kept.units) == (1.0, None, None, 0)
        assert content_kept(TRAM, empty).share == 0.0
    assert content_kept("", "").changed == 0.0


def test_a_rewrite_is_compared_with_the_generic_answer_or_the_query_whichever_it_keeps_more_of() -> None:
    query, generic = "The red boat sank near Oslo", "A boat sank"
    assert rewrite_content(generic, query, "boat sank lol").share == 1.0, "all of the generic answer"
    assert rewrite_content("I am sorry, I cannot help", query, "red boat sank near oslo").share == 1.0, "of the query"
    assert rewrite_content("", query, "boat").share == pytest.approx(1 / 5), "no generic answer: the query alone"
    assert rewrite_content(generic, query, "boat").share == 0.5


@settings(max_examples=150, deadline=None)
@given(st.text(), st.text())
def test_every_text_gives_shares_between_0_and_1(before: str, after: str) -> None:
    kept = content_kept(before, after)
    shares = (kept.share, kept.words, kept.numbers, kept.names, kept.negation, kept.changed)
    assert all(share is None or 0 <= share <= 1 for share in shares)
    assert content_kept(before, before).share == 1.0
    assert content_kept(before, before).changed == 0.0


@pytest.mark.parametrize("piece", ["a", "'", "a'", "! ", "1,", "ß 7 ", "\ud800", "的", "no\n\t ", "𝕏 ½ "])
def test_ten_thousand_characters_take_no_longer_than_their_number(piece: str) -> None:
    text = piece * (10_000 // len(piece))
    began = time.process_time()
    for _ in range(3):
        rewrite_content(text, TRAM, text[::-1])
    assert time.process_time() - began < 2
    assert units(text) <= units(text + " boat")


def test_a_note_is_no_negation():
    assert units("a note") != units("not a")
    assert len(units("I did not note it")) == 2
