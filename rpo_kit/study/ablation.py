"""Stage 6, `sweep`: Figure 3. Does growing the history from 2 to 6 items beat a fixed number of items?

A trial is one arm (a curriculum) with one seed: RL from the same SFT adapter, for the same number of steps, on the same
prompts; then its answers for the dev users are scored with k items, for each k of `sweep.eval_shots`. Each trial is a
stage of its own: an interrupted sweep resumes within its trial, and adding an arm or a seed runs only the new trials.

    sweep/plan.json         the comparisons, written before the first trial (`comparisons`)
    sweep/progressive-seed0/{adapter, log.csv, scores/{scores.csv, timing.json}}
    sweep/bars.csv          arm, shots, score, low, high, users, seeds, unparsed  (intervals over users and seeds)
    sweep/differences.csv   arm, minus, shots, score, low, high, users, seeds, mde, p, p_holm  (paired on users;
                            gains over the best trivial baseline are not among the comparisons and have no p_holm)
    sweep/curves.csv        arm, seed, step, reward, shots
    sweep/provenance.json

All arms start from one SFT adapter, and the differences hold for this one: the intervals do not cover how SFT varies.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import WEIGHTS, current
from rpo_kit.presets import RLSettings, as_dict
from rpo_kit.processes import disk_errors_explained, is_main, locked
from rpo_kit.provenance import common_provenance, without_folders
from rpo_kit.rewriting.prepare import dev_examples, load_golds, prepared_inputs
from rpo_kit.rewriting.reflection import load_reflection, module_inputs
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import OnLog, Run, read_json, write_json, write_text
from rpo_kit.stages import stage
from rpo_kit.study.baselines import trivial_answers
from rpo_kit.study.comparisons import (
    BEST_TRIVIAL,
    ITEMS,
    PLAN,
    SFT_ONLY,
    families,
    trial_name,
    trials,
    with_holm,
    write_plan,
)
from rpo_kit.study.evaluation import report_cuts, report_fewer_users, report_short_profiles, rewrite, score_table
from rpo_kit.study.significance import ONE_SEED, SeedVariance, compare, seed_variance
from rpo_kit.study.statistics import references
from rpo_kit.study.stored import SCORES, read_record, read_table
from rpo_kit.training.curriculum import shots_plan
from rpo_kit.training.reinforce import train_rl

CSV_FILES = ("bars.csv", "differences.csv", "curves.csv", "provenance.json")
TIMING = "timing.json"  # seconds that the scoring of one adapter took, for `power`
Trials = list[tuple[str, int]]  # (arm, seed)


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


def write_tables(run: Run, trials: Trials) -> None:
    """Write the numbers behind Figure 3 from the scores and logs of all trials."""
    folder = run.stage("sweep")
    write_text(folder / "bars.csv", bars(run, trials).to_csv(index=False))
    write_text(folder / "differences.csv", differences(run, trials).to_csv(index=False))
    write_text(folder / "curves.csv", curves(run, trials).to_csv(index=False))
    write_json(folder / "provenance.json", provenance(run, trials))


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


def bars(run: Run, trials: Trials) -> pd.DataFrame:
    """Mean score of each arm at each k, with intervals over users and seeds; then of the best trivial baseline and of
    the references. `unparsed`: share of the completions in whose place the generic answer was scored.
    """
    rows, sweep_scores = [], Scores.of(run, trials)
    for arm in sweep_scores.arms:
        for shots in run.preset.sweep.eval_shots:
            values_SE = sweep_scores.of_arm(arm, shots)
            seeds = ONE_SEED if arm == SFT_ONLY else sweep_scores.seeds(shots)
            row = _interval(run, values_SE, sweep_scores.users, seeds, 1)
            row |= {"seeds": len(values_SE), "unparsed": sweep_scores.unparsed[arm][shots]}
            rows.append({"arm": arm, "shots": shots} | row)
    task, examples = get_task(run.preset.data.task), dev_examples(run, run.preset.sweep.dev_users)
    users = [example["user_id"] for example in examples]
    best = best_trivial(run)
    trivial = {BEST_TRIVIAL: best[1].to_numpy()} if best else {}
    for shots in run.preset.sweep.eval_shots:
        for name, values in (trivial | references(task, examples, shots)).items():
            row = _interval(run, values[None], users, ONE_SEED, 1)
            rows.append({"arm": name, "shots": shots} | row | {"seeds": 0})
    columns = ["arm", "shots", "score", "low", "high", "users", "seeds", "unparsed"]
    return pd.DataFrame(rows)[columns]


def best_trivial(run: Run) -> tuple[str, pd.Series] | None:
    """The trivial baseline with the best mean score on the dev users, and its scores by id; None without a baseline."""
    task, examples = get_task(run.preset.data.task), dev_examples(run, run.preset.sweep.dev_users)
    answers = trivial_answers(task, examples, list(load_golds(run, "train").values()))
    golds, ids = [example["output"] for example in examples], [example["id"] for example in examples]
    scores = [(name, pd.Series(example_scores(task, golds, texts), index=ids)) for name, texts in answers.items()]
    return max(scores, key=lambda named: named[1].mean(), default=None)


def differences(run: Run, trials: Trials) -> pd.DataFrame:
    """First what each arm gains over the best trivial baseline; then the comparisons of all families at each k, with
    Holm-adjusted p-values. All are paired on the same users and seeds.
    """
    rows, sweep_scores, ks = [], Scores.of(run, trials), run.preset.sweep.eval_shots
    if best := best_trivial(run):
        trivial = best[1].loc[sweep_scores.ids].to_numpy()
        for arm, shots in product(sweep_scores.arms, ks):
            gain_SE = sweep_scores.of_arm(arm, shots) - trivial
            seeds = ONE_SEED if arm == SFT_ONLY else sweep_scores.seeds(shots)
            row = _interval(run, gain_SE, sweep_scores.users, seeds, 1)
            rows.append({"arm": arm, "minus": BEST_TRIVIAL, "shots": shots} | row | {"seeds": len(gain_SE)})
    arms = [arm for arm in sweep_scores.arms if arm != SFT_ONLY]
    by_family = families(arms, ks)
    of_items = by_family.pop(ITEMS, [])
    for arm, other in [pair for pairs in by_family.values() for pair in pairs]:
        for shots in ks:
            difference_SE = sweep_scores.of_arm(arm, shots) - sweep_scores.of_arm(other, shots)
            adapters = 1 if other == SFT_ONLY else 2
            row = _interval(run, difference_SE, sweep_scores.users, sweep_scores.seeds(shots), adapters)
            rows.append({"arm": arm, "minus": other, "shots": shots} | row | {"seeds": len(difference_SE)})
    for arm, other in of_items:
        gain_SE, seeds = sweep_scores.of_arm(arm, max(ks), min(ks)), sweep_scores.seeds(max(ks), min(ks))
        row = _interval(run, gain_SE, sweep_scores.users, ONE_SEED if arm == SFT_ONLY else seeds, 1)
        rows.append({"arm": arm, "minus": other, "shots": max(ks)} | row | {"seeds": len(gain_SE)})
    columns = ["arm", "minus", "shots", "score", "low", "high", "users", "seeds", "mde", "p"]
    return with_holm(pd.DataFrame(rows)[columns])


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of all arms, of the same examples in the same order."""

    by_arm: dict[str, dict[int, np.ndarray]]  # arm: {k: (seeds, examples)}; of SFT only one row
    ids: list[str]  # of the examples
    users: list[str]
    unparsed: dict[str, dict[int, float]]  # arm: {k: share}; NaN in scores of earlier versions

    @classmethod
    def of(cls, run: Run, trials: Trials) -> Scores:
        tables = {arm: [read_scores(run, name) for name in names] for arm, names in folders_by_arm(trials).items()}
        by_arm = {
            arm: {k: np.stack([table["score"].xs(k, level="shots") for table in of_seeds]) for k in _shots(of_seeds[0])}
            for arm, of_seeds in tables.items()
        }
        first = tables[SFT_ONLY][0]
        if not all(table["user"].equals(first["user"]) for of_seeds in tables.values() for table in of_seeds):
            raise KitError(
                f"The sweep of run {run.name!r} was scored on different users or numbers of items, as after an "
                f"interrupted change of settings: run `python -m rpo_kit sweep --run {run.name}` again."
            )
        unparsed = {
            arm: pd.concat(of_seeds).reindex(columns=["unparsed"])["unparsed"].groupby(level="shots").mean().to_dict()
            for arm, of_seeds in tables.items()
        }
        users = first.xs(_shots(first)[0], level="shots")["user"]
        return cls(by_arm, users.index.tolist(), users.tolist(), unparsed)

    @property
    def arms(self) -> list[str]:
        return list(self.by_arm)

    def of_arm(self, arm: str, shots: int, fewer: int | None = None) -> np.ndarray:
        """Scores (seeds, examples) with k = `shots`; minus those of the same adapters with `fewer` items, if given."""
        scores_SE = self.by_arm[arm][shots]
        return scores_SE if fewer is None else scores_SE - self.by_arm[arm][fewer]

    def seeds(self, shots: int, fewer: int | None = None) -> SeedVariance:
        """The variance of `of_arm` between seeds, pooled over the arms that were trained."""
        return seed_variance([self.of_arm(arm, shots, fewer) for arm in self.arms if arm != SFT_ONLY], self.users)


