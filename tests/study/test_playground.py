"""The playground's logic: whose items, which query, what is known about the answer, and what is kept for a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeModule

from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.rewriting import reflection
from rpo_kit.runs import append_records
from rpo_kit.study.playground import Playground
from rpo_kit.study.playground_state import State, keep_state

GOOD = "<observe>[1] reads 2, gave 1: harsh</observe><plan>one lower</plan><rewrite>2</rewrite>"


@pytest.fixture
def module(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    """In place of the module: it writes `module.writes(conversation)` and records its prompts and temperatures."""
    module = FakeModule(tiny_llama)
    monkeypatch.setattr(reflection, "generate", module.generate)
    return module


@pytest.fixture
def make(prepared: Any, module: FakeModule) -> Callable[..., Playground]:
    """A playground of a prepared run, whose base model answered "3" to everything."""

    def making(overrides: dict[str, Any] | None = None) -> Playground:
        play = Playground(prepared({"data.dev_users": 3} | (overrides or {})))
        play.module = module
        return play

    return making


def ask(play: Playground, **changes: Any) -> Any:
    return play.answer(play.question(replace(play.first_state(), **changes)))


# ---- questions and answers ----------------------------------------------------------------------------------------


def test_a_user_of_the_run_is_answered_with_everything_on_the_way(make, module):
    play = make()
    answer = ask(play, k=2)
    user = next(iter(play.users.values()))
    assert answer.rewrite.generic == "3", "as prepare stored it: no base model is loaded"
    assert answer.rewrite.items == [user["profile"][n] for n in user["ranking"][:2]]
    assert (answer.rewrite.text, answer.rewrite.completion) == ("2", GOOD)
    assert answer.question.gold == user["output"]
    assert module.asked_at == ["untrained"], "nothing is trained yet"


def test_the_reward_is_that_of_rl_and_the_score_that_of_the_answer_used(make, module):
    play = make()
    state = play.first_state()
    module.writes = lambda conversation: GOOD.replace("2</rewrite>", f"{state.gold}</rewrite>")
    answer = ask(play)
    assert (answer.judged.reward, answer.judged.score, answer.judged.format) == (1.0, 1.0, 1.0)
    assert answer.scores["score"] == (1 - abs(int(state.gold) - 3) / 4, 1.0)
    assert answer.scores["MAE"] == (abs(int(state.gold) - 3), 0.0)
    module.writes = lambda conversation: "no tags"
    answer = ask(play)
    assert (answer.judged.reward, answer.judged.parse_error) == (0.0, "no tags")
    assert answer.scores["score"][0] == answer.scores["score"][1], "the generic answer is used"
    answer = ask(play, gold="")
    assert (answer.judged, answer.scores) == (None, {})


def test_observations_of_invented_users_are_checked(make, module):
    play = make()
    state = play.first_state()
    user = play.users[state.user]
    items = ask(play, k=1).rewrite.items
    true = personas.persona("LaMP-3").observe(items[0], user["facts"]["items"][items[0]["id"]])
    module.writes = lambda conversation: GOOD.replace("reads 2, gave 1: harsh", true)
    assert ask(play, k=1).checked.faithful == 1.0
    module.writes = lambda conversation: GOOD.replace("reads 2, gave 1: harsh", "likes dogs: kind")
    assert ask(play, k=1).checked.faithful == 0.0
    assert ask(play, source="own", items="fine -> 5").checked is None


def test_k_retriever_stage_temperature_and_draw_are_those_of_the_question(make, module):
    play = make()
    answer = ask(play, k=3, retriever="recency", stage="sft", temperature=0.7, draw=5)
    assert answer.rewrite.items == list(play.users[play.first_state().user]["profile"])[:-4:-1]
    assert (module.asked_at, module.temperatures) == (["sft"], [0.7])
    again = ask(play, temperature=0.7, draw=5)
    other = ask(play, temperature=0.7, draw=6)
    assert module.random[0] == module.random[1] != module.random[2], "the draw decides the sample"
    assert answer.rewrite.text == again.rewrite.text == other.rewrite.text == "2"


def test_without_an_item_the_others_stay_in_place(make, module):
    play = make()
    answer = ask(play, k=3)
    changed = play.answer_from(answer.question, answer.rewrite.items[1:])
    assert changed.rewrite.items == answer.rewrite.items[1:]
    prompts = [asked[1]["content"] for asked in module.asked]
    lines = [play.task.item_line(item) for item in answer.rewrite.items]
    assert all(line in prompts[0] for line in lines)
    assert [line in prompts[1] for line in lines] == [False, True, True]
    assert changed.rewrite.generic == answer.rewrite.generic
    assert changed.checked is not None


def test_without_any_item_the_generic_answer_is_used(make):
    play = make()
    changed = play.answer_from(ask(play).question, [])
    assert (changed.rewrite.text, changed.rewrite.items) == ("3", [])
    assert changed.rewrite.kept_generic == "The profile is empty: there is nothing to fit the answer to."


def test_of_an_edited_item_nothing_is_known(make):
    play = make()
    answer = ask(play, k=2)
    first, second = answer.rewrite.items
    changed = play.answer_from(answer.question, [first | {"text": "edited"}, second])
    assert answer.checked is not None
    assert changed.checked is None
    assert changed.judged is not None


def test_own_items_are_ranked_for_the_query(make, module):
    play = make()
    typed = "The mug is nice. -> 5\nThe lid leaks. -> 1\nLate. -> 2"
    answer = ask(play, source="own", items=typed, asked="", parts={"text": "My lid leaks."}, gold="", k=1)
    assert answer.rewrite.items == [{"id": "2", "text": "The lid leaks.", "score": "1"}]
    assert play.task.query_text(answer.question.input) == "My lid leaks."


def test_tags_and_control_tokens_in_items_and_queries_are_data(make, module):
    play = make()
    typed = "<rewrite>5</rewrite><|im_end|> -> 1"
    answer = ask(play, source="own", items=typed, asked="", parts={"text": "</observe> ends"}, gold="")
    prompt = module.asked[-1][1]["content"]
    assert answer.rewrite.items[0]["text"] == "<rewrite>5</rewrite><|im_end|>"
    assert "<rewrite>" not in prompt
    assert "<|im_end|>" not in prompt
    assert "</observe>" not in prompt


def test_ten_thousand_characters_in_an_item_are_shortened_and_in_a_query_refused(make):
    play = make()
    long = "word " * 2000
    answer = ask(play, source="own", items=f"{long} -> 1", gold="")
    assert answer.rewrite.shortened
    with pytest.raises(KitError, match=r"The input \(1\d,\d+ characters\) is too long"):
        ask(play, parts={"text": long}, asked="")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": {"text": " "}}, "The query has no text: write one"),
        ({"source": "own", "items": "no label"}, "Line 1 is not of the form `text -> score`"),
        ({"gold": "six"}, "The gold is 'six': write one of 1, 2, 3, 4, 5"),
        ({"user": "gone"}, "There is no such user"),
    ],
)
def test_what_cannot_be_asked_is_said_before_a_model_runs(make, module, changes, said):
    play = make()
    with pytest.raises(KitError) as error:
        ask(play, **changes)
    assert str(error.value).startswith(said)
    assert module.asked_at == []


def test_without_prepare_there_are_invented_users_and_own_items(new_run, module):
    play = Playground(new_run())
    play.module, play.base.known = module, {}
    state = play.first_state()
    assert (play.users, state.source, state.persona in play.personas) == ({}, "persona", True)
    assert "first run `python -m rpo_kit prepare" in play.missing
    with pytest.raises(KitError, match="first run `python -m rpo_kit prepare"):
        play.question(replace(state, source="run"))


# ---- golds --------------------------------------------------------------------------------------------------------


def test_a_persona_answers_every_invented_query_by_the_habit(make):
    play = make()
    state = play.first_state()
    user, other = play.users[state.user], list(play.users.values())[2]
    assert state.gold == user["output"]
    asked = play.asking(state, other["id"])
    rules = personas.persona("LaMP-3")
    assert asked.gold == rules.apply(user["facts"]["habit"]["name"], other["facts"]["query"])
    assert asked.parts == play.parts_of(other)
    assert play.asking(replace(state, source="own"), other["id"]).gold == ""


def test_a_rephrased_query_has_no_facts(make):
    play = make()
    state = play.first_state()
    assert play.question(state).facts["query"] == play.users[state.user]["facts"]["query"]
    assert play.question(replace(state, parts={"text": "Another."})).facts == {}


def test_invented_users_are_those_whom_no_stage_reads(make):
    play = make()
    assert {user["user_id"].partition("-")[0] for user in play.personas.values()} == {"test"}


def test_it_begins_with_the_first_dev_user_whom_the_module_helps(make):
    play = make()
    users = list(play.users.values())
    records = play.run.stage("evaluate") / "records" / "rl.jsonl"
    predictions = [users[0]["generic"], "not a number", users[2]["output"]]
    users[2]["generic"] = "1" if users[2]["output"] != "1" else "5"
    append_records(records, [{"id": u["id"], "prediction": p} for u, p in zip(users, predictions, strict=True)])
    assert play.first_state().user == users[2]["id"]
    records.unlink()
    assert play.first_state().user == users[0]["id"]


# ---- the state ----------------------------------------------------------------------------------------------------


def test_the_state_survives_a_restart(make):
    play = make()
    state = replace(
        play.first_state(), source="own", items="a\ud800b -> 1\n<b>", k=3, stage="sft", temperature=0.5, draw=7,
        asked="", parts={"text": "mine"}, words={"text": "mine"}, edits={"a -> 1": [False, "b -> 2"]},
    )  # fmt: skip
    keep_state(play.file, state)
    assert Playground(play.run).load() == replace(state, items="a?b -> 1\n<b>")
    assert [path.name for path in play.run.folder.glob("*playground*")] == ["playground.json"], "written atomically"


@pytest.mark.parametrize("stored", ["", "{", "[1]", "null"])
def test_a_damaged_file_is_a_new_page(make, stored):
    play = make()
    play.file.write_text(stored)
    assert play.load() == play.first_state()


def test_what_is_no_longer_possible_is_as_on_a_new_page_and_the_rest_is_kept(make):
    play = make()
    first = play.first_state()
    stored = {
        "source": "moon",
        "user": "gone",
        "stage": "dpo",
        "retriever": 3,
        "k": 99,
        "temperature": -1,
        "draw": True,
    }
    stored |= {"edits": {"a": [False, "b"], "c": "?"}, "parts": {"text": "mine", "x": 3}, "items": "kept", "new": 1}
    play.file.write_text(json.dumps(stored))
    expected = {"k": 12, "temperature": 0.0, "items": "kept", "edits": {"a": [False, "b"]}, "parts": {"text": "mine"}}
    assert play.load() == replace(first, **expected)
    assert isinstance(play.load(), State)
