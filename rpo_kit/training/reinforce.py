"""Stage 4, `rl`: REINFORCE++ with baseline, under a curriculum of growing history (Figure 2, right).

For each prompt G completions are sampled. With r_i the reward, L_i the length of completion i in tokens (its end token
included) and all sums over the *global* batch of the step (arXiv 2501.03262; OpenRLHF's `reinforce_baseline`):

    c_i = r_i - mean of r over the G completions of the same prompt
    mu  = sum L_i c_i / sum L_i            var = sum L_i (c_i - mu)^2 / sum L_i
    A_i = (c_i - mu) / sqrt(max(var, 1e-8))           the same for every token of completion i
    loss = sum_i sum_t -min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) / sum L_i  +  beta KL(policy || SFT adapter)

mu is not zero where length and reward correlate. TRL's GRPOTrainer does everything but the advantage, which is ours:
its own normalisations differ (its 'batch' divides by the spread of the raw rewards, between prompts included). For the
ablation `rl.algorithm` takes the advantage of REINFORCE++ without baseline, GRPO or RLOO; the loss stays the same.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from rpo_kit.errors import KitError
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.local import LoadedModel, load_trainable
from rpo_kit.models.sampling import sample_groups, shares_prefix, until_end
from rpo_kit.pipeline import inputs_of
from rpo_kit.presets import ALGORITHMS, RLSettings
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import fitting_messages
from rpo_kit.runs import Run
from rpo_kit.stages import stage
from rpo_kit.training.curriculum import prompt_order, shots_plan
from rpo_kit.training.diagnostics import warn_on_log
from rpo_kit.training.progress import (
    OnLog,
    common_arguments,
    finish_training,
    give_back_memory,
    is_trained,
    log_callback,
    only_our_progress,
    train,
)
from rpo_kit.training.rewards import reward_function
from rpo_kit.training.shared_prefix import score_groups


def train_rl(run: Run, on_log: OnLog | None = None, stage_name: str = "rl", settings: RLSettings | None = None) -> None:
    """Refine the SFT adapter; after an interruption it goes on with the same prompts, k and trained weights."""
    settings = settings or run.preset.rl
    inputs = inputs_of(run, "rl") | {"settings": settings}
    with stage(run, stage_name, every_rank=True, **inputs) as work:
        if work is None or is_trained(work):
            return
        loaded = load_trainable(run.preset.reflection, inputs["sft"].parent, settings.seed)
        trainer = make_trainer(
            loaded, get_task(run.preset.data.task), rl_dataset(run, loaded, settings), settings, work, on_log
        )
        reason = scores_apart(trainer.model, trainer.accelerator.num_processes)
        print(f"a group's prompt is {f'read for each rewrite: {reason}' if reason else 'read once'}")
        train(trainer, work)
        finish_training(trainer.model, loaded.tokenizer, work)


def rl_dataset(run: Run, loaded: LoadedModel, settings: RLSettings) -> Dataset:
    """One row a prompt, in training order: `prompt`, `gold`, `k` (items shown). The curriculum lies in the order."""
    task, limit = get_task(run.preset.data.task), loaded.max_seq_length - settings.max_new_tokens
    plan = shots_plan(settings.curriculum, settings.steps, settings.shots_from, settings.shots_to, settings.seed)
    examples = prompt_order(load_prepared(run, "train"), settings.steps * settings.prompts_per_step, settings.seed)
    rows, shortened, fewer = [], 0, 0
    for slot, example in enumerate(examples):
        shots = plan[slot // settings.prompts_per_step]
        items = top_k(example, example["ranking"], shots)
        prompt, cut = fitting_messages(loaded.tokenizer, limit, task, example, items)
        row = {"prompt": prompt, "gold": example["output"], "k": len(items), "generic": example["generic"]}
        rows.append(row | {"history": [item[task.gold_field] for item in items]})
        shortened += cut
        fewer += len(items) < shots
    if fewer:
        print(f"{fewer} of {len(rows)} prompts show fewer items than planned: the profiles have no more")
    if shortened:
        print(f"{shortened} of {len(rows)} prompts were longer than {limit} tokens: their history items were shortened")
    return Dataset.from_list(rows)


def make_trainer(
    loaded: LoadedModel, task: Task, rows: Dataset, settings: RLSettings, work: Path, on_log: OnLog | None
) -> Any:
    trainer = trainer_class(settings.algorithm)(
        model=loaded.model,
        reward_funcs=[reward_function(task, settings.format_weight)],
        args=trainer_config(settings, work),
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        callbacks=[log_callback(work / "log.csv", "reward", warn_on_log(on_log))],
    )
    ensure_reference(trainer.model, settings.beta)
    only_our_progress(trainer)
    return trainer


def trainer_config(settings: RLSettings, work: Path) -> Any:
    """Every field that decides something is set: Unsloth's defaults differ from TRL's."""
    from trl import GRPOConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun
    sequences, at_once = settings.prompts_per_step * settings.group_size, settings.micro_batch * processes
    if sequences % at_once or settings.micro_batch % settings.group_size:
        raise KitError(
            f"rl.micro_batch={settings.micro_batch} must be a multiple of rl.group_size={settings.group_size} and, on "
            f"{processes} process(es), divide the {sequences} sequences of a step."
        )
    return GRPOConfig(
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=sequences // at_once,
        steps_per_generation=sequences // at_once,  # one rollout batch, one update: rho = 1, on-policy
        num_generations=settings.group_size,
        num_iterations=1,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        scale_rewards="none",  # TRL's log then keeps r - group mean; the advantage is ours
        loss_type="dapo",  # token sum over the global token count
        importance_sampling_level="token",
        epsilon=settings.clip,
        epsilon_high=settings.clip,
        beta=settings.beta,
        use_bias_correction_kl=True,  # makes TRL's KL gradient the k2 one (facts)
        mask_truncated_completions=False,
        shuffle_dataset=False,  # the curriculum lies in the order of the rows
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1.0,
        logging_steps=1,
        use_vllm=False,
        **common_arguments(settings, work),
    )


def advantages(rewards: Tensor, lengths: Tensor, group: int, algorithm: str = "reinforce++-baseline") -> Tensor:
    """One advantage a completion from the rewards and lengths (in tokens) of the global batch; shapes (sequences,).

    Completions of one prompt stand together, `group` of them.
    """
    groups = rewards.view(-1, group)
    centred = (groups - groups.mean(1, keepdim=True)).flatten()
    if algorithm == "reinforce++-baseline":  # the kit's method
        return whiten(centred, lengths)
    if algorithm == "reinforce++":  # no baseline: a hard prompt's attempts are all below the mean
        return whiten(rewards, lengths)
    if algorithm == "rloo":  # baseline: the mean of the *other* attempts
        return centred * group / (group - 1)
    if algorithm == "grpo":  # TRL's constants: Bessel's correction, 1e-4
        return centred / (groups.std(1).repeat_interleave(group) + 1e-4)
    raise KitError(f"There is no rl.algorithm={algorithm!r}; there are {', '.join(ALGORITHMS)}.")


def whiten(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean 0 and variance 1 (biased) over the tokens of the batch: each value counts once for every token."""
    mu = (lengths * values).sum() / lengths.sum().clamp(min=1)
    var = (lengths * (values - mu) ** 2).sum() / lengths.sum().clamp(min=1)
    return (values - mu) * var.clamp(min=1e-8).rsqrt()


