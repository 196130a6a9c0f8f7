"""Stage 7, `components`: what does each part of the method contribute? One part at a time is switched off or replaced.

Each arm (`arms.py`) is computed in a run folder of its own, by the ordinary stages. What an arm does not change is
taken over from the run, file by file: its data and generic answers, its trajectories, its SFT adapter, even its RL
adapter where that was trained with the same settings. So most arms train `components.steps` of RL only; those that
change what SFT reads or writes train SFT too, with the run's `sft.steps`. All arms are scored on the same users.

    components/components.csv     one row per arm, then the base model and the trivial baselines:
                                  system, name, score, low, high, unparsed, users, seeds, minutes,
                                  difference, difference_low, difference_high, mde, p, p_holm
                                  (to "full", paired on users and seeds; p_holm: adjusted for the number of arms)
    components/plan.json          the comparisons, written before the first arm is scored (`comparisons`)
    components/provenance.json
    components/no-plan/{prepare, synthesize, sft, rl-seed0, scores-seed0, …}

RL has one adapter per seed, SFT one for all: the intervals do not cover how SFT varies. An interrupted call resumes
within its arm; another arm or seed computes only what is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.source import source_files
from rpo_kit.lamp.tasks import get_task
from rpo_kit.own_process import in_own_process
from rpo_kit.pipeline import current, inputs_of
from rpo_kit.presets import EvaluationSettings, as_dict
from rpo_kit.processes import disk_errors_explained, is_main, locked
from rpo_kit.provenance import common_provenance
from rpo_kit.rewriting.prepare import dev_examples, load_golds, prepare, prepared_inputs
from rpo_kit.rewriting.reflection import load_reflection, module_inputs
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import OnLog, Run, append_records, read_json, read_records, write_json, write_text
from rpo_kit.stages import stage, take_over
from rpo_kit.study.arms import FULL_METHOD, Arm, arm_preset, chosen_arms
from rpo_kit.study.baselines import trivial_answers
from rpo_kit.study.comparisons import PLAN, write_components_plan
from rpo_kit.study.component_figure import FILES
from rpo_kit.study.evaluation import report_cuts, report_fewer_users, rewrite, score_table, scored
from rpo_kit.study.results import system_name
from rpo_kit.study.significance import ONE_SEED, compare, holm, seed_variance
from rpo_kit.study.stored import SCORES, read_table
from rpo_kit.training.ranks import world
from rpo_kit.training.reinforce import train_rl
from rpo_kit.training.sft import train_sft
from rpo_kit.training.synthesis import synthesize

COLUMNS = (
    *("system", "name", "score", "low", "high", "unparsed", "users", "seeds", "minutes"),
    *("difference", "difference_low", "difference_high", "mde", "p", "p_holm"),
)
_DIFFERENCE = {"difference": "score", "difference_low": "low", "difference_high": "high", "mde": "mde", "p": "p"}
_SECONDS = "seconds.jsonl"  # of an arm: what each call took that computed something


def components(run: Run, on_log: OnLog | None = None) -> None:
    """Train and score every arm with every seed, then write the table."""
    arms = chosen_arms(run.preset)
    begin(run)
    for number, arm in enumerate(arms, 1):
        print(f"arm {number} of {len(arms)}: {arm.about} ({describe(arm)})")
        compute(run, arm, on_log)
    if is_main():
        with disk_errors_explained(run.folder):
            write_text(run.stage("components") / FILES[0], table(run, arms).to_csv(index=False))
            write_json(run.stage("components") / FILES[1], provenance(run, arms))


def begin(run: Run) -> None:
    """Write down the comparisons. Raises KitError if there is no SFT adapter."""
    current(run, "sft")
    if is_main():
        asked = run.preset.components.dev_users
        examples, arms = dev_examples(run, asked), [arm.name for arm in chosen_arms(run.preset)]
        report_fewer_users(examples, "components.dev_users", asked)
        lock = run.folder / ".locks" / "components-plan"  # arms may begin at once, as a scheduler's jobs
        with disk_errors_explained(run.folder), locked(lock, f"The plan of the components of run {run.name!r}"):
            write_components_plan(run, arms, len({example["user_id"] for example in examples}))


def describe(arm: Arm) -> str:
    changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in arm.overrides.items())
    return changes or ("the SFT adapter" if arm.stage == "sft" else "no setting changed")


def seeds_of(run: Run, arm: Arm) -> tuple[int, ...]:
    """Its seeds: those of RL; one without RL."""
    seeds = run.preset.components.seeds
    return seeds if arm.stage == "rl" else seeds[:1]


def arm_run(run: Run, arm: Arm) -> Run:
    """The arm as a run of its own, inside the run that pays for its endpoints."""
    return Run(run.stage("components") / arm.folder, arm_preset(run.preset, arm), part_of=run)


# ---- one arm ------------------------------------------------------------------------------------------------------


def compute(run: Run, arm: Arm, on_log: OnLog | None = None) -> None:
    """Take the arm through all stages, from the first that its settings change. Raises KitError that names the arm."""
    try:
        _compute(run, arm, arm_run(run, arm), on_log)
    except KitError as error:
        raise KitError(f"Arm {arm.name!r}: {error}") from error


def _compute(run: Run, arm: Arm, own: Run, on_log: OnLog | None) -> None:
    with timed(own):
        prepare_arm(run, own)
        if own.preset.rl.start == "sft" or arm.stage == "sft":
            take_over(own, "synthesize", run.stage("synthesize"), **inputs_of(own, "synthesize"))
            synthesize(own)
            sft_of_arm(run, own, on_log)
        for seed in seeds_of(run, arm):
            trained = rl_of_arm(run, own, seed, on_log) if arm.stage == "rl" else own.stage(arm.stage)
            score(own, seed, trained / "adapter", run.preset.components.dev_users)


def prepare_arm(run: Run, own: Run) -> None:
    """The run's data and generic answers; where only the ranking of the items differs, the answers alone."""
    theirs, mine = run.preset, own.preset
    same_queries = replace(mine.data, retriever=theirs.data.retriever) == theirs.data
    same_answers = (mine.base, mine.base_max_new_tokens) == (theirs.base, theirs.base_max_new_tokens)
    begin_with = ("generic.jsonl",) if same_queries and same_answers else ()
    inputs = inputs_of(own, "prepare") | source_files(mine.data)
    take_over(own, "prepare", run.stage("prepare"), begin_with, **inputs)
    prepare(own)


