"""Score the G completions of one prompt in a single pass, so that the long prompt is read once instead of G times.

In RL a group of rewrites shares its prompt: query, generic answer and up to six history items. Here all tokens of some
groups lie in one row without padding ("packed"), each prompt once; positions of a completion go on from its prompt's
end. Only attention needs to know what belongs together, so it is ours (registered with transformers): a prompt looks at
itself, a completion at its prompt and at itself. Log-probabilities and gradients equal those of G separate rows. Models
whose attention is not known here are scored in separate rows, through the same head.

    tokens       p p p p a a b b b q q c     two prompts (p, q); completions a and b of p, c of q
    positions    0 1 2 3 4 5 4 5 6 0 1 2
    a looks at   x x x x x x . . . . . .     each token of a only up to itself
    b looks at   x x x x . . x x x . . .
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.models.lora import using_adapter
from rpo_kit.models.sampling import attention, causal_lm, shares_prefix

_BLOCK = 128  # ours: tokens of a prompt whose scores stand in memory at a time
_CHUNK = 128  # ours: tokens whose logits (vocabulary wide, fp32) stand in memory at a time: 25 MB for SmolLM2
Group = tuple[list[int], list[list[int]]]  # a prompt's tokens and those of each of its completions


def micro_batches(groups: Sequence[Group], budget: int, shared: bool = True) -> Iterator[list[int]]:
    """Deal groups, by number, into batches of at most `budget` tokens; a larger group is a batch of its own.

    `shared`: a prompt counts once per group, else once per completion.
    """
    batch: list[int] = []
    used = 0
    for number, (prompt, completions) in enumerate(groups):
        size = len(prompt) * (1 if shared else len(completions)) + sum(map(len, completions))
        if batch and used + size > budget:
            yield batch
            batch, used = [], 0
        batch.append(number)
        used += size
    if batch:
        yield batch


@contextmanager
def scoring(model: PreTrainedModel, adapter: str = "default") -> Iterator[None]:
    """Around `score` and the backward pass that follows: what adapter scores, and by which attention. (Under gradient
    checkpointing the backward pass runs the layers again.)
    """
    lm = causal_lm(model)
    name = "rpo_groups" if shares_prefix(model) else lm.config._attn_implementation
    with using_adapter(lm, adapter), attention(lm, name):
        yield


def score(model: PreTrainedModel, groups: Sequence[Group], temperature: float) -> Tensor:
    """Log-probability of each completion token, (M,): completion after completion, without padding.

    Raises:
        KitError: the output layer is trained, for which there is no gradient here.
    """
    lm = causal_lm(model)
    if any(parameter.requires_grad for parameter in lm.get_output_embeddings().parameters()):
        raise KitError("The output layer is trained here, for which scoring has no gradient: freeze it.")
    if shares_prefix(model):
        packed = pack_groups(groups, model.device)
        with attention(lm, "rpo_groups"):
            output = lm.base_model(
                input_ids=packed.tokens, position_ids=packed.positions, use_cache=False, groups=packed
            )
        hidden, targets = output.last_hidden_state[0, packed.predictor], packed.targets
    else:
        ids, mask, predictor, targets = _rows(groups, model.device)
        output = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)[predictor]
    return token_logps(hidden, lm.get_output_embeddings().weight, targets, temperature)


def why_not_shared_prefix(model: PreTrainedModel) -> str | None:
    """Why each rewrite is scored with a prompt of its own, or None where a group shares it."""
    if shares_prefix(model):
        return None
    return f"the attention of this {model.config.model_type} model is not known here"


# ---- layout -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Tokens that attend together: each of `own` to those of `prefix`, to those of `own` before it and to itself."""

    own: slice
    prefix: slice  # of the prompt; for a block of the prompt, what stands before it


@dataclass(frozen=True)
class PackedGroups:
    """N tokens in one row: each prompt, followed by its completions."""

    tokens: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    predictor: Tensor  # (M,) which token predicts each of the M completion tokens
    targets: Tensor  # (M,) these tokens
    blocks: tuple[Block, ...]  # every token is in one


