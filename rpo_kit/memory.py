"""Estimate the GPU memory that each stage needs, from shapes alone, before anything is loaded.

    total = 1.15 (weights + LoRA + the stage's largest moment)                                       in bytes

    weights    4-bit linear layers: 0.516 each (NF4 with double quantisation); all else 2 each, 16-bit
    LoRA       per trained number 16 (fp32, its gradient, AdamW's two moments), and 4 for the frozen copy of RL
    a layer    per token 22 h + 8 i + 2 r t: what backward needs of one decoder layer (h: hidden size, i: intermediate
               size, rank r on t linear layers). A test counts on a CPU what autograd keeps.
    scoring    all layers; under gradient checkpointing 2 h per token and layer, and one whole layer; and 2 T^2 for each
               group of T tokens, which says who looks at whom
    sampling   keys and values, 4 K d per token and layer (K key heads of width d); reading all prompts at once, 6 i + 8
               h per token; the distributions of one decoding step, 14 V per completion (V words); the merged weights
    SFT        one layer: Unsloth keeps the others' inputs in the computer's memory, and no logits of all tokens

The factor 1.15 (ours) is for what else the allocator holds; MEASURED in the tests are the points it was fitted to, on
an H100, and a test keeps the estimates within a factor of 1.2 of them. Not included: the driver's own memory.

    estimate(get_preset("colab-t4"))      # GB: {"prepare": 5.0, "sft": 2.7, "rl": 6.9, "evaluate": 11.4}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.presets import EvaluationSettings, ModelSettings, Preset, RLSettings

SLACK = 1.15
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: a half, an 8-bit scale for each 64, and an fp32 one for each 256 of those
_HEAD_CHUNK = 128  # tokens whose logits are in memory at a time (training/shared_prefix.py)
MERGED = 4e9  # ours: bytes that sampling may spend on a merged copy of the weights (models/lora.py)
_BASE_BATCH, _BASE_WINDOW = 32, 1024  # the base model's batch size and prompt length (models/local.py)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder that determine its memory."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    width: int  # of a head
    vocabulary: int
    tied: bool  # the output layer is the embedding

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear layers."""
        keys, queries = self.key_heads * self.width, self.heads * self.width
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }


KNOWN = {  # the models of the presets, so that nothing has to be downloaded
    "smollm2": Shape(576, 1536, 30, 9, 3, 64, 49152, True),
    "unsloth/Qwen2.5-0.5B-Instruct": Shape(896, 4864, 24, 14, 2, 64, 151936, True),
    "unsloth/Qwen2.5-1.5B-Instruct": Shape(1536, 8960, 28, 12, 2, 128, 151936, True),
    "unsloth/Qwen2.5-7B-Instruct": Shape(3584, 18944, 28, 28, 4, 128, 152064, False),
}


def shape_of(name: str) -> Shape | None:
    """The shape of a preset's model, or of one in a folder; None for any other hub id."""
    config = Path(name).expanduser() / "config.json"
    if name in KNOWN or not config.is_file():
        return KNOWN.get(name)
    return shape_of_config(json.loads(config.read_text(encoding="utf-8")))


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a model's config.json describes."""
    heads = config["num_attention_heads"]
    return Shape(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or config["hidden_size"] // heads,
        config["vocab_size"],
        bool(config.get("tie_word_embeddings", False)),
    )


def estimate(preset: Preset) -> dict[str, float]:
    """GB (10^9 bytes) of each stage that needs the reflection module, for prompts of the maximum length.

    {} if the shape of the model is unknown.
    """
    model, shape = preset.reflection, shape_of(preset.reflection.name)
    if shape is None:
        return {}
    longest = model.max_seq_length
    moments = {
        "sft": sft_step(shape, model, preset.sft.batch_size * longest),
        "rl": rl_step(shape, model, preset.rl, longest - preset.rl.max_new_tokens),
        "evaluate": rewriting(shape, model, preset.evaluation, longest - preset.evaluation.max_new_tokens),
    }
    base = shape_of(preset.base.removeprefix("local:"))
    if base is not None:
        asked = generating(base, _BASE_BATCH, _BASE_WINDOW, preset.base_max_new_tokens)
        moments = {"prepare": weights(base, True) + asked} | moments
    return {name: round(SLACK * size / 1e9, 1) for name, size in moments.items()}


