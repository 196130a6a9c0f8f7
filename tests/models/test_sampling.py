"""Completions sampled from one row of the buffers are what the plain model would write, each for itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_models import KINDS, random_model, random_policy
from transformers import PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.models import attention, sampling
from rpo_kit.models.local import sample
from rpo_kit.models.lora import _packed_linear, merged_adapter, using_adapter
from rpo_kit.models.sampling import draw, sample_groups, until_end


def prompts_of_two_lengths() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    prompts, mask = torch.randint(1, 53, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    return prompts, mask


def written_by_generate(model: PreTrainedModel, prompts: torch.Tensor, mask: torch.Tensor, new: int) -> list[list[int]]:
    """transformers' own way, with a cache that grows."""
    settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}
    return model.generate(input_ids=prompts, attention_mask=mask, **settings)[:, prompts.shape[1] :].tolist()


@pytest.mark.parametrize("layout", [attention.layout_of, attention.Padded.of])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_groups_write_what_separate_prompts_write(kind, layout, monkeypatch):
    """With the prompts read block by block, as on a CPU, and in padded rows, as on a GPU."""
    monkeypatch.setattr(sampling, "layout_of", layout)
    model, (prompts, mask) = random_model(kind, heads=2, shared=2, seed=0).eval(), prompts_of_two_lengths()
    expected = written_by_generate(model, prompts, mask, 6)
    written = sample_groups(model, prompts, mask, 3, new_tokens=6, temperature=0.0, ends=[])
    assert written.tolist() == [[row] * 3 for row in expected]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for adapter in (using_adapter, merged_adapter):
        with torch.no_grad(), adapter(model):
            again = sample_groups(model, prompts, mask, 3, new_tokens=6, temperature=0.0, ends=[])
        assert again.tolist() == written.tolist(), "with LoRA in one piece, or merged"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sample_groups(model, prompts, mask, 3, 6, 0.0, []).tolist() == written.tolist(), "and afterwards as before"


@pytest.mark.parametrize("rows", [1, 16, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_multiplies_as_it_does_unpacked(rows, dtype):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((2, rows, 48), (80, 48), (80,)))
    for added in (None, bias):
        expected = torch.nn.functional.linear(x.float(), weight.float(), None if added is None else added.float())
        result = _packed_linear(weight, added)(x)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=1e-2)


def test_on_a_cpu_without_avx512_no_weight_is_packed(monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refused)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    ones = torch.ones(3, 8, dtype=torch.bfloat16)
    assert _packed_linear(torch.ones(2, 8, dtype=torch.bfloat16), None)(ones).tolist() == [[8.0, 8.0]] * 3


def as_it_is(model: PreTrainedModel) -> None:
    pass


def without_a_cache_in_the_settings(model: PreTrainedModel) -> None:
    model.config.use_cache = False


def under_gradient_checkpointing(model: PreTrainedModel) -> None:
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()


@pytest.mark.parametrize("spoil", [as_it_is, without_a_cache_in_the_settings, under_gradient_checkpointing])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_trainer_has_set_does_not_change_what_is_written(tiny_llama, kind, spoil):
    loaded = random_policy(kind, tiny_llama, ends=[2])
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    expected = [
        written_by_generate(loaded.model.eval(), torch.tensor([ids]), torch.ones(1, len(ids)), 7)[0] for ids in prompts
    ]
    spoil(loaded.model)
    training = loaded.model.training
    completions = sample(loaded, prompts, 2, 7, temperature=0.0)
    assert completions == [[until_end(ids, [2])] * 2 for ids in expected]
    assert loaded.model.training == training


def test_a_model_with_attention_that_is_not_known_here_writes_through_its_own_generate(tiny_llama, monkeypatch):
    loaded = random_policy("llama", tiny_llama, ends=[2])
    loaded.model.generation_config.update(top_k=1, top_p=0.1, repetition_penalty=3.0)  # would change what is drawn
    expected = sample(loaded, [[5, 6, 7], [8, 9]], 2, 6, temperature=0.0)
    uniforms = torch.rand(2, 8, 6)
    expected_draws = sample(loaded, [[5, 6, 7], [8, 9]], 8, 6, 1.5, uniforms)
    assert len({tuple(row) for row in expected_draws[0]}) > 1
    monkeypatch.setattr(attention, "shares_prefix", lambda model: False)
    assert sample(loaded, [[5, 6, 7], [8, 9]], 2, 6, temperature=0.0) == expected
    assert sample(loaded, [[5, 6, 7], [8, 9]], 8, 6, 1.5, uniforms) == expected_draws, "the numbers decide here too"
    alone = sample(loaded, [[8, 9]], 8, 6, 1.5, uniforms[1:])
    assert alone == expected_draws[1:], "whatever is sampled beside it, so on several ranks too"


