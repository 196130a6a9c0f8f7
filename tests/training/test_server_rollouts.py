"""RL whose completions come from a vLLM server is the RL of one process, with the adapter sent before every step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fake_vllm import FakeVllm
from one_step import judge_by_text
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from rpo_kit.errors import KitError
from rpo_kit.model_spec import EndpointSpec, rollout_server
from rpo_kit.models import vllm_server
from rpo_kit.presets import RLSettings, get_preset
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import Run, open_run, read_records
from rpo_kit.training import reinforce
from rpo_kit.training.reinforce import train_rl

SETTINGS = {
    **{"rl.start": "untrained", "rl.steps": 3, "rl.prompts_per_step": 2, "rl.group_size": 3, "rl.max_new_tokens": 12},
    **{"rl.learning_rate": 0.05, "rl.beta": 0.1, "rl.save_every": 1},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforce, "judge", judge_by_text)
    monkeypatch.setattr(vllm_server, "_RETRIES", 0)


@pytest.fixture
def serve(tiny_llama: Path) -> Iterator[Callable[..., FakeVllm]]:
    servers: list[FakeVllm] = []

    def start(model: Path = tiny_llama, **options: Any) -> FakeVllm:
        servers.append(FakeVllm(model, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def on(server: FakeVllm | str) -> dict[str, Any]:
    return SETTINGS | {"rl.rollouts": f"vllm:{server if isinstance(server, str) else server.url}"}


def log_of(run: Run) -> pd.DataFrame:
    log = pd.read_csv(run.stage("rl") / "log.csv")
    return log[[name for name in log if not name.startswith("seconds")]]


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.stage("rl") / "adapter/adapter_model.safetensors")


def rollouts_of(run: Run) -> list[tuple[Any, ...]]:
    return [(r["step"], r["example"], r["text"], r["tokens"]) for r in read_records(run.stage("rl") / "rollouts.jsonl")]


def kill_at(step: int) -> Callable[[list[dict[str, float]]], None]:
    def kill(rows: list[dict[str, float]]) -> None:
        if len(rows) == step:
            raise KeyboardInterrupt

    return kill


def copied(model: Path, target: Path) -> Path:
    return Path(shutil.copytree(model, target))


def assert_same_training(one: Run, other: Run) -> None:
    assert rollouts_of(one) == rollouts_of(other)
    pd.testing.assert_frame_equal(log_of(one)[list(log_of(other))], log_of(other), atol=1e-4)
    for name, weights in adapter(other).items():
        torch.testing.assert_close(adapter(one)[name], weights, atol=1e-4, rtol=1e-4)


def test_rl_with_completions_from_a_server_is_rl_with_completions_from_here(prepared, serve):
    server = serve()
    there, here = prepared(on(server), "there"), prepared(SETTINGS, "here")
    for run in (there, here):
        train_rl(run)
    assert_same_training(there, here)
    moved = [weights.abs().max() for name, weights in adapter(here).items() if "lora_B" in name]
    assert max(moved) > 0.05, "later steps sample with another adapter than the first"
    assert log_of(there)["sampling_gap"].max() < 1e-4, "the same model and the same weights"
    assert log_of(there)["kl"].iloc[-1] > 0
    assert len(set(server.loaded)) == 3, "one adapter per step, each under a name of its own"
    assert server.most == 2, "the one before is forgotten"
    assert not server.adapters, "so is the last"
    assert sorted(path.name for path in there.stage("rl").iterdir()) == [
        "adapter", "log.csv", "manifest.json", "rollouts.jsonl", "started.json",
    ]  # fmt: skip
    assert [request["n"] for request in server.requests] == [3] * 6, "one request per prompt"
    assert len({request["seed"] for request in server.requests}) == 6


def test_a_killed_training_resumes_with_another_server(prepared, new_run, serve):
    first, second = serve(), serve()
    run, whole = prepared(on(first)), prepared(on(first), "whole")
    with pytest.raises(KeyboardInterrupt):
        train_rl(run, kill_at(2))
    run = open_run("r", overrides={"rl.rollouts": f"vllm:{second.url}/v1"}, root=run.folder.parent)
    train_rl(run)
    train_rl(whole)
    assert_same_training(run, whole)
    assert len(second.loaded) == 2, "steps 2 and 3: the checkpoint of step 1 was the last"


def test_a_server_that_is_down_is_named(prepared):
    with pytest.raises(
        KitError, match=r"vLLM server http://127.0.0.1:9/v1 \(rl.rollouts\) does not answer .* start it"
    ):
        train_rl(prepared(on("http://127.0.0.1:9")))


def test_a_server_that_takes_no_adapters_at_run_time_is_named_with_the_variable_to_set(prepared, serve):
    server = serve(updating=False)
    with pytest.raises(KitError, match=r"takes no adapters .* with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"):
        train_rl(prepared(on(server)))


def test_a_server_with_a_model_of_other_shapes_refuses_the_adapter(prepared, serve, tiny_llama, tmp_path):
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    model.config.hidden_size = 32
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "wide")
    for file in tiny_llama.glob("*token*"):
        (tmp_path / "wide" / file.name).write_bytes(file.read_bytes())
    for file in tiny_llama.glob("*.jinja"):
        (tmp_path / "wide" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        KitError, match=r"refuses the adapter in .*\(status 500: .*the model that reflection.name names"
    ):
        train_rl(prepared(on(serve(tmp_path / "wide"))))


def test_a_server_with_other_weights_of_the_same_shapes_is_seen_by_its_log_probabilities(
    prepared, serve, tiny_llama, tmp_path
):
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.mul_(200)
    model.save_pretrained(copied(tiny_llama, tmp_path / "other"))
    with pytest.raises(KitError, match=r"differ by \d+\.\d\d per token .* holds another model than reflection.name"):
        train_rl(prepared(on(serve(tmp_path / "other"))))


def test_log_probabilities_that_are_no_numbers_stop_the_step(prepared, serve, monkeypatch):
    monkeypatch.setattr("rpo_kit.training.server_rollouts.gap", lambda *_: math.nan)
    with pytest.raises(KitError, match=r"not finite, the policy's here or those of the vLLM server .* before the step"):
        train_rl(prepared(on(serve())))


def test_a_server_that_returns_no_token_ids_is_too_old(prepared, serve):
    with pytest.raises(
        KitError, match=r"does not return the 3 completions as token ids: rl.rollouts needs vLLM 0.10.2"
    ):
        train_rl(prepared(on(serve(returns_ids=False))))


def test_a_server_that_has_lost_the_adapter_stops_the_step(prepared, serve, monkeypatch):
    server = serve()
    monkeypatch.setattr(server, "complete", lambda body: (404, {"error": {"message": "The model `x` does not exist."}}))
    with pytest.raises(KitError, match=r"does not sample \(status 404: .*does not exist.* resume from the last"):
        train_rl(prepared(on(server)))


def test_a_key_is_sent_and_named_by_its_variable(prepared, serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("VLLM_KEY", "abc-123-def")
    train_rl(prepared(on(f"{server.url}@VLLM_KEY")))
    assert set(server.keys) == {"Bearer abc-123-def"}


# ---- the setting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "server"),
    [
        ("local", None),
        ("vllm:http://gpu-2:8000", EndpointSpec("http://gpu-2:8000/v1", "rollouts", "")),
        ("vllm:http://gpu-2:8000/v1/@MY_KEY", EndpointSpec("http://gpu-2:8000/v1", "rollouts", "MY_KEY")),
    ],
)
def test_the_setting_names_a_server_and_the_variable_of_its_key(spec, server):
    assert rollout_server(spec) == server
    assert get_preset("tiny", {"rl.rollouts": spec}).rl.rollouts == spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vllm", "does not say where completions are sampled: write local, or vllm:http://HOST:PORT"),
        ("vllm:gpu-2:8000", "does not say where"),
        ("vllm:http://me:secret-word@gpu-2:8000", "contains a user, a password"),
    ],
)
def test_an_address_that_names_no_server_is_refused_without_repeating_a_password(spec, words):
    with pytest.raises(KitError, match=words) as refusal:
        get_preset("tiny", {"rl.rollouts": spec})
    assert "secret-word" not in str(refusal.value)


def test_where_a_server_stands_is_not_part_of_what_a_result_was_made_from():
    local, one, other = (
        fingerprint(RLSettings(rollouts=spec)) for spec in ("local", "vllm:http://a:1", "vllm:http://b:2")
    )
    assert one == other != local
    assert local == fingerprint(RLSettings())
