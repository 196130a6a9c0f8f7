"""Make texts safe: for encoders and tokenizers, and against tags and special tokens in a user's text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loading transformers takes seconds
    from transformers import PreTrainedTokenizerBase

# Characters without a compatibility form, so that no tokenizer's normalizer restores the originals.
LOOK_ALIKES = {"<": "‹", "[": "⁅", ">": "›"}
JOINER = "\u2060"  # word joiner: invisible, breaks a token that begins with any other character
_MARKUP = re.compile(r"[<\[◁].*[>\]▷]", re.DOTALL)


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which neither UTF-8, nor Arrow, nor a tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")


def break_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text, changed so that the tokenizer reads none of its special tokens in it.

    Nothing is deleted: the first character of such a token becomes a look-alike, or is followed by a word joiner.
    """
    pattern = _special_pattern(tokenizer)
    return pattern.sub(lambda match: LOOK_ALIKES.get(match[0], match[0] + JOINER), text) if pattern else text


@lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches the first character of every special token; None if the tokenizer has none.

    Added tokens that are not special but look like markup (Qwen's <tool_call>) count too; runs of spaces do not.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    strings = {token.content for token in added if token.special or _MARKUP.fullmatch(token.content)}
    strings |= set(map(str, getattr(tokenizer, "all_special_tokens", [])))
    tokens = sorted((re.escape(string) for string in strings if string.strip()), key=len, reverse=True)
    return re.compile(rf"(?=(?:{'|'.join(tokens)})).", re.IGNORECASE | re.DOTALL) if tokens else None


# ---- tags and special tokens in a user's text ---------------------------------------------------------------------

_BRACKETED = (  # special tokens of Mistral, BERT, GLM and the like; other words in brackets are kept
    "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|TOOL_CALL|ARGS|CALL_ID|MODEL_SETTINGS|"
    "IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX|THINK|"
    "CLS|SEP|MASK|PAD|UNK|BOS|EOS|gMASK|sMASK|sop|eop"
)


def _starts(angle: str, bracket: str, closing: str) -> re.Pattern[str]:
    """Where a tag of the grammar or a special token begins, written with these three characters."""
    return re.compile(
        rf"{angle}(?=\s*+/?+\s*+(?:observe|plan|rewrite)\b"  # the grammar's own tags, whether they end or not
        r"|[|｜]"  # <|im_start|>, <｜User｜>
        r"|/?[\w▁][^\s<>‹›]{0,62}>)"  # <s>, </s>, <start_of_turn>, <file_sep>; Gemma even has <b>
        rf"|{bracket}(?=/?(?:{_BRACKETED})\])"  # [INST], [/INST]
        rf"|{closing}(?=>[A-Z_]{{2,20}}<<)",  # Falcon's >>TITLE<<
        re.IGNORECASE,
    )


_POWERFUL = _starts("<", r"\[", ">")
_HARMLESS = _starts(*LOOK_ALIKES.values())
_ORIGINALS = {look_alike: original for original, look_alike in LOOK_ALIKES.items()}


def escape_tags(text: str) -> str:
    """The text, changed so that it can be encoded and cannot open or close a trajectory tag or a chat turn.

    This covers the usual forms of special tokens; `break_special_tokens` covers those of a loaded tokenizer.
    """
    return _POWERFUL.sub(lambda match: LOOK_ALIKES[match[0]], replace_surrogates(text))


def restore_tags(text: str) -> str:
    """The text with the characters restored that `escape_tags` and `break_special_tokens` replaced."""
    return _HARMLESS.sub(lambda match: _ORIGINALS[match[0]], text).replace(JOINER, "")