def test_prompts_that_do_not_fit_into_memory_at_once_are_halved(tiny_llama, monkeypatch):
    loaded, prompts = random_policy("llama", tiny_llama, ends=[2]), [[5, 6, 7], [8, 9], [4], [6, 6], [7]]
    uniforms, sizes = torch.rand(5, 2, 6), []
    expected, original = sample(loaded, prompts, 2, 6, 1.0, uniforms), sampling.sample_groups

    def small_card(model, ids, *rest):
        sizes.append(len(ids))
        if len(ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.4 GiB")
        return original(model, ids, *rest)

    monkeypatch.setattr(sampling, "sample_groups", small_card)
    limit = 2
    with pytest.warns(UserWarning, match="5 prompts do not fit into the GPU's memory at once"):
        assert sample(loaded, prompts, 2, 6, 1.0, uniforms) == expected
    assert sizes == [5, 2, 3, 1, 2]
    limit = 0
    with (
        pytest.warns(UserWarning, match="halved"),
        pytest.raises(KitError, match=r"2 x 6 tokens after .* of 3: .*4 b"),
    ):
        sample(loaded, prompts, 2, 6, 1.0, uniforms)


@torch.no_grad()
def check_that_the_plain_model_draws_the_same(model: PreTrainedModel, vocabulary: int) -> None:
    """Sampled completions differ; what the buffers predict next for each is what the plain model predicts."""
    torch.manual_seed(0)
    prompt, ones = torch.randint(1, vocabulary, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    uniforms = torch.rand(1, 4, 5)
    sampled = sample_groups(model, prompt, ones, 4, 5, 1.5, [], uniforms)[0]
    assert len({tuple(row) for row in sampled.tolist()}) == 4
    for step in range(5):  # the same draws, from the plain model's distributions
        logits = model(input_ids=torch.cat([prompt.expand(4, -1), sampled[:, :step]], 1)).logits[:, -1]
        assert draw(logits[None], 1.5, uniforms[..., step]).flatten().tolist() == sampled[:, step].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [1, 3])
def test_each_sampled_completion_reads_its_own_tokens_and_no_others(kind, shared):
    check_that_the_plain_model_draws_the_same(random_model(kind, heads=2, shared=shared, seed=0), 53)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_prompts_beside_it(kind):
    model, (prompts, mask) = random_model(kind, heads=2, shared=2, seed=0), prompts_of_two_lengths()
    uniforms = torch.rand(2, 3, 6)
    together = sample_groups(model, prompts, mask, 3, 6, 1.0, [], uniforms)
    alone = sample_groups(model, prompts[1:, 4:], mask[1:, 4:], 3, 6, 1.0, [], uniforms[1:])
    assert together[1].tolist() == alone[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_keeps_its_tensors_in_place_so_that_a_graph_can_replay_it(kind):
    """What a CUDA graph needs, checked where there is none: full buffers, no tensor replaced, the same tokens."""
    model, (prompts, mask) = random_model(kind, heads=2, shared=2, seed=0), prompts_of_two_lengths()
    uniforms = torch.rand(2, 3, 6)
    expected = sample_groups(model, prompts, mask, 3, 6, 1.0, [], uniforms, graph=False)
    decoder = sampling.Decoder(model, prompts, mask, uniforms, 1.0, [])
    decoder.cache.length = decoder.cache.capacity
    state = [decoder.cache.slots, decoder.positions, decoder.now, decoder.bias, decoder.tokens, decoder.written]
    state += [decoder.ended, *(tensor for pair in decoder.cache.layers.values() for tensor in pair)]
    places = [tensor.data_ptr() for tensor in state]
    with torch.no_grad(), attention.attention(decoder.model, "rpo_cache"):
        for _ in range(5):
            decoder.step()
    assert decoder.written.tolist() == expected.tolist()
    assert [tensor.data_ptr() for tensor in state] == places


def load_bundled(in_4_bit: bool) -> PreTrainedModel:
    """The bundled model with a new adapter, in fp32."""
    from rpo_kit.models.local import load_trainable
    from rpo_kit.presets import ModelSettings

    model = load_trainable(ModelSettings("smollm2", in_4_bit), None, seed=0).model.float().eval()
    for layer in (m for m in model.modules() if hasattr(m, "compute_dtype")):  # the dequantised weights too
        layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
    return model


@pytest.fixture(scope="module")
def bundled_in_4_bits() -> PreTrainedModel:
    return load_bundled(True)


@pytest.mark.slow
def test_a_4_bit_model_is_merged_in_16_bits_where_a_card_has_room(bundled_in_4_bits, monkeypatch):
    """Here on a CPU, in fp32: what it writes is what the adapter beside the 4-bit weights writes."""
    from rpo_kit.models import lora

    model = bundled_in_4_bits
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    ids = torch.randint(3, 49_000, (1, 12))
    with torch.no_grad():
        with using_adapter(model):
            beside = model(input_ids=ids).logits
        monkeypatch.setattr(lora, "_has_room_to_merge", lambda layers: True)
        with merged_adapter(model):
            merged = model(input_ids=ids).logits
    torch.testing.assert_close(merged, beside, atol=2e-3, rtol=1e-3)
    assert not torch.equal(merged, beside), "the weights were added up before"


@pytest.mark.slow
@pytest.mark.parametrize("in_4_bit", [False, True])
def test_so_it_does_on_the_bundled_model(in_4_bit, request):
    model = request.getfixturevalue("bundled_in_4_bits") if in_4_bit else load_bundled(False)
    check_that_the_plain_model_draws_the_same(model, 49_000)


def test_a_token_is_drawn_as_often_as_its_probability_says():
    """20,000 draws: a share is then within 0.014 of its probability in all but one case in 10,000 (four deviations)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, float("-inf")])
    drawn = draw(logits.expand(1, 20_000, -1), 0.8, torch.rand(1, 20_000))
    shares = torch.bincount(drawn.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(shares, (logits / 0.8).softmax(-1), atol=0.014, rtol=0)
    assert shares[4] == 0


def test_the_largest_and_the_smallest_number_draw_tokens_that_can_be_drawn():
    logits = torch.tensor([float("-inf"), 1.0, 0.0, float("-inf")])
    drawn = draw(logits.expand(2, -1), 1.0, torch.tensor([0.0, 1 - 2**-24]))
    assert drawn.tolist() == [1, 2]


def test_sampling_stops_when_every_completion_has_ended(llama):
    prompt, ones = torch.randint(1, 53, (1, 4)), torch.ones(1, 4, dtype=torch.long)
    assert sample_groups(llama, prompt, ones, 2, new_tokens=9, temperature=1.0, ends=list(range(53))).shape == (1, 2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_have_ended_are_dropped_and_the_others_go_on_as_they_would(kind, monkeypatch):
    model, ends = random_model(kind, heads=2, shared=2, seed=0), list(range(0, 53, 3))
    torch.manual_seed(1)
    prompts, mask, uniforms = torch.randint(1, 53, (8, 6)), torch.ones(8, 6, dtype=torch.long), torch.rand(8, 2, 20)
    alone = [
        sample_groups(model, prompts[n : n + 1], mask[:1], 2, 20, 1.0, ends, uniforms[n : n + 1])[0] for n in range(8)
    ]
    left: list[int] = []
    step = sampling.Decoder.step
    monkeypatch.setattr(sampling.Decoder, "step", lambda self: (left.append(len(self.rows)), step(self)))
    together = sample_groups(model, prompts, mask, 2, 20, 1.0, ends, uniforms)
    for one, other in zip(together.tolist(), alone, strict=True):
        assert [until_end(row, ends) for row in one] == [until_end(row, ends) for row in other.tolist()]
    assert left[0] == 8 > left[-1], "so it was tested"


def test_one_new_token_is_enough(llama):
    prompt, ones = torch.randint(1, 53, (2, 4)), torch.ones(2, 4, dtype=torch.long)
    assert sample_groups(llama, prompt, ones, 3, new_tokens=1, temperature=1.0, ends=[]).shape == (2, 3, 1)


def test_the_head_reads_a_contiguous_row_per_prompt(llama, monkeypatch):
    """From a slice, torch copies the head's weight for each prompt."""
    seen: list[torch.Tensor] = []
    forward: Callable[[torch.Tensor], torch.Tensor] = llama.lm_head.forward
    monkeypatch.setattr(llama.lm_head, "forward", lambda x: (seen.append(x), forward(x))[1])
    sample_groups(llama, *prompts_of_two_lengths(), 3, new_tokens=3, temperature=1.0, ends=[])
    assert [tuple(x.shape) for x in seen] == [(2, 16), (6, 16), (6, 16)]
    assert all(x.is_contiguous() for x in seen)


def test_trap_3_a_completion_ends_with_its_first_end_token():
    assert until_end([5, 6, 2, 7, 2], [2]) == [5, 6, 2]
    assert until_end([5, 6, 7], [2]) == [5, 6, 7]
    assert until_end([9, 2], [2, 9]) == [9]
    assert until_end([], [2]) == []
