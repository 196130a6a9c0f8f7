"""`export --to verl`: the RL stage of a run for verl (github.com/volcengine/verl), which trains on many GPUs and nodes.

    export_verl(run, folder)
    folder/train.parquet    one row per prompt slot, in the kit's order: step after step, k as the curriculum plans it
    folder/dev.parquet      one row per dev user, with evaluation.shots items
    folder/reward.py        compute_score(data_source, solution_str, ground_truth, extra_info): the kit's reward
    folder/model/           the policy that RL starts from: the reflection module, with the SFT adapter merged into it
    folder/launch.sh        verl's settings, each with the setting of the kit that it comes from

verl reads the rows in this order and once (data.shuffle=False, one epoch, a batch per step), so its step n has the
prompts and the k of the kit's step n: the progressive curriculum needs one file. The adapter is merged because verl's
KL is to the model without its LoRA, the kit's to the SFT adapter. Written for verl 0.9.1.

What differs from `train_rl`: LoRA starts anew on the merged model; the variance of the advantages has Bessel's
correction (n - 1 tokens); the end of a text that vLLM cuts is verl's; sampling has vLLM's random numbers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import LoadedModel, load_model
from rpo_kit.models.lora import load_lora, merge_lora
from rpo_kit.pipeline import WEIGHTS, current
from rpo_kit.presets import ModelSettings, RLSettings
from rpo_kit.processes import disk_errors_explained
from rpo_kit.provenance import git_commit
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import unfitting
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import Run, write_json, write_text
from rpo_kit.serving.export_folder import NOTE, check_replaceable, in_one_step
from rpo_kit.training.prompts import prompt_of, training_prompts
from rpo_kit.training.rollouts import Prompt

ESTIMATORS = {  # rl.algorithm: verl's algorithm.adv_estimator
    "reinforce++-baseline": "reinforce_plus_plus_baseline",
    "reinforce++": "reinforce_plus_plus",
    "grpo": "grpo",
    "rloo": "rloo",
}
Options = list[tuple[str, str]]  # (KEY=VALUE, comment)
_TOKENS = "rl.micro_batch_tokens, and at least one sequence"

_SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {
                **{name: pa.string() for name in ("split", "example", "generic", "query")},
                **{name: pa.int64() for name in ("index", "step", "items")},
                "sections": pa.list_(pa.string()),
            }
        ),
    }
)


def export_verl(run: Run, folder: Path, force: bool = False) -> list[Path]:
    """Write the files above; returns them. `force` replaces an earlier export.

    Raises:
        KitError: an earlier stage is missing, no prompt fits into the context window, or the folder cannot be written
            or holds something else.
    """
    start = (current(run, "sft") / WEIGHTS).parent if run.preset.rl.start == "sft" else None
    check_replaceable(folder, force)
    # A LoRA is merged into the weights with which it was trained: 4-bit ones, unpacked.
    loaded = load_model(run.preset.reflection if start else replace(run.preset.reflection, load_in_4bit=False))
    with disk_errors_explained(folder), in_one_step(folder) as part:
        train = training_prompts(run, loaded, run.preset.rl)
        _write_rows(part / "train.parquet", run, "train", train, run.preset.rl.prompts_per_step)
        _write_rows(part / "dev.parquet", run, "dev", dev_prompts(run, loaded), 0)
        write_text(part / "reward.py", reward_file(run))
        write_text(part / "launch.sh", launch_script(run, loaded.max_seq_length))
        loaded.tokenizer.save_pretrained(part / "model")
        model = merge_lora(load_lora(loaded.model, start)) if start else loaded.model
        model.to(torch.bfloat16).save_pretrained(part / "model")  # type: ignore[arg-type]
        write_json(part / NOTE, {"form": "verl", "run": run.name, "commit": git_commit()})
    return [folder / name for name in ("train.parquet", "dev.parquet", "reward.py", "model", "launch.sh")]


def dev_prompts(run: Run, loaded: LoadedModel) -> list[Prompt]:
    """The prompts of the evaluation, with `evaluation.shots` items; those that do not fit are left out and counted."""
    task, form, shots = get_task(run.preset.data.task), Form.of(run.preset.reflection), run.preset.evaluation.shots
    limit = loaded.max_seq_length - run.preset.rl.max_new_tokens
    pool = load_prepared(run, "dev")
    too_long = unfitting(loaded.tokenizer, limit, task, pool, shots, form)
    if too_long:
        print(f"{len(too_long)} of {len(pool)} dev examples do not fit and are left out")
    pool = [example for example in pool if example["id"] not in too_long]
    return [prompt_of(loaded.tokenizer, limit, task, example, shots, form)[0] for example in pool]


def _write_rows(path: Path, run: Run, split: str, prompts: Sequence[Prompt], per_step: int) -> None:
    """One row per prompt; `per_step` prompts are one step (0: no steps)."""
    if not prompts:
        limit = run.preset.reflection.max_seq_length
        raise KitError(f"No {split} prompt fits into reflection.max_seq_length={limit}: raise it.")
    rows = []
    for index, prompt in enumerate(prompts):
        extra: dict[str, object] = {"split": split, "index": index, "example": prompt.example, "items": prompt.shots}
        extra |= {"step": index // per_step + 1 if per_step else 0, "generic": prompt.generic, "query": prompt.query}
        row: dict[str, object] = {"data_source": f"rpo_kit/{run.preset.data.task}", "prompt": list(prompt.messages)}
        row |= {"ability": "personalization", "reward_model": {"style": "rule", "ground_truth": prompt.gold}}
        rows.append(row | {"extra_info": extra | {"sections": list(prompt.sections)}})
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), path)


# ---- the reward ---------------------------------------------------------------------------------------------------


def reward_file(run: Run) -> str:
    """A file for verl's reward.custom_reward_function."""
    settings = run.preset.rl
    return f'''"""The reward of the rpo_kit run {run.name!r} ({run.preset.data.task}), for verl.

rpo_kit must be importable where verl computes rewards; this part of it needs numpy and rouge-score, and no torch:
    pip install rouge-score==0.1.2 && export PYTHONPATH=/path/to/the/checkout
"""

from rpo_kit.lamp.tasks import get_task
from rpo_kit.training.rewards import judge

TASK = get_task({run.preset.data.task!r})
FORMAT_WEIGHT = {settings.format_weight}  # rl.format_weight
CONTENT_WEIGHT = {settings.content_weight}  # rl.content_weight


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The reward as `score`, and its parts: verl logs them all, and `metric` is the task's own."""
    extra = extra_info or {{}}
    judged = judge(
        TASK,
        solution_str,
        ground_truth,
        int(extra["items"]),
        FORMAT_WEIGHT,
        CONTENT_WEIGHT,
        extra["generic"],
        extra["query"],
        tuple(extra["sections"]),
    )
    parsed = float(judged.rewrite is not None)
    return {{"score": judged.reward, "metric": judged.score, "format": judged.format, "parsed": parsed}}
'''


