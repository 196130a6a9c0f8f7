"""The cells of a sweep and of the component study, computed one by one as a scheduler's jobs, are the plain loop."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ablation import swept  # noqa: F401  (a fixture)
from test_components import SHARED, calls, trained_arms  # noqa: F401

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES
from rpo_kit.presets import get_preset
from rpo_kit.runs import Run
from rpo_kit.study.ablation import sweep
from rpo_kit.study.cells import GRIDS, cells, compute_cell
from rpo_kit.study.components import components
from rpo_kit.study.sweep_tables import CSV_FILES
from rpo_kit.training.sft import train_sft
from rpo_kit.training.synthesis import synthesize

ROOT = Path(__file__).resolve().parents[2]
SNAKEFILE = ROOT / "workflow" / "Snakefile"
SNAKEMAKE = shutil.which("snakemake")


def tables(run: Run) -> dict[str, bytes]:
    return {name: (run.stage("sweep") / name).read_bytes() for name in CSV_FILES if name.endswith(".csv")}


def test_the_cells_are_the_parts_of_the_plain_loop():
    preset = get_preset("cpu", {"sweep.arms": ["fixed-2", "2,4,6"], "sweep.seeds": [0, 1]})
    assert cells(preset, "shots") == ["sft", "fixed-2-seed0", "2,4,6-seed0", "fixed-2-seed1", "2,4,6-seed1"]
    preset = get_preset("cpu", {"components.arms": ["no-rl", "data.retriever=dense:org/encoder"]})
    assert cells(preset, "components") == ["full", "no-rl", "data.retriever=dense-org-encoder"]
    assert {STAGES[name].name for name in GRIDS.values()} == {"sweep", "components"}


def test_a_sweep_whose_cells_were_computed_in_any_order_only_joins_them(swept, capsys):  # noqa: F811
    run, done = swept
    for name in reversed(cells(run.preset, "shots")):
        compute_cell(run, "shots", name)
    assert len(done) == 4 + 5, "four trainings, and as many scorings and one of SFT"
    assert not any((run.stage("sweep") / name).exists() for name in CSV_FILES)
    sweep(run)
    joined, trainings = tables(run), len(done)
    assert trainings == 9, "nothing was computed again"
    for name in ("sft", *(cell for cell in cells(run.preset, "shots") if cell != "sft")):
        shutil.rmtree(run.stage("sweep") / name)
    sweep(run)
    assert len(done) == 18
    assert tables(run) == joined
    assert "before_first_trial" in (run.stage("sweep") / "plan.json").read_text()


def test_cells_computed_in_a_copy_of_the_run_are_found_when_they_are_brought_back(swept, tmp_path):  # noqa: F811
    run, done = swept
    compute_cell(run, "shots", "sft")
    plan = (run.stage("sweep") / "plan.json").read_bytes()
    there = Run(Path(shutil.copytree(run.folder, tmp_path / "other machine" / run.name)), run.preset)
    for name in ("fixed-2-seed1", "progressive-seed1"):
        compute_cell(there, "shots", name)
        shutil.copytree(there.stage("sweep") / name, run.stage("sweep") / name)
    done.clear()
    sweep(run)
    assert [name for name, _ in done if name != "loaded"] == ["sweep/fixed-2-seed0", "sweep/progressive-seed0"]
    assert len(done) == 4, "two trainings, two scorings"
    assert (run.stage("sweep") / "plan.json").read_bytes() == plan


def test_the_arms_of_the_component_study_are_cells_too(trained, calls):  # noqa: F811
    run = trained(SHARED)
    compute_cell(run, "components", "grpo")
    assert trained_arms(calls) == [("grpo", "rl-seed0"), ("grpo", "rl-seed1")]
    for name in ("no-rl", "full"):
        compute_cell(run, "components", name)
    computed = len(calls)
    assert not (run.stage("components") / "components.csv").exists()
    components(run)
    assert len(calls) == computed
    assert (run.stage("components") / "components.csv").exists()


@pytest.mark.parametrize(("grid", "name"), [("shots", "full"), ("components", "fixed-2-seed0")])
def test_an_unknown_cell_is_refused_with_those_that_there_are(trained, grid, name):
    with pytest.raises(KitError, match=rf"{GRIDS[grid]} of run 'r' has no cell '{name}'; there are {cells_of(grid)}"):
        compute_cell(trained({}), grid, name)


def cells_of(grid: str) -> str:
    return ", ".join(cells(get_preset("tiny"), grid))


def test_the_command_lists_the_cells_and_computes_one(swept, capsys, monkeypatch):  # noqa: F811
    run, done = swept
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    assert main(["sweep", "--run", "r", "--cells"]) == 0
    assert capsys.readouterr().out.splitlines() == cells(run.preset, "shots")
    assert main(["sweep", "--run", "r", "--only", "progressive-seed1"]) == 0
    assert [call[0] for call in done] == ["sweep/progressive-seed1", "loaded"]
    assert main(["sweep", "--run", "r", "--grid", "components", "--only", "nosuch"]) == 2
    assert "there are full, no-sft, no-rl, no-plan" in capsys.readouterr().err


def test_the_snakefile_waits_for_the_files_that_the_stages_write():
    text = SNAKEFILE.read_text(encoding="utf-8")
    named = set(re.findall(r'"((?:\w+/)?\w+\.(?:csv|json))"', text)) - {"run.json"}
    named = {name.rpartition("/")[2] for name in named}
    assert named == {*STAGES["sweep"].writes, *STAGES["components"].writes} | {"manifest.json"}


# ---- Snakemake itself ---------------------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.skipif(not SNAKEMAKE, reason="snakemake is not on PATH")
def test_snakemake_killed_and_started_again_gives_the_tables_of_the_plain_loop(prepared, tmp_path):
    run = prepared({"sft.steps": 1, "rl.max_new_tokens": 12, "evaluation.max_new_tokens": 12})
    synthesize(run)
    train_sft(run)
    shutil.copytree(run.folder, tmp_path / "jobs" / "r")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RPO_RUNS": str(tmp_path / "jobs")}
    command = [SNAKEMAKE, "-s", SNAKEFILE, "--cores", "1", "--config", "run=r", f"python={sys.executable}"]
    options = {"cwd": tmp_path / "jobs", "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, start_new_session=True, **options)
    done = tmp_path / "jobs/r/.cells/shots"
    while not list(done.glob("*.done")):
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in done.glob("*.done")}
    assert len(finished) < 3
    subprocess.run([*command, "--unlock"], check=True, **options)
    subprocess.run([*command, "--rerun-incomplete"], check=True, **options)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in done.glob("*.done")}.items()
    sweep(run)
    jobs = Run(tmp_path / "jobs/r", run.preset)
    assert tables(jobs) == tables(run)
    assert (jobs.folder / "figures" / "figure3.png").read_bytes().startswith(b"\x89PNG")
