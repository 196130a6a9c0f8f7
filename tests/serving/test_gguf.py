"""A GGUF holds the same model: transformers reads it back and computes the same; what cannot be held is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gguf import GGUFReader, TokenType
from random_models import KINDS, random_model
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rpo_kit.errors import KitError
from rpo_kit.models.lora import merge_lora
from rpo_kit.serving.gguf_model import check_convertible, write_gguf
from rpo_kit.serving.gguf_tokenizer import pre_tokenizer_name, tokens_of

IDS = torch.tensor([[1, 5, 9, 300, 27, 31]])


@pytest.fixture
def new_tokenizer(tiny_llama):
    """Loads the tokenizer of the random Llama, to be changed."""
    return lambda: AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def merged(kind, tokenizer, **config):
    """A random model of this kind, whose embeddings have two rows more than there are tokens."""
    return merge_lora(random_model(kind, heads=2, shared=2, seed=1, vocab=len(tokenizer) + 2, **config)).eval()


def read_back(path: Path, **more) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **more).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("f16", 5e-3), ("bf16", 5e-2), ("q8_0", 1e-1)])
def test_a_gguf_that_is_read_back_gives_the_same_logits(kind, dtype, tolerance, tokenizer, tmp_path):
    model, path = merged(kind, tokenizer), tmp_path / "m.gguf"
    write_gguf(model, tokenizer, path, dtype, "m")
    # transformers reads no head size from a qwen3
    found, wanted = read_back(path, config=model.config)(IDS).logits, model(IDS).logits
    assert float(wanted.abs().max()) > 0.3
    torch.testing.assert_close(found, wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


def test_the_order_of_llamas_rows_matters(tokenizer, tmp_path, monkeypatch):
    """Without it the test above would fail, so that test can see it."""
    model, path = merged("llama", tokenizer), tmp_path / "m.gguf"
    monkeypatch.setattr("rpo_kit.serving.gguf_model._interleaved", lambda rows, heads: rows)
    write_gguf(model, tokenizer, path, "f32", "m")
    assert float((read_back(path)(IDS).logits - model(IDS).logits).abs().max()) > 1e-2


def test_the_types_are_those_asked_for_and_norms_stay_exact(tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(merged("qwen3", tokenizer), tokenizer, path, "q8_0", "m", "apache-2.0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16", "its rows of 24 are not a multiple of 32"
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}


def test_metadata_holds_tokens_merges_template_and_license(tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(merged("llama", tokenizer), tokenizer, path, "f16", "rpo", "apache-2.0")
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.name"] == "rpo"
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.model"] == fields["tokenizer.ggml.pre"].replace("-", "") == "gpt2"
    assert fields["tokenizer.ggml.add_bos_token"] is False, "the chat template writes it"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert types[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert types[-2:] == [TokenType.UNUSED] * 2
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]


def test_added_tokens_that_are_not_special_are_the_users_own(new_tokenizer):
    tokenizer = new_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokens, types = tokens_of(tokenizer, len(tokenizer))
    assert (tokens[-1], types[-1]) == ("<think>", TokenType.USER_DEFINED)


def test_a_tokenizer_read_back_makes_the_same_tokens(new_tokenizer, tmp_path):
    path, tokenizer = tmp_path / "m.gguf", new_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = by_pattern(QWEN)  # transformers takes any qwen2 for one of these
    write_gguf(merged("qwen2", tokenizer), tokenizer, path, "f16", "m")
    text = "<|im_start|>user\nIt's 42 leaks, naïve 🙂  twice.<|im_end|>"
    assert (
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")(text)["input_ids"] == tokenizer(text)["input_ids"]
    )


def test_llama_3s_scaled_positions_are_stored_as_factors(tokenizer, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model, path = merged("llama", tokenizer, rope_parameters=rope), tmp_path / "m.gguf"
    write_gguf(model, tokenizer, path, "f32", "m")
    (factors,) = [tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "rope_freqs.weight"]
    assert factors[0] == pytest.approx(1.0), "fast rotations stay"
    assert factors[-1] == pytest.approx(8.0), "slow ones become `factor` times slower"


# ---- splitting rules ----------------------------------------------------------------------------------------------

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def by_pattern(pattern: str):
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (by_pattern(QWEN), "qwen2"),
        (by_pattern(LLAMA_3), "llama-bpe"),
    ],
)
def test_the_splitting_rule_has_llama_cpps_name(splitter, name, new_tokenizer):
    tokenizer = new_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    assert pre_tokenizer_name(tokenizer) == name
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert pre_tokenizer_name(tokenizer) == name
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(KitError, match="has no form in GGUF that the kit knows"):
        pre_tokenizer_name(tokenizer)


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Metaspace(),
        by_pattern(r"\p{N}+|\s+"),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(False)]),
    ],
)
def test_a_rule_without_a_name_is_refused_and_never_guessed(splitter, tokenizer, new_tokenizer):
    other = new_tokenizer()
    other.backend_tokenizer.pre_tokenizer = splitter
    with pytest.raises(KitError, match=r"byte-level BPE as in SmolLM2.*--to merged.*convert_hf_to_gguf\.py"):
        check_convertible(merged("llama", tokenizer), other)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(KitError, match="is not a fast one"):
        pre_tokenizer_name(SimpleNamespace())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "gemma3_text"},
            "The kit writes llama, qwen2, qwen3 as GGUF, not the architecture 'gemma3_text'",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "a llama with rotary positions of the kind 'yarn'"),
        ({"layer_types": ["sliding_attention"]}, "a llama with a sliding window"),
        ({"attention_bias": True}, "a llama with biases of its attention"),
    ],
)
def test_what_cannot_be_written_is_refused_with_llama_cpps_converter_as_remedy(change, sentence, tokenizer):
    config = {"model_type": "llama", "rope_parameters": {"rope_type": "default"}} | change
    with pytest.raises(KitError, match=f"{sentence}.*--to merged.*convert_hf_to_gguf.py FOLDER"):
        check_convertible(SimpleNamespace(config=SimpleNamespace(**config)), tokenizer)