def sft_of_arm(run: Run, own: Run, on_log: OnLog | None) -> None:
    """The run's SFT adapter or, if the arm changes what SFT sees, its own, trained in a process of its own: Unsloth
    changes the process in which it trains, and RL follows in this one.
    """
    finished = take_over(own, "sft", run.stage("sft"), **inputs_of(own, "sft"))
    if finished or world()[1] > 1:
        train_sft(own, on_log)
    else:
        write_json(own.folder / "run.json", {"name": own.folder.name, "preset": as_dict(own.preset)})
        in_own_process(own, "sft", on_log)


def rl_of_arm(run: Run, own: Run, seed: int, on_log: OnLog | None) -> Path:
    """RL with one seed; the folder of its result."""
    name, settings = f"rl-seed{seed}", replace(own.preset.rl, seed=seed)
    inputs = inputs_of(own, "rl") | {"settings": settings}
    for source in (run.stage("rl"), run.stage(f"components/{FULL_METHOD}/{name}")):
        if source != own.stage(name):
            take_over(own, name, source, **inputs)
    train_rl(own, on_log, stage_name=name, settings=settings)
    return own.stage(name)


def score(own: Run, seed: int, adapter: Path, dev_users: int) -> None:
    """Score one adapter on the dev users, in `scores-seed<n>/scores.csv`: one row per example."""
    evaluation = own.preset.evaluation
    inputs: dict[str, Any] = {"shots": evaluation.shots, "users": dev_users}
    inputs |= {"tokens": evaluation.max_new_tokens, "batch": evaluation.batch_size}
    inputs |= prepared_inputs(own) | module_inputs(own) | {"adapter": adapter / "adapter_model.safetensors"}
    with stage(own, f"scores-seed{seed}", **inputs) as stage_dir:
        if stage_dir is None:
            return
        task, examples = get_task(own.preset.data.task), dev_examples(own, dev_users)
        loaded, form = load_reflection(own.preset.reflection, adapter), Form.of(own.preset.reflection)
        limits = (evaluation.max_new_tokens, evaluation.batch_size)
        records = rewrite(loaded, task, examples, evaluation.shots, *limits, form)
        report_cuts({f"{own.folder.name}, seed {seed}": records}, "components")
        write_text(stage_dir / "scores.csv", score_table(task, examples, records).to_csv(index=False))


@contextmanager
def timed(own: Run) -> Iterator[None]:
    """Note the seconds of a call that made something new, also of one that is interrupted (but not of one killed)."""
    began, before = time.perf_counter(), _manifests(own)
    try:
        yield
    finally:
        if _manifests(own) != before and is_main():
            append_records(own.folder / _SECONDS, [{"seconds": time.perf_counter() - began}])


def _manifests(own: Run) -> dict[str, int]:
    """When each stage of the arm was finished or begun."""
    paths = [*own.folder.glob("*/manifest.json"), *own.folder.glob("*/started.json")]
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in paths}


# ---- the table ----------------------------------------------------------------------------------------------------


