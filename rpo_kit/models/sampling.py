"""Sampling on the Hugging Face path: G completions of a prompt from one row, so that the prompt is read and kept once.

Used by the RL trainer for its groups, and by `generate` with G = 1. A row of the cache holds a prompt once and the
tokens of all its completions. Keys are not copied for the query heads that share them, which is what takes the time in
`model.generate` on a CPU. Left out: beams, and everything on a GPU, where Unsloth has a decoder of its own.

    >>> sample_groups(model, prompts, mask, group=8, new_tokens=96, temperature=1.0, ends=[2]).shape
    torch.Size([4, 8, 57])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface


def shares_prefix(model: Any) -> bool:
    """Whether one row can stand for a whole group: Llama- and Qwen-type models on the Hugging Face path.

    Not on a GPU, where Unsloth has replaced the forward pass and groups prefixes itself; not with layers that look
    back only so far (Qwen's sliding windows), for which the attention here would look back further.
    """
    config: Any = model.config
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return config.model_type in ("llama", "qwen2", "qwen3") and not windows and not torch.cuda.is_available()


@torch.no_grad()
def sample_groups(
    model: Any,
    prompts: Tensor,
    prompt_mask: Tensor,
    group: int,
    new_tokens: int,
    temperature: float,
    ends: Sequence[int],
) -> Tensor:
    """Sample `group` completions of each left-padded prompt (R, P); (R, group, at most new_tokens), greedy at 0.

    Each step reads one new token of each completion: (R, group), instead of R * group rows which would all carry, and
    attend to, a copy of the prompt's cache.
    """
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=prompts, attention_mask=prompt_mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    tokens = [draw(out.logits.expand(-1, group, -1), temperature)]
    seen = prompt_mask.bool()[:, None, None].expand(-1, -1, group, -1)
    own = torch.eye(group, dtype=torch.bool, device=prompts.device).expand(len(prompts), 1, group, group)
    ended = torch.isin(tokens[0], torch.tensor(ends, device=prompts.device))
    with attention(model, "rpo_cache"):
        while len(tokens) < new_tokens and not ended.all():
            seen = torch.cat([seen, own], -1)
            out = model(
                input_ids=tokens[-1],
                attention_mask=seen,
                position_ids=positions[:, -1:].expand(-1, group) + len(tokens),
                past_key_values=out.past_key_values,
            )
            tokens.append(draw(out.logits, temperature))
            ended |= torch.isin(tokens[-1], torch.tensor(ends, device=prompts.device))
    return torch.stack(tokens, -1)


def draw(logits: Tensor, temperature: float) -> Tensor:
    """One token for each distribution in (R, group, vocabulary)."""
    if temperature == 0:
        return logits.argmax(-1)
    # By the inverse of the distribution function: multinomial would draw a random number for every word (measured:
    # a fifth of the sampling time on a CPU).
    reached = (logits.float() / temperature).softmax(-1).cumsum(-1)
    drawn = torch.rand_like(reached[..., :1]) * reached[..., -1:]
    return torch.searchsorted(reached, drawn, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def attend_in_cache(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of G new tokens a row to its cache of T: query (R, H, G, D), key and value (R, K, T, D), mask
    (R, 1, G, T), result (R, G, H, D). The H / K query heads of a key head are read as more rows of it.
    """
    rows, heads, group, width = query.shape
    scores = (query * scaling).reshape(rows, key.shape[1], -1, width) @ key.mT
    scores = scores.view(rows, heads, group, -1).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    read = scores.softmax(-1).view(rows, key.shape[1], -1, key.shape[2]) @ value
    return read.view(query.shape).transpose(1, 2), None


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


AttentionInterface.register("rpo_cache", attend_in_cache)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Let the model attend by the registered function of this name, and afterwards as before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
