"""REINFORCE++ with baseline is the algorithm of the module's first paragraph, on a Llama small enough to check.

The traps of the RL stage are numbered as in the project's notes: 1 resume, 2 frozen adapter, 3 pad and end token,
4 groups without variance, 12 versions.
"""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models import local
from rpo_kit.models.local import LoadedModel, load_trainable
from rpo_kit.presets import RLSettings, get_preset
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run
from rpo_kit.training import progress, reinforce
from rpo_kit.training import rewards as rewards_module
from rpo_kit.training.curriculum import prompt_order
from rpo_kit.training.reinforce import (
    advantages,
    ensure_reference,
    make_trainer,
    rl_dataset,
    train_rl,
    trainer_class,
    trainer_config,
)
from rpo_kit.training.sft import train_sft
from rpo_kit.training.synthesis import synthesize

SETTINGS = RLSettings(
    steps=1,
    prompts_per_step=2,
    group_size=3,
    micro_batch=3,
    learning_rate=1e-2,
    beta=0.1,
    temperature=0.7,
    max_new_tokens=12,
    save_every=1,
)
MANY_ENDS = list(range(2, 400, 12))  # so many end tokens that completions have different lengths


@pytest.fixture(autouse=True)
def unsloth_first_and_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    local._unsloth()
    monkeypatch.setattr(progress, "precision", lambda: {"bf16": False, "fp16": False})


@pytest.fixture
def policy(tiny_llama: Path) -> LoadedModel:
    """The random Llama in fp32 with a LoRA adapter that does something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.generation_config.eos_token_id = MANY_ENDS
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama, padding_side="left")
    return LoadedModel(get_peft_model(model, lora), tokenizer, 2048)


def prompts(golds: list[str]) -> Dataset:
    """One row a gold; prompts of different lengths."""
    texts = ["a short one", "a prompt which is quite a bit longer than the others are", "another"]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{texts[n % 3]} {n}"}],
            "gold": gold,
            "k": 2 + n,
            "generic": "3",
            "history": ["1"],
        }
        for n, gold in enumerate(golds)
    ]
    return Dataset.from_list(rows)


def reward_by_text(record: list[float]) -> Callable[..., float]:
    """A reward that differs within a group and has nothing to do with the task; 0.5 where the gold is "same"."""

    def reward(task: Any, text: str, gold: str, items: int, weight: float) -> float:
        record.append(0.5 if gold == "same" else (sum(text.encode()) % 17) / 16)
        return record[-1]

    return reward


def one_step(
    policy: LoadedModel, settings: RLSettings, golds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *hooks
) -> tuple[Any, dict[str, torch.Tensor], list[float]]:
    """Train one step; the trainer, its rollout batch and the rewards in the batch's order."""
    rewards: list[float] = []
    monkeypatch.setattr(rewards_module, "reward", reward_by_text(rewards))
    trainer = make_trainer(policy, get_task("LaMP-3"), prompts(golds), settings, tmp_path, None)
    trainer.args.max_grad_norm = 1e9  # clipping would scale the gradient that is compared
    batch, generate = {}, trainer._generate_and_score_completions

    def remember(inputs: Any) -> Any:
        out = generate(inputs)
        batch.update({name: value for name, value in out.items() if isinstance(value, torch.Tensor)})
        return out

    trainer._generate_and_score_completions = remember
    for hook in hooks:
        hook(trainer, batch)
    trainer.train()
    return trainer, batch, rewards


# ---- the advantage ------------------------------------------------------------------------------------------------


REWARDS = torch.tensor([1.0, 0.0, 1.0, 1.0])  # two groups of two
LENGTHS = torch.tensor([1.0, 3.0, 2.0, 2.0])