# ---- verl's settings ----------------------------------------------------------------------------------------------


def launch_script(run: Run, window: int) -> str:
    """verl's command; `window` is how many tokens the module reads and writes at most."""
    module, settings = run.preset.reflection, run.preset.rl
    options = [*_data(settings, window), *_policy(module, settings), *_loss(module, settings), *_trainer(run)]
    lines = "\n".join(f"    {shlex.quote(option)}  # {comment}" for option, comment in options)
    return f"""#!/usr/bin/env bash
# The RL stage of the rpo_kit run {run.name!r} in verl 0.9.1. Start it in an environment in which verl, vLLM and rpo_kit
# (see reward.py) can be imported. Options after the command change settings: launch.sh trainer.n_gpus_per_node=8
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
options=(
    "data.train_files=$here/train.parquet"
    "data.val_files=$here/dev.parquet"
    "actor_rollout_ref.model.path=$here/model"
    "reward.custom_reward_function.path=$here/reward.py"
    "trainer.default_local_dir=$here/checkpoints"
{lines}
)
exec python3 -m verl.trainer.main_ppo "${{options[@]}}" "$@"
"""


def _data(settings: RLSettings, window: int) -> Options:
    return [
        ("data.shuffle=False", "the rows stand in the order of the curriculum"),
        (f"data.train_batch_size={settings.prompts_per_step}", "rl.prompts_per_step"),
        (f"data.max_prompt_length={window - settings.max_new_tokens}", "reflection.max_seq_length less the next"),
        (f"data.max_response_length={settings.max_new_tokens}", "rl.max_new_tokens"),
        ("data.truncation=error", "the kit has shortened what was too long"),
        ("reward.custom_reward_function.name=compute_score", "of reward.py"),
    ]


