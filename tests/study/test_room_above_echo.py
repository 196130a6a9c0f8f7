"""What readers who know something of the gold could gain over the unchanged query."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rpo_kit.errors import KitError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "room_above_echo.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("room_above_echo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_are_kept_as_often_as_the_gold_has_them():
    assert script().among("I am so, so tired today", "so TIRED of it, so am I") == "i am so so tired"
    assert script().among("no no no", "no") == "no"


def test_spelling_is_the_golds_where_letters_are_said_again_or_an_apostrophe_is_left_out():
    assert script().respelled("I'm so happy for you", "im sooo happy 4 u") == "im sooo happy for you"


def test_each_reader_that_knows_more_scores_no_less(prepared):
    table = script().table(prepared({"data.task": "LaMP-7"})).set_index("reader")
    score = table["score"]
    assert set(table.index) == {*script().READERS, "better of the two"}
    assert score["better of the two"] >= max(score["query"], score["generic"])
    assert score["words of query or generic"] >= score["the same, gold's order"] >= score["words the gold has"]
    assert score["words the gold has"] > score["query"] > score["generic"], "the base model answers 3"
    assert table["better_than_query"]["query"] == 0
    assert (table["low"] <= score).all()
    assert (score <= table["high"]).all()


def test_a_task_whose_query_cannot_be_the_answer_has_no_such_room(prepared):
    with pytest.raises(KitError, match="LaMP-3 has no query"):
        script().table(prepared())
