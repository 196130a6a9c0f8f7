"""A fork keeps every finished stage that the change leaves valid, appears in one step, and leaves the old run alone."""

import json
import os
import shutil

import pandas as pd
import pytest

from rpo_kit import fork as fork_module
from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.fork import fork
from rpo_kit.pipeline import STAGES, current
from rpo_kit.presets import as_dict
from rpo_kit.processes import locked
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import existing_run, write_json, write_text
from rpo_kit.stages import stage
from rpo_kit.study.evaluation import evaluate
from rpo_kit.training.synthesis import synthesize

STEPS = ("prepare", "synthesize", "sft", "rl")


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def swept(run):
    """Give the run a sweep of two trials with tables, as the stage leaves them."""
    for trial in ("fixed-2-seed0", "progressive-seed0"):
        with stage(run, f"sweep/{trial}", settings=trial) as work:
            write_text(work / "log.csv", "step\n1\n")
    write_json(run.stage("sweep") / "plan.json", {"arms": 2})
    write_text(run.stage("sweep") / "bars.csv", "arm,score\n")
    write_json(run.stage("sweep") / "provenance.json", {"preset": as_dict(run.preset)})
    return run


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, STEPS),
        ({"evaluation.shots": 2}, STEPS),
        ({"rl.curriculum": "reversed"}, STEPS[:3]),
        ({"sft.steps": 1}, STEPS[:2]),
        ({"synthesis.shots": [1]}, STEPS[:1]),
        ({"synthesis.shots": [1], "rl.start": "untrained"}, STEPS[:1]),
        ({"data.train_users": 9}, ()),
    ],
)
def test_a_change_keeps_the_stages_before_it(trained, changed, taken, capsys):
    old = trained()
    before = files(old.folder)
    new = fork("new", old, changed)
    said = capsys.readouterr().out
    assert f"taken over      {', '.join(taken) or 'nothing'}\n" in said
    for name in STEPS:
        finished = (new.stage(name) / "manifest.json").exists()
        assert finished == (name in taken), name
        assert not finished or current(new, name) == new.stage(name)
    assert existing_run("new", old.folder.parent).preset == new.preset
    assert files(old.folder).items() >= before.items()
    assert f"next            python -m rpo_kit {(*STEPS, 'evaluate')[len(taken)]} --run new" in said


def test_what_was_taken_over_is_done_and_the_rest_is_computed(trained, capsys):
    old = trained()
    new = fork("new", old, {"synthesis.shots": [1]})
    prepare(new)
    assert "prepare: done already" in capsys.readouterr().out
    synthesize(new)
    assert "synthesize: done already" not in capsys.readouterr().out
    assert current(old, "synthesize"), "the old run still has its own"


def test_each_reason_is_told(trained, capsys):
    fork("new", trained(), {"sft.steps": 1})
    lines = [line.split("to be computed  ")[1] for line in capsys.readouterr().out.splitlines() if "computed" in line]
    assert lines[:2] == ["sft: settings changed", "rl: builds on sft"]
    assert all("builds on sft" in line for line in lines[2:])


def test_files_are_shared_but_records_are_copied(trained):
    old = trained()
    new = fork("new", old)
    weights, records = "sft/adapter/adapter_model.safetensors", "prepare/generic.jsonl"
    assert os.path.samefile(old.folder / weights, new.folder / weights)
    assert not os.path.samefile(old.folder / records, new.folder / records), "they are appended to in place"


def test_an_evaluation_is_taken_over_with_all_that_it_read(trained):
    systems = {"evaluation.systems": ["base", "echo", "copy-nearest"]}
    old = trained(systems)
    evaluate(old)
    assert (fork("same", old, {"rl.steps": 3}).stage("evaluate") / "metrics.csv").exists(), "it did not read RL"
    assert not fork("other", old, {"evaluation.shots": 2}).stage("evaluate").exists()
    assert not fork("fewer", old, {"evaluation.systems": ["base"]}).stage("evaluate").exists()


def test_a_sweep_goes_along_whole_or_as_trials_that_are_checked_when_it_runs(trained, capsys):
    old = swept(trained())
    same, more = fork("same", old, {"components.steps": 3}), fork("more", old, {"sweep.arms": ["random"]})
    assert files(same.stage("sweep")) == files(old.stage("sweep"))
    left_out = {path.name for path in files(old.stage("sweep")).keys() - files(more.stage("sweep")).keys()}
    assert left_out == {"bars.csv", "provenance.json"}, "the tables; the plan stays with its trials"
    assert "sweep: sweep changed; its 2 finished trials went along and are checked then" in capsys.readouterr().out
    assert not fork("none", old, {"sft.steps": 1}).stage("sweep").exists(), "they started from another adapter"