def test_whitening_counts_each_centred_reward_once_for_every_token():
    # c = 0.5, -0.5, 0, 0; 8 tokens
    # mu  = (1*0.5 - 3*0.5) / 8 = -0.125
    # var = (1*0.625^2 + 3*0.375^2 + 4*0.125^2) / 8 = 0.875 / 8 = 0.109375
    found = advantages(REWARDS, LENGTHS, 2)
    assert found.tolist() == pytest.approx([1.889822, -1.133893, 0.377964, 0.377964], abs=1e-5)
    assert (LENGTHS * found).sum().item() == pytest.approx(0.0, abs=1e-6)
    assert (LENGTHS * found**2).sum().item() == pytest.approx(8.0, rel=1e-5)


def test_without_baseline_the_rewards_themselves_are_whitened():
    # mu = (1 + 0 + 2 + 2) / 8 = 5/8, var = (5*(3/8)^2 + 3*(5/8)^2) / 8 = 15/64
    found = advantages(REWARDS, LENGTHS, 2, "reinforce++")
    assert found.tolist() == pytest.approx([(r - 5 / 8) / math.sqrt(15 / 64) for r in REWARDS.tolist()])


def test_rloo_compares_with_the_other_attempts():
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.2, 0.2, 0.2])  # 1 - (0 + 0.5)/2, 0 - (1 + 0.5)/2, 0.5 - (1 + 0)/2
    found = advantages(rewards, torch.ones(6), 3, "rloo")
    assert found.tolist() == pytest.approx([0.75, -0.75, 0.0, 0.0, 0.0, 0.0], abs=1e-6)


def test_grpo_divides_by_the_spread_of_the_group():
    found = advantages(torch.tensor([1.0, 0.0, 0.3, 0.3]), torch.ones(4), 2, "grpo")
    assert found.tolist() == pytest.approx([0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4), 0, 0])


def test_with_equal_lengths_the_mean_is_not_moved():
    found = advantages(torch.tensor([0.25, -0.25, 1.0, -1.0]), torch.full((4,), 7.0), 2)
    assert found.tolist() == pytest.approx([c / math.sqrt(2.125 / 4) for c in (0.25, -0.25, 1.0, -1.0)])


@pytest.mark.parametrize("algorithm", reinforce.ALGORITHMS)
def test_a_batch_in_which_all_are_equally_good_gives_no_advantage_and_no_nan(algorithm):
    assert advantages(torch.full((4,), 0.5), LENGTHS, 2, algorithm).tolist() == [0.0] * 4
    nothing_written = advantages(torch.zeros(2), torch.zeros(2), 2, algorithm)
    assert nothing_written.isfinite().all()


