"""Text repairs that several rooms need."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loading transformers takes seconds
    from transformers import PreTrainedTokenizerBase

# Without a compatibility form, so that no tokenizer's normaliser turns them back.
LOOK_ALIKES = {"<": "‹", "[": "⁅", ">": "›"}
JOINER = "\u2060"  # word joiner: invisible, breaks a token that begins with any other character
_MARKUP = re.compile(r"[<\[◁].*[>\]▷]", re.DOTALL)


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which neither UTF-8, nor Arrow, nor a tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")


def break_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text in which nothing is read as one of the tokenizer's own special tokens.

    Nothing is deleted: the first character of such a string becomes a look-alike, or gets a word joiner behind it.
    """
    pattern = _special_pattern(tokenizer)
    return pattern.sub(lambda match: LOOK_ALIKES.get(match[0], match[0] + JOINER), text) if pattern else text


@lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """The first character of every special token, wherever one begins; None if there is none.

    Added tokens that are not special but look like markup (Qwen's <tool_call>) count too; runs of spaces do not.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    strings = {token.content for token in added if token.special or _MARKUP.fullmatch(token.content)}
    strings |= set(map(str, getattr(tokenizer, "all_special_tokens", [])))
    tokens = sorted((re.escape(string) for string in strings if string.strip()), key=len, reverse=True)
    return re.compile(rf"(?=(?:{'|'.join(tokens)})).", re.IGNORECASE | re.DOTALL) if tokens else None
