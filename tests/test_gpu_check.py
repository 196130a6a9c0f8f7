"""All functions of `make gpu-check` run, here on a CPU with tiny shapes. Their measurements need a GPU."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
gpu_check = importlib.import_module("gpu_check")
Row = gpu_check.Row


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU: make gpu-check")


@pytest.fixture(scope="module")
def checked(tiny_llama, tmp_path_factory):
    """The folder in which all functions ran once with tiny shapes, and their rows."""
    root = tmp_path_factory.mktemp("gpu-check")
    return root, gpu_check.run_on_cpu(root, tiny_llama)


def test_every_check_runs_with_tiny_shapes_on_a_cpu(checked):
    _, rows = checked
    assert [row for row in rows if row.note.startswith(("FAILED", "left out"))] == []
    assert [row.what for row in rows if row.check == "stages"] == [
        f"tiny: {stage}" for stage in ("prepare", "synthesize", "sft", "rl", "evaluate")
    ]
    assert {row.check for row in rows} == {"greedy", "stages", "resume", "memory", "step"}
    assert {row.what for row in rows if row.check == "step"} == {
        "ours, with gradient checkpointing",
        "Unsloth's trainer",
    }


def test_each_measurement_is_a_row_with_device_versions_and_commit(checked, tmp_path):
    _, rows = checked
    gpu_check.write(rows, tmp_path / "out" / "gpu_check.csv")
    table = pd.read_csv(tmp_path / "out" / "gpu_check.csv")
    assert len(table) == len(rows)
    assert table["device"].str.contains("not a GPU measurement").all()
    assert table["versions"].str.contains(f"torch=={torch.__version__}", regex=False).all()
    assert table["commit"].str.len().min() > 6
    assert table["gb"].isna().all(), "memory is measured on a GPU alone"


@pytest.mark.slow
def test_a_check_runs_in_its_own_process_as_on_a_gpu_and_can_be_killed_there(checked, tiny_llama):
    root, _ = checked
    shutil.copytree(root / "tiny", root / "killed")
    common = {"root": root, "name": "killed", "overrides": gpu_check.tiny_overrides(tiny_llama)}
    assert gpu_check.in_a_process(gpu_check.Check("interrupted", common | {"kill": True}), 120.0) == []
    (row,) = gpu_check.in_a_process(gpu_check.Check("resumed", common), 120.0)
    assert row.what == "killed: rl"
    assert "killed after step 2" in row.note


def test_the_plan_for_a_gpu_covers_every_check_and_reaches_its_process():
    plan = list(gpu_check.plan(Path("/runs")))
    functions = [check.function for check in plan]
    called = {check.function for check in gpu_check.tiny_plan(Path("/runs"), Path("m"))}
    assert set(functions) == called, "each is exercised on a CPU"
    assert functions.index("interrupted") + 1 == functions.index("resumed")
    for check in plan:
        again = gpu_check.from_json(json.loads(json.dumps(gpu_check.as_json(check))))
        assert (again.function, again.arguments) == (check.function, check.arguments)
    limits = {(c.arguments["preset"].name, c.arguments["gb"]) for c in plan if c.function == "rl_memory"}
    assert limits == {("colab-t4", 15.0), ("gpu-24gb", 24.0)}


def test_a_check_that_fails_or_runs_out_of_time_is_a_row_and_the_others_continue():
    def run(check, left):
        if check.function == "bad":
            raise ValueError("no such thing")
        return [Row(check.function, "w", 1.0)]

    plan = [gpu_check.Check("bad"), gpu_check.Check("good")]
    rows = gpu_check.run_all(plan, run)
    assert [(row.check, row.note) for row in rows] == [("bad", "FAILED: ValueError: no such thing"), ("good", "")]
    rows = gpu_check.run_all(plan, run, seconds=-1.0)
    assert all(row.note.startswith("left out") for row in rows)


def test_lanes_run_beside_each_other_on_a_large_card_and_what_is_timed_alone_follows(monkeypatch):
    both = threading.Barrier(2, timeout=30)

    def run(check, left):
        if check.lane:
            both.wait()  # breaks unless the other lane runs now
        return [Row(check.function, check.lane, 1.0)]

    monkeypatch.setattr(gpu_check, "card_gb", lambda: 80.0)
    plan = [gpu_check.Check("step"), gpu_check.Check("memory", lane="a"), gpu_check.Check("memory", lane="b")]
    rows = gpu_check.run_all(plan, run)
    assert [(row.what, row.note) for row in rows] == [
        ("a", "other checks ran beside it"),
        ("b", "other checks ran beside it"),
        ("", ""),
    ]
