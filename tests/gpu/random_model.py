"""A model of a real one's shape with random weights, for a machine without network.

Memory and time are those of the real shape; its texts are noise and hardly ever end early.

    make(KNOWN["unsloth/Qwen2.5-1.5B-Instruct"], Path("/tmp/1.5b"), bundled_model())
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rpo_kit.memory import Shape, weights

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def make(shape: Shape, folder: Path, tokenizer: Path) -> Path:
    """Write the model into `folder` with the tokenizer that lies in the folder `tokenizer`; again does nothing."""
    if (folder / "made").exists():
        return folder
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(roomy_device(weights(shape, four_bit=False))):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    (folder / "made").touch()
    return folder


def roomy_device(size: float) -> str:
    """The GPU if it has room for `size` bytes (it draws numbers a hundred times faster), else the CPU."""
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.2 * size:
        return "cuda"
    return "cpu"
