"""A run offers the module after each finished stage, untrained, and the base model alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ASK, PROFILE, TASK, raw, serving
from fakes import RecordingChat

from rpo_kit.errors import KitError
from rpo_kit.models.chat import answers_at_once
from rpo_kit.models.local import load_model
from rpo_kit.models.lora import add_lora
from rpo_kit.pipeline import inputs_of
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.runs import Run
from rpo_kit.serving.service import Service
from rpo_kit.serving.stages import BaseAlone, models_of
from rpo_kit.serving.together import Together
from rpo_kit.stages import stage
from rpo_kit.training.synthesis import synthesize

INPUT = TASK.make_input(text="It leaks.")


@pytest.fixture
def run(prepared: Any) -> Run:
    """A run with an adapter of random weights, another for each stage."""
    run = prepared({"evaluation.max_new_tokens": 12, "evaluation.keep_content": 0.0})
    synthesize(run)
    for seed, name in enumerate(("sft", "rl")):
        torch.manual_seed(seed)
        model = add_lora(load_model(run.preset.reflection).model, run.preset.reflection)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.5)
        with stage(run, name, **inputs_of(run, name)) as work:
            model.save_pretrained(work / "adapter")
    return run


def completions(models: dict[str, Any]) -> dict[str, str]:
    return {name: model(INPUT, PROFILE).completion for name, model in models.items() if name != "base"}


def test_each_stage_answers_as_if_it_were_loaded_alone(run):
    written = completions(models_of(run, "rl"))
    alone = {f"rpo-{name}": Personalizer.of(run, name) for name in ("rl", "sft", "untrained")}
    assert list(written) == ["rpo", "rpo-rl", "rpo-sft", "rpo-untrained"]
    assert completions(alone) == {name: text for name, text in written.items() if name != "rpo"}
    assert written["rpo"] == written["rpo-rl"]
    assert len(set(written.values())) == 3, "the adapters differ"


def test_the_base_model_answers_without_a_history_and_without_a_rewrite(run, monkeypatch):
    models = models_of(run, "sft")
    assert [*models] == ["rpo", "rpo-rl", "rpo-sft", "rpo-untrained", "base"]
    assert models["rpo"] is models["rpo-sft"]
    base = models["base"]
    base.base = RecordingChat(lambda conversation: "I would give it a 4.")
    first = models["rpo"]
    with serving(Service(first, None, models={"base": base}, together=Together())) as there:
        status, response = raw(there, json.dumps(ASK | {"model": "base", "rpo": {"k": 2}}).encode())
    assert (status, response["model"]) == (200, "base")
    assert response["choices"][0]["message"]["content"] == "4", "as the kit reads it"
    assert base.base.asked == [[{"role": "user", "content": INPUT}]]
    assert [*response["rpo"]["tokens"]] == ["base"]


def test_a_stage_that_is_not_finished_is_left_out_unless_it_is_asked_for(prepared):
    run = prepared()
    assert [*models_of(run, "untrained")] == ["rpo", "rpo-untrained", "base"]
    with pytest.raises(KitError, match="first run `python -m rpo_kit sft --run r`"):
        models_of(run, "sft")


def test_all_models_of_a_run_answer_in_turn(run):
    models = models_of(run, "rl")
    assert len({id(model.lock) for model in models.values()}) == 1


def test_base_models_at_an_endpoint_are_asked_at_once():
    class Endpoint(RecordingChat):
        concurrent = True

    assert answers_at_once(Endpoint())
    assert not answers_at_once(RecordingChat())
    assert BaseAlone(Endpoint(), TASK, 8, None).batch([(INPUT, [])])[0].text == "3", "takes no lock"


def test_a_batch_of_requests_gives_what_each_alone_would_get(run):
    personalizer = models_of(run, "rl")["rpo"]
    pairs = [(TASK.make_input(text=text), PROFILE * n) for n, text in enumerate(("It leaks.", "Good " * 30, "Bad."), 1)]
    assert [rewrite.completion for rewrite in personalizer.batch(pairs)] == [
        personalizer(*pair).completion for pair in pairs
    ]


def test_the_command_serves_a_run(run, tmp_path):
    """In a process of its own, as people start it."""
    command = [sys.executable, "-m", "rpo_kit", "serve", "--run", "r", "--port", "0", "--stage", "sft"]
    environment = os.environ | {"RPO_RUNS": str(run.folder.parent), "RPO_SERVE_KEY": "k", "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            first, second = process.stdout.readline(), process.stdout.readline()
            assert first.startswith("run 'r', stage sft, Product rating at http://127.0.0.1:")
            assert second == "models: rpo, rpo-rl, rpo-sft, rpo-untrained, base\n"
            port = int(first.partition("/v1;")[0].rpartition(":")[2])
            there = type("There", (), {"port": port})
            headers = {"Authorization": "Bearer k"}
            status, about = raw(there, json.dumps(PROFILE).encode(), "PUT", "/v1/profiles/ann", **headers)
            assert (status, about["items"]) == (201, 1)
            status, response = raw(there, json.dumps(ASK | {"user": "ann", "rpo": {"k": 1}}).encode(), **headers)
            assert (status, response["model"]) == (200, "rpo")
        finally:
            process.terminate()


@pytest.mark.parametrize("batch", [0, -1])
def test_an_impossible_batch_is_refused_before_a_model_is_loaded(batch):
    from rpo_kit.serving.server import check_address

    with pytest.raises(KitError, match="is not a number of requests: choose 1 or more"):
        check_address("127.0.0.1", 0, None, "", batch)
