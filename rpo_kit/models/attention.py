"""Attention of our own, registered with transformers: many short sequences that share the beginning of a long one.

For scoring and for reading prompts, tokens lie in one row without padding; a prompt's tokens look at those before them,
a completion's at its prompt and at itself. A CPU works through this block by block (`Blocks`), a GPU, which takes as
long to start a small product as a large one, at all groups at once (`Padded`). SFT on a CPU reads its rows by the same
blocks (`attend_rows`). For decoding, see `attend_in_cache`. Left out: sliding windows.

    tokens       p p p p a a b b b      one prompt, its completions a and b
    a looks at   x x x x x x . . .      each token of a only up to itself
    b looks at   x x x x . . x x x
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

_BLOCK = 128  # ours: tokens of a prompt per block
_LONG_ROW = 1024  # ours: tokens above which probabilities are not kept; two such rows hold 0.6 GB in 30 layers
Group = tuple[int, Sequence[int]]  # the length of a prompt, and those of its completions, which follow it


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


class Layout(Protocol):
    """What the tokens of one row look at."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Query (H, N, D), key and value (K, N, D) to (N, H, D)."""


def layout_of(groups: Sequence[Group], device: torch.device | str, dtype: torch.dtype) -> Layout:
    """Of groups that lie one after the other, as this device reads them fastest."""
    if torch.device(device).type == "cpu":
        return Blocks.of(groups)
    return Padded.of(groups, device, dtype)


def attend_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention among N tokens that lie in `layout`: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D)."""
    return layout.attend(query[0], key[0], value[0], scaling)[None], None


# ---- tokens in one row: at once, on a GPU -------------------------------------------------------------------------


@dataclass(frozen=True)
class Padded:
    """Each group in a padded row of its own, while attention lasts: R rows of T tokens."""

    tokens: Tensor  # (R * T,) which token stands there; padding repeats the first
    places: Tensor  # (N,) where each token stands
    bias: Tensor  # (R, 1, T, T) what is added to the scores: 0 where a token may look

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device | str, dtype: torch.dtype) -> Padded:
        sizes = [prompt + sum(completions) for prompt, completions in groups]
        width = -(-max(sizes) // 16) * 16  # fused kernels copy a bias of another width
        tokens, parts = torch.zeros(len(groups), width, dtype=torch.long), torch.full((len(groups), width), -1)
        starts = accumulate(sizes, initial=0)
        for row, ((prompt, completions), start, size) in enumerate(zip(groups, starts, sizes, strict=False)):
            tokens[row, :size] = torch.arange(start, start + size)
            numbers = torch.arange(len(completions) + 1)  # 0: the prompt
            parts[row, :size] = numbers.repeat_interleave(torch.tensor([prompt, *completions]))
        places = (parts.flatten() >= 0).nonzero()[:, 0]
        of_query, of_key = parts.to(device)[:, :, None], parts.to(device)[:, None]
        seen = (of_key == 0) | (of_key == of_query)  # padding looks at padding, and at the prompt: nobody reads it
        bias = torch.zeros(seen.shape, dtype=dtype, device=device)
        bias.masked_fill_(~seen.tril_(), torch.finfo(dtype).min)
        return cls(tokens.flatten().to(device), places.to(device), bias[:, None])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        rows, width = len(self.bias), self.bias.shape[-1]

        def in_rows(x: Tensor) -> Tensor:
            return x.index_select(1, self.tokens).view(len(x), rows, width, -1).transpose(0, 1)

        shared = len(query) // len(key)
        keys, values = (in_rows(x).repeat_interleave(shared, 1) for x in (key, value))
        out: Tensor = torch.nn.functional.scaled_dot_product_attention(
            in_rows(query), keys, values, attn_mask=self.bias, scale=scaling
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.places)


# ---- tokens in one row: block by block, on a CPU ------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Tokens that attend together: each of `own` to those of `prefix`, to those of `own` before it and to itself."""

    own: slice
    prefix: slice  # of the prompt; for a block of the prompt, what stands before it


@dataclass(frozen=True)
class Blocks:
    """Every token is in one block. Query heads that share a key head read it without copies."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Blocks:
        blocks, start = [], 0
        for prompt, completions in groups:
            end = start + prompt
            blocks += [Block(slice(n, min(n + _BLOCK, end)), slice(start, n)) for n in range(start, end, _BLOCK)]
            for length in completions:
                blocks.append(Block(slice(end, end + length), slice(start, start + prompt)))
                end += length
            start = end
        return cls(tuple(blocks))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        heads, (count, width) = len(key), query.shape[1:]
        q = (query.reshape(heads, -1, count, width).transpose(1, 2) * scaling).contiguous()
        return block_attention(q, key, value, self.blocks).permute(1, 0, 2, 3).flatten(1, 2)


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


def _later(length: int, device: torch.device) -> Tensor:
    """(length, length), True where the second token comes after the first."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


# ---- rows, in SFT on a CPU ----------------------------------------------------------------------------------------


@contextmanager
def blocks_on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that is trained on rows with padding at the right attend by blocks, where that is faster."""
    lm = causal_lm(model)
    if lm.device.type != "cpu" or not shares_prefix(model):
        yield
        return
    with attention(lm, "rpo_rows"):
        yield


def attend_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention in R rows: query (R, H, N, D), key and value (R, K, N, D) to (R, N, H, D). No token looks at
    padding at the right, which comes after it, so there is no mask. Torch's own attention for a CPU takes three times
    as long in bf16 (measured), but keeps no probabilities; so it attends in long rows.
    """
    rows, heads, length, width = query.shape
    if length > _LONG_ROW:
        options: dict[str, Any] = {"is_causal": True, "scale": scaling, "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2), None
    query, key, value = (x.transpose(0, 1).flatten(1, 2) for x in (query, key, value))
    attended = Blocks.of([(length, [])] * rows).attend(query, key, value, scaling)
    return attended.view(rows, length, heads, width), None


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


AttentionInterface.register("rpo_packed", attend_packed)
AttentionInterface.register("rpo_rows", attend_rows)
AttentionInterface.register("rpo_cache", attend_in_cache)
