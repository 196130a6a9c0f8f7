"""The base model writes neutral versions where it can, rules where it cannot, and both are counted."""

from __future__ import annotations

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.passages import Passage
from rpo_kit.models.chat import Completion
from rpo_kit.rewriting.neutral import describe_neutral, write_neutral, writer_for
from rpo_kit.runs import read_records

OWN = {"1": "gonna bring the tent on friday", "2": "thx for the ladder", "3": "cant find the keys anywhere"}
PASSAGES = [Passage(key, key, text) for key, text in OWN.items()]


class Base:
    """A base model that answers as told; a None is an answer that never came."""

    name = "base"

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.asked = list(answers), []

    def complete(self, conversations, *, max_new_tokens, **_):
        self.asked += [conversation[0]["content"] for conversation in conversations]
        given, self.answers = self.answers[: len(conversations)], self.answers[len(conversations) :]
        return [Completion(text or "", True, 1, 1, None if text is not None else "timeout") for text in given]


def test_a_version_that_keeps_the_content_is_used_and_others_are_replaced_by_rules(tmp_path):
    path = tmp_path / "neutral.jsonl"
    base = Base(
        "I will bring the tent on Friday.",
        "I am sorry for any confusion.",
        "I cannot find the keys near Paris and Rome",
    )
    found = write_neutral(base, PASSAGES, path)
    assert found == {
        "1": "I will bring the tent on Friday.",
        "2": "Thank you for the ladder.",
        "3": "I cannot find the keys anywhere.",
    }
    said = describe_neutral(path)
    assert "1 by the base model, 2 by rules" in said
    assert "1 of the base model's lost content" in said
    assert all(OWN[key] in asked for key, asked in zip(OWN, base.asked, strict=True))


def test_each_passage_is_asked_once_and_what_failed_is_asked_again(tmp_path):
    path = tmp_path / "neutral.jsonl"
    with pytest.raises(KitError, match="no neutral version of 1 of 3 passages"):
        write_neutral(
            Base("I will bring the tent on Friday.", None, "I cannot find the keys anywhere."), PASSAGES, path
        )
    again = Base("Thank you for the ladder.")
    assert write_neutral(again, PASSAGES, path)["2"] == "Thank you for the ladder."
    assert len(again.asked) == 1
    assert len(read_records(path)) == 3


def test_without_a_base_model_rules_write_all(tmp_path):
    path = tmp_path / "neutral.jsonl"
    own = [*PASSAGES, Passage("4", "4", "Nothing informal here.")]
    assert write_neutral(None, own, path)["4"] == "Nothing informal here."
    assert "0 by the base model, 4 by rules" in describe_neutral(path)
    assert "1 are the person's own words" in describe_neutral(path)


def test_the_bundled_model_is_not_asked_unless_told_to():
    assert writer_for("auto", "local:smollm2") == "rules"
    assert writer_for("auto", "openai:gpt") == "base"
    assert writer_for("base", "local:smollm2") == "base"
    with pytest.raises(KitError, match="--neutral x: there are auto, base, rules"):
        writer_for("x", "local:smollm2")


def test_a_short_passage_is_of_its_authors_language(tmp_path):
    dutch = [Passage("1", "1", "ik ben er niet voor het eten"), Passage("2", "2", "ok, dank u wel")]
    english = [Passage("1", "1", "i will not be there for the dinner"), Passage("2", "2", "hi, thx u guys")]
    assert write_neutral(None, dutch, tmp_path / "dutch.jsonl")["2"] == "Ok, dank u wel."
    assert write_neutral(None, english, tmp_path / "english.jsonl")["2"] == "Hello, thank you you everyone."