def test_tables_older_than_the_adapter_are_not_taken_over(trained, capsys):
    old = swept(trained())
    os.utime(old.stage("sweep") / "provenance.json", (1, 1))
    assert not (fork("new", old).stage("sweep") / "bars.csv").exists()
    assert "sweep: older than what it reads" in capsys.readouterr().out


def test_a_damaged_or_unfinished_stage_stays_behind(trained, capsys):
    old = trained()
    (old.stage("sft") / "adapter" / "adapter_model.safetensors").write_text("other")
    (old.stage("rl") / "manifest.json").unlink()
    new = fork("new", old)
    assert not new.stage("sft").exists()
    assert not new.stage("rl").exists()
    assert "sft: adapter is damaged in 'r'" in capsys.readouterr().out


def test_a_name_that_is_taken_is_refused_and_nothing_changes(trained, monkeypatch, capsys):
    old = trained()
    monkeypatch.setenv("RPO_RUNS", str(old.folder.parent))
    fork("new", old)
    before = files(old.folder.parent)
    for name in ("new", "r"):
        assert main(["fork", name, "--run", "r", "--set", "rl.steps=3"]) == 2
        assert f"There is a run {name!r} in {old.folder.parent} already" in capsys.readouterr().err
    after = files(old.folder.parent)
    assert {path: after[path] for path in after if ".locks" not in path.parts} == {
        path: before[path] for path in before if ".locks" not in path.parts
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a/b"], "'a/b' cannot be the name of a run"),
        (["new", "--run", "missing"], "There is no run 'missing'"),
        (["new", "--set", "rl.stepz=3"], "There is no setting 'rl.stepz'"),
        (["new", "--set", "rl.steps"], "--set rl.steps does not have the form KEY=VALUE"),
        (["new", "--set", "synthesis.shots=[30]"], "synthesis.shots"),
    ],
)
def test_a_refused_fork_leaves_nothing(trained, monkeypatch, capsys, arguments, said):
    root = trained(name="demo").folder.parent
    monkeypatch.setenv("RPO_RUNS", str(root))
    assert main(["fork", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir() if path.name not in ("llama0", ".locks")) == ["demo"]


def test_what_the_old_run_is_refused_for_already_does_not_stop_a_fork(trained, monkeypatch):
    """Its last stage may be impossible with its data, and nobody wants to run it."""
    old = trained()
    monkeypatch.setattr(fork_module, "refusals", lambda run, *stages: {"components": "no arm can run"})
    assert current(fork("new", old), "rl")
    monkeypatch.setattr(fork_module, "refusals", lambda run, *stages: {"rl": "too long"} if run != old else {})
    with pytest.raises(KitError, match="too long"):
        fork("other", old)


def test_a_fork_that_was_killed_is_no_run_and_the_next_call_makes_it(trained, monkeypatch):
    old = trained()

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(fork_module, "write_json", killed)
    monkeypatch.setattr(fork_module, "_remove", lambda folder: None)  # as after kill -9
    with pytest.raises(KeyboardInterrupt):
        fork("new", old)
    monkeypatch.undo()
    left = old.folder.parent / ".fork-new"
    assert left.exists()
    assert not (old.folder.parent / "new").exists()
    assert current(fork("new", old), "rl")
    assert not left.exists()


def test_a_stage_at_work_is_waited_for_then_named(trained, monkeypatch):
    old = trained()
    monkeypatch.setattr("rpo_kit.processes._LOCK_PATIENCE", 0.1)
    with (
        locked(old.folder / ".locks" / "sft", "x"),
        pytest.raises(KitError, match="The stage 'sft' of run 'r' is in use"),
    ):
        fork("new", old)
    assert not (old.folder.parent / "new").exists()


def test_a_notebook_can_fork_again(trained, capsys):
    old = trained()
    new = fork("new", old, {"rl.steps": 3}, reuse=True)
    write_text(new.stage("rl") / "log.csv", "kept")
    assert fork("new", old, {"rl.steps": 3}, reuse=True) == new
    assert "exists already, with these settings" in capsys.readouterr().out
    assert (new.stage("rl") / "log.csv").read_text() == "kept"
    with pytest.raises(KitError, match="already"):
        fork("new", old, {"rl.steps": 4}, reuse=True)


def test_a_fork_outlives_the_old_run(trained):
    old = trained()
    new = fork("new", old)
    shutil.rmtree(old.folder)
    assert all(current(new, name).exists() for name in STEPS)
    assert json.loads((new.folder / "run.json").read_text())["name"] == "new"
    assert set(STAGES) > set(STEPS)
    assert pd.read_json(new.stage("prepare") / "generic.jsonl", lines=True).shape[0] == 18