def _policy(module: ModelSettings, settings: RLSettings) -> Options:
    targets = ",".join(module.lora_targets)
    rollout = "actor_rollout_ref.rollout"
    return [
        (f"algorithm.adv_estimator={ESTIMATORS[settings.algorithm]}", "rl.algorithm"),
        ("algorithm.gamma=1.0", "the same advantage for every token"),
        ("algorithm.use_kl_in_reward=False", "the KL is a part of the loss"),
        (f"actor_rollout_ref.model.lora_rank={module.lora_rank}", "reflection.lora_rank"),
        (f"actor_rollout_ref.model.lora_alpha={module.lora_alpha}", "reflection.lora_alpha"),
        (f"actor_rollout_ref.model.target_modules=[{targets}]", "reflection.lora_targets"),
        (
            f"actor_rollout_ref.model.enable_gradient_checkpointing={settings.gradient_checkpointing}",
            "rl.gradient_checkpointing",
        ),
        (f"{rollout}.name=vllm", "verl's own vLLM engine"),
        (f"{rollout}.n={settings.group_size}", "rl.group_size"),
        (f"{rollout}.temperature={settings.temperature}", "rl.temperature"),
        (f"{rollout}.tensor_model_parallel_size=1", "a replica per GPU; raise it for models that do not fit"),
        (f"{rollout}.load_format=safetensors", "vLLM needs the base weights beside the LoRA"),
    ]


def _loss(module: ModelSettings, settings: RLSettings) -> Options:
    actor = "actor_rollout_ref.actor"
    return [
        (f"{actor}.optim.lr={settings.learning_rate}", "rl.learning_rate"),
        (f"{actor}.optim.lr_warmup_steps_ratio={settings.warmup}", "rl.warmup"),
        (f"{actor}.optim.weight_decay=0.0", "as the kit's AdamW"),
        (f"{actor}.grad_clip=1.0", "the kit's norm"),
        (f"{actor}.ppo_mini_batch_size={settings.prompts_per_step}", "one update per batch of rollouts, in prompts"),
        (f"{actor}.ppo_epochs=1", "each rollout is used once"),
        (f"{actor}.use_dynamic_bsz=True", "micro-batches by tokens, as the kit's"),
        (f"{actor}.ppo_max_token_len_per_gpu={max(settings.micro_batch_tokens, module.max_seq_length)}", _TOKENS),
        (f"{actor}.clip_ratio={settings.clip}", "rl.clip; without effect while rollouts are used once"),
        (f"{actor}.clip_ratio_low={settings.clip}", "rl.clip"),
        (f"{actor}.clip_ratio_high={settings.clip}", "rl.clip"),
        (f"{actor}.loss_agg_mode=token-mean", "sum over the tokens of the batch, divided by their number"),
        (f"{actor}.entropy_coeff=0", "no entropy bonus"),
        (f"{actor}.use_kl_loss={settings.beta > 0}", "rl.beta above 0"),
        (f"{actor}.kl_loss_coef={settings.beta}", "rl.beta"),
        (f"{actor}.kl_loss_type=k2", "(log p - log p_sft)^2 / 2"),
    ]


def _trainer(run: Run) -> Options:
    settings = run.preset.rl
    return [
        ("trainer.total_epochs=1", "train.parquet holds all steps"),
        (f"trainer.total_training_steps={settings.steps}", "rl.steps"),
        (f"trainer.save_freq={settings.save_every}", "rl.save_every"),
        (f"trainer.test_freq={settings.steps}", "dev.parquet is scored before the first step and after the last"),
        ("trainer.nnodes=1", "raise it for several nodes"),
        ("trainer.n_gpus_per_node=1", "of each node"),
        ("trainer.logger=[console]", "verl's default also asks for a wandb account"),
        ("trainer.project_name=rpo_kit", "of verl's logs"),
        (f"trainer.experiment_name={json.dumps(run.name)}", "the run"),
    ]
