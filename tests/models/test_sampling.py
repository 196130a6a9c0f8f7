"""Completions sampled from one row of the cache are what the plain model would write, each for itself."""

from typing import Any

import pytest
import torch
from random_models import KINDS, random_model

from rpo_kit.models.sampling import draw, sample_groups, until_end


def test_greedy_groups_write_what_separate_prompts_write(llama):
    torch.manual_seed(1)
    prompts, prompt_mask = torch.randint(1, 53, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    prompt_mask[1, :4] = 0
    expected = llama.generate(
        input_ids=prompts,
        attention_mask=prompt_mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )[:, prompts.shape[1] :]
    written = sample_groups(llama, prompts, prompt_mask, 3, new_tokens=6, temperature=0.0, ends=[])
    assert written.tolist() == [[row] * 3 for row in expected.tolist()]


def check_that_the_plain_model_draws_the_same(model: Any, vocabulary: int) -> None:
    """Sampled completions differ; what the shared cache predicts next for each is what the plain model predicts."""
    torch.manual_seed(0)
    prompt, ones = torch.randint(1, vocabulary, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    sampled = sample_groups(model, prompt, ones, 4, new_tokens=5, temperature=1.5, ends=[])[0]
    assert len({tuple(row) for row in sampled.tolist()}) == 4
    torch.manual_seed(0)
    prompt = torch.randint(1, vocabulary, (1, 4))
    for step in range(5):  # the same draws, from the plain model's distributions
        logits = model(input_ids=torch.cat([prompt.expand(4, -1), sampled[:, :step]], 1)).logits[:, -1]
        assert draw(logits[None], 1.5).flatten().tolist() == sampled[:, step].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [1, 3])
def test_each_sampled_completion_reads_its_own_tokens_and_no_others(kind, shared):
    check_that_the_plain_model_draws_the_same(random_model(kind, heads=2, shared=shared, seed=0), 53)


@pytest.mark.slow
@pytest.mark.parametrize("in_4_bit", [False, True])
def test_so_it_does_on_the_bundled_model(in_4_bit):
    from rpo_kit.models.local import load_trainable
    from rpo_kit.presets import ModelSettings

    model = load_trainable(ModelSettings("smollm2", in_4_bit), None, seed=0).model.float()
    for layer in (m for m in model.modules() if hasattr(m, "compute_dtype")):  # the dequantised weights too
        layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
    check_that_the_plain_model_draws_the_same(model.eval(), 49_000)


def test_a_token_is_drawn_as_often_as_its_probability_says():
    """20,000 draws: a share is then within 0.014 of its probability in all but one case in 10,000 (four deviations)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, float("-inf")])
    drawn = draw(logits.expand(1, 20_000, -1), 0.8)
    shares = torch.bincount(drawn.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(shares, (logits / 0.8).softmax(-1), atol=0.014, rtol=0)
    assert shares[4] == 0


def test_sampling_stops_when_every_completion_has_ended(llama):
    prompt, ones = torch.randint(1, 53, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    assert sample_groups(llama, prompt, ones, 2, new_tokens=9, temperature=1.0, ends=list(range(53))).shape == (1, 2, 1)


def test_trap_3_a_completion_ends_with_its_first_end_token():
    assert until_end([5, 6, 2, 7, 2], [2]) == [5, 6, 2]
    assert until_end([5, 6, 7], [2]) == [5, 6, 7]
    assert until_end([9, 2], [2, 9]) == [9]
    assert until_end([], [2]) == []