def _shots(scores: pd.DataFrame) -> list[int]:
    return [int(k) for k in scores.index.unique("shots")]


def folders_by_arm(trials: Trials) -> dict[str, list[str]]:
    """The folders of each arm's trials, one per seed; first that of SFT, from which all arms start."""
    folders = {SFT_ONLY: ["sft"]}
    for arm, seed in trials:
        folders.setdefault(arm, []).append(trial_name(arm, seed))
    return folders


def read_scores(run: Run, name: str) -> pd.DataFrame:
    """The scores of one adapter: columns `user` and `score`, indexed by `id` and `shots` in sorted order."""
    file = run.stage(f"sweep/{name}") / "scores/scores.csv"
    return read_table(file, ("shots", "score"), ("id", "user"), SCORES).set_index(["id", "shots"]).sort_index()


def curves(run: Run, trials: Trials) -> pd.DataFrame:
    """Reward and k at each step of each trial, from the training logs."""
    logs = []
    for arm, seed in trials:
        log = read_table(run.stage(f"sweep/{trial_name(arm, seed)}") / "log.csv", ("step", "reward", "shots"))
        logs.append(log[["step", "reward", "shots"]].assign(arm=arm, seed=seed))
    return pd.concat(logs)[["arm", "seed", "step", "reward", "shots"]]


