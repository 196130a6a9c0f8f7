"""A server that answers without models, with the profile of a user called ann; finished runs of the random Llama whose
adapters are real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from asking import PROFILE, Echo, serving
from fakes import RecordingChat

from rpo_kit.models.local import load_model
from rpo_kit.models.lora import add_lora
from rpo_kit.pipeline import all_inputs, inputs_of
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import Run, open_run, write_text
from rpo_kit.serving.service import Service
from rpo_kit.stages import stage
from rpo_kit.training.progress import finish_training
from rpo_kit.training.synthesis import synthesize

METRICS = """system,score,low,high,MAE,RMSE,unparsed,task,shots,examples
constant,0.5,0.4,0.6,1.2,1.5,0.0,LaMP-3,6,12
majority,0.7,0.6,0.8,0.9,1.1,0.0,LaMP-3,6,12
rl,0.8123,0.75,0.87,0.4,0.6,0.25,LaMP-3,6,12
"""
PAIRED = "system,minus,score,low,high,mde\nrl,majority,0.1123,0.05,0.17,0.09\nrl,constant,0.3123,0.2,0.4,0.1\n"


def train(run: Run) -> Run:
    """Take a run through all stages up to `rl`; adapters are random, and large enough to change what is written."""
    prepare(run, lambda spec: RecordingChat())
    synthesize(run)
    for seed, name in enumerate(("sft", "rl")):
        with stage(run, name, **inputs_of(run, name)) as work:
            torch.manual_seed(seed)
            loaded = load_model(run.preset.reflection)
            model = add_lora(loaded.model, run.preset.reflection)
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(parameter, std=0.5)
            finish_training(model, loaded.tokenizer, work)
    return run


@pytest.fixture(scope="session")
def make_trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[..., Run]:
    """Such a run with other settings: make_trained({"reflection.load_in_4bit": True})."""

    def make(overrides: dict[str, object] | None = None) -> Run:
        models = {"base": f"local:{tiny_llama}", "reflection.name": str(tiny_llama), "reflection.max_seq_length": 2048}
        small = {"reflection.lora_rank": 4, "data.task": "LaMP-3"}
        root = tmp_path_factory.mktemp("runs")
        return train(open_run("r", "tiny", models | small | (overrides or {}), root=root))

    return make


@pytest.fixture(scope="session")
def trained_run(make_trained: Callable[..., Run]) -> Run:
    """Not evaluated; tests that change it copy it."""
    return make_trained()


@pytest.fixture(scope="session")
def evaluated_run(make_trained: Callable[..., Run]) -> Run:
    """With the tables METRICS and PAIRED."""
    run = make_trained({"evaluation.systems": ("base", "constant", "majority", "rl")})
    with stage(run, "evaluate", **all_inputs(run, "evaluate")) as work:
        write_text(work / "metrics.csv", METRICS)
        write_text(work / "paired.csv", PAIRED)
    return run


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "ann.json").write_text(json.dumps(PROFILE))
    (tmp_path / "secret.json").write_text(json.dumps(PROFILE))
    models = {"rpo-sft": Echo(), "rpo-untrained": Echo()}
    with serving(Service(Echo(), folder, models=models)) as there:
        yield there
