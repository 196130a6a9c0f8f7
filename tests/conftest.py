"""Shared fixtures: a Llama of a few thousand random weights, a chat model that records what it is asked, small runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import Endpoint, RecordingChat

# Otherwise the threads of a small machine spin while they wait; torch reads both when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from rpo_kit.lamp import personas
from rpo_kit.presets import ModelSettings
from rpo_kit.runs import Run, open_run

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def load_script() -> Callable[[str], ModuleType]:
    """load_script("gain_over_seeds"): the module in scripts/, which is no package."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).resolve().parents[1] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def recording_chat() -> type[RecordingChat]:
    return RecordingChat


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A server on this machine, reached without proxies, with its own store of answers."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def make_tokenizer() -> Any:
    """A byte-level BPE of 400 tokens with a chat template; its pad token is not its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([row["input"] for row in personas.build("LaMP-3", "train", 10)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random one-layer Llama (hidden size 16) with its tokenizer; loads at once, knows nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("llama"), make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_llama: Path) -> ModelSettings:
    return ModelSettings(str(tiny_llama), max_seq_length=2048, lora_rank=4, lora_alpha=8)


@pytest.fixture
def new_run(tmp_path: Path, tiny_llama: Path) -> Callable[..., Run]:
    """A run of LaMP-3 at the `tiny` preset, the random Llama in all roles: new_run({"data.task": "LaMP-5"})."""

    def new(overrides: dict[str, Any] | None = None, name: str = "r") -> Run:
        models = {
            "data.task": "LaMP-3",
            "base": f"local:{tiny_llama}",
            "reflection.name": str(tiny_llama),
            "reflection.max_seq_length": 2048,
        }
        return open_run(name, "tiny", models | (overrides or {}), root=tmp_path)

    return new


@pytest.fixture
def prepared(new_run: Callable[..., Run]) -> Callable[..., Run]:
    """The same after `prepare`, whose base model answers "3" to everything."""
    from rpo_kit.rewriting.prepare import prepare

    def make(overrides: dict[str, Any] | None = None, name: str = "r") -> Run:
        run = new_run(overrides, name)
        prepare(run, lambda spec: RecordingChat())
        return run

    return make


@pytest.fixture
def as_trained() -> Callable[[Run], Run]:
    """Take a prepared run through `synthesize`, `sft` and `rl`; an adapter is a file that contains the stage's name."""
    from rpo_kit.pipeline import inputs_of
    from rpo_kit.runs import write_text
    from rpo_kit.stages import stage
    from rpo_kit.training.synthesis import synthesize

    def go_on(run: Run) -> Run:
        synthesize(run)
        for stage_name in ("sft", "rl"):
            with stage(run, stage_name, **inputs_of(run, stage_name)) as work:
                write_text(work / "adapter" / "adapter_model.safetensors", stage_name)
        return run

    return go_on


@pytest.fixture
def trained(prepared: Callable[..., Run], as_trained: Callable[[Run], Run]) -> Callable[..., Run]:
    """A prepared run with all the files that training writes."""
    return lambda overrides=None, name="r": as_trained(prepared(overrides, name))


@pytest.fixture
def llama() -> Any:
    """A two-layer random Llama in fp32 whose query heads share key heads; the output layer is frozen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=53,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).float()
    model.lm_head.requires_grad_(False)
    return model
