"""The main job survives `kill -9` at any stage: the same command, run again, resumes.

The harness starts a stage as a child, waits until its first work lies on the disk, kills it, and gives the command
again. A random model of a few thousand weights in all roles, at the `tiny` preset; some seventeen children, which spend
most of their time on importing libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit.runs import existing_run, read_records

ROOT = Path(__file__).resolve().parents[1]
# More queries than one chunk of 64, so that `prepare` can be killed between two chunks.
SETTINGS = ("--preset", "tiny", "--set", "data.train_users=70", "--set", "synthesis.per_query=6")
SETTINGS += ("--set", "synthesis.shots=[1]")
SETTINGS += ("--set", 'evaluation.systems=["base", "echo", "copy-nearest", "context", "untrained", "sft", "rl"]')
SETTINGS += (
    "--set",
    "components.steps=2",
    "--set",
    'components.arms=["grpo"]',
    "--set",
    "sweep.steps=2",
    "--set",
    'sweep.arms=["progressive"]',
)
STAGE = ("-m", "rpo_kit")
# The command itself with only its first two notebooks; the table at the end would need all of them.
DEMO = """
import sys
from rpo_kit.__main__ import main
from rpo_kit.study import demo
demo.CHAPTERS, demo.summary = demo.CHAPTERS[:2], lambda run: "the end"
sys.exit(main(sys.argv[1:]))
"""
PATIENCE = 240  # seconds, for a busy machine; nothing waits that long on a quiet one


def random_models(folder: Path) -> tuple[str, ...]:
    values = (f"base=local:{folder}", f"reflection.name={folder}", "reflection.max_seq_length=2048")
    return tuple(part for value in values for part in ("--set", value))


class Harness:
    """Run the stages of one run in child processes."""

    def __init__(self, root: Path, name: str = "r", settings: tuple[str, ...] = SETTINGS) -> None:
        self.run, self.settings = root / name, settings
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RPO_RUNS": str(root)}

    def folder(self, stage: str) -> Path:
        return self.run / stage

    def start(self, stage: str, output: int | None) -> subprocess.Popen[str]:
        python = ("-c", DEMO) if stage == "demo" else STAGE
        command = [sys.executable, *python, stage, "--run", self.run.name, *self.settings]
        return subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, text=True)

    def kill_once(self, stage: str, has_begun: Callable[[Path], bool], folder: str = "") -> None:
        """Start the stage and kill it with SIGKILL as soon as `has_begun` holds for its folder, or for `folder`."""
        child, deadline = self.start(stage, subprocess.DEVNULL), time.monotonic() + PATIENCE
        while child.poll() is None and not has_begun(self.folder(folder or stage)):
            assert time.monotonic() < deadline, f"{stage} has not begun"
            time.sleep(0.002)  # the interval between checks, not a wait for an event
        child.kill()
        assert child.wait() == -9, f"{stage} ended before it could be killed"

    def finish(self, stage: str) -> str:
        """Run the command again to its end; return what it printed."""
        child = self.start(stage, subprocess.PIPE)
        printed, _ = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, printed
        assert (self.folder(stage) / "manifest.json").exists() or stage in ("sweep", "components", "demo")
        return printed


def has_records(name: str) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).exists() and (folder / name).stat().st_size > 0


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoints/checkpoint-*/checksums.json"))  # written last


def ids(*paths: Path) -> list[str]:
    return [record["id"] for path in paths for record in read_records(path)]


@pytest.mark.slow
def test_every_stage_survives_a_kill_and_repeats_no_work(tiny_llama, tmp_path):
    harness = Harness(tmp_path, settings=(*SETTINGS, *random_models(tiny_llama)))
    folder = harness.folder

    harness.kill_once("prepare", has_records("generic.jsonl"))
    before = (folder("prepare") / "generic.jsonl").read_bytes()
    assert 0 < before.count(b"\n") < 76, "killed in the middle"
    harness.finish("prepare")
    assert (folder("prepare") / "generic.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    found = ids(folder("prepare") / "generic.jsonl")
    assert len(found) == len(set(found)) == 76

    harness.kill_once("synthesize", has_records("trajectories.jsonl"))
    harness.finish("synthesize")
    found = ids(*(folder("synthesize") / f"{name}.jsonl" for name in ("trajectories", "rejected")))
    assert len(found) == len(set(found)) == 70 * 6

    whole = Harness(tmp_path, "whole", harness.settings)
    shutil.copytree(harness.run, whole.run)
    for stage, steps in (("sft", [1, 2, 3]), ("rl", [1, 2])):
        whole.finish(stage)
        harness.kill_once(stage, has_checkpoint)
        assert not (folder(stage) / "manifest.json").exists()
        assert "resuming from checkpoint-" in harness.finish(stage)
        resumed, uninterrupted = (pd.read_csv(one.folder(stage) / "log.csv") for one in (harness, whole))
        assert resumed["step"].tolist() == steps
        for column in ("loss", "grad_norm", *(("shots", "reward", "kl") if stage == "rl" else ())):
            assert resumed[column].tolist() == pytest.approx(uninterrupted[column].tolist(), abs=1e-5), column
        assert (folder(stage) / "adapter" / "adapter_model.safetensors").exists()

    harness.kill_once("evaluate", has_records("records/context.jsonl"))
    records = {path: path.read_bytes() for path in (folder("evaluate") / "records").iterdir()}
    assert not (folder("evaluate") / "manifest.json").exists()
    harness.finish("evaluate")
    for path, content in records.items():
        assert path.read_bytes().startswith(content), "finished records stay as they are"
    for system in ("base", "context", "untrained", "sft", "rl"):
        found = ids(folder("evaluate") / "records" / f"{system}.jsonl")
        assert len(found) == len(set(found)) == 6
    assert len(pd.read_csv(folder("evaluate") / "metrics.csv")) == 9, "seven systems, two references"

    cell = "sweep/progressive-seed0"
    harness.kill_once("sweep", has_checkpoint, cell)
    assert not (folder(cell) / "manifest.json").exists()
    printed = harness.finish("sweep")
    assert "sweep/sft/scores: done already" in printed
    assert "resuming from checkpoint-1" in printed
    assert pd.read_csv(folder(cell) / "log.csv")["step"].tolist() == [1, 2]
    assert pd.read_csv(folder("sweep") / "bars.csv")["arm"].tolist() == [
        "SFT only", "progressive", "best trivial", "best guess", "oracle",
    ]  # fmt: skip

    cell = "components/grpo/rl-seed0"
    harness.kill_once("components", has_checkpoint, cell)
    assert not (folder(cell) / "manifest.json").exists()
    printed = harness.finish("components")
    assert printed.count("sft: done already") == 2, "of both arms"
    assert "resuming from checkpoint-1" in printed
    assert pd.read_csv(folder(cell) / "log.csv")["step"].tolist() == [1, 2]
    assert pd.read_csv(folder("components") / "components.csv")["system"].tolist()[:2] == ["full", "grpo"]

    assert existing_run("r", root=tmp_path).preset.data.train_users == 70


@pytest.mark.slow
def test_a_demo_survives_a_kill_and_repeats_no_notebook(tiny_llama, tmp_path):
    """The kernel that the killed command leaves behind ends by itself, but may hold the stage a moment longer."""
    harness = Harness(tmp_path, settings=(*SETTINGS, "--set", f"base=local:{tiny_llama}"))
    harness.kill_once("demo", has_records("generic.jsonl"), "prepare")
    assert not harness.folder("notebooks/01_lamp_and_retrieval.json").exists()
    printed = harness.finish("demo")
    assert "[1/2] 00_start_here … done before" in printed
    assert "[2/2] 01_lamp_and_retrieval …" in printed
    assert "01_lamp_and_retrieval … done before" not in printed
    found = ids(harness.folder("prepare") / "generic.jsonl")
    assert len(found) == len(set(found)) == 76
    assert harness.finish("demo").count("done before") == 2
