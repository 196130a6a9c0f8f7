"""Score the G completions of one prompt in a single pass, so that the long prompt is read once instead of G times.

In RL a group of rewrites shares its prompt: query, generic answer and up to six history items. Here all tokens of some
groups lie in one row without padding ("packed"), each prompt once; positions of a completion go on from its prompt's
end. Only attention needs to know what belongs together, so it is ours (registered with transformers): a prompt looks at
itself, a completion at its prompt and at itself. Log-probabilities and gradients equal those of G separate rows. Models
whose attention is not known here are scored in separate rows, through the same head.

    tokens       p p p p q q a a b b b c     two prompts (p, q); completions a and b of p, c of q
    positions    0 1 2 3 0 1 4 5 4 5 6 2
    prompts      [[0 1 2 3] [. . 4 5]]                        where each prompt's tokens stand, left-padded
    completions  [[[6 7 .] [8 9 10]] [[11 . .] [. . .]]]      where each completion's tokens stand, right-padded
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

_CHUNK = 64  # ours: tokens whose logits (vocabulary wide, fp32) stand in memory at a time: 13 MB for SmolLM2
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
class PackedGroups:
    """N tokens in one row, and where each of R prompts (up to P tokens) and its G completions (up to L) stand in it."""

    tokens: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    prompts: Tensor  # (R, P); N where there is no token
    completions: Tensor  # (R, G, L); the same
    predictor: Tensor  # (M,) which token predicts each of the M completion tokens
    targets: Tensor  # (M,) these tokens
    slots: Tensor  # (R P + R G L,) both grids in one row
    unslots: Tensor  # (N,) in which slot each token stands: the inverse of `slots`


def pack_groups(groups: Sequence[Group], device: torch.device | str = "cpu") -> PackedGroups:
    """Put all prompts down, then all completions."""
    total = sum(len(prompt) + sum(map(len, completions)) for prompt, completions in groups)
    longest = max(len(prompt) for prompt, _ in groups)
    most = max(len(completion) for _, completions in groups for completion in completions)
    prompts = torch.full((len(groups), longest), total)
    completions = torch.full((len(groups), max(len(completions) for _, completions in groups), most), total)
    tokens: list[int] = []
    positions: list[int] = []
    predictor: list[int] = []
    for row, (prompt, _) in enumerate(groups):
        prompts[row, longest - len(prompt) :] = torch.arange(len(tokens), len(tokens) + len(prompt))
        tokens += prompt
        positions += range(len(prompt))
    targets = len(tokens)
    for row, (prompt, own) in enumerate(groups):
        for member, completion in enumerate(own):
            first = len(tokens)
            completions[row, member, : len(completion)] = torch.arange(first, first + len(completion))
            # a prompt's last token predicts the first one of each of its completions
            predictor += [int(prompts[row, -1]), *range(first, first + len(completion) - 1)][: len(completion)]
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
    slots = torch.cat([prompts.flatten(), completions.flatten()])
    tensors = (
        torch.tensor(tokens)[None],
        torch.tensor(positions)[None],
        prompts,
        completions,
        torch.tensor(predictor),
        torch.tensor(tokens[targets:]),
        slots,
        slots.argsort()[:total],
    )
    return PackedGroups(*(tensor.to(device) for tensor in tensors))


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

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class TokenLogps(torch.autograd.Function):
    """log softmax(W h / T)[target] of M hidden states (M, hidden); (M,).

    The gradient to h, (W[target] - sum_v p_v W[v]) / T for each token, is worked out on the way, chunk by chunk: the
    logits, 200 kB per token with SmolLM2's vocabulary, are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Context, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        logprobs, gradients = [], []
        for h, target in zip(hidden.to(weight.dtype).split(_CHUNK), targets.split(_CHUNK), strict=True):
            chunk = torch.log_softmax((h @ weight.T).float() / temperature, -1)
            logprobs.append(chunk.gather(-1, target[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                gradients.append((weight[target] - chunk.exp_().to(weight.dtype) @ weight) / temperature)
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return (grad_output[:, None] * ctx.saved_tensors[0]), None, None, None


token_logps: Callable[..., Tensor] = TokenLogps.apply


# ---- attention ----------------------------------------------------------------------------------------------------


class GatherRows(torch.autograd.Function):
    """Rows of x (n, features) at `index`, zeros where it says n. No row is taken twice, so `inverse` undoes it."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return torch.cat([x, x.new_zeros(1, x.shape[1])])[index]

    @staticmethod
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        padded = torch.cat([grad_output, grad_output.new_zeros(1, grad_output.shape[1])])
        return padded[ctx.saved_tensors[0]], None, None


gather_rows: Callable[..., Tensor] = GatherRows.apply


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
    """Attention among N tokens laid out as `groups`: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D).

    H / K query heads read one key head, as more rows of the same matrix product: keys are never copied.
    """
    (rows, most), (size, longest) = groups.prompts.shape, groups.completions.shape[1:]
    heads, shared, width = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1]
    # 1. From the packed row into the two padded grids.
    tokens = torch.cat([query * scaling, key, value], 1)[0].transpose(0, 1).flatten(1)
    grids = gather_rows(tokens, groups.slots, groups.unslots).view(len(groups.slots), -1, width)
    parts = [heads * shared, heads, heads]
    q, k, v = (x.view(rows, most, heads, -1, width) for x in grids[: rows * most].split(parts, 1))
    own_q, own_k, own_v = (x.view(rows, size, longest, heads, -1, width) for x in grids[rows * most :].split(parts, 1))
    q, k, v = q.permute(0, 2, 3, 1, 4), k[:, :, :, 0].transpose(1, 2), v[:, :, :, 0].transpose(1, 2)
    own_q = own_q.permute(0, 3, 1, 4, 2, 5)
    own_k, own_v = (x[..., 0, :].permute(0, 3, 1, 2, 4) for x in (own_k, own_v))

    # 2. Each prompt looks at itself.
    neg_inf = torch.finfo(q.dtype).min
    absent = (groups.prompts == len(groups.unslots))[:, None, None, None]  # (R, 1, 1, 1, P)
    scores = (q.flatten(2, 3) @ k.mT).view(rows, heads, shared, most, most)
    probs = scores.masked_fill_(absent | _later(most, q), neg_inf).softmax(-1)
    attn_out = (probs.flatten(2, 3) @ v).view(rows, heads, shared, most, width).permute(0, 3, 1, 2, 4)

    # 3. Each completion looks at its prompt and at itself, under one softmax.
    prompt_scores = (own_q.flatten(2, 4) @ k.mT).view(*own_q.shape[:-1], most)
    prompt_scores = prompt_scores.masked_fill_(absent[:, :, None], neg_inf)
    self_scores = (own_q.flatten(3, 4) @ own_k.mT).view(*own_q.shape[:-1], longest)
    self_scores = self_scores.masked_fill_(_later(longest, q), neg_inf)
    probs = torch.cat([prompt_scores, self_scores], -1).softmax(-1)
    own_out = (probs[..., :most].flatten(2, 4) @ v).view(own_q.shape)
    own_out = own_out + (probs[..., most:].flatten(3, 4) @ own_v).view(own_q.shape)
    own_out = own_out.permute(0, 2, 4, 1, 3, 5)  # (R, G, L, K, H / K, D)

    # 4. Back into the packed row.
    both = torch.cat([attn_out.reshape(rows * most, -1), own_out.reshape(rows * size * longest, -1)])
    return gather_rows(both, groups.unslots, groups.slots).view(1, -1, heads * shared, width), None


def _later(length: int, like: Tensor) -> Tensor:
    """(length, length), True where the second token comes after the first."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)


AttentionInterface.register("rpo_groups", attend_in_groups)
