"""Notebook 04 takes a step by hand and asserts that the training code does the same; here with rewards that differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import load_trainable
from rpo_kit.pipeline import inputs_of
from rpo_kit.runs import Run
from rpo_kit.stages import stage
from rpo_kit.study.html import show_table
from rpo_kit.training.reinforce import advantages
from rpo_kit.training.synthesis import synthesize

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_rl_reinforce_pp.ipynb"
REWARDS = [0.9, 0.1, 0.5, 0.5, 1.0, 0.0, 0.775, 0.3]


@pytest.fixture
def run(prepared: Callable[..., Run]) -> Run:
    """The random Llama with an SFT adapter that does something."""
    run = prepared({"rl.max_new_tokens": 12, "rl.beta": 0.1, "rl.temperature": 0.7, "rl.learning_rate": 1e-3})
    synthesize(run)
    with stage(run, "sft", **inputs_of(run, "sft")) as folder:
        policy = load_trainable(run.preset.reflection, None, seed=0)
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        policy.model.save_pretrained(folder / "adapter")
    return run


def cells(first: str, last: str) -> list[tuple[str, str]]:
    """Ids and sources of the notebook's code cells from one to another."""
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [(cell["id"], "".join(cell["source"])) for cell in read if cell["cell_type"] == "code"]
    ids = [name for name, _ in code]
    return code[ids.index(first) : ids.index(last) + 1]


def test_every_phase_by_hand_gives_the_training_codes_numbers(run, capsys):
    names: dict[str, Any] = {"run": run, "rl": run.preset.rl, "task": get_task(run.preset.data.task)}
    names |= {"pd": pd, "torch": torch, "advantages": advantages, "show_table": show_table}
    seen = {}
    for name, source in cells("policy", "tidy"):
        exec(compile(source, name, "exec"), names)  # each cell asserts
        if name == "reward-stage":  # a random model's texts do not parse: nothing would be learnt from them
            assert names["rewards"] == [0.0] * 8
            names["rewards"] = REWARDS
        seen[name] = {key: names[key] for key in ("apart", "gradient", "moved", "change", "A") if key in names}
    assert "8 of 8 samples are the same token by token" in capsys.readouterr().out
    assert seen["same-log-probabilities"]["apart"].max() < 1e-5
    assert seen["same-gradient"]["gradient"].norm() > 0
    assert seen["same-gradient"]["apart"] < 1e-5
    assert seen["same-update"]["moved"].abs().max() == pytest.approx(1e-3, rel=1e-2)
    assert torch.corrcoef(torch.stack([seen["after-update"]["A"], seen["after-update"]["change"]]))[0, 1] > 0


def test_the_step_by_hand_has_five_phases_in_plain_torch():
    sources = [source for _, source in cells("roll-out", "loss-stage")]
    phases = [source for source in sources if source.startswith("# Phase ")]
    assert [source[8] for source in phases] == ["1", "2", "3", "4", "5"]
    lines = [line for source in phases for line in source.splitlines() if line and line[0] != "#"]
    assert len([line for line in lines if not line.startswith(("from ", "import "))]) <= 50
