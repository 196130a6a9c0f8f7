"""Models that stay loaded: asked the same once, and one module in memory for all stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rpo_kit.errors import KitError
from rpo_kit.models.chat import Completion
from rpo_kit.models.local import generate, load_model
from rpo_kit.models.lora import add_lora
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.base import base_conversation
from rpo_kit.rewriting.reflection import load_reflection
from rpo_kit.study import kept_models
from rpo_kit.study.kept_models import KeptModule, RememberingChat, check_fits

PROMPT = [[{"role": "user", "content": "What is the score of the review: the lid leaks."}]]


@pytest.fixture
def adapters(tiny_model: ModelSettings, tmp_path: Path) -> dict[str, Path]:
    """Two adapters of the random Llama, large enough to change what it writes."""
    folders = {}
    for seed, stage in enumerate(("sft", "rl")):
        torch.manual_seed(seed)
        model = add_lora(load_model(tiny_model).model, tiny_model)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        folders[stage] = tmp_path / stage / "adapter"
        model.save_pretrained(str(folders[stage]))
    return folders


def written(loaded: Any) -> str:
    return generate(loaded, PROMPT, max_new_tokens=12)[0].text


def test_each_stage_writes_what_it_writes_when_loaded_alone_in_any_order(tiny_model, adapters):
    alone = {stage: written(load_reflection(tiny_model, folder)) for stage, folder in adapters.items()}
    alone["untrained"] = written(load_reflection(tiny_model))
    assert len(set(alone.values())) == 3
    module = KeptModule(tiny_model, adapters.__getitem__)
    for stage in ("untrained", "rl", "untrained", "sft", "rl", "sft"):
        assert written(module.at(stage)) == alone[stage], stage


def test_the_model_is_loaded_once(tiny_model, adapters, monkeypatch):
    loaded = []

    def load(settings: ModelSettings) -> Any:
        loaded.append(settings)
        return load_reflection(settings)

    monkeypatch.setattr(kept_models, "load_reflection", load)
    module = KeptModule(tiny_model, adapters.__getitem__)
    first = module.at("sft").model
    assert module.at("rl").model is module.at("sft").model is module.at("untrained").model is first
    assert loaded == [tiny_model]


def test_an_adapter_that_was_trained_anew_is_loaded_anew(tiny_model, adapters):
    module = KeptModule(tiny_model, lambda stage: adapters["sft"])
    before = written(module.at("sft"))
    for file in adapters["rl"].iterdir():
        (adapters["sft"] / file.name).write_bytes(file.read_bytes())
    assert written(module.at("sft")) == written(load_reflection(tiny_model, adapters["rl"])) != before


def test_a_stage_that_is_not_finished_or_does_not_fit_stops_nothing_else(tiny_model, adapters):
    other = replace(tiny_model, lora_rank=2)
    add_lora(load_model(other).model, other).save_pretrained(str(adapters["rl"]))
    (adapters["rl"] / "adapter_config.json").write_text((adapters["sft"] / "adapter_config.json").read_text())

    def adapter_of(stage: str) -> Path:
        if stage == "missing":
            raise KitError("not finished")
        return adapters[stage]

    module, alone = KeptModule(tiny_model, adapter_of), written(load_reflection(tiny_model, adapters["sft"]))
    with pytest.raises(KitError, match="not finished"):
        module.at("missing")
    assert written(module.at("sft")) == alone
    with pytest.raises(KitError, match="does not fit"):
        module.at("rl")
    assert written(module.at("sft")) == alone
    assert written(module.at("untrained")) == written(load_reflection(tiny_model))


def test_a_model_larger_than_the_free_memory_is_not_loaded(monkeypatch):
    monkeypatch.setattr(kept_models, "memory", lambda: (8 * 10**9, 10**8))
    with pytest.raises(KitError, match=r"The model smollm2 needs 0\.\d GB, and 0\.1 GB of memory are free: close"):
        check_fits(ModelSettings("smollm2"))
    check_fits(ModelSettings("somebody/model-of-unknown-shape"))
    monkeypatch.setattr(kept_models, "memory", lambda: (8 * 10**9, 4 * 10**9))
    check_fits(ModelSettings("smollm2"))


def test_the_base_model_is_opened_late_and_asked_the_same_once(recording_chat):
    opened = []

    def open_chat() -> Any:
        opened.append(recording_chat(lambda conversation: conversation[0]["content"].upper()))
        return opened[-1]

    base = RememberingChat(open_chat, {"a": "known"})
    ask = lambda *inputs: [  # noqa: E731
        c.text for c in base.complete([base_conversation(input) for input in inputs], max_new_tokens=8)
    ]
    assert ask("a") == ["known"]
    assert opened == []
    assert ask("b", "a", "b", "c") == ["B", "known", "B", "C"]
    assert ask("c", "b") == ["C", "B"]
    (chat,) = opened
    assert [conversation[0]["content"] for conversation in chat.asked] == ["b", "c"]


def test_a_failed_answer_is_asked_again():
    class Moody:
        name, calls = "moody", 0

        def complete(self, conversations: Any, **_: Any) -> list[Completion]:
            self.calls += 1
            failure = "status 500" if self.calls == 1 else None
            return [Completion("" if failure else "3", True, 1, 1, failure)]

    base = RememberingChat(Moody, {})
    first, second = (base.complete([base_conversation("b")], max_new_tokens=8)[0] for _ in range(2))
    assert (first.failure, second.failure, second.text) == ("status 500", None, "3")
