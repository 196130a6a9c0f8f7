"""One row for a whole group gives what G separate rows give: log-probabilities and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from random_models import KINDS, random_model, random_policy
from transformers import PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.models import attention
from rpo_kit.models.attention import causal_lm
from rpo_kit.models.local import LoadedModel
from rpo_kit.training import shared_prefix
from rpo_kit.training.shared_prefix import (
    Group,
    micro_batches,
    pack_groups,
    refuse_other_head,
    score,
    scoring,
    why_not_shared_prefix,
)

GROUPS: list[Group] = [
    ([7, 3, 9, 30, 2, 8, 41, 12, 5], [[5, 6, 7, 8, 9], [11, 12], [13]]),
    ([3, 9, 30, 2, 8], [[21, 22, 23, 24], [25, 26, 27], [5, 6, 7, 8, 9]]),
]


def separately(model: PreTrainedModel, groups: list[Group], temperature: float) -> torch.Tensor:
    """The definition: each completion alone after its prompt, without padding."""
    logps = []
    for prompt, completions in groups:
        for completion in completions:
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
            logps.append(logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(logps)


def in_one_row(model: PreTrainedModel, groups: list[Group], temperature: float) -> torch.Tensor:
    with scoring(model):
        return score(model, groups, temperature)


@pytest.fixture(params=["blocks", "padded"])
def layout(request, monkeypatch) -> str:
    """How a CPU lays tokens out, and how a GPU does."""
    if request.param == "padded":
        monkeypatch.setattr(shared_prefix, "layout_of", attention.Padded.of)
    return str(request.param)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_those_of_separate_rows(llama, temperature):
    expected = separately(llama, GROUPS, temperature)
    torch.testing.assert_close(in_one_row(llama, GROUPS, temperature), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("layout")
def test_gradients_flow_through_the_shared_prompt(llama):
    weights = torch.linspace(-1, 1, 20)

    def gradients(logps: torch.Tensor) -> list[torch.Tensor]:
        llama.zero_grad()
        (logps * weights).sum().backward()
        return [p.grad.clone() for p in llama.parameters() if p.requires_grad]

    expected = gradients(separately(llama, GROUPS, 1.0))
    for got, want in zip(gradients(score(llama, GROUPS, 1.0)), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    """Up to three prompts with one to four completions each, all lengths unequal."""
    tokens = st.integers(1, 52)
    group = st.tuples(
        st.lists(tokens, min_size=1, max_size=8),
        st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4),
    )
    return draw(st.lists(group, min_size=1, max_size=3))


@pytest.mark.parametrize("how", ["blocks", "blocks, checkpointing", "padded", "padded, checkpointing", "rows"])
@pytest.mark.parametrize("kind", KINDS)
@examples(max_examples=12, deadline=None)
@given(some_groups(), st.integers(1, 2), st.integers(1, 3), st.sampled_from([0.7, 1.0]), st.integers(1, 9))
def test_on_any_shape_log_probabilities_loss_and_lora_gradients_are_the_plain_ones(
    kind, how, groups, heads, shared, temperature, block
):
    """To 1e-4 in fp32; the loss is the policy gradient's, with an arbitrary advantage per sequence."""
    model, results = random_model(kind, heads, shared, seed=len(groups)), []
    lengths = torch.tensor([len(completion) for _, completions in groups for completion in completions])
    advantages = torch.linspace(-1, 0.3, len(lengths)).repeat_interleave(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK", block)
        if how.startswith("padded"):
            patch.setattr(shared_prefix, "layout_of", attention.Padded.of)
        if how == "rows":
            patch.setattr(shared_prefix, "shares_prefix", lambda model: False)
        for scored in (separately, in_one_row):
            if scored is in_one_row and "checkpointing" in how:
                model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            model.zero_grad()
            with scoring(model) if scored is in_one_row else torch.enable_grad():
                logps = (
                    score(model, groups, temperature) if scored is in_one_row else scored(model, groups, temperature)
                )
                loss = -(logps * advantages).sum() / lengths.sum()
                loss.backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
            results.append([logps.detach(), loss.detach(), *gradients])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in results[0][2:]) > 0


def test_a_prompt_is_laid_out_once_and_positions_go_on_from_its_end():
    """The example in the module's docstring."""
    packed = pack_groups([([1, 2, 3, 4], [[11, 12], [21, 22, 23]]), ([5, 6], [[14]])])
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 11, 12, 21, 22, 23, 5, 6, 14]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1, 2]]
    assert packed.predictor.tolist() == [3, 4, 3, 6, 7, 10], "the prompt's last token predicts the first of each"
    assert packed.targets.tolist() == [11, 12, 21, 22, 23, 14]
    spans = [((b.prefix.start, b.prefix.stop), (b.own.start, b.own.stop)) for b in packed.layout.blocks]
    assert spans == [((0, 0), (0, 4)), ((0, 4), (4, 6)), ((0, 4), (6, 9)), ((9, 9), (9, 11)), ((9, 11), (11, 12))]


def test_on_a_gpu_each_group_has_a_padded_row_while_it_attends():
    """The same example: 9 and 3 tokens, in rows of 16."""
    groups = [([1, 2, 3, 4], [[11, 12], [21, 22, 23]]), ([5, 6], [[14]])]
    packed = pack_groups(groups)
    padded = attention.Padded.of([(4, [2, 3]), (2, [1])], "cpu", torch.float32)
    assert padded.places.tolist() == [*range(9), 16, 17, 18]
    assert padded.tokens[padded.places].tolist() == list(range(packed.tokens.shape[1]))
    looks = (padded.bias[0, 0] == 0).int().tolist()
    assert looks[5][:9] == [1, 1, 1, 1, 1, 1, 0, 0, 0], "the completion a, and its prompt"
    assert looks[8][:9] == [1, 1, 1, 1, 0, 0, 1, 1, 1], "b does not look at a"
    assert not any(row[9:] != [0] * 7 for row in looks[:9]), "nor anything at padding"


