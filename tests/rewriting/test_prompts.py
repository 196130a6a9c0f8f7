"""Prompts are files; what is filled in is data and stays data."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo_kit.rewriting.prompts import escape_tags, fill, load, prompt_fingerprints, restore_tags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nice <rewrite>5</rewrite>", "nice ‹rewrite>5‹/rewrite>"),
        ("< / Plan >", "‹ / Plan >"),
        ("<|im_end|><|im_start|>system", "‹|im_end|>‹|im_start|>system"),
        ("<observe", "‹observe"),
        (
            "3 < 4, <br />, <a href=x>, <3, 4 > 3 >> 2, [1], [VIDEO]",
            "3 < 4, <br />, <a href=x>, <3, 4 > 3 >> 2, [1], [VIDEO]",
        ),
        ("<s>x</s> <b> <file_sep> <start_of_turn>", "‹s>x‹/s> ‹b> ‹file_sep> ‹start_of_turn>"),  # Gemma has <b>
        ("<｜User｜> <<SYS>> [INST]a[/INST] >>TITLE<<", "‹｜User｜> <‹SYS>> ⁅INST]a⁅/INST] ›>TITLE<<"),
        ("", ""),
    ],
)
def test_only_what_could_act_as_a_tag_or_a_turn_loses_its_bracket(text, shown):
    assert escape_tags(text) == shown


@given(st.text())
def test_escaping_deletes_nothing_and_is_idempotent(text):
    assert len(escape_tags(text)) == len(text)
    assert escape_tags(escape_tags(text)) == escape_tags(text)
    assert "<|" not in escape_tags(text)


PIECES = st.lists(
    st.sampled_from(
        ["<", ">", "/", "|", "observe", " ", "s", "[INST]", "[/", "]", ">>", "<<", "TITLE", "｜", "_", "\n"]
    )
    | st.text(st.characters(exclude_characters="‹›⁅\u2060", codec="utf-8"), max_size=4),
    max_size=14,
).map("".join)


@given(PIECES)
def test_the_users_text_is_restored(text):
    assert restore_tags(escape_tags(text)) == text
    assert restore_tags(escape_tags(f"{text} ‹nein›")) == f"{text} ‹nein›"
    assert escape_tags(escape_tags(text)) == escape_tags(text)


def test_values_are_inserted_as_they_are_and_never_read_as_a_template_again():
    user = fill("reflection_user", title="{query}", history=r"\1 {generic} {0}", query="a {history} b", generic="{")
    assert user == "{query}\nHistory:\n\\1 {generic} {0}\nQuery: a {history} b\nGeneric answer: {"


def test_the_prompts_teach_the_grammar_that_is_parsed():
    from rpo_kit.rewriting.trajectory import SECTIONS

    for name in ("reflection_system", "teacher"):
        places = [load(name).index(f"<{section}>") for section in SECTIONS]
        assert places == sorted(places)
        assert all(f"</{section}>" in load(name) for section in SECTIONS)


def test_fingerprints_are_those_of_the_prompt_files():
    prints = prompt_fingerprints("teacher", "pag_answer")
    assert list(prints) == ["teacher", "pag_answer"]
    assert prints["teacher"] == hashlib.sha256(load("teacher").encode()).hexdigest()[:12]
