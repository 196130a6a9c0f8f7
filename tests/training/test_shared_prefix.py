"""One row for a whole group gives what G separate rows give: log-probabilities, entropies and gradients."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rpo_kit.training.shared_prefix import block_causal_mask, pack, sample_groups, score_groups


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=53,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).float()


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
        return [p.grad.clone() for p in llama.parameters()]

    expected = gradients(separately(llama, ids, mask, length, 1.0)[0])
    for got, want in zip(gradients(score_groups(llama, ids, mask, length, 1.0)[0]), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def test_a_prompt_is_packed_once_and_positions_go_on_from_its_end():
    prompt, ones = torch.tensor([[7, 8], [7, 8]]), torch.ones(2, 2, dtype=torch.long)
    packed = pack(prompt, ones, torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1, 1], [1, 0]]))
    assert packed.tokens.tolist() == [[7, 8, 1, 2, 3]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.segments.tolist() == [[0, 0, 1, 1, 2]]
    assert packed.source.tolist() == [1, 2, 1], "a completion's first token is predicted by the prompt's last one"


def test_a_completion_sees_the_prompt_and_itself_only():
    mask = block_causal_mask(torch.tensor([[0, 1, 1, 2]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, False, False, True],
    ]


def test_greedy_groups_write_what_separate_prompts_write(llama):
    ids, mask, length = batch_of_groups()
    prompts, prompt_mask = ids[:2, :-length], mask[:2, :-length]
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


def test_each_sampled_completion_reads_its_own_tokens_and_no_others(llama):
    """Sampled completions differ; what the shared cache predicts next for each is what the plain model predicts."""
    torch.manual_seed(0)
    prompt, ones = torch.randint(1, 53, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    sampled = sample_groups(llama, prompt, ones, 4, new_tokens=5, temperature=1.5, ends=[])[0]
    assert len({tuple(row) for row in sampled.tolist()}) == 4
    torch.manual_seed(0)
    prompt, chances = torch.randint(1, 53, (1, 4)), []
    for step in range(5):  # the same draws, from the plain model's distributions
        rows = torch.cat([prompt.expand(4, -1), sampled[:, :step]], 1)
        chances.append((llama(input_ids=rows).logits[:, -1] / 1.5).softmax(-1))
        assert chances[-1].multinomial(1).flatten().tolist() == sampled[:, step].tolist()


def test_sampling_stops_when_every_completion_has_ended(llama):
    prompt, ones = torch.randint(1, 53, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    assert sample_groups(llama, prompt, ones, 2, new_tokens=9, temperature=1.0, ends=list(range(53))).shape == (1, 2, 1)
