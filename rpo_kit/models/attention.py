"""Attention of our own, registered with transformers: many short sequences that share the beginning of a long one.

For scoring and for reading prompts, tokens lie in one row without padding, in blocks: a block of a prompt looks at what
stands before it, a completion at its prompt and at itself. For decoding, see `attend_in_cache`. Both read one key head
for the query heads that share it, without copying keys for each of them. Left out: sliding windows.

    tokens       p p p p a a b b b      one prompt, its completions a and b
    a looks at   x x x x x x . . .      each token of a only up to itself
    b looks at   x x x x . . x x x
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

_BLOCK = {"cpu": 128, "cuda": 1024}  # ours: tokens of a prompt per block; on a GPU few large ones are faster


def shares_prefix(model: PreTrainedModel) -> bool:
    """Whether the attention is known here, so that one row can stand for a whole group: Llama and Qwen models.

    Not with layers that look back only so far (Qwen's sliding windows), for which the attention here would look back
    further.
    """
    windows = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
    return model.config.model_type in ("llama", "qwen2", "qwen3") and not windows


def causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, where PEFT wraps it; the LoRA layers inside stay."""
    unwrap: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model attend by the registered function of this name, and afterwards as before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


# ---- tokens in one row --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Tokens that attend together: each of `own` to those of `prefix`, to those of `own` before it and to itself."""

    own: slice
    prefix: slice  # of the prompt; for a block of the prompt, what stands before it


def blocks_of(start: int, end: int, device: torch.device | str) -> list[Block]:
    """The blocks of a prompt whose tokens lie from `start` to `end`."""
    size = _BLOCK[torch.device(device).type]
    return [Block(slice(n, min(n + size, end)), slice(start, n)) for n in range(start, end, size)]


class Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    blocks: tuple[Block, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class BlockAttention(torch.autograd.Function):
    """Attention block by block: scaled queries (K, N, S, D), keys and values (K, N, D); the result is (K, N, S, D).

    S query heads read one key head, as S rows of the same matrix product: keys are never copied for them. A block's
    scores fit into the processor's cache and are done with there; what comes after a token is not computed, except in
    its own block. Gradients are written out, because autograd would go through the scores three more times.
    """

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...]) -> Tensor:
        out, all_probs = torch.empty_like(q), []
        for block in blocks:
            queries, keys, values = q[:, block.own].flatten(1, 2), _seen(k, block), _seen(v, block)
            scores = torch.bmm(queries, keys.mT)
            own = block.own.stop - block.own.start
            by_token = scores.view(len(q), own, q.shape[2], -1)[..., -own:]
            by_token.masked_fill_(_later(own, q.device)[:, None], torch.finfo(q.dtype).min)
            probs = scores.softmax(-1)
            out[:, block.own] = torch.bmm(probs, values).view(len(q), own, *q.shape[2:])
            all_probs.append(probs)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, *all_probs)
            ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *all_probs = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # many blocks add to the same prompt: in fp32, or small terms would be rounded away
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for block, probs in zip(ctx.blocks, all_probs, strict=True):
            queries, grad = q[:, block.own].flatten(1, 2), grad_output[:, block.own].flatten(1, 2)
            grad_probs = torch.bmm(grad, _seen(v, block).mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            grad_q[:, block.own] = torch.bmm(grad_scores, _seen(k, block)).view_as(q[:, block.own])
            for total, part in ((grad_k, torch.bmm(grad_scores.mT, queries)), (grad_v, torch.bmm(probs.mT, grad))):
                prefix = block.prefix.stop - block.prefix.start
                total[:, block.prefix] += part[:, :prefix]
                total[:, block.own] += part[:, prefix:]
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


block_attention: Callable[..., Tensor] = BlockAttention.apply


def _seen(x: Tensor, block: Block) -> Tensor:
    """Keys or values (K, …, D) that a block looks at: its prefix, then its own tokens."""
    if block.prefix.stop == block.own.start:
        return x[:, block.prefix.start : block.own.stop].contiguous()  # they stand one after the other
    return torch.cat([x[:, block.prefix], x[:, block.own]], 1)


def attend_in_blocks(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    blocks: Sequence[Block],
    **_: object,
) -> tuple[Tensor, None]:
    """Attention among N tokens that lie in `blocks`: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D)."""
    heads, (count, width) = key.shape[1], query.shape[2:]
    q = (query.view(heads, -1, count, width).transpose(1, 2) * scaling).contiguous()
    out = block_attention(q, key[0], value[0], blocks)
    return out.permute(1, 0, 2, 3).reshape(1, count, -1, width), None


def _later(length: int, device: torch.device) -> Tensor:
    """(length, length), True where the second token comes after the first."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


# ---- decoding -----------------------------------------------------------------------------------------------------


def attend_in_cache(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention of G new tokens per row to its buffer of T: query (R, H, G, D), key (R, K, D, T), value (R, K, T, D),
    result (R, G, H, D). The H / K query heads of a key head are read as more rows of it. `mask` (R, K, H / K * G, T) is
    what is added to the scores. Keys are kept transposed, as the product needs them: a part of them would be copied.
    """
    width = query.shape[-1]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    scores = torch.baddbmm(mask.flatten(0, 1), query.reshape(len(keys), -1, width), keys, alpha=scaling)
    attended = torch.bmm(scores.softmax(-1), values)
    return attended.view(query.shape).transpose(1, 2), None


AttentionInterface.register("rpo_blocks", attend_in_blocks)
AttentionInterface.register("rpo_cache", attend_in_cache)
