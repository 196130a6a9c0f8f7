"""Stage 1: the base model sees the query and nothing of the user; what is finished is not asked again."""

import json

import pytest
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import write_lamp
from rpo_kit.lamp.tasks import TASKS, get_task
from rpo_kit.rewriting import prepare as prepare_module
from rpo_kit.rewriting.prepare import base_conversation, first_users, load_prepared, prepare, read_answer
from rpo_kit.runs import read_records


@pytest.mark.parametrize("name", TASKS)
def test_the_base_model_never_sees_the_user(new_run, recording_chat, name):
    run, base = new_run({"data.task": name, "data.train_users": 4, "data.dev_users": 3}), recording_chat()
    prepare(run, lambda spec: base)
    examples = load_prepared(run, "train") + load_prepared(run, "dev")
    assert base.asked == [base_conversation(example["input"]) for example in examples]
    everything_asked = json.dumps(base.asked, ensure_ascii=False)
    for item in (item for example in examples for item in example["profile"]):
        texts = [item[field] for field in get_task(name).fields if len(item[field].split()) > 4]  # tags are shorter
        assert texts, "each item has a text that would be recognised"
        assert not any(json.dumps(text, ensure_ascii=False)[1:-1] in everything_asked for text in texts)
        assert not any(task_line in everything_asked for task_line in (get_task(name).item_line(item), item["id"]))


def test_both_splits_come_with_ranking_generic_answer_and_hidden_facts(prepared):
    run = prepared()
    train, dev = load_prepared(run, "train"), load_prepared(run, "dev")
    assert (len(train), len(dev)) == (12, 6)
    assert not {e["user_id"] for e in train} & {e["user_id"] for e in dev}
    for example in train + dev:
        assert sorted(example["ranking"]) == list(range(7)), "the whole profile is ranked, each item once"
        assert example["generic"] == "3"
        assert example["facts"]["query"]["reads"] in (2, 3, 4)


def test_a_killed_call_goes_on_with_the_missing_answers(new_run, recording_chat, monkeypatch):
    monkeypatch.setattr(prepare_module, "_CHUNK", 5)
    run = new_run()
    asked_before = []

    def die_in_the_third_chunk(conversation):
        if len(asked_before) == 10:
            raise KeyboardInterrupt
        asked_before.append(conversation)
        return "2"

    with pytest.raises(KeyboardInterrupt):
        prepare(run, lambda spec: recording_chat(die_in_the_third_chunk))
    kept = read_records(run.stage("prepare") / "generic.jsonl")
    assert len(kept) == 10

    second = recording_chat(lambda conversation: "4")
    prepare(run, lambda spec: second)
    records = read_records(run.stage("prepare") / "generic.jsonl")
    assert len(second.asked) == 8, "12 + 6 queries, 10 of them answered before"
    assert not [c for c in second.asked if c in asked_before]
    assert len({record["id"] for record in records}) == len(records) == 18
    assert [record["text"] for record in records] == ["2"] * 10 + ["4"] * 8


def test_a_finished_stage_opens_no_model(prepared, capsys):
    run = prepared()
    prepare(run, lambda spec: pytest.fail("there is nothing to answer"))
    assert "prepare: done already" in capsys.readouterr().out


def test_another_base_model_means_new_answers(prepared, new_run, recording_chat):
    prepared()
    again = recording_chat(lambda conversation: "5")
    run = new_run({"base": "openai:other"})
    prepare(run, lambda spec: again)
    assert {example["generic"] for example in load_prepared(run, "dev")} == {"5"}


def test_what_the_model_really_said_is_kept_beside_the_answer_read_from_it(new_run, recording_chat):
    run = new_run()
    prepare(run, lambda spec: recording_chat(lambda conversation: "I'd say 4, no more."))
    record = read_records(run.stage("prepare") / "generic.jsonl")[0]
    assert (record["text"], record["raw"]) == ("4", "I'd say 4, no more.")


def test_official_files_are_read_from_a_folder_and_an_empty_profile_is_kept(new_run, recording_chat, tmp_path):
    task = get_task("LaMP-3")
    for number, split in enumerate(("train", "dev")):
        items = [{"id": f"{number}{n}", "text": f"text {n}", "score": "3"} for n in range(3)]
        rows = [
            {"id": f"{number}{i}", "input": task.make_input(text="fine lid"), "output": "4", "profile": profile}
            for i, profile in enumerate([items, [], items[:1]])
        ]
        write_lamp(tmp_path / "lamp", task, split, rows)
    run = new_run({"data.source": str(tmp_path / "lamp")})
    prepare(run, lambda spec: recording_chat())
    assert [len(example["ranking"]) for example in load_prepared(run, "dev")] == [3, 0, 1]
    assert [example["facts"] for example in load_prepared(run, "dev")] == [{}, {}, {}]


