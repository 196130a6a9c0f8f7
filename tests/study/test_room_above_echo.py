"""What readers who know something of the gold could gain over the unchanged query, and whether a module reads."""

import json

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.training.hindsight import describe
from rpo_kit.training.hindsight_texts import read_traits


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


def test_observations_are_held_against_the_item_cited_and_another_users(prepared, load_script):
    """A module that reads says more of the former; one that says the same of every item says as much of both."""
    script, run = load_script("room_above_echo"), prepared({"data.task": "LaMP-7"})
    records = {"sft": [], "rl": []}
    for example in load_prepared(run, "dev"):
        items = top_k(example, example["ranking"], run.preset.evaluation.shots)
        for system, said in (("sft", [describe(read_traits(item["text"])) for item in items]), ("rl", ["x: CAPITALS"])):
            observe = "\n".join(f"[{number}] {line}" for number, line in enumerate(said, 1))
            raw = render(Trajectory(observe, "keep", "so what"))
            records[system].append({"id": example["id"], "raw": raw, "complaint": None, "prediction": "so what"})
    for system, lines in records.items():
        path = run.stage("evaluate") / "records" / f"{system}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = script.observation_table(run).set_index(["system", "fact"])
    assert (table["true"]["sft"] == 1).all()
    assert table["difference"]["sft"]["last word"] > 0.2
    assert (table["true"]["rl"] == 0).all()
    assert set(script.module_table(run)["system"]) == {"sft", "rl"}


def test_another_user_is_none_of_the_examples_own(monkeypatch, load_script):
    script, users = load_script("room_above_echo"), ["a", "a", "b"]
    monkeypatch.setattr(script, "load_prepared", lambda run, split: [{"id": f"{n}", "user_id": u} for n, u in users])
    users = list(enumerate(users))
    assert script._of_another_user(None) == {"0": "2", "1": "2", "2": "0"}
    users = users[:2]
    assert script._of_another_user(None) == {"0": "", "1": ""}


@pytest.mark.parametrize(
    ("said", "true", "false"),
    [
        ("so … lol: lower case, no end mark, lol", {"casing", "first word", "last word", "end mark"}, set()),
        ("So … tired: CAPITALS, ends ., lol", {"first word"}, {"casing", "last word", "end mark"}),
        ("lower case, 3 words, no end mark, lol", {"casing", "end mark"}, set()),  # as before the quotes
        ("nonsense", set(), {"casing"}),
    ],
)
def test_facts_are_read_from_an_observation(load_script, said, true, false):
    facts = load_script("room_above_echo").facts_said(said, read_traits("so tired lol"))
    if "lol" in said:
        assert facts.pop("mark or spelling")
    assert facts == dict.fromkeys(true, True) | dict.fromkeys(false, False)
