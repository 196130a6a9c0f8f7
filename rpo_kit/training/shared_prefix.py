"""Score the G completions of one prompt in a single pass, so that the long prompt is read once instead of G times.

In RL a group of rewrites shares its prompt: query, generic answer and up to six history items. Here all tokens of a
batch lie in one row without padding, each prompt once; positions of a completion go on from its prompt's end. Only
attention needs to know what belongs together, so it is ours (registered with transformers): a prompt looks at itself, a
completion at its prompt and at itself. Log-probabilities and gradients equal those of G separate rows. Used by the RL
trainer on the plain Hugging Face path; Unsloth's GPU trainer groups prefixes itself, so there this module stands aside.

    tokens       p p p p q q a a b b b c     two prompts (p, q); completions a and b of p, c of q
    positions    0 1 2 3 0 1 4 5 4 5 6 2
    prompts      [[0 1 2 3] [. . 4 5]]                        where each prompt's tokens stand, left-padded
    completions  [[[6 7 .] [8 9 10]] [[11 . .] [. . .]]]      where each completion's tokens stand, right-padded
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rpo_kit.errors import KitError
from rpo_kit.models.sampling import attention

_CHUNK = 64  # ours: tokens whose logits (vocabulary wide, fp32) stand in memory at a time: 13 MB for SmolLM2


@dataclass(frozen=True)
class Groups:
    """N tokens in one row, and where each of R prompts (up to P tokens) and its G completions (up to L) stand in it."""

    tokens: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    prompts: Tensor  # (R, P); N where there is no token
    completions: Tensor  # (R, G, L); the same
    predictor: Tensor  # (M,) which token predicts each of the M completion tokens
    at: tuple[Tensor, ...]  # where these M stand in the (B, L) completions that were given

    @property
    def slots(self) -> Tensor:
        """Both grids in one row: (R P + R G L,)."""
        return torch.cat([self.prompts.flatten(), self.completions.flatten()])

    @property
    def places(self) -> Tensor:
        """In which slot each of the N tokens stands: the inverse of `slots`."""
        return self.slots.argsort()[: self.tokens.shape[1]]


def lay_out(prompts: Tensor, prompt_mask: Tensor, completions: Tensor, completion_mask: Tensor) -> Groups:
    """Put equal prompts down once, then all completions. Inputs are (B, length), prompts left-padded, completions
    right-padded, masks 0 or 1.
    """
    _, group = torch.unique(prompts.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)
    same = group[:, None] == group
    first, group = torch.unique(same.long().argmax(1), return_inverse=True)  # groups in the order of the batch
    member = same.tril(-1).sum(1)  # how many of its group stand before it
    prompts, held, real = prompts[first], prompt_mask[first].bool(), completion_mask.bool()
    lengths, count = held.sum(1), int(held.sum() + real.sum())
    prompt_at = torch.full_like(prompts, count).masked_scatter(held, torch.arange(count, device=held.device))
    rest = torch.arange(int(lengths.sum()), count, device=held.device)
    completion_at = torch.full_like(completions, count).masked_scatter(real, rest)
    grid = completion_at.new_full((len(first), int(member.max()) + 1, completions.shape[1]), count)
    grid[group, member] = completion_at
    before = torch.cat([prompt_at[group, -1:], completion_at[:, :-1]], 1)  # a prompt's last token predicts the first
    positions = lengths[group, None] + torch.arange(completions.shape[1], device=held.device)
    return Groups(
        torch.cat([prompts[held], completions[real]])[None],
        torch.cat([(held.cumsum(1) - 1)[held], positions[real]])[None],
        prompt_at,
        grid,
        before[real],
        torch.nonzero(real, as_tuple=True),
    )


def score_groups(
    model: Any, input_ids: Tensor, attention_mask: Tensor, completion_length: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each completion token; both (B, completion_length), zero where masked."""
    cut = input_ids.shape[1] - completion_length
    groups = lay_out(input_ids[:, :cut], attention_mask[:, :cut], input_ids[:, cut:], attention_mask[:, cut:])
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(parameter.requires_grad for parameter in causal_lm.lm_head.parameters()):
        raise KitError("The output layer is trained here, for which shared-prefix scoring has no gradient: freeze it.")
    with attention(causal_lm, "rpo_groups"):
        hidden = causal_lm.model(
            input_ids=groups.tokens, position_ids=groups.positions, use_cache=False, groups=groups
        ).last_hidden_state[0, groups.predictor]
    targets = input_ids[:, cut:][groups.at]
    with torch.autocast(input_ids.device.type, enabled=False):  # the types in there are chosen
        logps, entropy = TokenLogps.apply(hidden, causal_lm.lm_head.weight, targets, temperature)
    empty = torch.zeros(input_ids.shape[0], completion_length, device=input_ids.device)
    return empty.index_put(groups.at, logps), empty.index_put(groups.at, entropy)


