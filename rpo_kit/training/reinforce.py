"""Stage 4, `rl`: REINFORCE++ with baseline, under a curriculum of growing history (Figure 2, bottom).

For each prompt G completions are sampled. With r_i the reward, L_i the length of completion i in tokens (its end token
included) and all sums over the *global* batch of the step (arXiv 2501.03262; OpenRLHF's `reinforce_baseline`):

    c_i = r_i - mean of r over the G completions of the same prompt
    mu  = sum L_i c_i / sum L_i            var = sum L_i (c_i - mu)^2 / sum L_i
    A_i = (c_i - mu) / sqrt(max(var, 1e-8))           the same for every token of completion i

    rho  = p(token) / p_old(token)                    p: the policy now; p_old: as it was when it sampled
    loss = ( sum_i sum_t -min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)  +  beta (log p - log p_sft)^2 / 2 ) / sum L_i

One batch of rollouts is one update here, so rho = 1 and the clip never acts; what counts is the gradient, A_i times
that of log p. The last term is the KL to the SFT adapter ("k2", arXiv 2510.01555), taken from a frozen copy of that
adapter on the same model. mu is not zero if length and reward correlate. For ablations, `rl.algorithm` selects the
advantage of REINFORCE++ without baseline, GRPO or RLOO; the loss stays the same. Not implemented: several updates per
batch, a value model, learning-rate schedules but `rl.warmup`.

    train_rl(run)       # reads sft/adapter; writes rl/adapter, rl/log.csv and rl/rollouts.jsonl
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.model_spec import rollout_server
from rpo_kit.models.attention import causal_lm
from rpo_kit.models.local import LoadedModel, end_tokens, load_trainable, sample
from rpo_kit.models.lora import copy_adapter, merged_adapter
from rpo_kit.pipeline import inputs_of
from rpo_kit.presets import RLSettings
from rpo_kit.runs import OnLog, Run
from rpo_kit.setting_rules import ALGORITHMS
from rpo_kit.stages import stage
from rpo_kit.training import checkpoints, ranks, rollouts
from rpo_kit.training.diagnostics import warn_on_log
from rpo_kit.training.progress import ProgressLog, finish_training, is_trained, release_memory
from rpo_kit.training.prompts import training_prompts
from rpo_kit.training.rewards import Judged, judge
from rpo_kit.training.rollouts import Prompt, Rollout
from rpo_kit.training.server_rollouts import ServerSampler
from rpo_kit.training.shared_prefix import (
    Group,
    micro_batches,
    refuse_other_head,
    score,
    scoring,
    why_not_shared_prefix,
)

_MAX_SKIPPED = 8  # ours: steps in a row whose gradient overflows in fp16


def train_rl(run: Run, on_log: OnLog | None = None, stage_name: str = "rl", settings: RLSettings | None = None) -> None:
    """Refine the SFT adapter, or with rl.start=untrained a new one; after an interruption training resumes with the
    same prompts, k, draws and weights.
    """
    settings = settings or run.preset.rl
    inputs = inputs_of(run, "rl") | {"settings": settings}
    start: Path | None = inputs.get("sft")  # none with rl.start=untrained
    with stage(run, stage_name, every_rank=True, **inputs) as stage_dir:
        if stage_dir is None or is_trained(stage_dir):
            return
        ranks.start()
        loaded = load_trainable(run.preset.reflection, start.parent if start else None, settings.seed)
        prompts = training_prompts(run, loaded, settings)
        reason = why_not_shared_prefix(loaded.model)
        print(f"each prompt is read once per {f'completion: {reason}' if reason else 'group'}")
        with memory_error_explained(settings):
            train(loaded, prompts, get_task(run.preset.data.task), settings, stage_dir, on_log)
        finish_training(loaded.model, loaded.tokenizer, stage_dir)


@contextmanager
def memory_error_explained(settings: RLSettings) -> Iterator[None]:
    """Turn "out of memory" on a GPU while scoring into a KitError that names the settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        checkpointing = "" if settings.gradient_checkpointing else "rl.gradient_checkpointing=true, or "
        raise KitError(
            f"The GPU does not have enough memory to score the completions of an RL step: set {checkpointing}"
            f"rl.micro_batch_tokens={settings.micro_batch_tokens // 2}, and run again; training resumes from the last "
            f"checkpoint. If a micro-batch is one group already, a lower rl.group_size (now {settings.group_size}) "
            "helps, with which training starts again."
        ) from error