def trainer_class(algorithm: str = "reinforce++-baseline") -> Any:
    """The trainer. Made in a function, because it must derive from whatever Unsloth has put in TRL's place by now."""
    from trl import GRPOTrainer

    if torch.cuda.is_available() and "Unsloth" not in GRPOTrainer.__name__:
        raise KitError(
            "Unsloth did not patch TRL's trainer: check that the pinned versions of unsloth and trl are installed."
        )

    class RewritingTrainer(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            give_back_memory()
            out = super()._generate_and_score_completions(inputs)
            model: Any = self.model
            group: Any = self.num_generations
            if model.training:
                lengths = self.accelerator.gather(out["completion_mask"].sum(1).float())
                found = advantages(self.gathered_rewards, lengths, group, algorithm)
                out["advantages"] = found.chunk(self.accelerator.num_processes)[self.accelerator.process_index]
            return out

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
            if self._buffered_inputs is before:
                return inputs
            self._buffered_inputs = group_by_prompt(self._buffered_inputs)
            return self._buffered_inputs[self._step % len(self._buffered_inputs)]

        def _calculate_rewards(self, *args: Any) -> Any:
            """One column for our one reward, of all processes; TRL goes on with it for its log."""
            rewards = super()._calculate_rewards(*args)
            self.gathered_rewards = rewards[:, 0]
            return rewards

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **rest: Any
        ) -> Any:
            if scores_apart(model, self.accelerator.num_processes):
                return super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, *args, **rest
                )
            inner = self.accelerator.unwrap_model(model)
            with self.accelerator.autocast():
                return *score_groups(inner, input_ids, attention_mask, logits_to_keep, self.temperature), None

        def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            model: Any = self.accelerator.unwrap_model(self.model)
            group: Any = self.num_generations
            distinct = prompt_ids[::group]
            if not shares_prefix(model) or prompt_ids != [ids for ids in distinct for _ in range(group)]:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            with self.accelerator.autocast():
                return sample_together(self, model, distinct), None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """Load the policy too: where a `ref` adapter exists, transformers loads only that one (facts, trap 1)."""
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            policy: Any = self.model
            policy.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            policy.set_adapter("default")

    return RewritingTrainer


