"""The benchmarks count what they claim to count, and run; here with tiny shapes only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop
from transformers import Qwen2Config, Qwen2ForCausalLM

from rpo_kit.memory import shape_of_config
from rpo_kit.models import local
from rpo_kit.models.lora import add_lora, copy_adapter, using_adapter
from rpo_kit.models.sampling import Decoder, attention
from rpo_kit.presets import ModelSettings, RLSettings, SFTSettings
from rpo_kit.training.shared_prefix import score, scoring

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
roofline, rl_step, sft_step = (importlib.import_module(name) for name in ("roofline", "rl_step", "sft_step"))


def flops_of(call: Callable[[], object]) -> int:
    """The FLOPs that torch counts; it omits the in-place addmm_, which is counted as addmm here."""
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, *_, **__: addmm_flop(y, a, b)}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()


def test_the_arithmetic_of_a_step_is_what_torch_counts():
    """Reading excludes fused attention, which torch does not count on a CPU; backward stops above the first layer."""
    settings = ModelSettings("x")
    config = Qwen2Config(
        vocab_size=300, hidden_size=128, intermediate_size=320, num_attention_heads=4, num_key_value_heads=2
    )
    config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
    model = add_lora(Qwen2ForCausalLM(config), settings)
    copy_adapter(model, "ref")
    rl = RLSettings(prompts_per_step=2, group_size=4, max_new_tokens=13)
    work = roofline.step_work(shape_of_config(config.to_dict()), settings, rl, prompt=40)
    groups = [(list(range(40)), [list(range(13))] * 4)] * 2

    prompts = torch.ones(2, 40, dtype=torch.long)
    with torch.no_grad(), using_adapter(model):
        decoder = Decoder(model, prompts, prompts, torch.rand(2, 4, 13), 1.0, [])

        def write() -> None:
            with attention(decoder.model, "rpo_cache"):
                for _ in range(12):
                    decoder.cache.length += 4
                    decoder.step()

        assert flops_of(write) == pytest.approx(work["writing"][0], rel=0.01)
        reading = flops_of(lambda: Decoder(model, prompts, prompts, torch.rand(2, 4, 13), 1.0, []))
        assert reading == pytest.approx(work["reading"][0], rel=0.06)
    with torch.no_grad(), scoring(model, "ref"):
        assert flops_of(lambda: score(model, groups, 1.0)) == pytest.approx(work["reference"][0], rel=0.01)
    with scoring(model):
        scored = []
        assert flops_of(lambda: scored.append(score(model, groups, 1.0))) == pytest.approx(work["policy"][0], rel=0.01)
        assert flops_of(scored[0].sum().backward) == pytest.approx(work["backward"][0], rel=0.06)


def test_a_phase_is_bound_by_arithmetic_or_by_bytes():
    machine = roofline.Machine(flops=100.0, bandwidth=10.0)
    work = {"policy": (500.0, 10.0), "writing": (100.0, 40.0)}
    assert roofline.bound(work, machine) == {"policy": 5.0, "writing": 4.0}
    text = roofline.report(work, machine, seconds=18.0)
    assert "bound 9.00 s, measured 18.00 s: 50% of the bound" in text
    assert text.count("(arithmetic)") == text.count("(bytes)") == 1


def test_the_peak_rates_of_this_machine_are_measured():
    machine = roofline.measure_machine(torch.float32, size=64, tries=2)
    assert machine.flops > 1e6
    assert machine.bandwidth > 1e6


@pytest.mark.parametrize("shared", [True, False])
def test_the_parts_of_a_step_are_measured(tiny_model, monkeypatch, shared):
    """Both our step and stock TRL's; the first step is not counted."""
    monkeypatch.setattr(rl_step, "TASK", "LaMP-3")
    shape = {"prompts": 2, "group": 2, "length": 150, "new": 4, "steps": 1, "micro": 0}
    figures = rl_step.measure(shared=shared, dtype="fp32", model=tiny_model, **shape)
    assert 0 < figures["sampling"] < figures["whole"]
    assert 0 <= figures["bookkeeping"] < figures["whole"]
    assert figures["prompt"] == pytest.approx(150, abs=8)
    assert rl_step.median([figures])["rest"] > 0


def test_both_write_the_same_number_of_tokens(tiny_model, monkeypatch):
    """End tokens are ignored here."""
    loaded = local.load_trainable(tiny_model, None, 0)
    settings = RLSettings(steps=1, prompts_per_step=1, group_size=2, max_new_tokens=40, micro_batch_tokens=10**9)
    seen = []
    original = rl_step.reinforce.accumulate_gradients
    monkeypatch.setattr(
        rl_step.reinforce,
        "accumulate_gradients",
        lambda *a: seen.append([len(t) for _, c in a[1] for t in c]) or original(*a),
    )
    rl_step.our_steps(loaded, rl_step.some_prompts(loaded, 1, 100), settings, 0)
    assert seen == [[40, 40]]


def test_a_folder_without_the_kit_is_rejected(tmp_path):
    with pytest.raises(SystemExit, match="is not a checkout of the kit"):
        rl_step.in_a_process(tmp_path, shared=True)


def test_the_sft_step_is_timed_both_ways(tiny_llama, capsys):
    loaded = sft_step.load_unsloth_trainable(ModelSettings(str(tiny_llama), max_seq_length=1024), 0)
    used = []
    own = sft_step.attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft_step, "attention", lambda model, name: used.append(name) or own(model, name))
        seconds = sft_step.measure(loaded, sft_step.rows(6), SFTSettings(steps=2, batch_size=2, accumulate=1))
    assert used == ["sdpa", "rpo_rows", "rpo_rows", "sdpa"]
    assert set(seconds) == {"blocks", "torch"}
    assert min(seconds.values()) > 0
