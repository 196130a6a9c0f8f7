"""SFT's attention on a CPU: by blocks, with the losses and gradients of torch's own."""

from __future__ import annotations

import pytest
import torch
from random_models import random_model

from rpo_kit.models import attention
from rpo_kit.models.attention import blocks_on_cpu, causal_lm

ROWS = torch.tensor([[7, 3, 9, 30, 2, 8, 41, 12, 5, 6], [3, 9, 30, 2, 8, 21, 0, 0, 0, 0]])
MASK = torch.tensor([[1] * 10, [1] * 6 + [0] * 4])


def loss_and_gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=ROWS, attention_mask=MASK, labels=ROWS.where(MASK > 0, -100), use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("block", "long_row"), [(128, 1024), (4, 1024), (128, 9)])
def test_padded_rows_learn_what_they_learn_with_torchs_attention(kind, block, long_row, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", block)
    monkeypatch.setattr(attention, "_LONG_ROW", long_row)
    called: list[int] = []
    blocks = attention.Blocks.attend
    monkeypatch.setattr(attention.Blocks, "attend", lambda *args: called.append(1) or blocks(*args))
    model = random_model(kind, heads=2, shared=2, seed=1)
    config, own = causal_lm(model).config, loss_and_gradients(model)
    before = config._attn_implementation
    assert not called
    with blocks_on_cpu(model):
        by_blocks = loss_and_gradients(model)
    assert bool(called) == (long_row > ROWS.shape[1])
    assert len(by_blocks) == len(own) > 10
    for one, other in zip(by_blocks, own, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert config._attn_implementation == before


def test_a_model_with_attention_of_another_kind_keeps_it():
    model = random_model("gemma2", heads=2, shared=2, seed=1)
    config = causal_lm(model).config
    before = config._attn_implementation
    with blocks_on_cpu(model):
        assert config._attn_implementation == before
