"""Trajectories written elsewhere pass the same filters; what is wrong with a file is counted and said at once."""

import json

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import refusals
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import open_run, read_records
from rpo_kit.training import synthesis
from rpo_kit.training.imported import UNKNOWN_ITEM, UNRANKED, read_lines
from rpo_kit.training.synthesis import synthesize

RATINGS = get_task("LaMP-3")
LINE = {"example": "310", "items": ["3104"], "observe": "[1] gave 1", "plan": "one lower", "rewrite": "2"}


def written(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def imported(run, path):
    """The run, with the file as its teacher, after `synthesize`: accepted and rejected records."""
    changed = open_run(run.name, None, {"synthesis.teacher": f"file:{path}"}, root=run.folder.parent)
    synthesize(changed)
    folder = changed.stage("synthesize")
    return read_records(folder / "trajectories.jsonl"), read_records(folder / "rejected.jsonl")


def test_the_trajectories_of_a_run_can_be_imported_and_are_the_same_again(prepared, tmp_path):
    run = prepared({"synthesis.teacher": "hindsight", "synthesis.per_query": 2})
    synthesize(run)
    own = read_records(run.stage("synthesize") / "trajectories.jsonl")
    exported = tmp_path / "exported.jsonl"
    exported.write_bytes((run.stage("synthesize") / "trajectories.jsonl").read_bytes())
    again, rejected = imported(run, exported)
    assert (again, rejected) == (own, [])


def test_items_are_numbered_from_first_or_else_the_numbers_cited_are_ranks(prepared, tmp_path):
    run = prepared({"data.train_users": 3})
    one, two, three = load_prepared(run, "train")
    ranked = [[example["profile"][n]["id"] for n in example["ranking"]] for example in (one, two, three)]
    rows = [
        {
            "example": one["id"],
            "items": ranked[0][:2],
            "observe": "[1] a\n[2] b",
            "plan": "p",
            "rewrite": one["output"],
        },
        {"example": two["id"], "observe": "[2] a\n[4] b", "plan": "p", "rewrite": two["output"]},
        {"example": three["id"], "items": ranked[2][4:], "first": 5, "observe": "[5] a", "plan": "p"}
        | {"rewrite": three["output"], "comment": "ignored"},
    ]
    good, bad = imported(run, written(tmp_path / "t.jsonl", *rows, ""))
    assert not bad
    assert [record["items"] for record in good] == [ranked[0][:2], ranked[1][1:4], ranked[2][4:]]
    assert [record["first"] for record in good] == [1, 2, 5]
    assert [record["id"] for record in good] == [f"{example['id']}/0" for example in (one, two, three)]


def test_each_trajectory_passes_the_filters_or_is_rejected_with_its_reason(prepared, tmp_path):
    run = prepared({"data.train_users": 1})
    (example,) = load_prepared(run, "train")
    item, gold = example["profile"][0]["id"], example["output"]
    base = {"example": example["id"], "items": [item], "observe": "[1] seen", "plan": "p", "rewrite": gold}
    changed = [
        {},
        {"rewrite": "9"},
        {"observe": "[2] seen"},
        {"observe": "seen"},
        {"items": [item, "nobody's"]},
        {"first": 99, "observe": "[99] seen"},
        {"plan": "p </plan>"},
        {"observe": f"[1] the true rating is {gold}"},
    ]
    unranked = [{key: value for key, value in base.items() if key != "items"} | {"observe": o} for o in ("x", "[99] x")]
    good, bad = imported(run, written(tmp_path / "t.jsonl", *(base | change for change in changed), *unranked))
    assert [record["id"] for record in good] == [f"{example['id']}/0"]
    assert [record["reason"] for record in bad] == [
        "does not end in the gold",
        "cites an item that was not shown",
        "cites no item",
        UNKNOWN_ITEM,
        UNRANKED,
        "more than one </plan>",
        "observe leaks the gold",
        UNRANKED,
        UNRANKED,
    ]


def test_given_ids_are_kept_and_the_others_take_what_is_free(prepared, tmp_path):
    run = prepared({"data.train_users": 1})
    (example,) = load_prepared(run, "train")
    base = {"example": example["id"], "observe": "[1] seen", "rewrite": example["output"]}
    rows = [base | {"plan": "a"}, base | {"plan": "b", "id": f"{example['id']}/0"}, base | {"plan": "c", "id": "own"}]
    good, _ = imported(run, written(tmp_path / "t.jsonl", *rows))
    assert {record["plan"]: record["id"] for record in good} == {
        "a": f"{example['id']}/1",
        "b": f"{example['id']}/0",
        "c": "own",
    }


def test_trajectories_about_other_examples_are_ignored_and_counted_unless_all_are(prepared, tmp_path, capsys):
    run = prepared({"data.train_users": 2})
    train, dev = load_prepared(run, "train"), load_prepared(run, "dev")
    rows = [{"example": e["id"], "observe": "[1] a", "plan": "p", "rewrite": e["output"]} for e in (train[0], dev[0])]
    good, _ = imported(run, written(tmp_path / "some.jsonl", *rows))
    assert [record["example"] for record in good] == [train[0]["id"]], "nothing is trained on users of dev"
    assert f"1 of 2 trajectories in {tmp_path / 'some.jsonl'} are ignored" in capsys.readouterr().out
    path = written(tmp_path / "none.jsonl", rows[1], LINE | {"example": "nobody"})
    with pytest.raises(KitError, match=r"None of the 2 .* the 2 train examples .*'nobody'\. Check --task, --data"):
        imported(run, path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([LINE, '{"example": '], "Of 2 lines .* 1 are not complete JSON, or repeat a key .first: line 2 of .*t.jsonl"),
        (['{"a": 1, "a": 2}', "[]"], "1 are not complete JSON.*; 1 are not JSON objects .first: line 2"),
        ([LINE, "", LINE | {"plan": " "}, LINE | {"plan": None}], "Of 3 lines .* 2 lack plan .first: line 3 of "),
        ([{"items": ["1"]}], "1 lack example, observe, plan, rewrite"),
        ([LINE, LINE], r"1 repeat an id or a whole trajectory \(first: line 2"),
        ([LINE | {"id": "a"}, LINE | {"id": "a", "plan": "x"}], "1 repeat an id"),
        ([LINE | {"task": "LaMP-7"}], "1 are of task 'LaMP-7', not of LaMP-3"),
        ([LINE | {"items": "3104"}], "1 hold the wrong kind of value in items"),
        ([LINE | {"items": ["7", 7]}], "1 name an item twice"),
        ([LINE | {"items": []}], "wrong kind of value in items"),
        ([LINE | {"plan": 3, "first": 0, "example": [1]}], "wrong kind of value in plan, example, first"),
        (["[", LINE, "]"], "1 begin a JSON list, where each line must be an object of its own"),
        ([""], "is empty: write it again, one JSON object per line"),
    ],
)
def test_what_is_wrong_with_a_file_is_counted_with_the_first_line_and_the_right_form(tmp_path, lines, told):
    with pytest.raises(KitError, match=told) as caught:
        read_lines([written(tmp_path / "t.jsonl", *lines)], RATINGS)
    assert "empty" in told or "Correct or remove them; a line for LaMP-3 looks like {" in str(caught.value)


