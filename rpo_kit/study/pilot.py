"""A pilot for `power`: paired differences and timings of a run that is already there.

Two sources: an evaluation (one system minus another, one seed), or a sweep (one arm minus another, at its largest k,
with all seeds). Timings are those that the run has stored: of RL steps in its logs, of scoring in a sweep's
`timing.json`, else the time between the record files of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, read_json, read_records
from rpo_kit.stages import require
from rpo_kit.study.cells import cells
from rpo_kit.study.comparisons import GROWING, SFT_ONLY, check_settings, trials
from rpo_kit.study.over_seeds import check_current
from rpo_kit.study.stored import read_table
from rpo_kit.study.sweep_tables import Scores

_SLOWEST = 60.0  # ours: seconds per answer; more is a pause between two files


@dataclass(frozen=True)
class Costs:
    """Seconds of the pilot, and how many arms and k the sweep has; None: not recorded."""

    seconds_per_step: float | None
    steps: int
    seconds_per_example: float | None  # for one adapter and one k
    arms: int
    shots: int

    def hours(self, seeds: int, examples: int) -> tuple[float | None, float | None]:
        """Hours of RL, and of scoring so many examples with every adapter, SFT's included."""
        trials = self.arms * seeds
        training = None if self.seconds_per_step is None else trials * self.steps * self.seconds_per_step / 3600
        if self.seconds_per_example is None:
            return training, None
        return training, (trials + 1) * self.shots * examples * self.seconds_per_example / 3600

    def sentence(self) -> str:
        """What the hours are made of."""
        step = "not recorded" if self.seconds_per_step is None else f"{self.seconds_per_step:.1f} s"
        example = "not recorded" if self.seconds_per_example is None else f"{self.seconds_per_example:.2f} s"
        return (
            f"Hours as in the pilot, without preparing data and SFT. Arms: {self.arms}, of {self.steps} RL steps each "
            f"(one step: {step}). Values of k: {self.shots} (one answer: {example})."
        )


@dataclass(frozen=True)
class Pilot:
    """Paired differences of a run, on the same examples under each seed."""

    about: str
    differences_SE: np.ndarray  # (seeds, examples)
    users: list[str]  # of the examples
    costs: Costs
    arms_SE: Sequence[np.ndarray] = ()  # of a sweep: scores of every trained arm, for the variance between seeds
    adapters: int = 1  # that each difference holds with a seed of its own
    prompts: int = 0  # per RL step

    @property
    def seeds(self) -> int:
        return len(self.differences_SE)

    @property
    def user_count(self) -> int:
        return len(set(self.users))

    @property
    def queries(self) -> int:
        """Queries per user, rounded."""
        return max(1, round(len(self.users) / self.user_count))


def pilot_of_evaluation(run: Run, system: str | None = None, minus: str | None = None) -> Pilot:
    """One system minus another, from the records of a finished evaluation; by default RL (or the last) minus SFT.

    Raises:
        KitError: the run has no evaluation, it lacks a system, or was made with other settings than the present ones.
    """
    check_current(run)
    folder = require(run, "evaluate") / "records"
    known = sorted(path.stem for path in folder.glob("*.jsonl") if path.stem != "summaries")
    system = system or next((name for name in ("rl", "sft", *reversed(known)) if name in known), "rl")
    minus = minus or next((name for name in ("sft", "base", *known) if name in known and name != system), "sft")
    for name in (system, minus):
        if name not in known:
            raise KitError(f"Run {run.name!r} has no answers of {name!r}: it evaluated {', '.join(known)}.")
    if system == minus:
        raise KitError(f"{system!r} minus itself is always 0: choose two of {', '.join(known)}.")
    scores, users, left_out = _scores(run, folder, [system, minus])
    costs = Costs(
        _seconds_per_step([run.stage("rl") / "log.csv"]),
        run.preset.rl.steps,
        _sweep_seconds(run) or _seconds_between(folder, system, len(users)),
        len(run.preset.sweep.arms),
        len(run.preset.sweep.eval_shots),
    )
    about = f"evaluation of run {run.name!r}, {system} minus {minus}, {run.preset.data.task}{left_out}"
    return Pilot(about, (scores[0] - scores[1])[None], users, costs, prompts=run.preset.rl.prompts_per_step)


