"""One row for a whole group gives what G separate rows give: log-probabilities, entropies and gradients."""

import pytest
import torch
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
