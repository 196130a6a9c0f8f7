"""The command line helps before it starts, reports errors in one sentence, and keeps settings."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rpo_kit.__main__ as command_line
from rpo_kit.__main__ import main, open_from
from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES, stage_function
from rpo_kit.presets import PRESETS
from rpo_kit.runs import Run, existing_run, open_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Stages that only record the run they were called with."""
    runs: list[Run] = []
    monkeypatch.setattr(command_line, "stage_function", lambda name: runs.append)
    return runs


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence on stderr of a command that must end with exit code 2."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in (*STAGES, "demo", "doctor"))])
def test_every_command_has_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert capsys.readouterr().out


def test_the_help_lists_the_stages_in_order_and_says_where_to_start(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Start with: python -m rpo_kit demo" in said
    assert "Run an interrupted command again to resume it" in " ".join(said.split())
    places = [said.index(f"{number}. ") for number in range(1, 7)]
    assert places == sorted(places)
    for name in ("demo", "doctor", "presets", "score", "figure3", "results", "serve"):
        assert name in said


def test_figure_3_is_redrawn_from_the_numbers_stored_with_the_code(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "figures" / "data", tmp_path / "data")
    monkeypatch.setattr("rpo_kit.study.result_commands.FIGURES", tmp_path)
    assert main(["figure3", "--data", "long_LaMP-7"]) == 0
    assert (tmp_path / "long_LaMP-7_figure3.png").read_bytes().startswith(b"\x89PNG")
    assert main(["figure3", "--data", "nosuch"]) == 2
    stored = "arms_LaMP-3, demo_LaMP-7, four_LaMP-3, h100_LaMP-7, long_LaMP-7"
    assert f"No numbers are stored as 'nosuch': --data takes one of {stored}" in capsys.readouterr().err
    assert main(["figure3", "--data", "long_LaMP-7", "--export", "other"]) == 2
    for name in ("a/b", "../out", ".hidden", ""):
        with pytest.raises(SystemExit):
            main(["results", "--export", name])
    assert "give one of the two" in capsys.readouterr().err


def test_figure_3_of_a_run_without_a_sweep_names_the_command(new_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    new_run()
    assert main(["figure3", "--run", "r"]) == 2
    assert "Run 'r' has no finished sweep: run `python -m rpo_kit sweep --run r` first." in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end_is_no_traceback():
    command = f"{shlex.quote(sys.executable)} -m rpo_kit presets | head -c 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(done.stdout) == 1
    assert done.stderr == ""


def test_the_help_of_a_stage_explains_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["rl", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for part in ("--run", "--preset", "--task", "--data", "--set KEY=VALUE", "rl.steps=40", *PRESETS):
        assert part in said


def test_without_a_command_the_help_is_printed(capsys):
    assert "command" in refused(capsys)


def test_help_and_errors_need_no_training_library():
    """A typing mistake is reported at once; torch alone would take seconds to load."""
    code = "import sys; from rpo_kit.__main__ import main; main(['presets']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PRESETS)


# ---- mistakes -----------------------------------------------------------------------------------------------------


def test_an_error_for_an_unknown_command_or_preset_lists_the_known_ones(capsys):
    assert "invalid choice: 'train'" in refused(capsys, "train")
    said = refused(capsys, "rl", "--preset", "huge")
    assert "invalid choice: 'huge'" in said
    assert all(name in said for name in PRESETS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["figure3", "--run", "nosuch"], "rpo_kit: There is no run 'nosuch' in "),
        (["prepare", "--task", "LaMP-9", "--run", "a"], "rpo_kit: There is no task 'LaMP-9': choose one of"),
        (["demo", "--task", "LaMP-9", "--run", "a"], "rpo_kit: There is no task 'LaMP-9': choose one of"),
        (["prepare", "--set", "data.task=LaMP-9"], "rpo_kit: There is no task 'LaMP-9': choose one of"),
        (["prepare", "--set", "rl.stepz=3"], "rpo_kit: There is no setting 'rl.stepz'; in rl there are steps"),
        (["prepare", "--set", "rl.steps"], "rpo_kit: --set rl.steps does not have the form KEY=VALUE"),
        (["prepare", "--set", "rl.steps=many"], "rpo_kit: rl.steps='many' is not a whole number"),
        (["prepare", "--run", "../up"], "rpo_kit: '../up' cannot be the name of a run"),
        (["sft", "--run", "new"], "rpo_kit: There is no run 'new' in "),
        (["score", "no.json", "no.json"], "rpo_kit: The gold file is missing: there is no file no.json; "),
        (["score"], "rpo_kit: score takes either --run NAME, or two files: GOLDS "),
        (["score", "golds.json"], "rpo_kit: score takes either --run NAME, or two files: GOLDS "),
        (["score", "golds.json", "--run", "r"], "rpo_kit: score takes either --run NAME, or two files: GOLDS "),
        (["score", "a.json", "b.json", "--run", "r"], "rpo_kit: score takes either --run NAME, or two files: GOLDS "),
        (["score", "--run", "nosuch"], "rpo_kit: There is no run 'nosuch' in "),
        (["prepare", "--set", "name=foo"], "rpo_kit: There is no setting 'name'; the settings are data, base"),
        (["prepare", "--preset", "paper", "--data", "personas"], "rpo_kit: This preset uses all users of LaMP's files"),
        (
            ["prepare", "--data", "no-such-folder", "--run", "b"],
            "rpo_kit: The data 'no-such-folder' is not an existing folder",
        ),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(arguments, sentence, capsys):
    assert refused(capsys, *arguments).startswith(sentence)


def test_no_run_is_made_for_an_unknown_task(tmp_path, capsys):
    refused(capsys, "prepare", "--task", "LaMP-9", "--run", "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "prepare"])
def test_only_prepare_and_demo_make_a_run(stage, tmp_path, capsys):
    open_run("mine", "tiny", root=tmp_path)
    capsys.readouterr()
    said = refused(capsys, stage, "--run", "mien")
    assert said.startswith("rpo_kit: There is no run 'mien' in ")
    assert "existing runs: mine" in said
    assert not (tmp_path / "mien").exists()


def test_a_process_of_its_own_shows_no_traceback_either(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RPO_RUNS": str(tmp_path)}
    open_run("new", "tiny", root=tmp_path)
    command = [sys.executable, "-m", "rpo_kit", "synthesize", "--run", "new"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rpo_kit: The stage 'prepare' of run 'new' is not finished")


def test_an_interrupt_says_to_run_the_command_again(monkeypatch, capsys):
    def interrupted(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "stage_function", lambda name: interrupted)
    assert main(["prepare", "--preset", "tiny"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


# ---- which run ----------------------------------------------------------------------------------------------------


def test_a_new_run_uses_the_cpu_preset_and_the_given_options(called, tmp_path):
    folder = str(tmp_path / "some" / "folder")
    Path(folder).mkdir(parents=True)
    assert main(["prepare", "--task", "LaMP-5", "--set", "rl.steps=7", "--data", folder]) == 0
    (run,) = called
    assert (run.name, run.preset.name, run.preset.data.task, run.preset.rl.steps) == ("demo", "cpu", "LaMP-5", 7)
    assert run.preset.data.source == folder


def test_a_run_keeps_the_settings_that_no_option_names(called):
    main(["prepare", "--run", "mine", "--preset", "tiny", "--set", "data.train_users=5"])
    main(["synthesize", "--run", "mine"])
    assert called[0].preset == called[1].preset
    main(["rl", "--run", "mine", "--set", "rl.steps=9"])
    changed = called[2].preset
    assert (changed.name, changed.data.train_users, changed.rl.steps) == ("tiny", 5, 9), "not back to cpu's settings"
    main(["rl", "--run", "mine"])
    assert called[3].preset == changed == existing_run("mine").preset


def test_the_demo_of_an_existing_run_keeps_its_settings(called, monkeypatch):
    from rpo_kit.study import demo

    monkeypatch.setattr(demo, "demo", called.append)
    main(["prepare", "--run", "mine", "--preset", "tiny", "--task", "LaMP-3"])
    main(["demo", "--run", "mine"])
    main(["demo"])
    assert called[1] == called[0]
    assert called[2].preset == PRESETS["cpu"], "a new one"


def test_an_error_names_a_run_with_unreadable_settings_and_a_preset_rewrites_them(called, tmp_path, capsys):
    main(["prepare", "--run", "mine", "--preset", "tiny"])
    (tmp_path / "mine" / "run.json").write_text('{"name": "mine", "pre')
    said = refused(capsys, "rl", "--run", "mine")
    assert said.startswith(f"rpo_kit: The settings in {tmp_path / 'mine' / 'run.json'} cannot be read")
    assert main(["rl", "--run", "mine", "--preset", "tiny"]) == 0
    assert called[1].preset == existing_run("mine").preset == PRESETS["tiny"]


def test_a_given_preset_replaces_all_settings(called):
    main(["prepare", "--run", "mine", "--preset", "tiny", "--set", "data.train_users=5"])
    main(["prepare", "--run", "mine", "--preset", "tiny"])
    assert called[1].preset == PRESETS["tiny"]


# ---- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_its_function(name):
    assert callable(stage_function(name))
    assert stage_function(name).__name__ == STAGES[name].function.rpartition(":")[2]


def test_score_prints_lamps_metrics_of_two_files(tmp_path, capsys):
    for name, outputs in (("golds", ["5", "1"]), ("predictions", ["4", "1"])):
        golds = [{"id": str(n), "output": output} for n, output in enumerate(outputs)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    assert main(["score", str(tmp_path / "golds.json"), str(tmp_path / "predictions.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "LaMP-3: Product rating, 2 examples", "MAE        0.500000", "RMSE       0.707107",
    ]  # fmt: skip


def test_the_doctors_verdict_is_the_exit_code(monkeypatch):
    from rpo_kit import doctor

    monkeypatch.setattr(doctor, "main", lambda: 1)
    assert main(["doctor"]) == 1


def test_options_alone_open_a_run_for_a_notebook_too(tmp_path):
    from argparse import Namespace

    run = open_from(Namespace(run="n", preset="tiny", task=None, data=None, set=[]))
    assert run == existing_run("n")
    with pytest.raises(KitError, match="no run"):
        existing_run("m")
