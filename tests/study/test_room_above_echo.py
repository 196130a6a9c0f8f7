"""What readers who know something of the gold could gain over the unchanged query."""

import pytest

from rpo_kit.errors import KitError


def test_words_are_kept_as_often_as_the_gold_has_them(load_script):
    script = load_script("room_above_echo")
    assert script.among("I am so, so tired today", "so TIRED of it, so am I") == "i am so so tired"
    assert script.among("no no no", "no") == "no"


def test_spelling_is_the_golds_where_letters_are_said_again_or_an_apostrophe_is_left_out(load_script):
    script = load_script("room_above_echo")
    assert script.respelled("I'm so happy for you", "im sooo happy 4 u") == "im sooo happy for you"


def test_each_reader_that_knows_more_scores_no_less(prepared, load_script):
    table = load_script("room_above_echo").table(prepared({"data.task": "LaMP-7"})).set_index("reader")
    score = table["score"]
    assert set(table.index) == {*load_script("room_above_echo").READERS, "better of the two"}
    assert score["better of the two"] >= max(score["query"], score["generic"])
    assert score["words of query or generic"] >= score["the same, gold's order"] >= score["words the gold has"]
    assert score["words the gold has"] > score["query"] > score["generic"], "the base model answers 3"
    assert table["better_than_query"]["query"] == 0
    assert (table["low"] <= score).all()
    assert (score <= table["high"]).all()


def test_a_task_whose_query_cannot_be_the_answer_has_no_such_room(prepared, load_script):
    with pytest.raises(KitError, match="LaMP-3 has no query"):
        load_script("room_above_echo").table(prepared())
