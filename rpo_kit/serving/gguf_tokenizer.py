"""A tokenizer of transformers as GGUF metadata, for llama.cpp and what is built on it.

llama.cpp splits a text before it merges bytes to tokens, by a rule that a GGUF names (`tokenizer.ggml.pre`). Its
converter recognizes the rule by the tokens of a test text; here it is read from the tokenizer itself, so that a rule
without a name is refused and never guessed.

    pre_tokenizer_name(tokenizer)          # 'smollm': digits one by one, then GPT-2's rule
    add_tokenizer(writer, tokenizer, 49152)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rpo_kit.errors import KitError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_TAIL = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPLITS = {  # the regular expression of a tokenizer: the name of its rule in llama.cpp
    _HEAD + _TAIL: "qwen2",  # Qwen2, Qwen2.5, Qwen3
    _HEAD + _TAIL.replace(r"\p{N}|", r"\p{N}{1,3}|", 1): "llama-bpe",  # Llama 3
}


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Add tokens, merges, special tokens and the chat template; `size` is the number of rows of the embeddings.

    Raises:
        KitError: not a byte-level BPE, or its splitting rule is not one that this module knows.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    tokens, types = tokens_of(tokenizer, size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = _backend(tokenizer)["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)  # the chat template holds all special tokens of a prompt
    writer.add_add_space_prefix(False)
    writer.add_chat_template(str(tokenizer.chat_template))


def pre_tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name of the rule by which this tokenizer splits a text before it merges.

    Raises:
        KitError: there is none that this module knows.
    """
    backend = _backend(tokenizer)
    splitter, normalizer = backend.get("pre_tokenizer") or {}, backend.get("normalizer") or {}
    parts = splitter.get("pretokenizers") or [splitter]
    first, last = parts[0], parts[-1]
    # llama.cpp normalizes nothing; its own converter, too, leaves out the NFC of Qwen's tokenizers
    changes = {step["type"] for step in normalizer.get("normalizers", [normalizer] if normalizer else [])} - {"NFC"}
    is_bytes = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if backend["model"].get("type") == "BPE" and is_bytes and not changes:
        pattern = (first.get("pattern") or {}).get("Regex")
        if len(parts) == 1 and last.get("use_regex"):
            return "gpt-2"
        if len(parts) == 2 and first.get("individual_digits") and last.get("use_regex"):
            return "smollm"
        if len(parts) == 2 and first.get("type") == "Split" and not last.get("use_regex") and pattern in _SPLITS:
            return _SPLITS[pattern]
    raise KitError(
        f"The tokenizer of this model ({backend['model'].get('type')}, split by {json.dumps(splitter)[:160]}) has no "
        "form in GGUF that the kit knows: it writes byte-level BPE as in SmolLM2, GPT-2, Qwen2, Qwen3 and Llama 3."
    )


def tokens_of(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    """The tokens by their ids, and the kind of each; rows of the embeddings without a token are unused."""
    from gguf import TokenType

    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    for number, token in tokenizer.added_tokens_decoder.items():
        kinds[number] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    rows = range(max(size, len(texts)))
    return [texts.get(n, f"[PAD{n}]") for n in rows], [int(kinds.get(n, TokenType.UNUSED)) for n in rows]


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise KitError("The tokenizer of this model is not a fast one (tokenizer.json), so GGUF cannot hold it.")
    stored: dict[str, Any] = json.loads(backend.to_str())
    return stored