def test_official_data_is_downloaded_once_and_with_the_wanted_separation(
    new_run, recording_chat, tmp_path, monkeypatch
):
    task, asked = get_task("LaMP-3"), []
    for number, split in enumerate(("train", "dev")):
        row = {"id": f"{number}", "input": task.make_input(text="fine"), "output": "4", "profile": []}
        write_lamp(tmp_path / "lamp", task, split, [row])
    monkeypatch.setattr(
        prepare_module, "fetch", lambda *wanted: asked.append((wanted[0].name, *wanted[1:])) or tmp_path / "lamp"
    )
    run = new_run({"data.source": "official", "data.separation": "time"})
    prepare(run, lambda spec: recording_chat())
    assert set(asked) == {("LaMP-3", "time", ("train", "dev"))}
    assert [example["id"] for example in load_prepared(run, "dev")] == ["1"]


def test_an_answer_in_the_own_profile_is_dropped_if_asked(new_run, recording_chat, tmp_path):
    task = get_task("LaMP-3")
    profile = [{"id": "9", "text": text, "score": "4"} for text in ("fine", "good")]
    for number, split in enumerate(("train", "dev")):
        row = {"id": f"{number}", "input": task.make_input(text="fine"), "output": "4", "profile": profile}
        write_lamp(tmp_path / "lamp", task, split, [row])
    for name, drop, left in (("a", "false", ["fine", "good"]), ("b", "true", ["good"])):
        run = new_run({"data.source": str(tmp_path / "lamp"), "data.drop_gold": drop}, name)
        prepare(run, lambda spec: recording_chat())
        assert [item["text"] for item in load_prepared(run, "dev")[0]["profile"]] == left


def test_splits_that_share_ids_are_refused(new_run, recording_chat, tmp_path):
    task = get_task("LaMP-3")
    row = {"id": "1", "input": task.make_input(text="fine"), "output": "4", "profile": []}
    for split in ("train", "dev"):
        write_lamp(tmp_path / "lamp", task, split, [row])
    with pytest.raises(KitError, match="Train and dev share question ids"):
        prepare(new_run({"data.source": str(tmp_path / "lamp")}), lambda spec: recording_chat())


def test_an_unknown_task_is_told_which_there_are(new_run, recording_chat):
    with pytest.raises(KitError, match="no task 'LaMP-9'"):
        prepare(new_run({"data.task": "LaMP-9"}), lambda spec: recording_chat())


@pytest.mark.parametrize(("users", "kept"), [(1, "acf"), (2, "abcdf"), (3, "abcdef"), (9, "abcdef")])
def test_the_first_users_keep_all_their_queries(users, kept):
    data = Dataset.from_dict({"id": list("abcdef"), "user_id": ["u", "v", "u", "v", "w", "u"]})
    assert first_users(data, users)["id"] == list(kept)


@pytest.mark.parametrize(
    ("task", "reply", "answer"),
    [
        ("LaMP-3", "4", "4"),
        ("LaMP-3", "I'd give it 4 out of 5.", "4"),
        ("LaMP-3", "**Score: 2**", "2"),
        ("LaMP-3", "10", "10"),  # no rating on the scale: left as it is, and counted as unreadable later
        ("LaMP-3", " no idea ", "no idea"),
        ("LaMP-1", "Reference [2] is related, not [1].", "[2]"),
        ("LaMP-2", "The tag is Dark Comedy.", "dark comedy"),
        ("LaMP-2", "comedies, perhaps romance", "romance"),
        ("LaMP-2", "a based on a book story", "based on a book"),
        ("LaMP-4", '\n\nHeadline: "Rain at last"\nIt rained.', "Rain at last"),
        ("LaMP-5", "Title: On lids\n", "On lids"),
        ("LaMP-7", "", ""),
    ],
)
def test_the_answer_is_read_out_of_a_chatty_reply(task, reply, answer):
    assert read_answer(get_task(task), reply) == answer
