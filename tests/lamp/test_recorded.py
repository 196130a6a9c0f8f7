"""Recorded answers as the black box: the generic answers are those of a file, and no model is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.lamp.files import write_outputs
from rpo_kit.model_spec import recorded_files
from rpo_kit.presets import get_preset
from rpo_kit.rewriting import personalizer
from rpo_kit.rewriting import prepare as prepare_module
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.rewriting.prepare import load_golds, load_prepared, prepare
from rpo_kit.runs import existing_run, open_run, read_records
from rpo_kit.serving import server
from rpo_kit.study.evaluation import evaluate

USERS = {"train": 12, "dev": 6}  # of the `tiny` preset


def ids_of(split: str) -> list[str]:
    return [row["id"] for row in personas.build("LaMP-3", split, USERS[split])]


@pytest.fixture
def recorded(tmp_path: Path):
    """Write a file with the answer "4" to every example, with these changes by id."""

    def write(name: str = "all.json", splits: tuple[str, ...] = ("train", "dev"), **changes: str) -> Path:
        answers = dict.fromkeys((id_ for split in splits for id_ in ids_of(split)), "4") | changes
        path = tmp_path / "answers" / name
        write_outputs(path, "LaMP_3", answers)
        return path

    return write


def test_the_generic_answers_are_those_of_the_file_and_no_model_is_asked(new_run, recorded, capsys):
    first = ids_of("train")[0]
    path = recorded(**{first: "I would give it a 2.", "another id": "1"})
    run = new_run({"base": f"file:{path}"})
    prepare(run, lambda spec: pytest.fail("a model was opened"))
    assert f"18 generic answers are taken from {path}; ignored answers to other ids: 1" in capsys.readouterr().out
    assert {example["generic"] for example in load_prepared(run, "dev")} == {"4"}
    record = read_records(run.stage("prepare") / "generic.jsonl")[0]
    assert record == {"id": first, "text": "2", "raw": "I would give it a 2."}, "read as a model's reply is"


def test_answers_that_name_no_label_of_the_task_are_told(new_run, recorded, capsys):
    prepare(new_run({"base": f"file:{recorded()}"}))
    assert "name no label" not in capsys.readouterr().out
    others = dict.fromkeys((id_ for split in ("train", "dev") for id_ in ids_of(split)), "politics")
    prepare(new_run({"base": f"file:{recorded('other.json', **others)}"}))
    assert "18 of them name no label of LaMP-3: are they of another task?" in capsys.readouterr().out


def test_answers_that_are_the_golds_are_told(new_run, recorded, capsys):
    run = new_run({"base": f"file:{recorded()}"})
    prepare(run)
    golds = load_golds(run, "train") | load_golds(run, "dev")
    prepare(new_run({"base": f"file:{recorded('golds.json', **golds)}"}))
    assert "18 of 18 recorded answers equal the gold: is this a file of golds" in capsys.readouterr().out
    half = dict(list(golds.items())[:9])
    prepare(new_run({"base": f"file:{recorded('half.json', **half)}"}))
    assert "equal the gold" not in capsys.readouterr().out


def test_train_and_dev_may_be_in_two_files(new_run, recorded):
    train, dev = recorded("train.json", ("train",)), recorded("dev.json", ("dev",))
    run = new_run({"base": f"file:{train}, {dev}"})
    prepare(run)
    assert len(load_prepared(run, "train")) + len(load_prepared(run, "dev")) == 18


def test_a_changed_file_means_prepare_again_and_later_stages_say_so(new_run, recorded, capsys):
    run = new_run({"base": f"file:{recorded()}"})
    prepare(run)
    prepare(run)
    assert "prepare: done already" in capsys.readouterr().out
    path = recorded(**dict.fromkeys(ids_of("dev"), "5"))
    with pytest.raises(
        KitError, match=r"'prepare' of run 'r' was made from other inputs \(files of the base model changed\)"
    ):
        load_prepared(run, "dev")
    prepare(run)
    assert "prepare: files of the base model changed" in capsys.readouterr().out
    assert {example["generic"] for example in load_prepared(run, "dev")} == {"5"}
    path.unlink()
    assert len(load_prepared(run, "dev")) == 6, "what was prepared does not need the file"


def test_a_killed_call_takes_the_missing_answers_from_the_file(new_run, recorded, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = new_run({"base": f"file:{recorded()}"})
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "sort_records", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(run)
    answers = run.stage("prepare") / "generic.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:5]))
    prepare(run)
    assert [record["id"] for record in read_records(answers)] == ids_of("train") + ids_of("dev")


def test_a_path_is_stored_in_full_and_may_hold_an_at_sign(tmp_path, monkeypatch, recorded):
    recorded("a@HOME.json")
    monkeypatch.chdir(tmp_path / "answers")
    run = open_run("r", "tiny", {"base": "file:a@HOME.json,b.json"}, root=tmp_path)
    assert recorded_files(run.preset.base) == (tmp_path / "answers" / "a@HOME.json", tmp_path / "answers" / "b.json")
    assert existing_run("r", root=tmp_path).preset.base == run.preset.base


# ---- what is refused, before anything is written ------------------------------------------------------------------


def refusal(new_run, base: str, settings: dict[str, object] | None = None) -> str:
    """Why `prepare` refuses; an earlier result stays where it is."""
    run = new_run({"base": base} | (settings or {}))
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(KitError) as error:
        prepare(run)
    assert sorted(run.folder.rglob("*")) == before
    return str(error.value)


def test_a_file_that_lacks_ids(prepared, new_run, recorded):
    prepared()
    path = recorded("dev.json", ("dev",))
    why = refusal(new_run, f"file:{path}")
    first = ", ".join(repr(id_) for id_ in ids_of("train")[:3])
    assert f"in {path} for 12 of 18 examples (12 of 12 in train and 0 of 6 in dev), such as {first}: add them" in why
    assert "name a second file after a comma (base=file:TRAIN.json,DEV.json), or choose a base model" in why
    assert "data.leave_one_out" not in why
    assert "other ids" not in why
    path = recorded("floats.json", (), **{f"{id_}.0": "4" for id_ in ids_of("train")})
    assert ", but there are 12 answers to other ids, such as '" in refusal(new_run, f"file:{path}")
    why = refusal(new_run, f"file:{recorded()}", {"data.leave_one_out": 1})
    assert "for 12 of 30 examples (12 of 24 in train" in why
    assert "set data.leave_one_out=0" in why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            '{"id": "1", "output": "4"}\n{"id": "2", "output": "4"}',
            "holds more than one JSON value, as a file with one",
        ),
        ('{"task": "LaMP_3", "golds": [', "is not complete JSON: .*: record it again"),
        ('{"task": "LaMP_7", "golds": []}', "is of LaMP_7, not of LaMP_3: name the file of LaMP-3, or .* --task"),
        ("[]", "is not a LaMP outputs file"),
        ('{"task": "LaMP_3", "golds": [{"id": "1"}]}', 'Row 0 of .* lacks "id" or "output": complete it, or record it'),
        (
            json.dumps({"task": "LaMP_3", "golds": [{"id": "1", "output": "4"}] * 3}),
            "has 3 rows but only 1 ids: 2 rows repeat one, such as '1'. Keep one row per id",
        ),
        (
            json.dumps({"task": "LaMP_3", "golds": [{"id": f"{n}", "output": [None, "4", []][n]} for n in range(3)]}),
            "2 of the 3 outputs in .*/bad.json are not text, such as '0', '2': correct them, or record it again",
        ),
    ],
)
def test_a_file_that_is_not_one_of_answers(prepared, new_run, tmp_path, content, why):
    prepared()
    path = tmp_path / "bad.json"
    path.write_text(content)
    new_run()  # its settings again, so that the next change is the bad file alone
    with pytest.raises(KitError, match=why) as error:
        prepare(new_run({"base": f"file:{path}"}))
    assert str(path) in str(error.value)
    assert not list(tmp_path.glob("r/prepare.kept-*")), "the earlier result was not moved away"


def test_a_missing_file_and_an_id_in_both_files(new_run, recorded, tmp_path):
    assert f"there is no file {tmp_path / 'no.json'}" in refusal(new_run, f"file:{tmp_path / 'no.json'}")
    dev = recorded("dev.json", ("dev",))
    why = refusal(new_run, f"file:{recorded()},{dev}")
    assert f"6 of the 6 ids in the file of recorded answers {dev} are in another file of base=… too" in why
    assert why.endswith("keep one answer per id.")


def test_the_command_refuses_before_the_settings_of_a_run_are_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    open_run("r", "tiny")
    assert main(["prepare", "--run", "r", "--set", f"base=file:{tmp_path / 'no.json'}"]) == 2
    assert "The file of recorded answers is missing" in capsys.readouterr().err
    assert existing_run("r").preset.base == get_preset("tiny").base


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("base", "file:", "does not name a model: write .*, or file:PREDICTIONS.json for recorded answers"),
        (
            "synthesis.teacher",
            "file:",
            "does not name a model: write rules, .*, or file:TRAJECTORIES.jsonl for trajectories",
        ),
    ],
)
def test_a_form_without_a_file_is_refused_with_what_the_file_would_hold(key, value, why):
    with pytest.raises(KitError, match=why):
        get_preset("cpu", {key: value})


# ---- what would ask the base model anew ---------------------------------------------------------------------------


def test_systems_that_ask_the_base_model_anew_are_left_out(new_run, recorded, capsys):
    run = new_run({"base": f"file:{recorded()}"})
    prepare(run)
    evaluate(run, ["base", "context", "pag-2", "majority"])
    assert "evaluate: context, pag-2 left out, because the answers of base=file:" in capsys.readouterr().out
    assert {path.stem for path in (run.stage("evaluate") / "predictions").iterdir()} == {"base", "majority"}
    with pytest.raises(KitError, match=r"No system is left .* without context, because .*: add base to evaluation"):
        evaluate(run, ["context"])


def test_the_personalizer_needs_another_base_model(new_run, recorded, as_trained, monkeypatch, endpoint):
    run = new_run({"base": f"file:{recorded()}"})
    prepare(run)
    as_trained(run)
    monkeypatch.setattr(personalizer, "load_reflection", lambda settings, adapter: None)
    why = (
        r"holds recorded answers, which cannot answer new queries.* write .*Personalizer\.of\(run, base=.*serve --base"
    )
    with pytest.raises(KitError, match=why):
        Personalizer.of(run)
    assert Personalizer.of(run, base=f"{endpoint.url}#m").base.name == f"{endpoint.url}#m"


def test_serve_takes_another_base_model(new_run, monkeypatch, tmp_path):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    new_run()
    asked = []
    monkeypatch.setattr(server, "models_of", lambda run, stage, base: asked.append(base) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["serve", "--run", "r", "--base", "openai:gpt-4o-mini"])
    assert asked == ["openai:gpt-4o-mini"]