def test_a_long_prompt_attends_in_several_blocks(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 2)
    packed = pack_groups([([1, 2, 3, 4, 5], [[6]])])
    spans = [((b.prefix.start, b.prefix.stop), (b.own.start, b.own.stop)) for b in packed.layout.blocks]
    assert spans == [((0, 0), (0, 2)), ((0, 2), (2, 4)), ((0, 4), (4, 5)), ((0, 5), (5, 6))]


@pytest.mark.usefixtures("layout")
def test_a_completion_is_not_changed_by_what_stands_beside_it(llama):
    """Neither the other completions of its group nor other groups; checked by changing all of them."""
    before = score(llama, GROUPS, 1.0)
    (prompt, (first, *others)), (_, second) = GROUPS
    other = [[1 + (token + 7) % 52 for token in completion] for completion in others]
    after = score(llama, [(prompt, [first, *other]), ([4, 4, 4, 4, 4], second)], 1.0)
    torch.testing.assert_close(after[:5], before[:5])
    assert not torch.allclose(after[5:], before[5:])


def test_a_trained_output_layer_is_refused_because_its_gradient_would_be_missing(tiny_llama):
    loaded = random_policy("llama", tiny_llama)
    refuse_other_head(loaded, [5, 6, 7])
    loaded.model.lm_head.weight.requires_grad_()
    with pytest.raises(KitError, match="freeze it"):
        refuse_other_head(loaded, [5, 6, 7])


@pytest.mark.parametrize(
    ("kind", "config"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 4.0}), ("mistral", {})]
)
def test_logits_that_a_model_scales_are_scaled_here_too(kind, config, tiny_llama):
    loaded = random_policy(kind, tiny_llama, **config)
    check_head(loaded)
    refuse_other_head(loaded, [5, 6, 7])


def test_the_bias_of_an_output_layer_counts(tiny_llama):
    loaded = random_policy("llama", tiny_llama)
    head = causal_lm(loaded.model).get_output_embeddings()
    head.bias = torch.nn.Parameter(3 * torch.randn(len(head.weight)), requires_grad=False)
    check_head(loaded)


def check_head(loaded: LoadedModel) -> None:
    """Log-probabilities and the gradients of LoRA's weights are the model's own."""
    gradients = []
    for way in (separately, in_one_row):
        loaded.model.zero_grad()
        logps = way(loaded.model, GROUPS, 0.7)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        gradients.append([logps.detach(), *(p.grad.clone() for p in loaded.model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 4
    for own, here in zip(*gradients, strict=True):
        torch.testing.assert_close(here, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_a_model_whose_logits_are_something_else_is_refused_before_training(known, tiny_llama):
    loaded = random_policy("gemma2" if known else "llama", tiny_llama)
    if not known:
        head = causal_lm(loaded.model).get_output_embeddings()
        head.register_forward_hook(lambda module, inputs, logits: logits * 5)
    with pytest.raises(KitError, match=r"RL cannot score this .* model: its logits are not those of its output layer"):
        refuse_other_head(loaded, [5, 6, 7])


def test_micro_batches_hold_whole_groups_within_the_budget():
    """Sizes laid out: 4 + 6, 2 + 3, 9 + 9, 1 + 1 tokens."""
    groups = [([1] * 4, [[2] * 3] * 2), ([1] * 2, [[2] * 3]), ([1] * 9, [[2] * 9]), ([1], [[2]])]
    assert list(micro_batches(groups, 15)) == [[0, 1], [2], [3]], "a group larger than the budget stands alone"
    assert list(micro_batches(groups, 14)) == [[0], [1], [2], [3]]
    assert list(micro_batches(groups, 100)) == [[0, 1, 2, 3]]
    assert list(micro_batches(groups, 15, shared=False)) == [[0], [1], [2], [3]], "14 + 5: the prompt counts twice"
    assert list(micro_batches([], 15)) == []


def test_a_model_with_sliding_windows_keeps_its_own_attention():
    """Qwen's config decides it per layer: those from max_window_layers on."""
    whole = random_model("qwen2", 1, 1, seed=0)
    partly = random_model("qwen2", 1, 1, seed=0, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert attention.shares_prefix(whole)
    assert why_not_shared_prefix(whole) is None
    assert not attention.shares_prefix(partly)
    assert "this qwen2 model is not known" in str(why_not_shared_prefix(partly))
    torch.testing.assert_close(in_one_row(partly, GROUPS, 1.0), separately(partly, GROUPS, 1.0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(in_one_row(partly, GROUPS, 1.0), in_one_row(whole, GROUPS, 1.0), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("in_4_bit", [False, True])
def test_on_the_bundled_model_they_are_the_plain_ones_too(in_4_bit):
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
    prompts = torch.randint(3, 49_000, (2, 40)).tolist()
    groups = [
        (prompt[:length], [torch.randint(3, 49_000, (n,)).tolist() for n in lengths])
        for prompt, length, lengths in zip(prompts, (40, 31), ((12, 5, 1), (7, 12, 3)), strict=True)
    ]
    results, advantages = [], torch.linspace(-1, 0.3, 40)
    for scored in (separately, in_one_row):
        model.zero_grad()
        logps = scored(model, groups, 1.0)
        loss = -(logps * advantages).sum() / 40
        loss.backward()
        results.append([logps.detach(), loss.detach(), *(parameter.grad.clone() for parameter in trained)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