def test_numbers_serve_as_ids_and_the_tasks_official_name_as_its_name(tmp_path):
    (line,) = read_lines([written(tmp_path / "t", LINE | {"example": 310, "items": [3104], "task": "LaMP_3"})], RATINGS)
    assert (line.example, line.items) == ("310", ("3104",))


def test_lines_as_pandas_writes_them_are_read(tmp_path):
    """With null for what is missing, whole numbers, and half an emoji."""
    row = LINE | {"example": 0, "id": 7, "task": None, "first": None, "rewrite": 2, "plan": "as shown \ud83d"}
    (line,) = read_lines([written(tmp_path / "t", row)], RATINGS)
    assert (line.example, line.id, line.first) == ("0", "7", 1)
    assert (line.trajectory.rewrite, line.trajectory.plan) == ("2", "as shown ?")


def test_a_broken_file_is_refused_before_any_model_is_asked_and_a_missing_one_too(new_run, tmp_path):
    run = new_run({"synthesis.teacher": f"file:{written(tmp_path / 't.jsonl', 'x')}"})
    assert refusals(run)["synthesize"].startswith("Of 1 lines in the trajectory file 1 are not complete JSON")
    assert "no file" in refusals(new_run({"synthesis.teacher": f"file:{tmp_path / 'no'}"}))["synthesize"]
    (tmp_path / "t.jsonl").write_bytes(b"\xff")
    assert "is not UTF-8 text (byte 0): write it again" in refusals(run)["synthesize"]


def test_paths_are_stored_absolute_and_a_changed_file_is_imported_again(prepared, tmp_path, monkeypatch, capsys):
    run = prepared({"data.train_users": 1})
    (example,) = load_prepared(run, "train")
    row = {"example": example["id"], "observe": "[1] a", "plan": "p", "rewrite": example["output"]}
    path = written(tmp_path / "t.jsonl", row)
    monkeypatch.chdir(tmp_path)
    imported(run, "t.jsonl")
    assert open_run(run.name, root=run.folder.parent).preset.synthesis.teacher == f"file:{path}"
    imported(run, path)
    assert "synthesize: done already" in capsys.readouterr().out
    written(path, row | {"plan": "q"})
    assert [record["plan"] for record in imported(run, path)[0]] == ["q"]


def test_an_interrupted_import_resumes_without_duplicates(prepared, tmp_path, monkeypatch):
    run = prepared({"data.train_users": 4})
    rows = [
        {"example": e["id"], "observe": "[1] a", "plan": "p", "rewrite": e["output"]}
        for e in load_prepared(run, "train")
    ]
    path, kept, calls = written(tmp_path / "t.jsonl", *rows), synthesis.append_records, []

    def torn(file, records):
        calls.append(file.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        kept(file, records)

    monkeypatch.setattr(synthesis, "_CHUNK", 2)
    monkeypatch.setattr(synthesis, "append_records", torn)
    with pytest.raises(KeyboardInterrupt):
        imported(run, path)
    monkeypatch.setattr(synthesis, "append_records", kept)
    good, _ = imported(run, path)
    assert [record["example"] for record in good] == [row["example"] for row in rows]