def provenance(run: Run, trials: Trials) -> dict[str, object]:
    """Settings, machine, packages and plan behind the numbers, with every commit that scored a trial."""
    names = [name for names in folders_by_arm(trials).values() for name in names]
    files = [run.stage(f"sweep/{name}/scores") / "manifest.json" for name in names]
    plan = read_json(run.stage("sweep") / PLAN)
    best = best_trivial(run)
    named = {"best_trivial": best[0] if best else None}
    return {"preset": as_dict(run.preset), "plan": plan} | named | common_provenance(files)


def finished_sweep(run: Run) -> Path:
    """The folder of the run's sweep. Raises KitError if it is not finished."""
    folder = run.stage("sweep")
    if not all((folder / file).exists() for file in CSV_FILES):
        raise KitError(f"Run {run.name!r} has no finished sweep: run `python -m rpo_kit sweep --run {run.name}` first.")
    return folder


def export_figure_data(run: Run, folder: Path, name: str) -> list[Path]:
    """Copy the numbers of a sweep to `folder/<name>_*` (CSV_FILES), to be committed with the code.

    Raises:
        KitError: the sweep is not finished.
    """
    sweep, provenance_file = finished_sweep(run), folder / f"{name}_{CSV_FILES[-1]}"
    folder.mkdir(parents=True, exist_ok=True)
    copied = [Path(shutil.copyfile(sweep / file, folder / f"{name}_{file}")) for file in CSV_FILES]
    write_json(provenance_file, without_folders(read_record(provenance_file)))
    return copied


def _interval(
    run: Run, values_SE: np.ndarray, users: list[str], seeds: SeedVariance, adapters: int
) -> dict[str, float]:
    settings = run.preset.evaluation
    row = compare(values_SE, users, seeds, adapters, settings.bootstrap, settings.seed)
    return row | {"users": len(set(users))}
