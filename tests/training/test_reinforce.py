"""REINFORCE++ with baseline is the algorithm of the module's first paragraph, on models small enough to check."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from one_step import MANY_ENDS, SETTINGS, adapter_of, judge_by_text, run_step, some_prompts
from random_models import KINDS, random_policy
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.models.local import LoadedModel, load_trainable, prompt_tokens
from rpo_kit.models.lora import copy_adapter
from rpo_kit.models.unsloth_loader import fast_language_model
from rpo_kit.presets import RLSettings, get_preset
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.runs import Run, existing_run, open_run
from rpo_kit.training import reinforce, rollouts
from rpo_kit.training.curriculum import prompt_order
from rpo_kit.training.diagnostics import diagnose
from rpo_kit.training.reinforce import (
    accumulate_gradients,
    advantages,
    learning_rate,
    policy_loss,
    sample_completions,
    start_training,
    train_rl,
    training_prompts,
    update,
)
from rpo_kit.training.rewards import Judged
from rpo_kit.training.rollouts import Rollout
from rpo_kit.training.sft import train_sft
from rpo_kit.training.shared_prefix import Group, score, scoring
from rpo_kit.training.synthesis import synthesize

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def rewards_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforce, "judge", judge_by_text)


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest, tiny_llama: Path) -> LoadedModel:
    """A random model in fp32 with a LoRA that does something."""
    return random_policy(request.param, tiny_llama, MANY_ENDS)


@pytest.fixture
def llama_policy(tiny_llama: Path) -> LoadedModel:
    return random_policy("llama", tiny_llama, MANY_ENDS)


def move(model: PreTrainedModel, amount: float) -> None:
    """Let the policy leave the SFT adapter."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += amount * torch.randn_like(parameter)


# ---- the advantage ------------------------------------------------------------------------------------------------


REWARDS = torch.tensor([1.0, 0.0, 1.0, 1.0])  # two groups of two
LENGTHS = torch.tensor([1.0, 3.0, 2.0, 2.0])


def test_whitening_counts_each_centred_reward_once_for_every_token():
    # c = 0.5, -0.5, 0, 0; 8 tokens
    # mu  = (1*0.5 - 3*0.5) / 8 = -0.125
    # var = (1*0.625^2 + 3*0.375^2 + 4*0.125^2) / 8 = 0.875 / 8 = 0.109375
    result = advantages(REWARDS, LENGTHS, 2)
    assert result.tolist() == pytest.approx([1.889822, -1.133893, 0.377964, 0.377964], abs=1e-5)
    assert (LENGTHS * result).sum().item() == pytest.approx(0.0, abs=1e-6)
    assert (LENGTHS * result**2).sum().item() == pytest.approx(8.0, rel=1e-5)


def test_without_baseline_the_rewards_themselves_are_whitened():
    # mu = (1 + 0 + 2 + 2) / 8 = 5/8, var = (5*(3/8)^2 + 3*(5/8)^2) / 8 = 15/64
    result = advantages(REWARDS, LENGTHS, 2, "reinforce++")
    assert result.tolist() == pytest.approx([(r - 5 / 8) / math.sqrt(15 / 64) for r in REWARDS.tolist()])


def test_rloo_compares_with_the_other_attempts():
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.2, 0.2, 0.2])  # 1 - (0 + 0.5)/2, 0 - (1 + 0.5)/2, 0.5 - (1 + 0)/2
    result = advantages(rewards, torch.ones(6), 3, "rloo")
    assert result.tolist() == pytest.approx([0.75, -0.75, 0.0, 0.0, 0.0, 0.0], abs=1e-6)


def test_grpo_divides_by_the_spread_of_the_group():
    result = advantages(torch.tensor([1.0, 0.0, 0.3, 0.3]), torch.ones(4), 2, "grpo")
    assert result.tolist() == pytest.approx([0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4), 0, 0])


def test_with_equal_lengths_the_mean_is_not_moved():
    result = advantages(torch.tensor([0.25, -0.25, 1.0, -1.0]), torch.full((4,), 7.0), 2)
    assert result.tolist() == pytest.approx([c / math.sqrt(2.125 / 4) for c in (0.25, -0.25, 1.0, -1.0)])


def test_an_unknown_algorithm_is_rejected():
    with pytest.raises(KitError, match=r"no rl\.algorithm='ppo'; there are reinforce"):
        advantages(REWARDS, LENGTHS, 2, "ppo")


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
    result = advantages(torch.tensor(numbers), torch.tensor(lengths).float(), group)
    assert result.tolist() == pytest.approx([(c - mu) / math.sqrt(max(var, 1e-8)) for c in centred], abs=2e-3)


