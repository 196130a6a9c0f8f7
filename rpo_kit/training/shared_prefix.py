"""Score the G completions of one prompt in a single pass, so that the long prompt is read once instead of G times.

In RL a group of completions shares its prompt: query, generic answer and up to six history items. Here all tokens of
some groups lie in one row without padding ("packed"), each prompt once; positions of a completion go on from its
prompt's end. Only attention needs to know what belongs together, so it is ours (registered with transformers): a prompt
looks at itself, a completion at its prompt and at itself. Log-probabilities and gradients equal those of G separate
rows. Models whose attention is not known here are scored in separate rows, through the same head.

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
from transformers import PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.models.attention import Layout, attention, causal_lm, layout_of, shares_prefix
from rpo_kit.models.local import LoadedModel, sample
from rpo_kit.models.lora import using_adapter

_COMPARED = 8  # ours: tokens whose log-probabilities are compared with the model's own, before training
_MAX_APART = 0.5  # ours: nats by which they may differ at most
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
    """Around `score` and the backward pass that follows: which adapter scores, and by which attention. (Under gradient
    checkpointing the backward pass runs the layers again.)
    """
    lm = causal_lm(model)
    name = "rpo_packed" if shares_prefix(model) else lm.config._attn_implementation
    with using_adapter(lm, adapter), attention(lm, name):
        yield


def score(model: PreTrainedModel, groups: Sequence[Group], temperature: float) -> Tensor:
    """Log-probability of each completion token, (M,): completion after completion, without padding. For models that
    `refuse_other_head` lets pass.
    """
    lm = causal_lm(model)
    if shares_prefix(model):
        packed = pack_groups(groups, model.device, lm.dtype)
        with attention(lm, "rpo_packed"):
            output = lm.base_model(
                input_ids=packed.tokens, position_ids=packed.positions, use_cache=False, layout=packed.layout
            )
        hidden, targets = output.last_hidden_state[0, packed.predictor], packed.targets
    else:
        ids, mask, predictor, targets = _rows(groups, model.device)
        output = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)[predictor]
    head = lm.get_output_embeddings()
    return token_logps(hidden, head.weight, targets, temperature / _logit_scale(lm), getattr(head, "bias", None))


def refuse_other_head(loaded: LoadedModel, prompt: list[int]) -> None:
    """Raise KitError if `score` has no gradient for the model's output layer, or does not give its log-probabilities:
    both are compared on the first tokens that the model itself writes after `prompt`.
    """
    lm = causal_lm(loaded.model)
    if any(parameter.requires_grad for parameter in lm.get_output_embeddings().parameters()):
        raise KitError("The output layer is trained here, for which scoring has no gradient: freeze it.")
    ((completion,),) = sample(loaded, [prompt], 1, _COMPARED, 0.0)
    tokens, was_training = torch.tensor([prompt + completion], device=lm.device), lm.training
    lm.eval()
    with torch.no_grad():
        logits = lm(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        own = logits.log_softmax(-1).gather(-1, tokens[0, len(prompt) :, None])[:, 0]
        with scoring(loaded.model):
            here = score(loaded.model, [(prompt, [completion])], 1.0)
    lm.train(was_training)
    apart = float((own - here).abs().max())
    if apart > _MAX_APART or getattr(lm.config, "final_logit_softcapping", None):
        raise KitError(
            f"RL cannot score this {lm.config.model_type} model: its logits are not those of its output layer alone, "
            f"and log-probabilities would be wrong (here by {apart:.2f} per token at most). Take another "
            "reflection.name, for instance a Llama or Qwen model."
        )


def _logit_scale(lm: PreTrainedModel) -> float:
    """What the model multiplies its logits by: Cohere by `logit_scale`, Granite by 1 / `logits_scaling`."""
    return (getattr(lm.config, "logit_scale", None) or 1.0) / (getattr(lm.config, "logits_scaling", None) or 1.0)


def why_not_shared_prefix(model: PreTrainedModel) -> str | None:
    """Why each completion is scored with a prompt of its own, or None where a group shares it."""
    if shares_prefix(model):
        return None
    return f"the attention of this {model.config.model_type} model is not known here"


# ---- layout -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedGroups:
    """N tokens in one row: each prompt, followed by its completions."""

    tokens: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    predictor: Tensor  # (M,) which token predicts each of the M completion tokens
    targets: Tensor  # (M,) these tokens
    layout: Layout  # what each token looks at


def pack_groups(
    groups: Sequence[Group], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PackedGroups:
    """Lay groups out one after the other."""
    tokens: list[int] = []
    positions: list[int] = []
    predictor: list[int] = []
    targets: list[int] = []
    for prompt, completions in groups:
        end = len(tokens) + len(prompt)
        tokens += prompt
        positions += range(len(prompt))
        for completion in completions:
            first, last = len(tokens), len(tokens) + len(completion)
            # the prompt's last token predicts the first one of each completion
            predictor += [end - 1, *range(first, last - 1)]
            targets += completion
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
    ids, at = (torch.tensor([numbers]).to(device) for numbers in (tokens, positions))
    predicting, predicted = (torch.tensor(numbers).to(device) for numbers in (predictor, targets))
    lengths = [(len(prompt), [len(completion) for completion in completions]) for prompt, completions in groups]
    return PackedGroups(ids, at, predicting, predicted, layout_of(lengths, device, dtype))


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
    """log softmax((W h + b) / T)[target] of M hidden states (M, hidden); (M,).

    The gradient to h, (W[target] - sum_v p_v W[v]) / T for each token, is worked out on the way, chunk by chunk: the
    logits, 200 kB per token with SmolLM2's vocabulary, are neither kept nor computed twice.
    """

    @staticmethod
    def forward(
        ctx: Context, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, bias: Tensor | None = None
    ) -> Tensor:
        logprobs, gradients = [], []
        hidden = (hidden / temperature).to(weight.dtype)  # M x H numbers; dividing the logits would touch M x V
        for h, target in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True):
            logits = h @ weight.T
            if bias is not None:
                logits += bias / temperature
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
        return (grad_output[:, None] * ctx.saved_tensors[0]), None, None, None, None


token_logps: Callable[..., Tensor] = TokenLogps.apply
