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

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from rpo_kit.models.attention import Layout, attention, causal_lm, layout_of

_DROP = 0.25  # ours: share of ended rows at which they are dropped; each time, the buffers of the others are copied
_LOOK = 8  # ours: replayed steps between two looks at whether all completions have ended; each look waits for the GPU


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
                decoder.cache.length += group  # a graph always reads its whole buffers: its shapes must not change
            step()
            if (not graph or done % _LOOK == 0) and bool(decoder.ended.all()):
                break
            if not graph:
                decoder.drop_ended_rows()
    return decoder.all_written()[..., :done]


class Buffers:
    """Keys (R, K, D, capacity) and values (R, K, capacity, D) of all layers, in place of transformers' cache.

    First the prompts fill them from one row, `spans` of it, so that they end at `length`; then each step writes at
    `slots`, and what is there up to `length` is read.
    """

    is_compileable = False

    def __init__(self, spans: list[tuple[int, int]], length: int, capacity: int) -> None:
        self.spans: list[tuple[int, int]] | None = spans
        self.length, self.capacity = length, capacity
        self.slots = torch.empty(0)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.spans is not None:
            self.layers[layer] = self._filled(key[0].mT, value[0], self.spans)
            return key, value
        keys, values = self.layers[layer]
        keys.index_copy_(3, self.slots, key.mT)
        values.index_copy_(2, self.slots, value)
        return keys[..., : self.length], values[:, :, : self.length]

    def _filled(self, key: Tensor, value: Tensor, spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        heads, width, _count = key.shape
        keys = key.new_zeros(len(spans), heads, width, self.capacity)
        values = value.new_zeros(len(spans), heads, self.capacity, width)
        for row, (start, end) in enumerate(spans):
            keys[row, :, :, self.length - (end - start) : self.length] = key[..., start:end]
            values[row, :, self.length - (end - start) : self.length] = value[:, start:end]
        return keys, values

    def get_query_offset(self, *_: object) -> int:
        return 0

    def get_seq_length(self, *_: object) -> int:
        return 0

    def get_mask_sizes(self, queries: int, *_: object) -> tuple[int, int]:
        return queries, 0


class Decoder:
    """The state of a decoding, in tensors that keep their places: what a CUDA graph needs, and all that `step` changes.

    `written` (R, G, new_tokens) are the completions, `ended` (R, G) says which of them have met an end token. Without a
    graph, rows whose completions have all ended are dropped now and then; `rows` says which are left.
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
        """Read the prompts, in one row without their padding, and draw the first token of each completion."""
        (rows, length), (_, group, new_tokens), device = prompts.shape, uniforms.shape, prompts.device
        self.model, self.uniforms, self.temperature = causal_lm(model), uniforms, temperature
        self.ends = torch.tensor(list(ends) or [-1], device=device)
        mask = mask.bool()
        positions, lengths = mask.cumsum(1) - 1, mask.sum(1).tolist()
        spans = list(zip(accumulate(lengths, initial=0), accumulate(lengths), strict=False))
        capacity = length + group * (new_tokens - 1)
        self.cache = Buffers(spans, length, capacity)
        layout = layout_of([(length, ()) for length in lengths], device, self.model.dtype)
        with attention(self.model, "rpo_packed"):
            hidden = self._hidden(prompts[mask][None], None, positions[mask][None], layout)
        self.cache.spans, last = None, torch.tensor([end - 1 for _, end in spans], device=device)
        self.cache.slots = torch.arange(length - group, length, device=device)  # moved on by each step before it writes
        # What is added to the scores, (R, K, H / K * G, capacity): 0 where a completion may look.
        keys = self.cache.layers[0][0]
        shared, neg_inf = self.model.config.num_attention_heads // keys.shape[1], torch.finfo(keys.dtype).min
        self.bias = keys.new_full((rows, keys.shape[1], shared * group, capacity), neg_inf)
        self.bias[..., :length].masked_fill_(mask[:, None, None], 0.0)
        self.own = (1 - torch.eye(group, dtype=keys.dtype, device=device)).mul_(neg_inf).repeat(shared, 1)
        self.positions = positions[:, -1:].repeat(1, group)
        self.rows = torch.arange(rows, device=device)
        self.now = torch.zeros(1, dtype=torch.long, device=device)
        self.written = torch.zeros(rows, group, new_tokens, dtype=torch.long, device=device)
        logits = self._logits(hidden[0, last])[:, None].expand(-1, group, -1)
        self.tokens = draw(logits, temperature, uniforms[..., 0])
        self.written[..., 0] = self.tokens
        self.result = torch.zeros_like(self.written)
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

    def drop_ended_rows(self) -> None:
        """Go on without the rows that have ended, once they are a quarter."""
        left = (~self.ended.all(1)).nonzero()[:, 0]
        if len(left) > (1 - _DROP) * len(self.rows):
            return
        self.result[self.rows] = self.written
        for name in ("rows", "uniforms", "bias", "positions", "tokens", "written", "ended"):
            setattr(self, name, getattr(self, name)[left])
        self.cache.layers = {layer: (keys[left], values[left]) for layer, (keys, values) in self.cache.layers.items()}

    def all_written(self) -> Tensor:
        """The completions of all rows, also of those dropped."""
        self.result[self.rows] = self.written
        return self.result

    def captured(self) -> Callable[[], None]:
        """`step` as a CUDA graph: recorded after one run on a side stream, in which libraries initialize."""
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

    def _hidden(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, layout: Layout | None = None) -> Tensor:
        output = self.model.base_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,  # a trainer may have set the config's to False
            layout=layout,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states (N, H). Contiguous: from a slice of (R, P, H) torch would copy the head's weight R times."""
        logits: Tensor = self.model.get_output_embeddings()(hidden.contiguous())
        return logits


@torch.no_grad()
def generate_rows(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    pad: int,
    group: int,
    new_tokens: int,
    temperature: float,
    ends: Sequence[int],
    uniforms: Tensor | None = None,
) -> Tensor:
    """`sample_groups` with `model.generate`, one row per completion, for models whose attention the kit does not know.
    The same `uniforms` draw the same tokens.
    """
    if uniforms is None:
        uniforms = torch.rand(len(ids), group, new_tokens)
    uniforms_RS = uniforms.to(ids.device).flatten(0, 1)

    def drawn(written: Tensor, logits: Tensor) -> Tensor:
        chosen = draw(logits, temperature, uniforms_RS[:, written.shape[1] - ids.shape[1]])
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    config = GenerationConfig(
        max_new_tokens=new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        repetition_penalty=1.0,
        use_cache=True,
        do_sample=False,  # what is likeliest, once `drawn` has left one token
    )
    rows = {"input_ids": ids.repeat_interleave(group, 0), "attention_mask": mask.repeat_interleave(group, 0)}
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    written = generate(**rows, generation_config=config, logits_processor=LogitsProcessorList([drawn]))
    return written[:, ids.shape[1] :].view(len(ids), group, -1)


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


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
