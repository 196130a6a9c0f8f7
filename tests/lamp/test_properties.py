"""Whatever a user may have written: inputs, item texts and words are read as LaMP's rules read them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rpo_kit.lamp.metrics import _rouge
from rpo_kit.lamp.okapi import okapi_scores
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task

ALL = TASKS | MORE_TASKS
# Quotes, brackets, the word "title", instructions and any Unicode, and nothing at all.
PIECES = st.sampled_from(['"', "[1]", "[2]: ", "title", "{title}", "review:", "paper:", ": ", " ", "\n", "<rewrite>"])
TEXTS = st.lists(PIECES | st.text(st.characters(codec="utf-8"), max_size=6), max_size=6).map("".join)
WORDS = st.lists(st.sampled_from(["a", "b", "B", "c1", "é", "a,"]), max_size=12).map(" ".join)


@given(TEXTS, st.sampled_from([name for name in ALL if name != "LaMP-1"]))
@settings(deadline=None)
def test_the_query_comes_out_of_an_input_as_it_went_in(text: str, name: str) -> None:
    task = ALL[name]
    assert task.is_official(task.make_input(text=text))
    assert (
        task.query_text(task.make_input(text=text)) == task.retrieval_query(task.make_input(text=text)) == text.strip()
    )


@given(TEXTS, TEXTS, TEXTS)
@settings(deadline=None)
def test_a_citation_is_read_whatever_its_titles_hold(title: str, first: str, second: str) -> None:
    task = get_task("LaMP-1")
    input = task.make_input(title=title, ref1=first, ref2=second)
    assert task.is_official(input)
    found = task.references(input)
    assert f'[1]: "{found[0]}" [2]: "{found[1]}"' in input
    if '" [2]: "' not in first + second and '[1]: "' not in title:
        assert found == (first, second)
    quoted = input.split('"')
    assert task.retrieval_query(input) == f"{quoted[3]} {quoted[5]}", "LaMP counts quotes, also where titles have some"


@given(st.data(), st.sampled_from(sorted(ALL)))
@settings(deadline=None)
def test_every_line_has_the_item_texts_unchanged(data: Any, name: str) -> None:
    task = ALL[name]
    item = {field: data.draw(TEXTS) for field in ("id", *task.fields)}
    assert item[task.text_field] in task.context_line(item)
    assert item[task.gold_field] in task.context_line(item)
    assert "\n" not in task.item_line(item)
    prompt = task.context_prompt("IN title", [item, item])
    assert prompt.count(task.context_line(item)) >= 2
    if name == "LaMP-1":
        assert prompt.startswith('IN title, and "'), "after the first title of the input, whatever the items contain"
    else:
        assert prompt.endswith("IN title")


@given(
    st.lists(st.lists(st.sampled_from("ab c\t\x1c\u2003é日"), max_size=9).map("".join), min_size=1, max_size=6), WORDS
)
@settings(deadline=None)
def test_a_document_scores_where_it_has_a_word_of_the_query(documents: list[str], query: str) -> None:
    scores = okapi_scores(pa.array(documents), query)
    has = [bool(set(document.split()) & set(query.split())) for document in documents]
    assert len(scores) == len(documents)
    assert not any(score != 0 and not found for score, found in zip(scores, has, strict=True))


@given(WORDS, WORDS)
@settings(deadline=None)
def test_rouge_is_rouge_scores_to_the_last_bit(gold: str, pred: str) -> None:
    found = RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(gold, pred)
    assert _rouge([gold], [pred]).tolist() == [[found["rouge1"].fmeasure, found["rougeL"].fmeasure]]


def test_a_long_text_is_scored_like_a_short_one() -> None:
    gold, pred = "the cat sat on the mat " * 40, "the dog sat on a mat and the cat " * 30
    found = RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(gold, pred)
    expected = [found["rouge1"].fmeasure, found["rougeL"].fmeasure]
    assert _rouge([gold], [pred])[0] == pytest.approx(expected, abs=0)
