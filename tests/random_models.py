"""Random models small enough to check by running them twice."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

KINDS = ("llama", "qwen2", "qwen3")


def random_model(kind: str, heads: int, shared: int, seed: int) -> Any:
    """A random two-layer model of this kind with a LoRA that does something; `shared` query heads a key head."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=53,
        hidden_size=8 * heads * shared,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads * shared,
        num_key_value_heads=heads,
        head_dim=8,
        use_sliding_window=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, lora)