def test_a_steps_advantages_are_the_formula(llama_policy):
    _, records, _ = run_step(llama_policy)
    lengths, rewards = ([record[name] for record in records] for name in ("tokens", "reward"))
    assert len(records) == 6
    assert len(set(lengths)) > 1, "completions of one length would hide the weighting"
    centred = [r - sum(rewards[i // 3 * 3 : i // 3 * 3 + 3]) / 3 for i, r in enumerate(rewards)]
    tokens = sum(lengths)
    mu = sum(n * c for n, c in zip(lengths, centred, strict=True)) / tokens
    var = sum(n * (c - mu) ** 2 for n, c in zip(lengths, centred, strict=True)) / tokens
    expected = [(c - mu) / math.sqrt(var) for c in centred]
    assert [record["advantage"] for record in records] == pytest.approx(expected, abs=1e-5)


def test_a_group_without_variance_is_logged_and_the_whitening_moves_it_as_one(llama_policy):
    row, records, _ = run_step(llama_policy, golds=["same", "b"])
    assert [record["reward"] for record in records[:3]] == [0.5] * 3
    assert len({record["reward"] for record in records[3:]}) > 1
    assert row["frac_reward_zero_std"] == 0.5
    after = [record["advantage"] for record in records[:3]]
    assert after == pytest.approx([after[0]] * 3), "by -mu / sigma"


def test_a_step_of_such_groups_only_does_not_move_the_policy(llama_policy):
    before = adapter_of(llama_policy.model)
    row, records, _ = run_step(llama_policy, replace(SETTINGS, beta=0.0), ["same", "same"])
    assert [record["advantage"] for record in records] == [0.0] * 6
    assert row["frac_reward_zero_std"] == 1.0
    after = adapter_of(llama_policy.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- the loss and the update --------------------------------------------------------------------------------------


def test_the_loss_is_clipped_as_in_ppo_and_pulled_to_the_reference():
    """Two tokens at rho = 1.5 and 0.5, advantages 1 and -1, clip 0.2: -min(1.5, 1.2) and -min(-0.5, -0.8)."""
    new, old = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0]) - torch.tensor([1.5, 0.5]).log()
    reference = torch.tensor([-1.2, -2.0])
    loss, kl = policy_loss(new, old, reference, torch.tensor([1.0, -1.0]), clip=0.2, beta=0.5)
    assert loss.item() == pytest.approx(-1.2 + 0.8 + 0.5 * 0.2**2 / 2)
    assert kl.item() == pytest.approx(math.exp(-0.2) - 1 + 0.2)
    assert policy_loss(new, old, None, torch.tensor([1.0, -1.0]), 0.2, 0.5)[0].item() == pytest.approx(-0.4)


def step_by_hand(
    model: PreTrainedModel, groups: Sequence[Group], rewards: Sequence[float], settings: RLSettings
) -> dict[str, torch.Tensor | list[torch.Tensor] | list[float]]:
    """One step in plain torch, a sequence at a time; `model` has the adapters "default" (open) and "ref" (frozen).

    Returns the advantages, the log-probabilities, the loss and the gradients; the weights move.
    """
    sequences = [(prompt, completion) for prompt, completions in groups for completion in completions]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    # advantages
    means = [
        sum(rewards[n - n % settings.group_size :][: settings.group_size]) / settings.group_size
        for n in range(len(rewards))
    ]
    centred = [reward - mean for reward, mean in zip(rewards, means, strict=True)]
    lengths = [len(completion) for _, completion in sequences]
    mu = sum(n * c for n, c in zip(lengths, centred, strict=True)) / sum(lengths)
    var = sum(n * (c - mu) ** 2 for n, c in zip(lengths, centred, strict=True)) / sum(lengths)
    advantage = [(c - mu) / math.sqrt(max(var, 1e-8)) for c in centred]

    # log-probabilities of a completion's tokens: what stands at position t predicts token t + 1
    def logprobs(prompt: list[int], completion: list[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logps = (logits / settings.temperature).log_softmax(-1)
        return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0]

    model.set_adapter("ref")
    with torch.no_grad():
        reference = [logprobs(*sequence) for sequence in sequences]
    model.set_adapter("default")
    policy = [logprobs(*sequence) for sequence in sequences]

    # the loss: clipped policy gradient and KL, summed over tokens, divided by all tokens
    loss = torch.zeros(())
    for new, anchor, a in zip(policy, reference, advantage, strict=True):
        rho = (new - new.detach()).exp()
        gain = torch.minimum(rho * a, rho.clamp(1 - settings.clip, 1 + settings.clip) * a)
        loss = loss + (-gain + settings.beta * (new - anchor) ** 2 / 2).sum() / sum(lengths)

    # the step
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    loss.backward()
    gradients = [weight.grad.clone() for weight in weights]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return {"advantages": advantage, "logprobs": policy, "loss": loss.detach(), "gradients": gradients}


def test_the_learning_rate_rises_over_the_warmup_and_stays(policy):
    settings = replace(SETTINGS, learning_rate=0.01, steps=10, warmup=0.4)
    assert [learning_rate(settings, step) for step in (1, 2, 4, 5, 10)] == pytest.approx(
        [0.0025, 0.005, 0.01, 0.01, 0.01]
    )
    assert learning_rate(replace(settings, warmup=0.0), 1) == 0.01
    before = adapter_of(policy.model)
    row, _, _ = run_step(policy, settings)
    moved = max(float((value - before[name]).abs().max()) for name, value in adapter_of(policy.model).items())
    assert row["learning_rate"] == pytest.approx(0.0025)
    assert moved == pytest.approx(0.0025, rel=0.01), "AdamW's first step is as long as the learning rate"


@pytest.mark.parametrize("moved", [0.0, 0.3])
@pytest.mark.parametrize("budget", [6000, 1], ids=["one micro-batch", "a micro-batch per group"])
def test_a_step_is_the_one_written_by_hand(policy, moved, budget):
    """Advantages, log-probabilities, loss, gradient and update to 1e-5. With `moved` the KL pulls the policy back."""
    settings = replace(SETTINGS, micro_batch_tokens=budget)
    training = start_training(policy, settings)
    move(policy.model, moved)
    by_hand = copy.deepcopy(policy.model)
    groups = sample_completions(policy, some_prompts(policy, ["a", "b"]), settings, step=1)
    texts = [text for _, own in groups for text in policy.tokenizer.batch_decode(own, skip_special_tokens=True)]
    rewards = [judge_by_text(None, text, "a", 2).reward for text in texts]
    expected = step_by_hand(by_hand, groups, rewards, settings)

    lengths = torch.tensor([float(len(tokens)) for _, own in groups for tokens in own])
    assert len(set(lengths.tolist())) > 1
    advantage = advantages(torch.tensor(rewards), lengths, settings.group_size)
    with scoring(policy.model):
        logprobs = score(policy.model, groups, settings.temperature)
    loss, kl = accumulate_gradients(policy, groups, advantage, float(lengths.sum()), settings, training, step=1)
    gradients = [parameter.grad.clone() for parameter in training.parameters.values()]
    update(training, step=1)

    assert advantage.tolist() == pytest.approx(expected["advantages"], abs=1e-5)
    torch.testing.assert_close(logprobs, torch.cat(expected["logprobs"]), atol=1e-5, rtol=1e-5)
    assert loss == pytest.approx(expected["loss"].item(), abs=1e-5)
    assert kl > 1e-4 if moved else kl == pytest.approx(0.0, abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for one, other in zip(gradients, expected["gradients"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for one, other in zip(adapter_of(policy.model).values(), adapter_of(by_hand).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_rl_step_is_these_functions_in_turn(llama_policy):
    """The step that the stage takes leaves the weights that the functions leave which the test above checks."""
    again = copy.deepcopy(llama_policy)
    _, records, training = run_step(llama_policy)
    other = start_training(again, SETTINGS)
    groups = sample_completions(again, some_prompts(again, ["a", "b"]), SETTINGS, step=1)
    lengths = torch.tensor([float(len(tokens)) for _, own in groups for tokens in own])
    given = torch.tensor([record["advantage"] for record in records])
    accumulate_gradients(again, groups, given, float(lengths.sum()), SETTINGS, other, step=1)
    update(other, step=1)
    assert training.step == 1
    before, after = adapter_of(again.model, "ref"), adapter_of(again.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, value in adapter_of(llama_policy.model).items():
        torch.testing.assert_close(value, after[name], atol=0, rtol=0)


# ---- the same step by TRL -----------------------------------------------------------------------------------------


def step_of_trl(loaded: LoadedModel, groups: Sequence[Group], given: torch.Tensor, settings: RLSettings, folder: Path):
    """One step of TRL's GRPOTrainer on these completions with these advantages: log-probabilities (sequences, longest)
    with their mask, the loss and the gradients, both before clipping; the weights move.
    """

    fast_language_model()  # gives TRL's head a form that runs on a CPU
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seen: dict[str, torch.Tensor | list[torch.Tensor]] = {}

    class Reference(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: object, **__: object):
            assert prompt_ids == [prompt for prompt, own in groups for _ in own], "the same tokens"
            return [tokens for _, own in groups for tokens in own], None

        def _generate_and_score_completions(self, inputs: object):
            out = super()._generate_and_score_completions(inputs)
            out["advantages"] = given.clone()
            return out

        def compute_loss(
            self, model: PreTrainedModel, inputs: dict[str, torch.Tensor], *args: object, **kwargs: object
        ):
            ids, mask = (
                torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], 1) for part in ("ids", "mask")
            )
            length = inputs["completion_ids"].shape[1]
            with torch.no_grad():
                seen["logprobs"] = self._get_per_token_logps_and_entropies(model, ids, mask, length)[0]
            seen["order"], seen["mask"] = inputs["advantages"], inputs["completion_mask"].bool()
            seen["ids"] = inputs["completion_ids"]
            seen["loss"] = super().compute_loss(model, inputs, *args, **kwargs)
            return seen["loss"]

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: object, model: PreTrainedModel, **__: object) -> None:
            seen["gradients"] = [p.grad.clone() for p in model.parameters() if p.requires_grad]

    sequences = len(given)
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=sequences,
        num_generations=settings.group_size,
        max_completion_length=settings.max_new_tokens,
        max_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=1.0,
        temperature=settings.temperature,
        loss_type="dapo",
        beta=settings.beta,
        use_bias_correction_kl=True,
        epsilon=settings.clip,
        epsilon_high=settings.clip,
        mask_truncated_completions=False,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": prompt.messages} for prompt in some_prompts(loaded, ["a"] * len(groups))])
    trainer = Reference(
        model=loaded.model,
        reward_funcs=[lambda completions, **_: [float(n) for n in range(len(completions))]],
        args=arguments,
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        callbacks=[KeepGradients()],
    )
    return trainer, seen


@pytest.mark.parametrize("algorithm", ["reinforce++-baseline", "grpo"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_step_is_trls_with_the_same_advantages(kind, algorithm, tiny_llama, tmp_path):
    """Log-probabilities, loss, LoRA gradients and update of GRPOTrainer in fp32, to 1e-5; with a KL that pulls."""
    settings = replace(SETTINGS, algorithm=algorithm)
    ours = random_policy(kind, tiny_llama, MANY_ENDS)
    training = start_training(ours, settings)
    theirs = random_policy(kind, tiny_llama, MANY_ENDS)
    groups = sample_completions(ours, some_prompts(ours, ["a", "b"]), settings, step=1)
    lengths = torch.tensor([float(len(tokens)) for _, own in groups for tokens in own])
    texts = [text for _, own in groups for text in ours.tokenizer.batch_decode(own, skip_special_tokens=True)]
    rewards = torch.tensor([judge_by_text(None, text, "a", 2).reward for text in texts])
    given = advantages(rewards, lengths, settings.group_size, algorithm)
    trainer, seen = step_of_trl(theirs, groups, given, settings, tmp_path)
    for model in (ours.model, theirs.model):  # after TRL has copied the adapter: its KL is not 0 then
        move(model, 0.6)
    with scoring(ours.model), torch.no_grad():
        logprobs = score(ours.model, groups, settings.temperature)
    with scoring(ours.model, "ref"), torch.no_grad():
        k2 = ((logprobs - score(ours.model, groups, settings.temperature)) ** 2 / 2).mean().item()
    loss, k3 = accumulate_gradients(ours, groups, given, float(lengths.sum()), settings, training, step=1)
    norm = torch.stack([p.grad.norm() for p in training.parameters.values()]).norm()
    gradients = [p.grad.clone() / max(1.0, norm.item() + 1e-6) for p in training.parameters.values()]
    update(training, step=1)
    trainer.train()

    by_sequence = {
        tuple(ids): part
        for (ids, part) in zip(
            [tuple(tokens) for _, own in groups for tokens in own], logprobs.split(lengths.int().tolist()), strict=True
        )
    }
    for ids, row, mask in zip(seen["ids"], seen["logprobs"], seen["mask"], strict=True):  # TRL shuffles them
        torch.testing.assert_close(by_sequence[tuple(ids[mask].tolist())], row[mask], atol=1e-5, rtol=1e-5)
    trls = loss + settings.beta * (k3 - k2)  # TRL's KL has k2's gradient at rho = 1, and k3's value
    assert seen["loss"].item() == pytest.approx(trls, abs=1e-5)
    assert settings.beta * abs(k3 - k2) > 5e-5
    for one, other in zip(gradients, seen["gradients"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for one, other in zip(adapter_of(ours.model).values(), adapter_of(theirs.model).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_prompts_are_in_training_order_with_k_growing_from_2_to_6(prepared, llama_policy):
    run = prepared()
    settings = RLSettings(steps=5, prompts_per_step=3, max_new_tokens=24)
    prompts = training_prompts(run, llama_policy, settings)
    assert [prompt.shots for prompt in prompts] == [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    expected = prompt_order(load_prepared(run, "train"), 15, settings.seed)
    assert [prompt.gold for prompt in prompts] == [example["output"] for example in expected]
    for prompt, example in zip(prompts, expected, strict=True):
        assert prompt.example == example["id"]
        shown = prompt.messages[1]["content"]
        texts = [example["profile"][n]["text"] for n in example["ranking"]]
        assert [text in shown for text in texts] == [True] * prompt.shots + [False] * (7 - prompt.shots)
        assert f"[{prompt.shots}] " in shown
        assert len(prompt.ids) == prompt_tokens(llama_policy.tokenizer, prompt.messages)


def test_prompts_and_rewards_are_of_the_modules_form(prepared, llama_policy):
    run = prepared({"reflection.sections": ["rewrite"]})
    (prompt,) = training_prompts(run, llama_policy, RLSettings(steps=1, prompts_per_step=1, max_new_tokens=24))
    assert prompt.sections == ("rewrite",)
    assert "<plan>" not in prompt.messages[0]["content"]


def test_a_profile_shorter_than_k_shows_what_it_has_and_is_counted(prepared, llama_policy, capsys):
    run = prepared({"data.items_per_user": 3})
    prompts = training_prompts(run, llama_policy, RLSettings(steps=5, prompts_per_step=1, max_new_tokens=24))
    assert [prompt.shots for prompt in prompts] == [2, 3, 3, 3, 3], (
        "the reward then counts items [4] and above as not shown"
    )
    assert "3 of 5 prompts show fewer items than planned" in capsys.readouterr().out


def test_prompts_that_are_too_long_are_shortened_and_counted(prepared, llama_policy, capsys):
    run, settings = prepared(), RLSettings(steps=5, prompts_per_step=1, max_new_tokens=24)
    full = [len(prompt.ids) for prompt in training_prompts(run, llama_policy, settings)]
    assert "shortened" not in capsys.readouterr().out
    limit = sorted(full)[2]  # the two longest do not fit
    loaded = replace(llama_policy, max_seq_length=limit + 24)
    short = [len(prompt.ids) for prompt in training_prompts(run, loaded, settings)]
    assert f"2 of 5 prompts were longer than {limit} tokens: their history items" in capsys.readouterr().out
    assert [n for n in short if n in full] == [n for n in full if n <= limit]
    assert max(short) <= limit


def test_a_context_window_without_room_for_a_prompt_is_rejected(prepared, llama_policy):
    run = prepared()
    with pytest.raises(KitError, match=r"rl\.max_new_tokens=100 leaves no room for a prompt in 100 tokens"):
        training_prompts(run, replace(llama_policy, max_seq_length=100), RLSettings(max_new_tokens=100))
    with pytest.raises(KitError, match=r"does not fit into 4 tokens .* raise reflection\.max_seq_length"):
        training_prompts(run, replace(llama_policy, max_seq_length=104), RLSettings(max_new_tokens=100))


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_the_end_token_is_scored_like_every_other(llama_policy):
    groups = sample_completions(llama_policy, some_prompts(llama_policy, ["a", "b"]), SETTINGS, step=1)
    completions = [tokens for _, own in groups for tokens in own]
    for tokens in completions:
        assert not set(tokens[:-1]) & set(MANY_ENDS)
        assert tokens[-1] in MANY_ENDS or len(tokens) == SETTINGS.max_new_tokens
    assert sum(tokens[-1] in MANY_ENDS for tokens in completions) >= 2
    assert len(score(llama_policy.model, groups, 1.0)) == sum(map(len, completions))


def test_draws_follow_from_seed_step_and_slot_alone(llama_policy):
    prompts = some_prompts(llama_policy, ["a", "b", "c"])

    def drawn(step: int, first: int = 0, last: int = 3, seed: int = 0) -> list[Group]:
        torch.manual_seed(step)  # torch's own generator does not matter
        return sample_completions(llama_policy, prompts[first:last], replace(SETTINGS, seed=seed), step, first)

    assert drawn(1) == drawn(1)
    assert drawn(1)[1:] == drawn(1, first=1), "whatever other ranks hold"
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)


def test_a_higher_temperature_draws_more_various_completions(llama_policy):
    def various(temperature: float) -> int:
        settings = replace(SETTINGS, temperature=temperature, group_size=16, max_new_tokens=3)
        ((_, own),) = sample_completions(llama_policy, some_prompts(llama_policy, ["a"]), settings, step=1)
        return len({tuple(tokens) for tokens in own})

    assert various(1e-3) == 1 < various(1.0)


# ---- the reference ------------------------------------------------------------------------------------------------


def test_the_reference_is_a_frozen_copy_of_the_sft_adapter(llama_policy):
    training = start_training(llama_policy, SETTINGS)
    sft, reference = adapter_of(llama_policy.model), adapter_of(llama_policy.model, "ref")
    assert reference.keys() == sft.keys() != set()
    assert all(torch.equal(reference[name], sft[name]) for name in sft)
    assert training.parameters
    assert all(".default." in name for name in training.parameters)
    assert {name for name, p in llama_policy.model.named_parameters() if p.requires_grad} == set(training.parameters)
    assert llama_policy.model.active_adapter == "default"


def test_the_kl_is_0_at_the_first_step_and_the_reference_stays(llama_policy):
    before = adapter_of(llama_policy.model)
    row, _, _ = run_step(llama_policy)
    assert row["kl"] == pytest.approx(0.0, abs=1e-9)
    after = adapter_of(llama_policy.model, "ref")
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved, _, _ = run_step(llama_policy, steps=2)
    assert moved["kl"] > 1e-5


def test_without_a_kl_term_there_is_no_reference(llama_policy):
    row, _, _ = run_step(llama_policy, replace(SETTINGS, beta=0.0))
    assert set(llama_policy.model.peft_config) == {"default"}
    assert "kl" not in row


def test_an_existing_reference_is_left_alone(llama_policy):
    copy_adapter(llama_policy.model, "ref")
    for parameter in (p for name, p in llama_policy.model.named_parameters() if ".ref." in name):
        parameter.data += 1
    before = adapter_of(llama_policy.model, "ref")
    start_training(llama_policy, SETTINGS)
    assert all(torch.equal(value, adapter_of(llama_policy.model, "ref")[name]) for name, value in before.items())


# ---- several ranks ------------------------------------------------------------------------------------------------


GOLDS_OF_RANKS = (("a", "b"), ("a", "b", "c"), ("a",))


@pytest.fixture(scope="module")
def of_two_ranks(tiny_llama, tmp_path_factory) -> Path:
    """The folder with what two ranks have after two steps, started once for all lists of golds."""
    folder = tmp_path_factory.mktemp("ranks")
    script = HERE / "one_step_of_two_ranks.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    cases = [",".join(golds) for golds in GOLDS_OF_RANKS]
    result = subprocess.run(
        [*launch, tiny_llama, folder, *cases], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("golds", GOLDS_OF_RANKS, ids=len)
def test_two_ranks_take_the_step_of_one(golds, tiny_llama, of_two_ranks):
    """gloo; also where the prompts do not divide, and where one rank has none. To 1e-5, after two steps."""
    row, records, training = run_step(random_policy("llama", tiny_llama, MANY_ENDS), golds=golds, steps=2)
    alone = {name.replace(".default.", "."): value for name, value in training.parameters.items()}
    for rank in (0, 1):
        both = torch.load(of_two_ranks / f"{len(golds)}-{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(both["adapter"][name], value.detach(), atol=1e-5, rtol=1e-5)
        assert both["row"] == pytest.approx(
            {name: value for name, value in row.items() if "seconds" not in name}, abs=1e-5
        )
        assert [one["text"] for one in both["records"]] == [one["text"] for one in records]
        assert [one["advantage"] for one in both["records"]] == pytest.approx(
            [r["advantage"] for r in records], abs=1e-5
        )
    if len(golds) == 2:
        each = [record["reward"] for record in records[:3]]
        lengths = [float(record["tokens"]) for record in records[:3]]
        apart = advantages(torch.tensor(each), torch.tensor(lengths), 3).tolist()
        assert apart != pytest.approx([record["advantage"] for record in records[:3]]), "each rank alone would differ"


# ---- NaN and infinity ---------------------------------------------------------------------------------------------


def test_a_reward_that_is_nan_stops_the_step(llama_policy, monkeypatch):
    monkeypatch.setattr(reinforce, "judge", lambda *_: Judged(math.nan, 0.0, 0.0, None, (), None))
    with pytest.raises(KitError, match=r"Step 1: a reward is not a number .* the last checkpoint is kept"):
        run_step(llama_policy)


def test_weights_that_have_become_infinite_stop_the_step_at_its_log_probabilities(llama_policy):
    training = start_training(llama_policy, SETTINGS)
    groups = sample_completions(llama_policy, some_prompts(llama_policy, ["a"]), SETTINGS, step=1)
    next(iter(training.parameters.values())).data[:] = math.inf
    with pytest.raises(KitError, match=r"Step 7: a log-probability is not a number .* Lower rl\.learning_rate"):
        accumulate_gradients(llama_policy, groups, torch.ones(3), 10.0, SETTINGS, training, step=7)


def test_an_infinite_advantage_stops_the_step_at_its_loss(llama_policy):
    training = start_training(llama_policy, SETTINGS)
    groups = sample_completions(llama_policy, some_prompts(llama_policy, ["a"]), SETTINGS, step=1)
    with pytest.raises(KitError, match="Step 1: a loss is not a number"):
        accumulate_gradients(llama_policy, groups, torch.full((3,), math.inf), 10.0, SETTINGS, training, step=1)


def test_an_infinite_gradient_stops_before_the_update(llama_policy):
    training = start_training(llama_policy, SETTINGS)
    before = adapter_of(llama_policy.model)
    for parameter in training.parameters.values():
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(KitError, match="Step 3: a gradient is not a number"):
        update(training, step=3)
    assert all(torch.equal(before[name], value) for name, value in adapter_of(llama_policy.model).items())


# ---- the stage, end to end ----------------------------------------------------------------------------------------


class Always3:
    """A base model."""

    name = "always-3"

    def complete(self, conversations: Sequence[Conversation], **_: object) -> list[Completion]:
        return [Completion("3", True, 1, 1) for _ in conversations]


@pytest.fixture(scope="module")
def sft_is_done(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run with an SFT adapter, at a learning rate at which a few RL steps leave a trace."""
    root, name = tmp_path_factory.mktemp("sft"), str(tiny_llama)
    settings = {"data.task": "LaMP-3", "base": f"local:{name}", "reflection.name": name}
    settings |= {"reflection.max_seq_length": 2048, "sft.steps": 2, "sft.learning_rate": 0.05}
    settings |= {"rl.learning_rate": 0.01, "rl.beta": 0.1, "rl.max_new_tokens": 12, "rl.prompts_per_step": 2}
    run = open_run("r", "tiny", settings | {"rl.group_size": 3, "rl.steps": 4, "rl.warmup": 0.5}, root=root)
    prepare(run, lambda spec: Always3())
    synthesize(run)
    train_sft(run)
    return root


@pytest.fixture
def after_sft(sft_is_done: Path, tmp_path: Path) -> Run:
    shutil.copytree(sft_is_done, tmp_path, dirs_exist_ok=True)
    return existing_run("r", tmp_path)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def kill_at(step: int) -> Callable[[list[dict[str, float]]], None]:
    def kill(rows: list[dict[str, float]]) -> None:
        if len(rows) == step:
            raise KeyboardInterrupt

    return kill


def log_of(run: Run, name: str) -> pd.DataFrame:
    log = pd.read_csv(run.stage(name) / "log.csv")
    return log[[column for column in log if not column.startswith("seconds")]]


def rollouts_of(run: Run, name: str) -> list[Rollout]:
    return [json.loads(line) for line in (run.stage(name) / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("curriculum", ["progressive", "random"])
@pytest.mark.parametrize("save_every", [1, 3])
def test_a_training_killed_at_any_step_ends_where_an_uninterrupted_one_ends(after_sft, capsys, curriculum, save_every):
    run = after_sft
    settings = replace(run.preset.rl, curriculum=curriculum, save_every=save_every)
    train_rl(run, stage_name="whole", settings=settings)
    assert log_of(run, "whole")["step"].tolist() == [1, 2, 3, 4]
    for step in (1, 2, 4):
        name = f"killed-{step}"
        with pytest.raises(KeyboardInterrupt):
            train_rl(run, kill_at(step), stage_name=name, settings=settings)
        capsys.readouterr()
        train_rl(run, stage_name=name, settings=settings)
        last = (step - 1) // save_every * save_every
        assert ("resuming from" in capsys.readouterr().out) == bool(last)
        for key, value in stored(run.stage("whole")).items():
            torch.testing.assert_close(stored(run.stage(name))[key], value, atol=1e-6, rtol=0)
        pd.testing.assert_frame_equal(log_of(run, name), log_of(run, "whole"), atol=1e-6)
        assert rollouts_of(run, name) == rollouts_of(run, "whole")
    assert (
        max(
            (stored(run.stage("whole"))[key] - stored(run.stage("sft"))[key]).abs().max()
            for key in stored(run.stage("sft"))
        )
        > 0.005
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, garble, Path.unlink])
@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
def test_a_damaged_newest_checkpoint_is_skipped(after_sft, capsys, file, damage):
    run = after_sft
    with pytest.raises(KeyboardInterrupt):
        train_rl(run, kill_at(4), stage_name="killed")
    checkpoints = run.stage("killed") / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-3"], "the last two"
    assert not any(path.suffix in (".pt", ".pth", ".bin") for path in checkpoints.rglob("*")), "nothing pickled"
    damage(checkpoints / "checkpoint-3" / file)
    capsys.readouterr()
    train_rl(run, stage_name="killed")
    said = capsys.readouterr().out
    assert "checkpoint-3 is damaged (" in said
    assert file in said or file == "checksums.json"
    assert "resuming from checkpoint-2" in said
    train_rl(run, stage_name="whole")
    assert all(
        torch.equal(value, stored(run.stage("whole"))[key]) for key, value in stored(run.stage("killed")).items()
    )
    assert rollouts_of(run, "killed") == rollouts_of(run, "whole")


def test_if_no_checkpoint_is_intact_training_starts_again_and_says_so(after_sft, capsys):
    run = after_sft
    with pytest.raises(KeyboardInterrupt):
        train_rl(run, kill_at(3), stage_name="killed")
    for path in (run.stage("killed") / "checkpoints").iterdir():
        cut(path / "optimizer.safetensors")
    capsys.readouterr()
    train_rl(run, stage_name="killed")
    assert "no checkpoint is intact: training starts again from the SFT adapter" in capsys.readouterr().out
    train_rl(run, stage_name="whole")
    assert all(
        torch.equal(value, stored(run.stage("whole"))[key]) for key, value in stored(run.stage("killed")).items()
    )


def test_a_full_disk_is_reported_and_training_resumes_from_the_last_intact_checkpoint(after_sft, capsys, monkeypatch):
    run = after_sft
    train_rl(run, stage_name="whole")
    save = reinforce.checkpoints.save_file

    def on_a_full_disk(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "checkpoint-2" in str(path) and "optimizer" in path.name:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(reinforce.checkpoints, "save_file", on_a_full_disk)
    with pytest.raises(KitError, match=r"the disk is full .* Free some space and run the same command again"):
        train_rl(run, stage_name="full")
    monkeypatch.setattr(reinforce.checkpoints, "save_file", save)
    train_rl(run, stage_name="full")
    assert "resuming from checkpoint-1" in capsys.readouterr().out
    assert all(torch.equal(value, stored(run.stage("full"))[key]) for key, value in stored(run.stage("whole")).items())


def test_a_nan_leaves_the_last_checkpoint_and_no_finished_adapter(after_sft, monkeypatch):
    run = after_sft
    seen: list[int] = []

    def judge(*arguments: object) -> Judged:
        seen.append(1)
        return judge_by_text(*arguments) if len(seen) <= 12 else Judged(math.nan, 0.0, 0.0, None, (), None)

    monkeypatch.setattr(reinforce, "judge", judge)
    with pytest.raises(KitError, match="Step 3: a reward is not a number"):
        train_rl(run)
    assert not (run.stage("rl") / "adapter").exists()
    assert not (run.stage("rl") / "manifest.json").exists()
    assert (run.stage("rl") / "checkpoints" / "checkpoint-2").exists()


def test_all_of_the_loaded_adapter_is_trained(after_sft):
    run = after_sft
    train_rl(run, settings=replace(run.preset.rl, steps=1))
    before, after = stored(run.stage("sft")), stored(run.stage("rl"))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(before), "every LoRA matrix"
    assert not (run.stage("rl") / "adapter" / "ref").exists()
    assert not (run.stage("rl") / "checkpoints").exists()


def test_a_stored_adapter_is_loaded_bit_for_bit_with_its_weights_open(after_sft):
    """SFT has trained it under Unsloth; here it is plain PEFT."""
    loaded = load_trainable(after_sft.preset.reflection, after_sft.stage("sft") / "adapter", 0)
    open_weights = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    expected = stored(after_sft.stage("sft"))
    assert len(open_weights) == len(expected)
    assert all(".default." in name for name in open_weights)
    for name, parameter in open_weights.items():
        assert torch.equal(parameter, expected[name.replace(".default.", ".")])


def test_an_adapter_of_another_model_is_rejected_before_training(after_sft, tiny_llama, tmp_path):
    import transformers

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "wider"))
    config = transformers.AutoConfig.from_pretrained(folder, hidden_size=32)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    settings = replace(after_sft.preset.reflection, name=str(folder))
    with pytest.raises(KitError, match=r"was trained on another model \(.*llama.*\) and does not fit .*wider"):
        load_trainable(settings, after_sft.stage("sft") / "adapter", 0)


def test_the_rollouts_past_the_size_limit_are_counted_and_left_out(after_sft, capsys):
    run = after_sft
    train_rl(run, settings=replace(run.preset.rl, rollouts_mb=0.005))
    log, kept = log_of(run, "rl"), rollouts_of(run, "rl")
    assert (run.stage("rl") / "rollouts.jsonl").stat().st_size <= 5000
    assert 0 < len(kept) < 24
    assert log["rollouts_left_out"].sum() == 24 - len(kept)
    assert f"{24 - len(kept)} rollouts are not in rollouts.jsonl" in capsys.readouterr().out


def test_every_rollout_is_kept_and_opens_in_one_line(after_sft):
    run = after_sft
    train_rl(run)
    kept = pd.read_json(run.stage("rl") / "rollouts.jsonl", lines=True, dtype={"example": str})
    assert len(kept) == 4 * 2 * 3
    assert kept["step"].tolist() == sorted(kept["step"])
    assert kept["completion"].tolist() == [0, 1, 2] * 8
    log = log_of(run, "rl")
    assert kept.groupby("step")["reward"].mean().tolist() == pytest.approx(log["reward"].tolist())
    assert kept.groupby("step")["tokens"].mean().tolist() == pytest.approx(log["completions/mean_length"].tolist())
    assert set(kept["example"]) <= {example["id"] for example in load_prepared(run, "train")}
    assert kept["k"].tolist() == [k for k in (2, 3, 4, 5) for _ in range(6)]
    weighted = (kept["advantage"] * kept["tokens"]).groupby(kept["step"]).sum()
    assert weighted.tolist() == pytest.approx([0.0] * 4, abs=1e-3)


def test_a_resumed_training_drops_rollouts_of_lost_steps_and_garbled_lines(tmp_path):
    good = [json.dumps({"step": step, "text": "é"}).encode() for step in (1, 2, 3)]
    (tmp_path / "rollouts.jsonl").write_bytes(b"\n".join([good[0], b"\0\0", b"17", b"{}", *good[1:], b'{"step": 1']))
    rollouts.cut_after(tmp_path, 2)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == good[0] + b"\n" + good[1] + b"\n"


def test_it_is_reported_whether_a_group_shares_its_prompt(after_sft, capsys, monkeypatch):
    train_rl(after_sft, stage_name="one", settings=replace(after_sft.preset.rl, steps=1))
    assert "each prompt is read once per group" in capsys.readouterr().out
    monkeypatch.setattr(reinforce, "why_not_shared_prefix", lambda model: "not today")
    train_rl(after_sft, stage_name="other", settings=replace(after_sft.preset.rl, steps=1))
    assert "each prompt is read once per completion: not today" in capsys.readouterr().out


def test_running_out_of_gpu_memory_names_the_settings_to_lower(after_sft, monkeypatch):
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.4 GiB")

    monkeypatch.setattr(reinforce, "score", out_of_memory)
    with pytest.raises(KitError, match=r"memory .*rl\.micro_batch_tokens=1500.*rl\.group_size"):
        train_rl(after_sft)


def test_training_resumes_with_a_setting_that_only_saves_memory(after_sft, capsys):
    """What the error of a full GPU promises."""
    with pytest.raises(KeyboardInterrupt):
        train_rl(after_sft, kill_at(2))
    saving = {"rl.micro_batch_tokens": 100, "rl.gradient_checkpointing": True}
    train_rl(open_run("r", overrides=saving, root=after_sft.folder.parent))
    assert "resuming from checkpoint-1" in capsys.readouterr().out
    assert len(log_of(after_sft, "rl")) == after_sft.preset.rl.steps


# ---- fp16 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fp16_policy(tiny_llama: Path) -> LoadedModel:
    """As on a T4: the model in fp16, its LoRA in fp32."""
    loaded = random_policy("llama", tiny_llama, MANY_ENDS)
    for parameter in loaded.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()
    return loaded


def test_in_fp16_the_gradient_is_scaled_up_and_the_step_is_that_of_fp32(fp16_policy, llama_policy):
    before = adapter_of(llama_policy.model)
    row, _, training = run_step(fp16_policy)
    other, _, _ = run_step(llama_policy)
    assert training.scaler.is_enabled()
    assert row["skipped"] == 0
    assert "skipped" not in other
    assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.05)
    moved = [adapter_of(loaded.model) for loaded in (fp16_policy, llama_policy)]
    for name, weights in before.items():
        assert (moved[1][name] - weights).abs().max() > 1e-3
        torch.testing.assert_close(moved[0][name], moved[1][name], atol=5e-3, rtol=0.1)


def test_a_gradient_that_overflows_in_fp16_is_skipped_with_half_the_scale(fp16_policy):
    training = start_training(fp16_policy, SETTINGS)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = adapter_of(fp16_policy.model)
    row, _ = reinforce.rl_step(fp16_policy, training, some_prompts(fp16_policy, "ab"), get_task("LaMP-3"), SETTINGS)
    assert row["skipped"] == 1
    assert math.isnan(row["grad_norm"])
    assert training.scaler.get_scale() == 2.0**39
    assert all(bool(torch.equal(before[name], now)) for name, now in adapter_of(fp16_policy.model).items())
    assert diagnose([row]) == {}, "nothing has failed"
    training.log = [row] * 8
    with pytest.raises(KitError, match="Step 2: a gradient is not a number"):
        reinforce.rl_step(fp16_policy, training, some_prompts(fp16_policy, "ab"), get_task("LaMP-3"), SETTINGS)


def test_a_training_that_skipped_every_step_is_not_finished(after_sft, monkeypatch):
    step = reinforce.rl_step

    def skipped(*arguments):
        row, records = step(*arguments)
        return row | {"skipped": 1.0, "grad_norm": math.nan}, records

    monkeypatch.setattr(reinforce, "rl_step", skipped)
    with pytest.raises(KitError, match="In none of the 4 steps did the gradient fit into fp16"):
        train_rl(after_sft)
    assert not (after_sft.stage("rl") / "manifest.json").exists()


def test_a_rank_without_completions_takes_part_in_an_fp16_update(fp16_policy):
    training = start_training(fp16_policy, SETTINGS)
    accumulate_gradients(fp16_policy, [], torch.zeros(0), 1.0, SETTINGS, training, 1)
    for parameter in training.parameters.values():
        parameter.grad = torch.zeros_like(parameter)  # what the sum over ranks leaves, were the others' 0 too
    assert update(training, step=1) == 0


def test_without_sft_training_starts_from_a_new_adapter(prepared):
    settings = {"rl.start": "untrained", "rl.steps": 1, "rl.prompts_per_step": 1, "rl.group_size": 2, "rl.beta": 0.1}
    run = prepared(settings)
    train_rl(run)
    assert "sft" not in json.loads((run.stage("rl") / "manifest.json").read_text())["inputs"]
    assert log_of(run, "rl")["kl"][0] == 0, "the reference is the untrained module"
    moved = [bool(value.any()) for name, value in stored(run.stage("rl")).items() if "lora_B" in name]
    assert any(moved), "a new LoRA's B is 0, and rewards move it"


def test_before_sft_it_says_what_to_run_first(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize --run r`"):
        train_rl(prepared())


# ---- the model ----------------------------------------------------------------------------------------------------


def spoiled_tokenizer(tiny_llama: Path, folder: Path, **changes: str | None) -> str:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(tiny_llama, folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_a_tokenizer_whose_pad_token_is_its_end_token_is_rejected_by_name(tiny_llama, tmp_path, pad):
    folder = spoiled_tokenizer(tiny_llama, tmp_path / "pad-is-end", pad_token=pad)
    settings = get_preset("tiny", {"reflection.name": folder}).reflection
    with pytest.raises(KitError, match="pad-is-end has no pad token besides its end token"):
        load_trainable(settings, None, 0)


def test_a_model_without_a_chat_template_is_rejected_by_name(tiny_llama, tmp_path):
    folder = spoiled_tokenizer(tiny_llama, tmp_path / "no-chat", chat_template=None)
    settings = get_preset("tiny", {"reflection.name": folder}).reflection
    with pytest.raises(KitError, match=r"no-chat has no chat template, .* choose an instruct model"):
        load_trainable(settings, None, 0)


def test_a_model_reads_no_more_than_its_own_context(tiny_llama):
    settings = get_preset("tiny", {"reflection.name": str(tiny_llama), "reflection.max_seq_length": 10_000}).reflection
    assert load_trainable(settings, None, 0).max_seq_length == 4096


def test_rl_and_evaluation_load_without_unsloth(tiny_llama):
    """Importing it patches transformers for the whole process."""
    code = f"""
import sys
from rpo_kit.models.local import generate, load_trainable
from rpo_kit.presets import ModelSettings
from rpo_kit.training import reinforce
loaded = load_trainable(ModelSettings({str(tiny_llama)!r}, max_seq_length=256), None, 0)
generate(loaded, [[{{"role": "user", "content": "hello"}}]], max_new_tokens=3)
print([name for name in ("unsloth", "unsloth_zoo", "trl") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["trl", "transformers", "peft"])
def test_the_libraries_we_reach_into_are_pinned_and_installed_as_pinned(package):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"{package}=={importlib.metadata.version(package)}" in project["dependencies"]