def _scores(run: Run, folder: Path, names: list[str]) -> tuple[list[np.ndarray], list[str], str]:
    """Scores of the examples that all these systems answered, the examples' users, and how many were not answered."""
    answers = [{r["id"]: r["prediction"] for r in read_records(folder / f"{name}.jsonl")} for name in names]
    prepared = load_prepared(run, "dev")
    examples = [e for e in prepared if all(e["id"] in of_system for of_system in answers)]
    if not examples:
        raise KitError(f"Run {run.name!r} has no example that {' and '.join(names)} both answered: evaluate it again.")
    task, golds = get_task(run.preset.data.task), [example["output"] for example in examples]
    scores = [example_scores(task, golds, [of_system[e["id"]] for e in examples]) for of_system in answers]
    missing = len(prepared) - len(examples)
    left_out = f", without {missing} of {len(prepared)} examples, which lack an answer" if missing else ""
    return scores, [example["user_id"] for example in examples], left_out


def pilot_of_sweep(run: Run, system: str | None = None, minus: str | None = None) -> Pilot:
    """One arm minus another, at the largest k of a finished sweep; by default progressive (or the last) minus SFT only.

    Raises:
        KitError: the run has no finished sweep, or it lacks an arm.
    """
    settings = run.preset.sweep
    folders = _folders(run)
    if not all((folder / "scores/scores.csv").exists() for folder in folders):
        raise KitError(f"Run {run.name!r} has no finished sweep: run `python -m rpo_kit sweep --run {run.name}` first.")
    check_settings(run)
    scores, shots = Scores.of(run, trials(run.preset)), max(settings.eval_shots)
    if shots not in scores.shots:
        raise KitError(f"The sweep of run {run.name!r} was not scored at k = {shots}: run sweep again.")
    arm = system or (GROWING if GROWING in settings.arms else settings.arms[-1])
    other = minus or SFT_ONLY
    for name in (arm, other):
        if name not in scores.arms:
            raise KitError(f"The sweep of run {run.name!r} has no arm {name!r}: it has {', '.join(scores.arms)}.")
    if arm == other:
        raise KitError(f"{arm!r} minus itself is always 0: choose two of {', '.join(scores.arms)}.")
    step = _seconds_per_step([folder / "log.csv" for folder in folders[1:]])
    costs = Costs(step, settings.steps, _sweep_seconds(run), len(settings.arms), len(settings.eval_shots))
    about = f"sweep of run {run.name!r}, {arm} minus {other}, k = {shots}, {run.preset.data.task}"
    trained = [scores.of_arm(name, shots) for name in scores.arms if name != SFT_ONLY]
    adapters = 1 if SFT_ONLY in (arm, other) else 2
    differences_SE = scores.of_arm(arm, shots) - scores.of_arm(other, shots)
    return Pilot(about, differences_SE, scores.users, costs, trained, adapters, settings.prompts_per_step)


def _seconds_per_step(logs: Sequence[Path]) -> float | None:
    """Mean seconds per RL step, without the first of each log, which loads and compiles, if there are others."""
    seconds: list[float] = []
    for path in logs:
        log = read_table(path, ("step",)) if path.exists() else pd.DataFrame()
        if {"seconds_sampling", "seconds_scoring"} <= set(log):
            each = (log["seconds_sampling"] + log["seconds_scoring"]).tolist()
            seconds += each[1:] or each
    return float(np.mean(seconds)) if seconds else None


def _folders(run: Run) -> list[Path]:
    """Of the sweep's adapters: SFT's, then each arm's with each seed. What they replaced lies beside them."""
    return [run.stage("sweep") / name for name in cells(run.preset, "shots")]


def _sweep_seconds(run: Run) -> float | None:
    """Seconds per answer, from the timings of a sweep's scores."""
    timings = [read_json(folder / "scores/timing.json") for folder in _folders(run)]
    timings = [timing for timing in timings if timing]
    examples = sum(timing["examples"] for timing in timings)
    return sum(timing["seconds"] for timing in timings) / examples if examples else None


def _seconds_between(folder: Path, system: str, examples: int) -> float | None:
    """Seconds per answer, from the time between the last writing of this system's records and of those before it.

    None if the files were not written one after the other, as in a copied run or after a pause.
    """
    times = {path.stem: path.stat().st_mtime for path in folder.glob("*.jsonl")}
    earlier = [time for time in times.values() if time < times[system]]
    seconds = times[system] - max(earlier) if earlier else 0.0
    return seconds / examples if 1.0 < seconds < _SLOWEST * examples else None