# ---- the loop -----------------------------------------------------------------------------------------------------


def train(
    loaded: LoadedModel, prompts: Sequence[Prompt], task: Task, settings: RLSettings, folder: Path, on_log: OnLog | None
) -> None:
    """All steps after the last intact checkpoint in `folder`."""
    if prompts:
        refuse_other_head(loaded, prompts[0].ids)
    training = start_training(loaded, settings)
    start = "the SFT adapter" if settings.start == "sft" else "a new adapter"
    checkpoints.restore(folder / "checkpoints", training, start)
    server = rollout_server(settings.rollouts)
    sampler = ServerSampler(server, folder / "checkpoints") if server else None
    progress = ProgressLog(folder / "log.csv", "reward", settings.steps, training.step, warn_on_log(on_log))
    if progress.is_main:
        rollouts.cut_after(folder, training.step)
    with progress:
        while training.step < settings.steps:
            first = training.step * settings.prompts_per_step
            own = prompts[first : first + settings.prompts_per_step]
            row, sampled = rl_step(loaded, training, own, task, settings, sampler)
            if progress.is_main:
                row["rollouts_left_out"] = rollouts.append(folder, sampled, settings.rollouts_mb)
            training.log.append(row)
            progress.update(training.log)
            if progress.is_main and training.step % settings.save_every == 0 and training.step < settings.steps:
                checkpoints.save(folder / "checkpoints", training)
    if sampler:
        sampler.close()
    if training.log and all(row.get("skipped") for row in training.log):
        raise KitError(
            f"In none of the {len(training.log)} steps did the gradient fit into fp16, so nothing was learnt: set "
            f"rl.steps to more than {_MAX_SKIPPED}; the scale of the gradient is halved at each such step."
        )
    left_out = sum(row.get("rollouts_left_out", 0) for row in training.log)
    if left_out:
        print(
            f"{left_out:.0f} rollouts are not in {rollouts.FILE}: it has reached rl.rollouts_mb={settings.rollouts_mb}"
        )


def start_training(loaded: LoadedModel, settings: RLSettings) -> checkpoints.Training:
    """The trainable LoRA with its optimizer; for the KL, a frozen copy of it is added as the adapter `ref`."""
    model = loaded.model
    if settings.beta and "ref" not in model.peft_config:
        copy_adapter(model, "ref")
    if settings.gradient_checkpointing:
        causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    # In fp16 small gradients underflow: the loss is scaled up, and a step whose gradient overflows is skipped.
    scaler = torch.amp.GradScaler(model.device.type, enabled=causal_lm(model).dtype == torch.float16)
    return checkpoints.Training(parameters, optimizer, scaler, [])


