"""Settings are checked before anything is written or moved; one command shows them and undoes a change."""

import json

import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.runs import open_run
from rpo_kit.stages import stage


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    return tmp_path


def finished(name="demo", **settings):
    run = open_run(name, "tiny", settings)
    with stage(run, "prepare", data=1):
        pass
    return run


def test_settings_shows_what_differs_from_the_preset_and_undoes_it(root, capsys):
    open_run("r", "tiny", {"rl.steps": 40, "base": "local:other", "sweep.seeds": [1, 2]})
    assert main(["settings", "--run", "r"]) == 0
    said = capsys.readouterr().out
    assert "run 'r': preset tiny, 3 settings changed" in said
    assert "rl.steps = 40   (preset: 2)" in said
    assert 'base = "local:other"' in said
    assert main(["settings", "--run", "r", "--unset", "rl.steps", "--unset", "base"]) == 0
    assert "1 settings changed" in capsys.readouterr().out
    assert open_run("r").preset.rl.steps == 2


@pytest.mark.parametrize("key", ["rl", "rl.stepz", "name", "about", "data"])
def test_an_unknown_setting_cannot_be_unset(root, key, capsys):
    open_run("r", "tiny")
    assert main(["settings", "--run", "r", "--unset", key]) == 2
    assert f"There is no setting {key!r} to unset" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--task", "LaMP-3"], ["--set", "data.seed=5"], ["--preset", "cpu"]])
def test_a_demo_with_other_settings_does_not_use_the_default_run(root, arguments, capsys, monkeypatch):
    run = finished(**{"data.task": "LaMP-7"})
    before = (run.folder / "run.json").read_bytes()
    assert main(["demo", *arguments]) == 2
    assert "The run 'demo' holds results of other settings: name another run for this demo" in capsys.readouterr().err
    assert (run.folder / "run.json").read_bytes() == before
    monkeypatch.setattr("rpo_kit.study.demo.demo", lambda run: print("demo of", run.name))
    assert main(["demo"]) == 0
    assert main(["demo", *arguments, "--run", "demo"]) == 0, "named on purpose"
    assert main(["demo", *arguments, "--run", "other"]) == 0


def test_the_same_settings_again_are_not_other_settings(root, monkeypatch):
    finished(**{"data.task": "LaMP-7"})
    monkeypatch.setattr("rpo_kit.study.demo.demo", lambda run: None)
    assert main(["demo", "--preset", "tiny", "--task", "LaMP-7"]) == 0


def test_a_prepare_that_fails_before_it_starts_creates_no_run(root, capsys):
    assert main(["prepare", "--run", "new", "--data", str(root / "nowhere")]) == 2
    assert not (root / "new").exists()
    run = finished("old")
    assert main(["prepare", "--run", "old", "--data", str(root / "nowhere")]) == 2
    assert (run.stage("prepare") / "manifest.json").exists()


def test_invalid_settings_are_not_stored(root, capsys):
    run = finished("r")
    before = (run.folder / "run.json").read_bytes()
    for setting in ("rl.stepz=3", "rl.steps=0"):
        assert main(["rl", "--run", "r", "--set", setting]) == 2
    assert (run.folder / "run.json").read_bytes() == before
    assert json.loads(before)["name"] == "r"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "lr={0.1}", " ", "a\\b"])
def test_a_name_that_no_folder_can_have_is_rejected(root, name, capsys):
    assert main(["prepare", "--run", name]) == 2
    assert "cannot be the name of a run" in capsys.readouterr().err


def test_an_empty_name_means_the_default_run_and_cannot_be_given_to_one(root, monkeypatch):
    prepared = []
    monkeypatch.setattr("rpo_kit.__main__.stage_function", lambda name: prepared.append)
    assert main(["prepare", "--run", ""]) == 0
    assert [run.name for run in prepared] == ["demo"]
    with pytest.raises(KitError, match="cannot be the name of a run"):
        open_run("", "tiny")


@pytest.mark.parametrize("name", ["lr=0.1", "mein Lauf", "läufe", "a.b", "$1"])
def test_a_name_may_have_spaces_umlauts_or_dollars(root, name):
    assert open_run(name, "tiny").name == name