def pack_groups(groups: Sequence[Group], device: torch.device | str = "cpu") -> PackedGroups:
    """Lay groups out one after the other."""
    tokens: list[int] = []
    positions: list[int] = []
    predictor: list[int] = []
    targets: list[int] = []
    blocks: list[Block] = []
    for prompt, completions in groups:
        start, end = len(tokens), len(tokens) + len(prompt)
        tokens += prompt
        positions += range(len(prompt))
        blocks += [Block(slice(n, min(n + _BLOCK, end)), slice(start, n)) for n in range(start, end, _BLOCK)]
        for completion in completions:
            first, last = len(tokens), len(tokens) + len(completion)
            # the prompt's last token predicts the first one of each completion
            predictor += [end - 1, *range(first, last - 1)]
            targets += completion
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
            blocks.append(Block(slice(first, last), slice(start, end)))
    ids, at = (torch.tensor([numbers]).to(device) for numbers in (tokens, positions))
    predicting, predicted = (torch.tensor(numbers).to(device) for numbers in (predictor, targets))
    return PackedGroups(ids, at, predicting, predicted, tuple(blocks))


def _rows(groups: Sequence[Group], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each completion in a row after a copy of its prompt, right-padded: ids and mask (B, T), and of each completion
    token the flat index of the token that predicts it, and itself, (M,).
    """
    rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    predictor: list[int] = []
    for row, (prompt, completion) in enumerate(rows):
        ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        mask[row, : len(prompt) + len(completion)] = 1
        first = row * length + len(prompt) - 1
        predictor += range(first, first + len(completion))
    targets = torch.tensor([token for _, completion in rows for token in completion])
    return ids.to(device), mask.to(device), torch.tensor(predictor).to(device), targets.to(device)


# ---- the head -----------------------------------------------------------------------------------------------------


class Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    blocks: tuple[Block, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class TokenLogps(torch.autograd.Function):
    """log softmax(W h / T)[target] of M hidden states (M, hidden); (M,).

    The gradient to h, (W[target] - sum_v p_v W[v]) / T for each token, is worked out on the way, chunk by chunk: the
    logits, 200 kB per token with SmolLM2's vocabulary, are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Context, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        logprobs, gradients = [], []
        hidden = (hidden / temperature).to(weight.dtype)  # M x H numbers; dividing the logits would touch M x V
        for h, target in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True):
            logits = h @ weight.T
            probs = logits.softmax(-1, dtype=torch.float32)
            # log p of the target by way of the likeliest token, whose p is 1 / sum exp(logit - max): never log of 0
            logits_of_both = torch.stack([logits.gather(-1, target[:, None])[:, 0], logits.amax(-1)]).float()
            logprobs.append(logits_of_both[0] - logits_of_both[1] + probs.amax(-1).log())
            if ctx.needs_input_grad[0]:
                gradients.append((weight[target] - probs.to(weight.dtype) @ weight) / temperature)
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return (grad_output[:, None] * ctx.saved_tensors[0]), None, None, None


token_logps: Callable[..., Tensor] = TokenLogps.apply


# ---- attention ----------------------------------------------------------------------------------------------------


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
        return x[:, block.prefix.start : block.own.stop]  # they stand one after the other
    return torch.cat([x[:, block.prefix], x[:, block.own]], 1)


def attend_in_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    groups: PackedGroups,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention among N tokens laid out as `groups`: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D)."""
    heads, (count, width) = key.shape[1], query.shape[2:]
    q = (query.view(heads, -1, count, width).transpose(1, 2) * scaling).contiguous()
    out = block_attention(q, key[0], value[0], groups.blocks)
    return out.permute(1, 0, 2, 3).reshape(1, count, -1, width), None


def _later(length: int, device: torch.device) -> Tensor:
    """(length, length), True where the second token comes after the first."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


AttentionInterface.register("rpo_groups", attend_in_groups)