def rl_step(
    loaded: LoadedModel,
    training: checkpoints.Training,
    prompts: Sequence[Prompt],
    task: Task,
    settings: RLSettings,
    sampler: ServerSampler | None = None,
) -> tuple[dict[str, float], list[Rollout]]:
    """One step on `prompts`, those of all ranks; returns its row of the log and its rollouts. Completions are those of
    `sampler`, if there is one, else of the model here.
    """
    step, began = training.step + 1, time.perf_counter()
    first, mine = ranks.share_of(prompts)

    # 1. Sample G completions of each prompt.
    groups = sample_completions(loaded, mine, settings, step, first, sampler)
    sampled = time.perf_counter()

    # 2. Parse and reward each.
    texts = [loaded.tokenizer.batch_decode(completions, skip_special_tokens=True) for _, completions in groups]
    judged = judge_each(mine, texts, task, settings)

    # 3. Advantages, from the rewards and lengths of all ranks.
    rewards = torch.tensor(ranks.gather([one.reward for one in judged]))
    lengths = torch.tensor(ranks.gather([float(len(tokens)) for _, completions in groups for tokens in completions]))
    refuse_non_finite(rewards, "reward", step)
    whole_batch = advantages(rewards, lengths, settings.group_size, settings.algorithm)
    own_advantages = whole_batch[first * settings.group_size :][: len(judged)]

    # 4. Log-probabilities, loss and gradient, in micro-batches that hold whole groups; 5. the update.
    loss, kl = accumulate_gradients(loaded, groups, own_advantages, float(lengths.sum()), settings, training, step)
    rate = learning_rate(settings, step)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    row = {"step": step, "loss": loss, "grad_norm": update(training, step), "learning_rate": rate}
    row |= {"skipped": float(math.isnan(row["grad_norm"]))} if training.scaler.is_enabled() else {}
    training.step, training.memory = step, release_memory(training.memory)

    parts = (mine, groups, texts, judged, own_advantages.tolist(), end_tokens(loaded))
    records = ranks.gather(rollouts.records(step, *parts))
    row |= {"kl": kl} if settings.beta else {}
    row |= {"sampling_gap": sampler.gap} if sampler else {}
    row |= rollouts.summary(records, prompts, task)
    row |= {"seconds_sampling": sampled - began, "seconds_scoring": time.perf_counter() - sampled}
    return row, records


def sample_completions(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    settings: RLSettings,
    step: int,
    first: int = 0,
    sampler: ServerSampler | None = None,
) -> list[Group]:
    """The prompts' tokens with G completions each. The draws depend on seed, step and slot alone, so that a resumed
    training, and one on several ranks, draws the same; `first` is the slot of the first prompt. (A server is sent the
    same seeds, but does not repeat itself exactly.)
    """
    ids = [prompt.ids for prompt in prompts]
    names = [f"rollouts/{settings.seed}/{step}/{slot}" for slot in range(first, first + len(prompts))]
    seeds = [random.Random(name).getrandbits(63) for name in names]
    if sampler:
        return sampler.sample(loaded, ids, settings, seeds)
    if not prompts:
        return []
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniforms = [torch.rand(settings.group_size, settings.max_new_tokens, generator=one) for one in generators]
    with torch.no_grad(), merged_adapter(loaded.model):
        completions = sample(
            loaded, ids, settings.group_size, settings.max_new_tokens, settings.temperature, torch.stack(uniforms)
        )
    return list(zip(ids, completions, strict=True))


def judge_each(
    prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], task: Task, settings: RLSettings
) -> list[Judged]:
    """The rewards of all completions, those of one prompt after the other."""
    weights = (settings.format_weight, settings.content_weight)
    return [
        judge(task, text, prompt.gold, prompt.shots, *weights, prompt.generic, prompt.query, prompt.sections)
        for prompt, own in zip(prompts, texts, strict=True)
        for text in own
    ]


def advantages(rewards: Tensor, lengths: Tensor, group: int, algorithm: str = "reinforce++-baseline") -> Tensor:
    """One advantage per completion from the rewards and lengths (in tokens) of the global batch; shapes (sequences,).

    The `group` completions of a prompt are consecutive.
    """
    groups = rewards.view(-1, group)
    centred = (groups - groups.mean(1, keepdim=True)).flatten()
    if algorithm == "reinforce++-baseline":  # the kit's method
        return whiten(centred, lengths)
    if algorithm == "reinforce++":  # no baseline: a hard prompt's completions are all below the mean
        return whiten(rewards, lengths)
    if algorithm == "rloo":  # arXiv 2402.14740; baseline: the mean of the *other* completions
        return centred * group / (group - 1)
    if algorithm == "grpo":  # arXiv 2402.03300, with TRL's constants: Bessel's correction, 1e-4
        return centred / (groups.std(1).repeat_interleave(group) + 1e-4)
    raise KitError(f"There is no rl.algorithm={algorithm!r}; there are {', '.join(ALGORITHMS)}.")