def sample_together(trainer: Any, model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The trainer's G completions of each prompt, as token ids up to their end; G stand together."""
    from trl.trainer.utils import pad

    rows = [torch.tensor(ids, device=model.device) for ids in prompts]
    ids = pad(rows, padding_value=trainer._tokenizer.pad_token_id, padding_side="left")
    mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left")
    group, limit, ends = trainer.num_generations, trainer.args.max_completion_length, trainer.eos_token_ids
    out = sample_groups(model, ids, mask, group, limit, trainer.temperature, ends)
    return [until_end(row, ends) for row in out.flatten(0, 1).tolist()]


def group_by_prompt(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A step's micro-batches, dealt anew so that the rewrites of a prompt stand in one of them and can share it: TRL
    shuffles them over all. The step's gradient, a sum over all, stays the same.
    """
    from trl.trainer.utils import split_tensor_dict

    _, prompt = torch.unique(torch.cat([batch["prompt_ids"] for batch in batches]), dim=0, return_inverse=True)
    order = prompt.argsort(stable=True)

    def rows(name: str) -> Any:
        parts = [batch[name] for batch in batches]
        if isinstance(parts[0], Tensor) and parts[0].ndim:
            return torch.cat(parts)[order]
        if isinstance(parts[0], list):
            return [list(chain(*parts))[n] for n in order.tolist()]
        return parts[0]  # one number for all, or nothing

    dealt: list[dict[str, Any]] = split_tensor_dict({name: rows(name) for name in batches[0]}, len(batches))
    return dealt


def scores_apart(model: Any, processes: int = 1) -> str | None:
    """Why each rewrite is scored with a prompt of its own, or None where a group shares it."""
    if processes > 1:
        return "several processes exchange their gradients in the model's own forward pass"
    if torch.cuda.is_available():
        return "Unsloth's GPU trainer groups prefixes itself"
    return None if shares_prefix(model) else f"the attention of this {model.config.model_type} model is not known here"


def ensure_reference(model: Any, beta: float) -> None:
    """A frozen copy of the SFT adapter named `ref`, to which the KL is taken. TRL adds it, Unsloth leaves it out."""
    if beta == 0.0 or "ref" in model.peft_config:
        return
    model.add_adapter("ref", model.peft_config["default"])
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if ".default." in name:
            parameters[name.replace(".default.", ".ref.")].data.copy_(parameter.data)
    model.set_adapter("default")
