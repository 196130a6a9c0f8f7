"""Score the G completions of one prompt in a single row, so that the long prompt is read once instead of G times.

In RL a group of rewrites shares its prompt: query, generic answer and up to six history items. One row holds
`prompt, completion 1, …, completion G`; each completion sees the prompt and itself, and its positions go on from the
prompt's end. Log-probabilities and gradients equal those of G separate rows. Used by the RL trainer on the plain
Hugging Face path; Unsloth's GPU trainer groups prefixes itself, so there this module stands aside.

    row        p p p p a a b b b          tokens of the prompt, of completion a, of completion b
    position   0 1 2 3 4 5 4 5 6
"""

from __future__ import annotations

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
def generate_groups(model: Any, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
    """`model.generate`, but each distinct prompt is read once and its cache repeated for its rows.

    `input_ids` (B, P) is left-padded; the result is (B, P + new), as from `generate`.
    """
    prompts, row = torch.unique(torch.cat([input_ids, attention_mask], 1), dim=0, return_inverse=True)
    ids, mask = prompts.chunk(2, dim=1)
    cache = model(
        input_ids=ids[:, :-1],  # generate itself reads the last prompt token
        attention_mask=mask[:, :-1],
        position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_select_indices(row)
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, **settings)


def _logps(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logps, entropy
