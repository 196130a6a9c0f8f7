"""A plain model of transformers as one GGUF file, for llama.cpp, Ollama and LM Studio.

Our own conversion, over the writer of the `gguf` package; it knows the architectures that the kit is used with. Tensors
are named by the package's table. Llama's query and key rows change their order: llama.cpp rotates neighbours, where
transformers rotates halves. Norms stay fp32; a matrix whose rows q8_0 cannot hold (their length is not a multiple of
32) becomes f16.

    write_gguf(model, tokenizer, folder / "rpo-f16.gguf", "f16", name="rpo", license="apache-2.0")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_kit.errors import KitError
from rpo_kit.serving.gguf_tokenizer import add_tokenizer, pre_tokenizer_name

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # as transformers and GGUF call them
TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
OWN_CONVERTER = (
    "Export it with --to merged instead and convert that with llama.cpp's own script: "
    "python convert_hf_to_gguf.py FOLDER --outtype q8_0 --outfile MODEL.gguf."
)


def check_convertible(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise KitError if the model or its tokenizer is of a kind that this conversion does not know."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    refusals = {
        "a sliding window": "sliding_attention" in (getattr(config, "layer_types", None) or ()),
        f"rotary positions of the kind {rope!r}": rope not in ("default", "llama3"),
        "biases of its attention": getattr(config, "attention_bias", False),
    }
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise KitError(f"The kit writes {known} as GGUF, not the architecture {config.model_type!r}. {OWN_CONVERTER}")
    for part, is_there in refusals.items():
        if is_there:
            raise KitError(f"The kit cannot write a {config.model_type} with {part} as GGUF. {OWN_CONVERTER}")
    try:
        pre_tokenizer_name(tokenizer)
    except KitError as error:
        raise KitError(f"{error} {OWN_CONVERTER}") from None


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    dtype: str,
    name: str,
    license: str = "",
) -> None:
    """Write the model, without LoRA layers and in fp32, with its tokenizer; `dtype` is a key of TYPES.

    Raises:
        KitError: as `check_convertible`.
    """
    import gguf
    import numpy as np

    check_convertible(model, tokenizer)
    writer = gguf.GGUFWriter(str(path), model.config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if license:
        writer.add_license(license)
    writer.add_file_type(gguf.LlamaFileType[TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, model)
    add_tokenizer(writer, tokenizer, model.config.vocab_size)
    tensors = list(_named(model))
    for tensor_name, tensor in tensors:
        kind = _type_of(tensor, dtype)
        shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kind)  # in bytes
        writer.add_tensor_info(tensor_name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tensors:  # one at a time: a copy of the whole model would take as much memory again
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().cpu().numpy(), _type_of(tensor, dtype)))
    finally:
        writer.close()


def _add_shape(writer: GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _named(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors by their names in GGUF, with rows in llama.cpp's order."""
    import gguf
    import torch

    config = model.config
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise KitError(f"The tensor {key} of this {config.model_type} has no name in GGUF. {OWN_CONVERTER}")
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if config.model_type == "llama" and f".{part}." in key:
                tensor = _interleaved(tensor, heads)
        yield name, tensor
    if config.rope_parameters.get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.float().cpu()
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
        yield "rope_freqs.weight", plain / scaled


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """The rows (heads x size, …) of each head as 0, size/2, 1, size/2 + 1, …"""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _type_of(tensor: Tensor, dtype: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    if tensor.dim() == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType["F16" if dtype == "q8_0" and tensor.shape[-1] % 32 else dtype.upper()]
