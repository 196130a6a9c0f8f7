"""The stages as rows: what each one reads is written by another, and a new stage is one row and one function."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES, Stage, current, inputs_of, stage_function
from rpo_kit.presets import get_preset
from rpo_kit.runs import write_text
from rpo_kit.stages import stage
from rpo_kit.study.demo import NOTEBOOKS


@pytest.mark.parametrize("row", STAGES.values(), ids=str)
def test_every_row_names_an_existing_function_and_notebook(row):
    assert (NOTEBOOKS / f"{row.notebook}.ipynb").is_file()
    assert callable(stage_function(row.name))
    for setting in row.settings.values():
        node = get_preset("cpu")
        for part in setting.split("."):
            node = getattr(node, part)


@pytest.mark.parametrize("row", STAGES.values(), ids=str)
def test_an_earlier_stage_writes_what_a_stage_reads(row):
    before = list(STAGES)[: list(STAGES).index(row.name)]
    for path in row.reads.values():
        writer, _, file = path.partition("/")
        assert writer in before
        assert file.partition("/")[0] in STAGES[writer].writes


def test_a_row_cannot_be_changed():
    with pytest.raises(AttributeError):
        STAGES["sft"].function = "another"


def test_a_seventh_stage_is_one_row_and_one_function(trained, monkeypatch, capsys):
    """It has a command, knows its inputs, is skipped when finished and rerun when an input changed."""

    def count(run):
        inputs = inputs_of(run, "count")
        with stage(run, "count", **inputs) as work:
            if work:
                write_text(work / "count.txt", str(len(inputs["trajectories"].read_text().splitlines())))

    row = Stage(
        name="count",
        about="count the trajectories",
        function="made_up:count",
        notebook="02_trajectory_synthesis",
        settings={"settings": "evaluation"},
        reads={"trajectories": "synthesize/trajectories.jsonl"},
        writes=("count.txt",),
    )
    module = ModuleType("rpo_kit.made_up")
    module.count = count
    monkeypatch.setitem(sys.modules, "rpo_kit.made_up", module)
    monkeypatch.setitem(STAGES, "count", row)

    run = trained()
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    assert main(["count", "--run", run.name]) == 0
    assert int((current(run, "count") / "count.txt").read_text()) > 0
    assert main(["count", "--run", run.name]) == 0
    assert "count: done already" in capsys.readouterr().out
    assert main(["count", "--run", run.name, "--set", "evaluation.shots=3"]) == 0
    assert "count: settings changed" in capsys.readouterr().out
    manifest = json.loads((run.stage("count") / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"settings", "trajectories"}


def test_what_a_setting_makes_unneeded_is_not_read(prepared):
    """RL from the untrained module needs no SFT, and names none among its inputs."""
    assert STAGES["rl"].unread.keys() <= STAGES["rl"].reads.keys()
    assert "sft" not in inputs_of(prepared({"rl.start": "untrained"}), "rl")
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize"):
        inputs_of(prepared(), "rl")


def test_the_error_names_the_first_missing_stage(prepared):
    with pytest.raises(KitError, match=r"'synthesize' .* is not finished: first run `python -m rpo_kit synthesize"):
        inputs_of(prepared(), "rl")
