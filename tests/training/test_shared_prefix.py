"""One row for a whole group gives what G separate rows give: log-probabilities, entropies and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from random_models import KINDS, random_model
from transformers import LlamaForCausalLM

from rpo_kit.errors import KitError
from rpo_kit.training.shared_prefix import lay_out, score_groups


def batch_of_groups(group_size: int = 3) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two prompts of unequal length (left-padded), completions of unequal length (right-padded), groups interleaved."""
    torch.manual_seed(1)
    prompts, masks = torch.randint(1, 53, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    masks[1, :4] = 0
    order = [0, 1] * group_size
    completions = torch.randint(1, 53, (2 * group_size, 5))
    completion_mask = (torch.arange(5)[None] < torch.tensor([5, 2, 1, 4, 3, 5])[:, None]).long()
    return (
        torch.cat([prompts[order] * masks[order], completions], 1),
        torch.cat([masks[order], completion_mask], 1),
        5,
    )


def separately(model: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor, length: int, temperature: float):
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -length - 1 : -1] / temperature
    logps = logits.log_softmax(-1).gather(-1, ids[:, -length:, None])[..., 0]
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return logps * mask[:, -length:], entropy * mask[:, -length:]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies_equal_those_of_separate_rows(llama, temperature):
    ids, mask, length = batch_of_groups()
    expected, expected_entropy = separately(llama, ids, mask, length, temperature)
    logps, entropy = score_groups(llama, ids, mask, length, temperature)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy.detach(), atol=1e-5, rtol=1e-4)


def test_gradients_flow_through_the_shared_prompt(llama):
    ids, mask, length = batch_of_groups()
    weights = torch.linspace(-1, 1, 30).reshape(6, 5)

    def gradients(logps: torch.Tensor) -> list[torch.Tensor]:
        llama.zero_grad()
        (logps * weights).sum().backward()
        return [p.grad.clone() for p in llama.parameters() if p.requires_grad]

    expected = gradients(separately(llama, ids, mask, length, 1.0)[0])
    for got, want in zip(gradients(score_groups(llama, ids, mask, length, 1.0)[0]), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Up to three prompts with one to four completions each, all lengths unequal, groups in mixed order."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    prompts = [draw(st.lists(st.integers(1, 52), min_size=1, max_size=8)) for _ in sizes]
    order = draw(st.permutations([n for n, size in enumerate(sizes) for _ in range(size)]))
    completions = [draw(st.lists(st.integers(1, 52), min_size=1, max_size=6)) for _ in order]
    before, after = max(map(len, prompts)), max(map(len, completions))
    rows = [
        [0] * (before - len(prompts[n])) + prompts[n] + own + [0] * (after - len(own))
        for n, own in zip(order, completions, strict=True)
    ]
    return torch.tensor(rows), (torch.tensor(rows) > 0).long(), after


@pytest.mark.parametrize("kind", KINDS)
@examples(max_examples=15, deadline=None)
@given(batches(), st.integers(1, 2), st.integers(1, 3), st.sampled_from([0.7, 1.0]))
def test_on_any_shape_log_probabilities_loss_and_lora_gradients_are_the_plain_ones(
    kind, batch, heads, shared, temperature
):
    """To 1e-4 in fp32; the loss is the policy gradient's, with an arbitrary advantage a sequence."""
    ids, mask, length = batch
    model, found = random_model(kind, heads, shared, seed=len(ids)), []
    advantages = torch.linspace(-1, 0.3, len(ids))[:, None]
    for score in (separately, score_groups):
        model.zero_grad()
        logps, entropy = score(model, ids, mask, length, temperature)
        loss = -(logps * advantages).sum() / mask[:, -length:].sum()
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found.append([logps.detach(), entropy.detach(), loss.detach(), *gradients])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in found[0][3:]) > 0


def test_a_prompt_is_laid_out_once_and_positions_go_on_from_its_end():
    """The example in the module's docstring, with the members of the groups given in mixed order."""
    prompts, mask = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6], [1, 2, 3, 4]]), torch.ones(3, 4, dtype=torch.long)
    mask[1, :2] = 0
    completions = torch.tensor([[11, 12, 0], [14, 0, 0], [21, 22, 23]])
    groups = lay_out(prompts, mask, completions, (completions > 0).long())
    assert groups.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 11, 12, 14, 21, 22, 23]]
    assert groups.positions.tolist() == [[0, 1, 2, 3, 0, 1, 4, 5, 2, 4, 5, 6]]
    assert groups.prompts.tolist() == [[0, 1, 2, 3], [12, 12, 4, 5]], "12 tokens, so 12 says that there is none"
    assert groups.completions.tolist() == [[[6, 7, 12], [9, 10, 11]], [[8, 12, 12], [12, 12, 12]]]
    assert groups.predictor.tolist() == [3, 6, 5, 3, 9, 10], "the prompt's last token predicts the first of each"


def test_a_completion_is_not_changed_by_what_stands_beside_it(llama):
    """Neither the other completions of its group nor other groups; checked by changing all of them."""
    ids, mask, length = batch_of_groups()
    before = score_groups(llama, ids, mask, length, 1.0)[0]
    changed = ids.clone()
    changed[1:, -length:] = 1 + (changed[1:, -length:] + 7) % 52
    changed[1::2, :-length] = 1 + (changed[1::2, :-length] + 5) % 52
    after = score_groups(llama, changed, mask, length, 1.0)[0]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1:], before[1:])


def test_a_trained_output_layer_is_refused_because_its_gradient_would_be_missing(llama):
    ids, mask, length = batch_of_groups()
    llama.lm_head.weight.requires_grad_()
    with pytest.raises(KitError, match="freeze it"):
        score_groups(llama, ids, mask, length, 1.0)


@pytest.fixture(scope="module")
def real_batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two prompts of 40 and 31 tokens with three completions each, of up to 12, in SmolLM2's vocabulary."""
    torch.manual_seed(3)
    ids, mask = torch.randint(3, 49_000, (6, 52)), torch.ones(6, 52, dtype=torch.long)
    ids[:3, :40], ids[3:, :40] = ids[0, :40].clone(), ids[3, :40].clone()
    mask[3:, :9] = 0
    mask[:, 40:] = torch.arange(12)[None] < torch.tensor([12, 5, 1, 7, 12, 3])[:, None]
    return ids * mask, mask, 12


@pytest.mark.slow
@pytest.mark.parametrize("in_4_bit", [False, True])
def test_on_the_bundled_model_they_are_the_plain_ones_too(real_batch, in_4_bit):
    """SmolLM2-135M in fp32, and quantised to 4 bits by bitsandbytes, with a LoRA on all its projections: to 1e-4."""
    from rpo_kit.models.local import load_trainable
    from rpo_kit.presets import ModelSettings

    model = load_trainable(ModelSettings("smollm2", in_4_bit), None, seed=0).model.float()
    for layer in (m for m in model.modules() if hasattr(m, "compute_dtype")):  # the dequantised weights too
        layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
    torch.manual_seed(4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data += 0.02 * torch.randn_like(parameter)  # B begins as zeros: A would have no gradient
    (ids, mask, length), found = real_batch, []
    advantages = torch.linspace(-1, 0.3, len(ids))[:, None]
    for score in (separately, score_groups):
        model.zero_grad()
        logps, _ = score(model, ids, mask, length, 1.0)
        loss = -(logps * advantages).sum() / mask[:, -length:].sum()
        loss.backward()
        found.append([logps.detach(), loss.detach(), *(parameter.grad.clone() for parameter in trained)])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