class TokenLogps(torch.autograd.Function):
    """log softmax(W h / T)[target] of M hidden states (M, hidden), and the entropy (without gradient); both (M,).

    The gradient to h, (W[target] - sum_v p_v W[v]) / T for each token, is worked out on the way, chunk by chunk: the
    logits, 200 kB a token with SmolLM2's vocabulary, are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logps, entropy, slopes = [], [], []
        for h, target in zip(hidden.to(weight.dtype).split(_CHUNK), targets.split(_CHUNK), strict=True):
            each = torch.log_softmax((h @ weight.T).float() / temperature, -1)
            chances = each.exp()
            logps.append(each.gather(-1, target[:, None])[:, 0])
            entropy.append(-torch.linalg.vecdot(chances, each))
            if ctx.needs_input_grad[0]:
                slopes.append((weight[target] - chances.to(weight.dtype) @ weight) / temperature)
        ctx.save_for_backward(*([torch.cat(slopes)] if slopes else []))
        entropies = torch.cat(entropy)
        ctx.mark_non_differentiable(entropies)
        return torch.cat(logps), entropies

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return slope[:, None] * ctx.saved_tensors[0], None, None, None


class Move(torch.autograd.Function):
    """Rows of x (n, features) at `index`, zeros where it says n. No row is taken twice, so `back` undoes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return torch.cat([x, x.new_zeros(1, x.shape[1])])[index]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return torch.cat([slope, slope.new_zeros(1, slope.shape[1])])[ctx.saved_tensors[0]], None, None


def attend_in_groups(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, groups: Groups, **_: Any
) -> tuple[Tensor, None]:
    """Attention among N tokens laid out as `groups`: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D).

    H / K query heads read one key head, as more rows of the same matrix product: keys are never copied.
    """
    (rows, most), (size, longest) = groups.prompts.shape, groups.completions.shape[1:]
    heads, shared, width = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1]
    tokens = torch.cat([query * scaling, key, value], 1)[0].transpose(0, 1).flatten(1)
    moved = Move.apply(tokens, groups.slots, groups.places).view(len(groups.slots), -1, width)
    parts = [heads * shared, heads, heads]
    q, k, v = (x.view(rows, most, heads, -1, width) for x in moved[: rows * most].split(parts, 1))
    own_q, own_k, own_v = (x.view(rows, size, longest, heads, -1, width) for x in moved[rows * most :].split(parts, 1))
    q, k, v = q.permute(0, 2, 3, 1, 4), k[:, :, :, 0].transpose(1, 2), v[:, :, :, 0].transpose(1, 2)
    own_q = own_q.permute(0, 3, 1, 4, 2, 5)
    own_k, own_v = (x[..., 0, :].permute(0, 3, 1, 2, 4) for x in (own_k, own_v))

    never = torch.finfo(q.dtype).min
    absent = (groups.prompts == len(groups.places))[:, None, None, None]  # (R, 1, 1, 1, P)
    scores = (q.flatten(2, 3) @ k.mT).view(rows, heads, shared, most, most)
    chances = scores.masked_fill_(absent | _later(most, q), never).softmax(-1)
    read = (chances.flatten(2, 3) @ v).view(rows, heads, shared, most, width).permute(0, 3, 1, 2, 4)

    back = (own_q.flatten(2, 4) @ k.mT).view(*own_q.shape[:-1], most).masked_fill_(absent[:, :, None], never)
    own = (own_q.flatten(3, 4) @ own_k.mT).view(*own_q.shape[:-1], longest).masked_fill_(_later(longest, q), never)
    chances = torch.cat([back, own], -1).softmax(-1)
    own_read = (chances[..., :most].flatten(2, 4) @ v).view(own_q.shape)
    own_read = own_read + (chances[..., most:].flatten(3, 4) @ own_v).view(own_q.shape)
    own_read = own_read.permute(0, 2, 4, 1, 3, 5)  # (R, G, L, K, H / K, D)

    answers = torch.cat([read.reshape(rows * most, -1), own_read.reshape(rows * size * longest, -1)])
    return Move.apply(answers, groups.places, groups.slots).view(1, -1, heads * shared, width), None


def _later(length: int, like: Tensor) -> Tensor:
    """(length, length), True where the second token comes after the first."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)


AttentionInterface.register("rpo_groups", attend_in_groups)