def whiten(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean 0 and variance 1 (biased) over the tokens of the batch: each value counts once per token."""
    mu = (lengths * values).sum() / lengths.sum().clamp(min=1)
    var = (lengths * (values - mu) ** 2).sum() / lengths.sum().clamp(min=1)
    return (values - mu) * var.clamp(min=1e-8).rsqrt()


def accumulate_gradients(
    loaded: LoadedModel,
    groups: Sequence[Group],
    advantage: Tensor,
    all_tokens: float,
    settings: RLSettings,
    training: checkpoints.Training,
    step: int,
) -> tuple[float, float]:
    """Add this rank's part of the gradient to the parameters; returns loss and KL per token, of all ranks."""
    model, device = loaded.model, loaded.model.device
    shared = why_not_shared_prefix(model) is None
    loss_sum = kl_sum = 0.0
    training.scaler.scale(torch.zeros((), device=device))  # a rank without completions takes part in the update too
    for batch in micro_batches(groups, settings.micro_batch_tokens, shared):
        part = [groups[n] for n in batch]
        own = torch.stack([advantage[n * settings.group_size + i] for n in batch for i in range(settings.group_size)])
        lengths = torch.tensor([len(tokens) for _, completions in part for tokens in completions])
        per_token = own.repeat_interleave(lengths).to(device)
        reference = None
        if settings.beta:
            with torch.no_grad(), scoring(model, "ref"):
                reference = score(model, part, settings.temperature)
        with scoring(model):
            logprobs = score(model, part, settings.temperature)
            refuse_non_finite(logprobs, "log-probability", step)
            loss, kl = policy_loss(logprobs, logprobs.detach(), reference, per_token, settings.clip, settings.beta)
            refuse_non_finite(loss, "loss", step)
            training.scaler.scale(loss / all_tokens).backward()
        loss_sum, kl_sum = loss_sum + float(loss.detach()), kl_sum + float(kl)
    sums = ranks.gather([(loss_sum, kl_sum)])
    return sum(one for one, _ in sums) / all_tokens, sum(one for _, one in sums) / all_tokens


def policy_loss(
    logprobs: Tensor, old: Tensor, reference: Tensor | None, advantage: Tensor, clip: float, beta: float
) -> tuple[Tensor, Tensor]:
    """The loss and, for the log, the KL to the reference, both summed over tokens. All inputs are (tokens,)."""
    ratio = (logprobs - old).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum()
    if reference is None:
        return loss, torch.zeros(())
    distance = logprobs - reference
    with torch.no_grad():
        kl = ((-distance).exp() - 1 + distance).sum()  # "k3": never negative, and right on average
    return loss + beta * (distance**2 / 2).sum(), kl


def learning_rate(settings: RLSettings, step: int) -> float:
    """Of step 1, 2, …: rises over the first share `rl.warmup` of the steps, then stays.

    AdamW's first steps have full length whatever the gradient is worth, and with few completions that is mostly noise.
    """
    rising = max(1.0, settings.warmup * settings.steps)
    return settings.learning_rate * min(1.0, step / rising)


def update(training: checkpoints.Training, step: int) -> float:
    """Clip the gradient of all ranks to norm 1 and take AdamW's step; returns the norm before clipping.

    In fp16 the scaled gradient may overflow, mostly in the first steps: the scaler then skips the step and halves its
    scale, and the norm is NaN. After `_MAX_SKIPPED` such steps in a row it is not the scale.
    """
    parameters, scaler = list(training.parameters.values()), training.scaler
    ranks.sum_gradients(parameters)
    scaler.unscale_(training.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    skipped = [row.get("skipped", 0.0) for row in training.log[-_MAX_SKIPPED:]]
    if not scaler.is_enabled() or sum(skipped) == _MAX_SKIPPED:
        refuse_non_finite(norm, "gradient", step)
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad()
    return float(norm) if bool(norm.isfinite()) else math.nan


def refuse_non_finite(values: Tensor, what: str, step: int) -> None:
    """Raise KitError for NaN or infinity: everything computed from it would be meaningless."""
    if not bool(values.isfinite().all()):
        raise KitError(
            f"Step {step}: a {what} is not a number (NaN or infinite). Training stops; the last checkpoint is kept. "
            "Lower rl.learning_rate or raise rl.beta, and check the last steps in log.csv and rollouts.jsonl."
        )
