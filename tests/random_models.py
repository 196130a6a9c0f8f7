"""Random models small enough to check by running them twice."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rpo_kit.models.local import LoadedModel

KINDS = ("llama", "qwen2", "qwen3")


def random_model(kind: str, heads: int, shared: int, seed: int, vocab: int = 53, **config: object) -> PreTrainedModel:
    """A random two-layer model of this kind with LoRA weights that are not zero; `shared` query heads per key head."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        hidden_size=8 * heads * shared,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads * shared,
        num_key_value_heads=heads,
        head_dim=8,
        **({"use_sliding_window": False} | config),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, lora)


def random_policy(kind: str, tokenizer_folder: Path, ends: list[int] | None = None, **config: object) -> LoadedModel:
    """Such a model with the tokenizer stored in the folder; `ends` are its end tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, padding_side="left")
    model = random_model(kind, heads=2, shared=2, seed=1, vocab=len(tokenizer), **config)
    model.generation_config.eos_token_id = ends or tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer, 2048)
