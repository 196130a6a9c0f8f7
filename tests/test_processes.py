"""One process works on a stage: a second call is rejected, ranks wait, and a full disk is reported in one sentence."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from rpo_kit import processes
from rpo_kit.errors import KitError
from rpo_kit.models.cache import AnswerCache, open_database
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import Run, open_run, write_text
from rpo_kit.stages import require, stage
from rpo_kit.training.sft import train_sft
from rpo_kit.training.synthesis import synthesize

ROOT = Path(__file__).resolve().parents[1]
BEGIN = """
import sys
from pathlib import Path
from rpo_kit.runs import existing_run
from rpo_kit.stages import stage
print("here", flush=True)
with stage(existing_run("r", root=sys.argv[1]), "sft", every_rank=True, seed=2) as work:
    print(sorted(path.name for path in work.iterdir()), flush=True)
    sys.stdin.readline()
print((work / "manifest.json").exists())
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run("r", "tiny", root=tmp_path)


@pytest.fixture
def other(run: Run) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that works on stage `sft` until it receives a line."""
    children: list[subprocess.Popen[str]] = []

    def start(**environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BEGIN, str(run.folder.parent)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        children.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        assert children[-1].stdout.readline() == "here\n"
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


# ---- a second call ------------------------------------------------------------------------------------------------


def test_a_second_call_of_a_stage_names_the_process_at_work_and_a_kill_frees_the_stage(run, other, monkeypatch):
    monkeypatch.setattr(processes, "_LOCK_PATIENCE", 0.0)
    first = other()
    assert "started.json" in first.stdout.readline()
    message = rf"The stage 'sft' of run 'r' is in use by process {first.pid}: wait for that"
    with pytest.raises(KitError, match=message), stage(run, "sft", seed=2):
        pass
    with stage(run, "rl", seed=2) as work:
        assert work, "another stage is free"
    first.kill()
    first.wait()
    with stage(run, "sft", seed=2) as work:
        assert work


def test_a_failed_stage_is_free_again_in_the_same_process(run):
    with pytest.raises(KeyboardInterrupt), stage(run, "sweep/fixed-2-seed0", seed=1):
        raise KeyboardInterrupt
    with stage(run, "sweep/fixed-2-seed0", seed=1) as work:
        assert work


def test_a_disk_without_locks_is_reported_and_the_stage_continues(run, monkeypatch, capsys):
    def no_locks(*_: object) -> None:
        raise OSError(processes.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(processes.fcntl, "flock", no_locks)
    with stage(run, "sft", seed=1) as work:
        assert work
    assert "does not support locks: do not run the same stage twice" in capsys.readouterr().out


# ---- ranks --------------------------------------------------------------------------------------------------------


def test_another_rank_starts_after_the_main_process_and_ends_after_it(run, other):
    with stage(run, "sft", seed=1) as work:
        write_text(work / "of-other-inputs", "")
    second = other(WORLD_SIZE="2", RANK="1")
    with stage(run, "sft", every_rank=True, seed=2):
        assert second.stdout.readline() == "['started.json']\n", "what was moved away is not gone on from"
        second.stdin.write("\n")
        second.stdin.flush()
        assert second.poll() is None
    assert second.communicate()[0] == "True\n"
    assert second.returncode == 0


def test_of_several_ranks_only_the_main_one_does_work_other_than_training(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with stage(run, "evaluate", seed=1) as work:
        assert work is None
    assert not run.stage("evaluate").exists()
    monkeypatch.setenv("RANK", "0")
    with stage(run, "evaluate", seed=1) as work:
        assert work
    assert require(run, "evaluate")


@pytest.mark.slow
def test_two_ranks_train_together_and_one_of_them_writes(prepared, tmp_path):
    """As docs/scale.md starts them, on a CPU; SFT's loss and adapter are those of one process."""
    settings = {"rl.prompts_per_step": 2, "rl.max_new_tokens": 12, "sft.steps": 2, "sft.accumulate": 2}
    run, alone = prepared(settings), prepared(settings, "alone")
    for one in (run, alone):
        synthesize(one)
    script = ROOT / "tests" / "training" / "stages_on_two_ranks.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", script, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "rank-0").read_text() == "5 logs, True", "two steps and a summary of SFT, two steps of RL"
    assert (tmp_path / "rank-1").read_text() == "0 logs, True", "it has waited for the adapter"
    for name, written in (("sft", []), ("rl", ["rollouts.jsonl"])):
        assert sorted(path.name for path in run.stage(name).iterdir()) == [
            "adapter", "log.csv", "manifest.json", *written, "started.json",
        ]  # fmt: skip
        assert pd.read_csv(run.stage(name) / "log.csv")["step"].tolist() == [1, 2]
    train_sft(alone)
    both, one = (pd.read_csv(each.stage("sft") / "log.csv") for each in (run, alone))
    for column in ("loss", "grad_norm", "num_tokens"):
        assert both[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4), column
    adapters = [load_file(each.stage("sft") / "adapter/adapter_model.safetensors") for each in (run, alone)]
    for name, weights in adapters[1].items():
        assert adapters[0][name].numpy() == pytest.approx(weights.numpy(), abs=1e-5), name


# ---- a full disk --------------------------------------------------------------------------------------------------


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def fill_a_file(folder: Path) -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def fill_the_cache(folder: Path) -> None:
    base = open_database(folder / "answers.sqlite")
    base.execute("PRAGMA max_page_count = 1")  # not below its present size
    AnswerCache(base).put("key", {"text": "long " * 10_000})


def fill_the_libraries(folder: Path) -> None:
    raise processes.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fill", [fill_a_file, fill_the_cache, fill_the_libraries])
def test_a_full_disk_anywhere_in_a_stage_gives_one_sentence(run, fill):
    message = (
        r"could not be written: the disk is full \(\d+\.\d\d GB free now\)\. Free some space and run the same command"
    )
    with pytest.raises(KitError, match=rf"{message} again"), stage(run, "prepare", seed=1) as work:
        fill(work)
    assert not (run.stage("prepare") / "manifest.json").exists()


def test_a_full_disk_is_reported_when_a_run_is_created_and_when_a_stage_ends(run, tmp_path, monkeypatch):
    def end_on_a_full_disk() -> None:
        with stage(run, "sft", seed=1):
            monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(KitError, match="the disk is full"):
        end_on_a_full_disk()
    with pytest.raises(KitError, match="the disk is full"):
        open_run("new", "tiny", root=tmp_path / "not" / "yet")


def test_an_answer_that_cannot_be_stored_stops_the_requests_with_that_sentence(new_run, endpoint, monkeypatch):
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(AnswerCache, "put", full)
    with pytest.raises(KitError, match="the disk is full"):
        prepare(new_run({"base": f"{endpoint.url}#m"}))


def test_another_error_is_passed_on_unchanged(run):
    with pytest.raises(sqlite3.OperationalError, match="no such table"), stage(run, "prepare", seed=1):
        sqlite3.connect(":memory:").execute("SELECT * FROM answers")
