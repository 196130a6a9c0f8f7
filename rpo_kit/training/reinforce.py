"""Stage 4, `rl`: REINFORCE++ with baseline, under a curriculum of growing history (Figure 2, right).

For each prompt G completions are sampled. With r_i the reward, L_i the length of completion i in tokens (its end token
included) and all sums over the *global* batch of the step (arXiv 2501.03262; OpenRLHF's `reinforce_baseline`):

    c_i = r_i - mean of r over the G completions of the same prompt
    mu  = sum L_i c_i / sum L_i            var = sum L_i (c_i - mu)^2 / sum L_i
    A_i = (c_i - mu) / sqrt(max(var, 1e-8))           the same for every token of completion i
    loss = sum_i sum_t -min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) / sum L_i  +  beta KL(policy || SFT adapter)

mu is not zero where length and reward correlate. TRL's GRPOTrainer does everything but the whitening, which is ours.
TRL's own normalisations differ: its 'batch' divides by the spread of the raw rewards, between prompts included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.retrieval import take
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.presets import RLSettings
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import LoadedModel, fitting_messages, load_trainable
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import Run, require, stage
from rpo_kit.training.curriculum import prompt_order, shots_plan
from rpo_kit.training.progress import (
    OnLog,
    autocast_casts,
    common_arguments,
    finish_training,
    is_trained,
    last_checkpoint,
    log_callback,
    only_our_progress,
)
from rpo_kit.training.rewards import reward
from rpo_kit.training.shared_prefix import sample_groups, score_groups


def train_rl(run: Run, on_log: OnLog | None = None, stage_name: str = "rl", settings: RLSettings | None = None) -> None:
    """Refine the SFT adapter; after an interruption it goes on with the same prompts, k and trained weights."""
    settings = settings or run.preset.rl
    start, data = require(run, "sft") / "adapter", require(run, "prepare") / "generic.jsonl"
    with stage(run, stage_name, sft=start / "adapter_model.safetensors", data=data, settings=settings) as work:
        if work is None or is_trained(work):
            return
        loaded = load_trainable(run.preset.reflection, start, settings.seed)
        trainer = make_trainer(
            loaded, get_task(run.preset.data.task), rl_dataset(run, loaded, settings), settings, work, on_log
        )
        with autocast_casts(loaded.model):
            trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
        finish_training(trainer.model, loaded.tokenizer, work)


def rl_dataset(run: Run, loaded: LoadedModel, settings: RLSettings) -> Dataset:
    """One row a prompt, in training order: `prompt`, `gold`, `k` (items shown). The curriculum lies in the order."""
    task, limit = get_task(run.preset.data.task), loaded.max_seq_length - settings.max_new_tokens
    plan = shots_plan(settings.curriculum, settings.steps, settings.shots_from, settings.shots_to, settings.seed)
    examples = prompt_order(load_prepared(run, "train"), settings.steps * settings.prompts_per_step, settings.seed)
    rows, shortened = [], 0
    for slot, example in enumerate(examples):
        items = take(example, example["ranking"], plan[slot // settings.prompts_per_step])
        prompt, cut = fitting_messages(loaded.tokenizer, limit, task, example, items)
        rows.append({"prompt": prompt, "gold": example["output"], "k": len(items)})
        shortened += cut
    if shortened:
        print(f"{shortened} of {len(rows)} prompts were longer than {limit} tokens: their history items were shortened")
    return Dataset.from_list(rows)


def reward_function(task: Task, format_weight: float) -> Any:
    """The reward in the form TRL calls: lists in, one float a completion out; logs k and the share that parses."""

    def task_reward(
        completions: list[Any], gold: list[str], k: list[int], log_metric: Any = None, **_: Any
    ) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        if log_metric:
            log_metric("shots", sum(k) / len(k))
            log_metric("parsed", sum(parse(text).trajectory is not None for text in texts) / len(texts))
        return [reward(task, text, g, n, format_weight) for text, g, n in zip(texts, gold, k, strict=True)]

    return task_reward


def make_trainer(
    loaded: LoadedModel, task: Task, rows: Dataset, settings: RLSettings, work: Path, on_log: OnLog | None
) -> Any:
    trainer = trainer_class()(
        model=loaded.model,
        reward_funcs=[reward_function(task, settings.format_weight)],
        args=trainer_config(settings, work),
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        callbacks=[log_callback(work / "log.csv", "reward", on_log)],
    )
    ensure_reference(trainer.model, settings.beta)
    only_our_progress(trainer)
    return trainer


def trainer_config(settings: RLSettings, work: Path) -> Any:
    """Every field that decides something is set: Unsloth's defaults differ from TRL's."""
    from trl import GRPOConfig

    sequences = settings.prompts_per_step * settings.group_size
    if sequences % settings.micro_batch or settings.micro_batch % settings.group_size:
        raise KitError(
            f"rl.micro_batch={settings.micro_batch} must be a multiple of rl.group_size="
            f"{settings.group_size} and divide the {sequences} sequences of a step."
        )
    return GRPOConfig(
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=sequences // settings.micro_batch,
        steps_per_generation=sequences // settings.micro_batch,  # one rollout batch, one update: rho = 1, on-policy
        num_generations=settings.group_size,
        num_iterations=1,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        scale_rewards="none",  # A = r - group mean; the whitening is ours
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


def whiten(centred: Any, lengths: Any) -> tuple[Any, Any]:
    """Mean and 1/std of the centred rewards, each counted once for every token; tensors of shape (sequences,)."""
    mu = (lengths * centred).sum() / lengths.sum().clamp(min=1)
    var = (lengths * (centred - mu) ** 2).sum() / lengths.sum().clamp(min=1)
    return mu, var.clamp(min=1e-8).rsqrt()


def trainer_class() -> Any:
    """The trainer. Made in a function, because it must derive from whatever Unsloth has put in TRL's place by now."""
    import torch
    from trl import GRPOTrainer
    from trl.trainer.utils import pad

    if torch.cuda.is_available() and "Unsloth" not in GRPOTrainer.__name__:
        raise KitError(
            "Unsloth did not patch TRL's trainer: check that the pinned versions of unsloth and trl are installed."
        )

    class ReinforcePPBaselineTrainer(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            out = super()._generate_and_score_completions(inputs)
            model: Any = self.model
            if model.training:
                gather = self.accelerator.gather
                lengths = out["completion_mask"].sum(1).float()
                mu, scale = whiten(gather(out["advantages"]).float(), gather(lengths))
                out["advantages"] = (out["advantages"] - mu) * scale
            return out

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, **rest: Any
        ) -> Any:
            if not shares_prefix(model):
                return super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, **rest
                )
            inner = self.accelerator.unwrap_model(model)
            with self.accelerator.autocast():
                return *score_groups(inner, input_ids, attention_mask, logits_to_keep, self.temperature), None

        def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            model: Any = self.accelerator.unwrap_model(self.model)
            config: Any = self.args
            group = config.num_generations
            distinct = prompt_ids[::group]
            if not shares_prefix(model) or prompt_ids != [ids for ids in distinct for _ in range(group)]:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            rows = [torch.tensor(ids, device=model.device) for ids in distinct]
            ids = pad(rows, padding_value=self._tokenizer.pad_token_id, padding_side="left")
            mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left")
            limit, ends = config.max_completion_length, self.eos_token_ids
            with self.accelerator.autocast():
                out = sample_groups(model, ids, mask, group, limit, self.temperature, ends)
            return [until_end(row, ends) for row in out.flatten(0, 1).tolist()], None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """Load the policy too: where a `ref` adapter exists, transformers loads only that one (facts, trap 1)."""
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            policy: Any = self.model
            policy.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            policy.set_adapter("default")

    return ReinforcePPBaselineTrainer


def shares_prefix(model: Any) -> bool:
    """Whether one pass can score a whole group: Llama- and Qwen-type models on the Hugging Face path.

    Not on a GPU, where Unsloth has replaced the forward pass and groups prefixes itself.
    """
    import torch

    return model.config.model_type in ("llama", "qwen2", "qwen3") and not torch.cuda.is_available()


def until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


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
