"""Stage 6, `sweep`: Figure 3. Does growing the history from 2 to 6 items beat a fixed number of items?

A trial is one arm (a curriculum) with one seed: RL from the same SFT adapter, for the same number of steps, on the same
prompts; then its answers for the dev users are scored with k items, for each k of `sweep.eval_shots`. Each trial is a
stage of its own: an interrupted sweep resumes within its trial, and adding an arm or a seed runs only the new trials.

    sweep/plan.json         the comparisons, written before the first trial (`comparisons`)
    sweep/progressive-seed0/{adapter, log.csv, scores/{scores.csv, timing.json}}
    sweep/{bars, differences, curves, scores}.csv, provenance.json      the numbers behind the figure (`sweep_tables`)

All arms start from one SFT adapter, and the differences hold for this one: the intervals do not cover how SFT varies.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pandas as pd

from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import WEIGHTS, current
from rpo_kit.presets import RLSettings
from rpo_kit.processes import disk_errors_explained, is_main, locked
from rpo_kit.rewriting.prepare import dev_examples, prepared_inputs
from rpo_kit.rewriting.reflection import load_reflection, module_inputs
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import OnLog, Run, write_json, write_text
from rpo_kit.stages import stage
from rpo_kit.study.comparisons import trial_name, trials, write_plan
from rpo_kit.study.evaluation import report_cuts, report_fewer_users, report_short_profiles, rewrite, score_table
from rpo_kit.study.sweep_tables import write_tables
from rpo_kit.training.curriculum import shots_plan
from rpo_kit.training.reinforce import train_rl

TIMING = "timing.json"  # seconds that the scoring of one adapter took, for `power`


def sweep(run: Run, on_log: OnLog | None = None) -> None:
    """Write down the comparisons, train and score every trial, then write the numbers behind Figure 3."""
    of_sweep = trials(run.preset)
    begin(run)
    score_sft(run)
    for number, (arm, seed) in enumerate(of_sweep, 1):
        print(f"trial {number} of {len(of_sweep)}: {arm}, seed {seed}, {run.preset.sweep.steps} steps")
        compute_trial(run, arm, seed, on_log)
    if is_main():
        with disk_errors_explained(run.folder):
            write_tables(run, of_sweep)


def begin(run: Run) -> None:
    """Write down the comparisons. Raises KitError if there is no SFT adapter, or an arm cannot be trained."""
    current(run, "sft")
    for arm in run.preset.sweep.arms:
        shots_plan(arm, run.preset.sweep.steps)  # raises
    if is_main():
        asked = run.preset.sweep.dev_users
        examples = dev_examples(run, asked)
        report_fewer_users(examples, "sweep.dev_users", asked)
        report_short_profiles(examples, run.preset.sweep.eval_shots, "sweep")
        lock = run.folder / ".locks" / "sweep-plan"  # trials may begin at once, as a scheduler's jobs
        with disk_errors_explained(run.folder), locked(lock, f"The plan of the sweep of run {run.name!r}"):
            write_plan(run, len({example["user_id"] for example in examples}))


def score_sft(run: Run) -> None:
    """Score the adapter from which all trials start."""
    score_adapter(run, "sft", (current(run, "sft") / WEIGHTS).parent)


def compute_trial(run: Run, arm: str, seed: int, on_log: OnLog | None = None) -> None:
    """Train and score one arm with one seed."""
    name = trial_name(arm, seed)
    train_rl(run, on_log, stage_name=f"sweep/{name}", settings=trial_settings(run, arm, seed))
    score_adapter(run, name, run.stage(f"sweep/{name}") / "adapter")


def trial_settings(run: Run, arm: str, seed: int) -> RLSettings:
    """The run's RL settings with the curriculum, seed, steps and batch of one trial."""
    settings = run.preset.sweep
    return dataclasses.replace(
        run.preset.rl,
        curriculum=arm,
        seed=seed,
        steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
    )


def score_adapter(run: Run, name: str, adapter: Path) -> None:
    """Score one adapter on the dev users at each k, in `sweep/<name>/scores/scores.csv`: one row per example and k."""
    settings, evaluation = run.preset.sweep, run.preset.evaluation
    inputs: dict[str, Any] = {"shots": settings.eval_shots, "users": settings.dev_users}
    inputs |= {"tokens": evaluation.max_new_tokens, "batch": evaluation.batch_size}
    inputs |= prepared_inputs(run) | module_inputs(run) | {"adapter": adapter / "adapter_model.safetensors"}
    with stage(run, f"sweep/{name}/scores", **inputs) as stage_dir:
        if stage_dir is None:
            return
        began = time.perf_counter()
        loaded, examples = load_reflection(run.preset.reflection, adapter), dev_examples(run, settings.dev_users)
        task = get_task(run.preset.data.task)
        tables: list[pd.DataFrame] = []
        limits, form = (evaluation.max_new_tokens, evaluation.batch_size), Form.of(run.preset.reflection)
        for shots in settings.eval_shots:
            records = rewrite(loaded, task, examples, shots, *limits, form)
            report_cuts({f"{name}, k = {shots}": records}, "sweep")
            tables.append(score_table(task, examples, records).assign(shots=shots))
        table = pd.concat(tables)[["id", "user", "shots", "score", "unparsed"]]
        write_text(stage_dir / "scores.csv", table.to_csv(index=False))
        write_json(stage_dir / TIMING, {"seconds": time.perf_counter() - began, "examples": len(table)})
