"""Sampling: G completions of a prompt from one row, so that the prompt is read and kept once. The same on CPU and GPU.

Used by RL for its groups, and by `generate` with G = 1. Keys and values lie in buffers of full length that are made
once: a row holds a prompt and then, step by step, one token of each of its G completions. So every decoding step has
the same shapes, and on a GPU it is captured once as a CUDA graph and replayed: launching the kernels one by one from
Python takes longer than running them. Keys are not copied for the query heads that share them. Left out: beams.

    a row of the buffers, G = 3     p p p p | a b c | a b c | a b c ...      p: the prompt; a, b, c: its completions
    what completion b looks at      x x x x | . x . | . x . | . x .

    sample_groups(model, prompts, mask, group=8, new_tokens=96, temperature=1.0, ends=[2]).shape     # (4, 8, 57)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

_LOOK = 8  # ours: replayed steps between two looks at whether all completions have ended; each look waits for the GPU


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


@torch.no_grad()
def sample_groups(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    group: int,
    new_tokens: int,
    temperature: float,
    ends: Sequence[int],
    uniforms: Tensor | None = None,
    graph: bool | None = None,
) -> Tensor:
    """Sample `group` completions of each left-padded prompt (R, P); (R, group, at most new_tokens), greedy at 0.

    What follows a completion's end token is meaningless. `graph` captures a step as a CUDA graph; by default on a GPU.
    """
    if uniforms is None:
        uniforms = torch.rand(len(prompts), group, new_tokens, device=prompts.device)
    decoder = Decoder(model, prompts, prompt_mask, uniforms.to(prompts.device), temperature, ends)
    if new_tokens == 1 or bool(decoder.ended.all()):
        return decoder.written[..., :1]
    graph = prompts.is_cuda if graph is None else graph
    with attention(decoder.model, "rpo_cache"):
        step = decoder.captured() if graph else decoder.step
        for done in range(2, new_tokens + 1):
            if not graph:
                decoder.cache.length += group  # of a graph's buffers all is read always: its shapes must not change
            step()
            if (not graph or done % _LOOK == 0) and bool(decoder.ended.all()):
                break
    return decoder.written[..., :done]


class Buffers:
    """Keys and values of all layers, (R, K, capacity, D) each. New ones are written at `slots`; of what is there, the
    first `length` are read. Passed to the model in place of transformers' cache.
    """

    is_compileable = False

    def __init__(self, slots: Tensor, capacity: int) -> None:
        self.slots, self.capacity, self.length = slots, capacity, len(slots)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            rows, heads, width = key.shape[0], key.shape[1], key.shape[3]
            self.layers[layer] = (
                key.new_zeros(rows, heads, self.capacity, width),
                value.new_zeros(rows, heads, self.capacity, width),
            )
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return keys[:, :, : self.length], values[:, :, : self.length]

    def get_query_offset(self, *_: object) -> int:
        return 0

    def get_seq_length(self, *_: object) -> int:
        return 0

    def get_mask_sizes(self, queries: int, *_: object) -> tuple[int, int]:
        return queries, 0


class Decoder:
    """The state of a decoding, in tensors that keep their places: what a CUDA graph needs, and all that `step` changes.

    `written` (R, G, new_tokens) are the completions, `ended` (R, G) says which of them have met an end token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Tensor,
        mask: Tensor,
        uniforms: Tensor,
        temperature: float,
        ends: Sequence[int],
    ) -> None:
        """Read the prompts and draw the first token of each completion."""
        (rows, length), (_, group, new_tokens), device = prompts.shape, uniforms.shape, prompts.device
        self.model, self.uniforms, self.temperature = causal_lm(model), uniforms, temperature
        self.ends = torch.tensor(list(ends) or [-1], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        capacity = length + group * (new_tokens - 1)
        self.cache = Buffers(torch.arange(length, device=device), capacity)
        hidden = self._hidden(prompts, mask, positions)[:, -1]
        self.cache.slots = torch.arange(length - group, length, device=device)  # moved on by each step before it writes
        # What is added to the scores, (R, K, H / K * G, capacity): 0 where a completion may look.
        keys = self.cache.layers[0][0]
        shared, neg_inf = self.model.config.num_attention_heads // keys.shape[1], torch.finfo(keys.dtype).min
        self.bias = keys.new_full((rows, keys.shape[1], shared * group, capacity), neg_inf)
        self.bias[..., :length].masked_fill_(mask.bool()[:, None, None], 0.0)
        self.own = (1 - torch.eye(group, dtype=keys.dtype, device=device)).mul_(neg_inf).repeat(shared, 1)
        self.positions = positions[:, -1:].repeat(1, group)
        self.now = torch.zeros(1, dtype=torch.long, device=device)
        self.written = torch.zeros(rows, group, new_tokens, dtype=torch.long, device=device)
        logits = self._logits(hidden)[:, None].expand(-1, group, -1)
        self.tokens = draw(logits, temperature, uniforms[..., 0])
        self.written[..., 0] = self.tokens
        self.ended = torch.isin(self.tokens, self.ends)

    def step(self) -> None:
        """Read one token of each completion and draw the next."""
        self.cache.slots.add_(self.tokens.shape[1])
        self.positions.add_(1)
        self.now.add_(1)
        self.bias.index_copy_(3, self.cache.slots, self.own.expand(*self.bias.shape[:2], -1, -1))
        hidden = self._hidden(self.tokens, self.bias[..., : self.cache.length], self.positions)
        logits = self._logits(hidden.flatten(0, 1)).unflatten(0, self.tokens.shape)
        self.tokens.copy_(draw(logits, self.temperature, self.uniforms.index_select(2, self.now)[..., 0]))
        self.written.index_copy_(2, self.now, self.tokens[..., None])
        self.ended.logical_or_(torch.isin(self.tokens, self.ends))

    def captured(self) -> Callable[[], None]:
        """`step` as a CUDA graph: recorded once, after one run on the side in which libraries set themselves up."""
        self.cache.length = self.cache.capacity
        state = [self.cache.slots, self.positions, self.now, self.bias, self.tokens, self.written, self.ended]
        before = [tensor.clone() for tensor in state]

        def rewind() -> None:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        rewind()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        rewind()  # capturing runs nothing; a replay begins with the tensors as they are
        return graph.replay

    def _hidden(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model.base_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,  # a trainer may have set the config's to False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states (N, H). Contiguous: from a slice of (R, P, H) torch would copy the head's weight R times."""
        logits: Tensor = self.model.get_output_embeddings()(hidden.contiguous())
        return logits


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """One token for each distribution in (…, vocabulary), decided by numbers (…) in [0, 1).

    By the inverse of the distribution function: multinomial would draw a random number for every word (measured: a
    fifth of the sampling time on a CPU).
    """
    if temperature == 0:
        return logits.argmax(-1)
    reached = (logits.float() / temperature).softmax(-1).cumsum(-1)
    drawn = uniforms[..., None].to(reached.dtype) * reached[..., -1:]
    return torch.searchsorted(reached, drawn, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def attend_in_cache(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention of G new tokens per row to its buffer of T: query (R, H, G, D), key and value (R, K, T, D), result
    (R, G, H, D). The H / K query heads of a key head are read as more rows of it. `mask` (R, K, H / K * G, T) is what
    is added to the scores.
    """
    width = query.shape[-1]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    scores = torch.baddbmm(mask.flatten(0, 1), query.reshape(len(keys), -1, width), keys.mT, alpha=scaling)
    attended = torch.bmm(scores.softmax(-1), values)
    return attended.view(query.shape).transpose(1, 2), None


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


AttentionInterface.register("rpo_cache", attend_in_cache)


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model attend by the registered function of this name, and afterwards as before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