@examples(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(1, 6))
def test_the_advantage_is_the_formula_written_out_in_plain_python(data, group, prompts):
    """Unequal lengths, one group, groups without variance: whatever hypothesis finds."""
    count = group * prompts
    numbers = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.775, 1.0]), min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=count, max_size=count))
    means = [sum(numbers[i // group * group : i // group * group + group]) / group for i in range(count)]
    centred = [r - mean for r, mean in zip(numbers, means, strict=True)]
    mu = sum(n * c for n, c in zip(lengths, centred, strict=True)) / sum(lengths)
    var = sum(n * (c - mu) ** 2 for n, c in zip(lengths, centred, strict=True)) / sum(lengths)
    found = advantages(torch.tensor(numbers), torch.tensor(lengths).float(), group)
    assert found.tolist() == pytest.approx([(c - mu) / math.sqrt(max(var, 1e-8)) for c in centred], abs=2e-3)


def test_the_trainers_advantages_are_the_formula(policy, tmp_path, monkeypatch):
    _, batch, rewards = one_step(policy, SETTINGS, ["a", "b"], tmp_path, monkeypatch)
    lengths = batch["completion_mask"].sum(1).tolist()
    assert len(rewards) == len(lengths) == 6
    assert len(set(lengths)) > 1, "completions of one length would hide the weighting"
    centred = [r - sum(rewards[i // 3 * 3 : i // 3 * 3 + 3]) / 3 for i, r in enumerate(rewards)]
    tokens = sum(lengths)
    mu = sum(n * c for n, c in zip(lengths, centred, strict=True)) / tokens
    var = sum(n * (c - mu) ** 2 for n, c in zip(lengths, centred, strict=True)) / tokens
    assert batch["advantages"].tolist() == pytest.approx([(c - mu) / math.sqrt(var) for c in centred], abs=1e-5)


@pytest.mark.slow
def test_on_two_processes_the_advantages_are_those_of_one_on_the_same_batch(tiny_llama, tmp_path):
    """Two ranks (gloo), a group each: the whitening is global, and both ranks end with the same adapter."""
    script = Path(__file__).with_name("one_step_of_two_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, script, tiny_llama, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    rewards, lengths, found = (
        torch.cat([rank[name] for rank in ranks]) for name in ("rewards", "lengths", "advantages")
    )
    assert len(set(rewards.tolist())) > 2
    torch.testing.assert_close(found, advantages(rewards, lengths.float(), 3), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:3], advantages(rewards[:3], lengths[:3].float(), 3)), (
        "each rank alone would differ"
    )
    first, second = (rank["adapter"] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(value.any() for name, value in first.items() if "lora_B" in name), "0 before the step"


@pytest.mark.slow
def test_unsloths_class_for_gpus_trains_with_the_same_advantages(tiny_llama, tmp_path):
    """The source which Unsloth makes of TRL's trainer on a GPU, generated and driven here, on a CPU."""
    script = Path(__file__).with_name("one_step_of_unsloths_class.py")
    # Its grouping of prefixes needs Unsloth's own forward pass; a plain Llama would not be told what belongs together.
    # And uncompiled: what torch makes of its functions on a CPU fails on some machines, and says nothing of a GPU.
    settings = {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_GRPO_PREFIX_GROUPER": "0", "TORCHDYNAMO_DISABLE": "1"}
    settings |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, script, tiny_llama, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    assert seen["bases"][:2] == ["RewritingTrainer", "UnslothGRPOTrainer"]
    assert len(set(seen["rewards"].tolist())) > 2
    expected = advantages(seen["rewards"], seen["lengths"].float(), 3)
    torch.testing.assert_close(seen["advantages"], expected, atol=1e-5, rtol=1e-5)
    assert seen["moved"]
    assert abs(seen["kl"]) < 1e-6, "taken to the SFT adapter, at which the step begins, and not to the base model"


def test_trap_4_a_group_without_variance_is_logged_and_has_no_advantage_before_whitening(policy, tmp_path, monkeypatch):
    trainer, batch, rewards = one_step(policy, SETTINGS, ["same", "b"], tmp_path, monkeypatch)
    assert rewards[:3] == [0.5] * 3
    assert len(set(rewards[3:])) > 1
    logged = pd.read_csv(tmp_path / "log.csv")
    assert logged["frac_reward_zero_std"].tolist() == [0.5]
    assert list(trainer._logs["advantages"])[:3] == [0.0] * 3, "TRL keeps them as they are before whitening"
    after = batch["advantages"][:3].tolist()
    assert after == pytest.approx([after[0]] * 3), "the whitening moves them all alike, by -mu / sigma"


def test_trap_4_a_step_of_such_groups_only_does_not_move_the_policy(policy, tmp_path, monkeypatch):
    before = adapter_weights(policy.model)
    _, batch, _ = one_step(policy, replace(SETTINGS, beta=0.0), ["same", "same"], tmp_path, monkeypatch)
    assert batch["advantages"].tolist() == [0.0] * 6
    assert pd.read_csv(tmp_path / "log.csv")["frac_reward_zero_std"].tolist() == [1.0]
    after = adapter_weights(policy.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- the loss -----------------------------------------------------------------------------------------------------


def log_probabilities(model: Any, batch: dict[str, torch.Tensor], temperature: float) -> list[torch.Tensor]:
    """Of each completion's tokens, one sequence at a time, without padding: the definition."""
    found = []
    for prompt, mask, completion, own in zip(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"], strict=True
    ):
        prompt, completion = prompt[mask == 1], completion[own == 1]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0] / temperature
        logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logps.gather(-1, completion[:, None])[:, 0])
    return found


@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_the_gradient_is_the_handwritten_one(policy, tmp_path, monkeypatch, moved):
    """loss = -sum_i A_i sum_t log p_it / sum L_i + beta sum (log p - log p_ref)^2 / 2 / sum L_i, as rho = 1.

    With `moved` the policy has left the SFT adapter, so that the KL part pulls it back.
    """
    reference, compared = copy.deepcopy(policy.model), []

    def compare_at_the_step(trainer: Any, batch: dict[str, torch.Tensor]) -> None:
        from transformers import TrainerCallback

        weights = [p for p in trainer.model.parameters() if p.requires_grad]
        torch.manual_seed(2)
        for weight in weights:
            weight.data += moved * torch.randn_like(weight)

        class Compare(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                logps = log_probabilities(trainer.model, batch, SETTINGS.temperature)
                with torch.no_grad():
                    anchors = log_probabilities(reference, batch, SETTINGS.temperature)
                loss = sum(
                    (-a * logp + SETTINGS.beta * (logp - anchor) ** 2 / 2).sum()
                    for a, logp, anchor in zip(batch["advantages"], logps, anchors, strict=True)
                ) / sum(map(len, logps))
                distance = max((a - b).abs().max().item() for a, b in zip(logps, anchors, strict=True))
                compared.append((distance, [w.grad.clone() for w in weights], torch.autograd.grad(loss, weights)))

        trainer.add_callback(Compare())

    one_step(policy, SETTINGS, ["a", "b"], tmp_path, monkeypatch, compare_at_the_step)
    ((distance, got, expected),) = compared  # one update: the two micro-batches are one batch
    assert distance > 0.05 if moved else distance < 1e-5
    assert max(g.abs().max().item() for g in expected) > 1e-4
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
    logged = pd.read_csv(tmp_path / "log.csv")["kl"].item()
    assert logged > 1e-4 if moved else logged == pytest.approx(0.0, abs=1e-9)


def test_log_probabilities_loss_and_lora_gradients_are_those_of_stock_trls_own_methods(policy, tmp_path, monkeypatch):
    """The same micro-batch, once as we score it and once by the methods that we override, with a KL that pulls."""
    trainer, _, _ = one_step(policy, SETTINGS, ["a", "b"], tmp_path, monkeypatch)
    inputs, found = trainer._buffered_inputs[0], []
    ids, mask = (torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], 1) for part in ("ids", "mask"))
    for shared in (True, False):
        monkeypatch.setattr(reinforce, "shares_prefix", lambda model, shared=shared: shared)
        assert (reinforce.scores_apart(trainer.model) is None) == shared
        trainer.model.zero_grad()
        length = inputs["completion_ids"].shape[1]
        logps, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)[:2]
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        gradients = [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]
        found.append([logps.detach() * inputs["completion_mask"], loss.detach(), *gradients])
    for ours, stock in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in found[0][2:]) > 1e-4


def test_the_rewrites_of_a_prompt_stand_in_one_micro_batch(policy, tmp_path, monkeypatch):
    """So that they share it in scoring; each keeps its own completion and advantage."""
    settings = replace(SETTINGS, prompts_per_step=6, micro_batch=6)
    trainer, batch, _ = one_step(policy, settings, ["a", "b", "c", "d", "e", "f"], tmp_path, monkeypatch)
    dealt, names = trainer._buffered_inputs, ("prompt_ids", "completion_ids", "advantages")
    assert [len(part["prompt_ids"].unique(dim=0)) for part in dealt] == [2, 2, 2]

    def rows(part: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
        return list(zip(*(part[name].tolist() for name in names), strict=True))

    assert sorted(row for part in dealt for row in rows(part)) == sorted(rows(batch))


def adapter_weights(model: Any, name: str = "default") -> dict[str, torch.Tensor]:
    return {
        key.replace(f".{name}.", "."): value.detach().clone()
        for key, value in model.named_parameters()
        if f".{name}." in key
    }


def test_the_reference_is_a_frozen_copy_of_the_sft_adapter(policy):
    ensure_reference(policy.model, beta=0.1)
    sft, reference = adapter_weights(policy.model), adapter_weights(policy.model, "ref")
    assert reference.keys() == sft.keys() != set()
    assert all(torch.equal(reference[name], sft[name]) for name in sft)
    trainable = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".default." in name for name in trainable)
    assert policy.model.active_adapter == "default"


def test_without_a_kl_term_there_is_no_reference(policy):
    ensure_reference(policy.model, beta=0.0)
    assert set(policy.model.peft_config) == {"default"}


def test_a_reference_that_trl_made_is_left_alone(policy):
    ensure_reference(policy.model, beta=0.1)
    for parameter in (p for name, p in policy.model.named_parameters() if ".ref." in name):
        parameter.data += 1
    before = adapter_weights(policy.model, "ref")
    ensure_reference(policy.model, beta=0.1)
    assert all(torch.equal(value, adapter_weights(policy.model, "ref")[name]) for name, value in before.items())


# ---- settings and rows --------------------------------------------------------------------------------------------


def test_one_rollout_batch_is_one_update_so_that_rho_is_one(tmp_path):
    config = trainer_config(RLSettings(prompts_per_step=8, group_size=8, micro_batch=16), tmp_path)
    assert config.gradient_accumulation_steps == config.steps_per_generation == 4
    assert config.num_iterations == 1
    assert (config.scale_rewards, config.loss_type) == ("none", "dapo")
    assert config.shuffle_dataset is False, "the curriculum lies in the order of the rows"
    assert config.use_bias_correction_kl is True, "only then is TRL's KL gradient the k2 one"
    assert config.mask_truncated_completions is False


@pytest.mark.parametrize(("prompts_per_step", "group", "micro"), [(4, 8, 12), (4, 8, 24), (4, 8, 4), (1, 8, 16)])
def test_a_micro_batch_that_cuts_groups_or_does_not_divide_the_step_is_refused(
    tmp_path, prompts_per_step, group, micro
):
    settings = RLSettings(prompts_per_step=prompts_per_step, group_size=group, micro_batch=micro)
    with pytest.raises(
        KitError, match=f"rl.micro_batch={micro} must be a multiple of rl.group_size={group} and, on 1 process"
    ):
        trainer_config(settings, tmp_path)


def test_rows_lie_in_training_order_with_k_growing_from_2_to_6(prepared, tiny_llama, policy):
    run = prepared()
    settings = RLSettings(steps=5, prompts_per_step=3, max_new_tokens=24)
    rows = rl_dataset(run, policy, settings)
    assert rows["k"] == [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    expected = prompt_order(load_prepared(run, "train"), 15, settings.seed)
    assert rows["gold"] == [example["output"] for example in expected]
    for row, example in zip(rows, expected, strict=True):
        shown = row["prompt"][1]["content"]
        texts = [example["profile"][n]["text"] for n in example["ranking"]]
        assert [text in shown for text in texts] == [True] * row["k"] + [False] * (7 - row["k"])
        assert f"[{row['k']}] " in shown


def test_a_profile_shorter_than_k_shows_what_it_has_and_is_counted(prepared, policy, capsys):
    run = prepared({"data.items_per_user": 3})
    rows = rl_dataset(run, policy, RLSettings(steps=5, prompts_per_step=1, max_new_tokens=24))
    assert rows["k"] == [2, 3, 3, 3, 3], "the reward then counts items [4] and above as not shown"
    assert "3 of 5 prompts show fewer items than planned" in capsys.readouterr().out


def test_prompts_that_are_too_long_are_shortened_and_counted(prepared, policy, capsys):
    run, settings = prepared(), RLSettings(steps=5, prompts_per_step=1, max_new_tokens=24)

    def lengths(rows: Dataset) -> list[int]:
        return [local.prompt_tokens(policy.tokenizer, prompt) for prompt in rows["prompt"]]

    full = lengths(rl_dataset(run, policy, settings))
    assert "shortened" not in capsys.readouterr().out
    limit = sorted(full)[2]  # the two longest do not fit
    short = lengths(rl_dataset(run, replace(policy, max_seq_length=limit + 24), settings))
    assert f"2 of 5 prompts were longer than {limit} tokens: their history items" in capsys.readouterr().out
    assert [n for n in short if n in full] == [n for n in full if n <= limit]
    assert max(short) <= limit


# ---- the stage, end to end ----------------------------------------------------------------------------------------


@pytest.fixture
def after_sft(prepared: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with an SFT adapter, at a learning rate at which two RL steps leave a trace."""
    settings = {"rl.learning_rate": 0.01, "rl.beta": 0.1, "rl.max_new_tokens": 12, "rl.prompts_per_step": 2}
    run = prepared(settings | {"rl.micro_batch": 4, "sft.steps": 2, "sft.learning_rate": 0.05})
    synthesize(run)
    train_sft(run)
    monkeypatch.setattr(rewards_module, "reward", reward_by_text([]))
    return run


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_trap_1_a_resumed_run_goes_on_with_the_policy_and_not_with_the_sft_adapter(after_sft, capsys):
    run = after_sft
    train_rl(run, stage_name="whole")

    def kill_in_step_2(rows: list[dict[str, float]]) -> None:
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_rl(run, kill_in_step_2, stage_name="killed")
    assert (run.stage("killed") / "checkpoints" / "checkpoint-1" / "ref").is_dir(), "the adapter which is the trap"
    capsys.readouterr()
    train_rl(run, stage_name="killed")
    assert "going on from checkpoint-1" in capsys.readouterr().out

    whole, resumed, sft = (stored(run.stage(name)) for name in ("whole", "killed", "sft"))
    assert whole.keys() == resumed.keys() == sft.keys()
    assert max((whole[name] - sft[name]).abs().max().item() for name in sft) > 0.005
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=0, rtol=0)
    logs = [pd.read_csv(run.stage(name) / "log.csv") for name in ("whole", "killed")]
    for column in ("step", "reward", "kl", "shots", "grad_norm"):
        assert logs[0][column].tolist() == logs[1][column].tolist(), column
    assert logs[0]["kl"][1] > 1e-5 > logs[0]["kl"][0], "in step 2 the policy has left the SFT adapter"


def test_a_full_disk_is_told_and_the_last_whole_checkpoint_is_gone_on_from(after_sft, capsys):
    """The optimiser's state of step 2 goes to a device which is always full; then there is room again."""
    run = after_sft
    train_rl(run, stage_name="whole")
    second = run.stage("full") / "checkpoints" / "checkpoint-2"

    def fill_the_disk(rows: list[dict[str, float]]) -> None:
        second.mkdir(parents=True, exist_ok=True)
        if not (second / "optimizer.pt").exists():
            (second / "optimizer.pt").symlink_to("/dev/full")

    with pytest.raises(KitError, match=r"the disk is full .* Make room and give the same command again"):
        train_rl(run, fill_the_disk, stage_name="full")
    (second / "optimizer.pt").unlink()
    train_rl(run, stage_name="full")
    assert "going on from checkpoint-1" in capsys.readouterr().out
    whole, resumed = stored(run.stage("whole")), stored(run.stage("full"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_trap_2_the_loaded_adapter_is_trained(after_sft):
    run = after_sft
    train_rl(run, settings=replace(run.preset.rl, steps=1))
    before, after = stored(run.stage("sft")), stored(run.stage("rl"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(before), "every LoRA matrix"
    assert not (run.stage("rl") / "adapter" / "ref").exists()
    assert not (run.stage("rl") / "checkpoints").exists()


def test_trap_2_a_stored_adapter_is_loaded_with_its_weights_open(after_sft):
    loaded = load_trainable(after_sft.preset.reflection, after_sft.stage("sft") / "adapter", 0)
    open_weights = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    assert len(open_weights) == len(stored(after_sft.stage("sft")))
    assert all(".default." in name for name in open_weights)


def test_before_sft_it_says_what_to_run_first(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize --run r`"):
        train_rl(prepared())


# ---- the other traps ----------------------------------------------------------------------------------------------


def test_trap_3_the_end_token_is_scored_like_every_other(policy, tmp_path, monkeypatch):
    _, batch, _ = one_step(policy, SETTINGS, ["a", "b"], tmp_path, monkeypatch)
    ended = 0
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
        own, rest = ids[mask == 1].tolist(), ids[mask == 0].tolist()
        assert rest == [policy.tokenizer.pad_token_id] * len(rest)
        assert not set(own[:-1]) & set(MANY_ENDS)
        assert own[-1] in MANY_ENDS or len(own) == SETTINGS.max_new_tokens
        ended += own[-1] in MANY_ENDS
    assert ended >= 2


def test_trap_3_a_tokenizer_whose_pad_token_is_its_end_token_is_refused_by_name(tiny_llama, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "pad-is-end"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    settings = get_preset("tiny", {"reflection.name": str(folder)}).reflection
    with pytest.raises(KitError, match="pad-is-end: the pad token must differ from the end token"):
        load_trainable(settings, None, 0)


def test_trap_12_on_a_gpu_without_unsloths_patch_there_is_no_trainer(monkeypatch):
    import trl

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trl, "GRPOTrainer", type("GRPOTrainer", (), {}))
    with pytest.raises(KitError, match="Unsloth did not patch TRL's trainer: check that the pinned versions"):
        trainer_class()
    monkeypatch.setattr(trl, "GRPOTrainer", type("UnslothGRPOTrainer", (), {}))
    assert trainer_class().__mro__[1].__name__ == "UnslothGRPOTrainer"


@pytest.mark.parametrize("package", ["trl", "transformers", "peft"])
def test_trap_12_the_libraries_we_reach_into_are_pinned_and_installed_as_pinned(package):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"{package}=={importlib.metadata.version(package)}" in project["dependencies"]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_generate_single_turn", ["self", "prompt_ids"]),
        (
            "_get_per_token_logps_and_entropies",
            ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        ),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
    ],
)
def test_trap_12_what_we_override_is_there_and_takes_what_we_pass(method, parameters):
    import trl

    names = list(inspect.signature(getattr(trl.GRPOTrainer, method)).parameters)
    assert names[: len(parameters)] == parameters
    assert method in vars(trainer_class())


def test_one_pass_scores_a_group_only_where_unsloth_does_not_do_it_itself(monkeypatch):
    llama = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
    assert reinforce.shares_prefix(llama)
    assert not reinforce.shares_prefix(SimpleNamespace(config=SimpleNamespace(model_type="mamba")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not reinforce.shares_prefix(llama)


def test_a_model_with_sliding_windows_keeps_its_own_attention():
    """Qwen's config decides it a layer: those from max_window_layers on."""
    from transformers import Qwen2Config

    whole = Qwen2Config(num_hidden_layers=2)
    partly = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    assert reinforce.shares_prefix(SimpleNamespace(config=whole))
    assert not reinforce.shares_prefix(SimpleNamespace(config=partly))
    assert "this qwen2 model is not known" in str(reinforce.scores_apart(SimpleNamespace(config=partly)))