def table(run: Run, arms: list[Arm]) -> pd.DataFrame:
    """One row per arm, then base model and trivial baselines; each with its difference to the full method."""
    by_arm = {arm.name: [read_scores(run, arm, seed) for seed in seeds_of(run, arm)] for arm in arms}
    full = by_arm[FULL_METHOD][0]
    users = full.index.get_level_values("user").tolist()
    values = {name: aligned(name, tables, full.index) for name, tables in by_arm.items()}
    values |= {name: aligned(name, [scores], full.index) for name, scores in references(run).items()}
    rescored = [
        arm.name for arm in arms if arm.overrides and all(key.startswith("evaluation.") for key in arm.overrides)
    ]
    study = Study(users, values, len(run.preset.components.seeds), run.preset.evaluation, rescored)
    rows = []
    for arm in arms:
        unparsed = float(np.mean([scores["unparsed"].mean() for scores in by_arm[arm.name]]))
        row = {"system": arm.name, "name": arm.about, "unparsed": unparsed, "seeds": len(by_arm[arm.name])}
        rows.append(row | {"minutes": minutes(arm_run(run, arm))} | study.compared(arm.name))
    for name in list(values)[len(by_arm) :]:
        rows.append({"system": name, "name": system_name(name), "seeds": 0} | study.compared(name))
    compared = pd.DataFrame(rows).assign(users=len(set(users)))
    others = [arm.name for arm in arms if arm.name != FULL_METHOD]
    p_values = compared.set_index("system")["p"][others].tolist()
    p_holm = dict(zip(others, holm(p_values), strict=True))
    return compared.assign(p_holm=compared["system"].map(p_holm))[list(COLUMNS)]


def read_scores(run: Run, arm: Arm, seed: int) -> pd.DataFrame:
    """Scores by (id, user), and whether the completion was unparsed."""
    file = arm_run(run, arm).stage(f"scores-seed{seed}") / "scores.csv"
    return read_table(file, ("score", "unparsed"), ("id", "user"), SCORES).set_index(["id", "user"])


def aligned(name: str, tables: Sequence[pd.DataFrame], index: pd.Index) -> np.ndarray:
    """Scores (seeds, examples) in the order of `index`. Raises KitError if they are of other examples."""
    if any(len(scores) != len(index) or set(scores.index) != set(index) for scores in tables):
        raise KitError(f"{name} was scored on other examples than the full method: run the study again.")
    return np.stack([scores["score"].reindex(index).to_numpy() for scores in tables])


@dataclass(frozen=True)
class Study:
    """The scores of all systems on the same examples."""

    users: list[str]  # of the examples
    values: dict[str, np.ndarray]  # system: (seeds, examples); one row for what has no seeds
    seeds: int
    settings: EvaluationSettings
    rescored: Sequence[str] = ()  # arms that score the full method's own adapters in another way

    def compared(self, name: str) -> dict[str, float]:
        """Mean score and, but for the full method, the difference to it, with intervals over users and seeds."""
        own, full = self.values[name], self.values[FULL_METHOD]
        row = self.interval(own, int(self.varies(own)))
        row = {key: row[key] for key in ("score", "low", "high")}
        if name == FULL_METHOD:
            return row
        if name in self.rescored and self.varies(own):  # what a seed moves, it moves in both
            spread = seed_variance([own - full], self.users)
            found = compare(own - full, self.users, spread, 1, self.settings.bootstrap, self.settings.seed)
        else:
            found = self.interval(own - full, int(self.varies(own)) + int(self.varies(full)))
        return row | {key: found[given] for key, given in _DIFFERENCE.items()}

    def varies(self, values: np.ndarray) -> bool:
        """Whether a system has an adapter per seed."""
        return self.seeds > 1 and len(values) == self.seeds

    def interval(self, values_SE: np.ndarray, adapters: int) -> dict[str, float]:
        trained = [values for name, values in self.values.items() if name not in self.rescored]
        varying = [values for values in trained if self.varies(values)]
        spread = seed_variance(varying, self.users) if adapters else ONE_SEED
        return compare(values_SE, self.users, spread, max(1, adapters), self.settings.bootstrap, self.settings.seed)


def references(run: Run) -> dict[str, pd.DataFrame]:
    """Scores of the base model and of the trivial baselines that the task has, on the same examples."""
    task, examples = get_task(run.preset.data.task), dev_examples(run, run.preset.components.dev_users)
    answers = {"base": [example["generic"] for example in examples]}
    answers |= trivial_answers(task, examples, list(load_golds(run, "train").values()))
    tables = {name: scored(task, examples, texts) for name, texts in answers.items()}
    return {name: scores.set_index(["id", "user"]) for name, scores in tables.items()}


def minutes(own: Run) -> float:
    """What all calls for this arm took, also those whose results later ones replaced."""
    return sum(float(record["seconds"]) for record in read_records(own.folder / _SECONDS)) / 60


def provenance(run: Run, arms: list[Arm]) -> dict[str, object]:
    """Settings of the run and of each arm, with the commits, machine and packages that scored them."""
    files = [
        arm_run(run, arm).stage(f"scores-seed{seed}") / "manifest.json" for arm in arms for seed in seeds_of(run, arm)
    ]
    changed = {arm.name: dict(arm.overrides) for arm in arms}
    plan = read_json(run.stage("components") / PLAN)
    return {"preset": as_dict(run.preset), "arms": changed, "plan": plan} | common_provenance(files)
