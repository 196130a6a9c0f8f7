"""Score the G completions of one prompt in a single row, so that the long prompt is read once instead of G times.

In RL a group of rewrites shares its prompt: query, generic answer and up to six history items. One row holds
`prompt, completion 1, …, completion G`; each completion sees the prompt and itself, and its positions go on from the
prompt's end. Log-probabilities and gradients equal those of G separate rows. Used by the RL trainer on the plain
Hugging Face path; Unsloth's GPU trainer groups prefixes itself, so there this module stands aside.

    row        p p p p a a b b b          tokens of the prompt, of completion a, of completion b
    position   0 1 2 3 4 5 4 5 6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 512  # ours: tokens whose logits (vocabulary wide, fp32) stand in memory at a time: 100 MB for SmolLM2


@dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens; `row` and `source` (N,) say where the hidden state stands that predicts each scored token."""

    tokens: Tensor
    positions: Tensor
    segments: Tensor  # 0 prompt, 1..G completions, -1 padding
    row: Tensor
    source: Tensor
    targets: Tensor
    at: tuple[Tensor, Tensor]  # where each scored token stands in (batch, completion)


def pack(prompts: Tensor, prompt_mask: Tensor, completions: Tensor, completion_mask: Tensor) -> PackedRows:
    """Put the completions of equal prompts behind one copy of it. All inputs are (B, length), masks 0 or 1."""
    _, group = torch.unique(prompts.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)
    rows: list[list[tuple[int, int, int]]] = []
    row, source, targets, batch, place = [], [], [], [], []
    for number in range(int(group.max()) + 1):
        members = (group == number).nonzero().flatten().tolist()
        prompt = prompts[members[0]][prompt_mask[members[0]] == 1].tolist()
        packed = [(token, position, 0) for position, token in enumerate(prompt)]
        for segment, member in enumerate(members, 1):
            own = completions[member][completion_mask[member] == 1].tolist()
            start = len(packed)
            packed += [(token, len(prompt) + i, segment) for i, token in enumerate(own)]
            row += [number] * len(own)
            source += [len(prompt) - 1 if i == 0 else start + i - 1 for i in range(len(own))]
            targets += own
            batch += [member] * len(own)
            place += list(range(len(own)))
        rows.append(packed)
    longest = max(map(len, rows))
    padded = torch.tensor([packed + [(0, 0, -1)] * (longest - len(packed)) for packed in rows], device=prompts.device)
    tokens, positions, segments = padded.unbind(-1)
    flat = torch.tensor([row, source, targets, batch, place], device=prompts.device)
    return PackedRows(tokens, positions, segments, flat[0], flat[1], flat[2], (flat[3], flat[4]))


def block_causal_mask(segments: Tensor) -> Tensor:
    """(R, 1, T, T), True where a token may look: backwards, at the prompt and at its own segment."""
    steps = torch.arange(segments.shape[1], device=segments.device)
    backwards = steps[:, None] >= steps[None, :]
    reads, read = segments[:, :, None], segments[:, None, :]
    return (backwards & ((read == 0) | (read == reads)))[:, None]


def score_groups(
    model: Any, input_ids: Tensor, attention_mask: Tensor, completion_length: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each completion token; both (B, completion_length), zero where masked."""
    cut = input_ids.shape[1] - completion_length
    packed = pack(input_ids[:, :cut], attention_mask[:, :cut], input_ids[:, cut:], attention_mask[:, cut:])
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal_lm.model(
        input_ids=packed.tokens,
        attention_mask=block_causal_mask(packed.segments),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state[packed.row, packed.source]
    pieces = [
        checkpoint(_logps, causal_lm.lm_head, h, t, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(_CHUNK), packed.targets.split(_CHUNK), strict=True)
    ]
    scored = torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
    empty = torch.zeros(input_ids.shape[0], completion_length, device=input_ids.device)
    return empty.index_put(packed.at, scored[0]), empty.index_put(packed.at, scored[1])


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

    A row of the cache holds the prompt once and the tokens of all its completions, and each step reads one new token of
    each: (R, group) instead of R * group rows which would all carry, and attend to, a copy of the prompt's cache.
    """
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=prompts, attention_mask=prompt_mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    tokens = [_sample(out.logits.expand(-1, group, -1), temperature)]
    seen = prompt_mask.bool()[:, None, None].expand(-1, -1, group, -1)
    own = torch.eye(group, dtype=torch.bool, device=prompts.device).expand(len(prompts), 1, group, group)
    ended = torch.isin(tokens[0], torch.tensor(ends, device=prompts.device))
    while len(tokens) < new_tokens and not ended.all():
        seen = torch.cat([seen, own], -1)
        out = model(
            input_ids=tokens[-1],
            attention_mask=seen,
            position_ids=positions[:, -1:].expand(-1, group) + len(tokens),
            past_key_values=out.past_key_values,
        )
        tokens.append(_sample(out.logits, temperature))
        ended |= torch.isin(tokens[-1], torch.tensor(ends, device=prompts.device))
    return torch.stack(tokens, -1)


def _sample(logits: Tensor, temperature: float) -> Tensor:
    """One token for each distribution in (R, group, vocabulary)."""
    if temperature == 0:
        return logits.argmax(-1)
    chances = (logits.float() / temperature).softmax(-1)
    return chances.flatten(0, 1).multinomial(1).view(chances.shape[:2])


def _logps(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logps, entropy