# ---- weights ------------------------------------------------------------------------------------------------------


def weights(shape: Shape, four_bit: bool) -> float:
    """Bytes of the frozen model."""
    linear = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear.values())
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return linear * (NF4 if four_bit else 2) + 2 * embeddings


def lora_parameters(shape: Shape, model: ModelSettings) -> int:
    """Trained numbers: rank x (inputs + outputs) for each linear layer that has an adapter."""
    widths = [sum(shape.linear[name]) for name in model.lora_targets if name in shape.linear]
    return shape.layers * model.lora_rank * sum(widths)


# ---- a stage's largest moment -------------------------------------------------------------------------------------


def rl_step(shape: Shape, model: ModelSettings, rl: RLSettings, prompt: int) -> float:
    """Bytes of an RL step on prompts of `prompt` tokens, for completions of the maximum length."""
    fixed = weights(shape, model.load_in_4bit) + lora_parameters(shape, model) * (20 if rl.beta else 16)
    sampling = merged(shape) + generating(shape, rl.prompts_per_step, prompt, rl.max_new_tokens, rl.group_size)
    return fixed + max(sampling, scoring(shape, model, rl, prompt))


def scoring(shape: Shape, model: ModelSettings, rl: RLSettings, prompt: int) -> float:
    """Bytes while one micro-batch is scored and its gradient computed, besides weights and LoRA."""
    new = rl.group_size * rl.max_new_tokens
    groups = max(1.0, min(rl.prompts_per_step, rl.micro_batch_tokens / (prompt + new)))
    tokens = groups * (prompt + new)
    kept = layer(shape, model, tokens)
    layers = kept + 2 * shape.hidden * tokens * shape.layers if rl.gradient_checkpointing else kept * shape.layers
    in_flight = tokens * (6 * shape.intermediate + 8 * shape.hidden) + one_weight(shape)
    head = 2 * shape.hidden * groups * new + 12 * _HEAD_CHUNK * shape.vocabulary
    return layers + in_flight + head + 2 * groups * (prompt + new) ** 2


def layer(shape: Shape, model: ModelSettings, tokens: float) -> float:
    """Bytes that backward needs of one decoder layer."""
    thin = 2 * model.lora_rank * sum(name in shape.linear for name in model.lora_targets)
    return tokens * (22 * shape.hidden + 8 * shape.intermediate + thin)


def generating(shape: Shape, rows: int, prompt: int, new: int, group: int = 1) -> float:
    """Bytes while `group` completions of each of `rows` prompts are sampled: buffers, and prefill or decoding."""
    buffers = rows * (prompt + group * new) * 4 * shape.key_heads * shape.width * shape.layers
    reading = rows * prompt * (6 * shape.intermediate + 8 * shape.hidden + 2 * prompt)
    writing = rows * group * 14 * shape.vocabulary
    return buffers + max(reading, writing) + one_weight(shape)


def rewriting(shape: Shape, model: ModelSettings, evaluation: EvaluationSettings, prompt: int) -> float:
    """Bytes while a batch of rewrites is written after prompts of `prompt` tokens."""
    fixed = weights(shape, model.load_in_4bit) + 4 * lora_parameters(shape, model) + merged(shape)
    return fixed + generating(shape, evaluation.batch_size, prompt, evaluation.max_new_tokens)


def merged(shape: Shape) -> float:
    """Bytes of the linear layers with LoRA added, in 16 bits, while completions are sampled; 0 if that is too much."""
    size = 2 * shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear.values())
    return size if size <= MERGED else 0


def sft_step(shape: Shape, model: ModelSettings, tokens: float) -> float:
    """Bytes of a step of SFT on `tokens` tokens in one pass, by Unsloth."""
    fixed = weights(shape, model.load_in_4bit) + 16 * lora_parameters(shape, model)
    return fixed + layer(shape, model, tokens) + one_weight(shape)


def one_weight(shape: Shape) -> float:
    """Bytes of the largest linear layer in 16 bits: a 4-bit one is unpacked while it is used."""
    return 2 * max(inputs * outputs for inputs, outputs in shape.linear.values())
