"""What a live plot shows besides its curves: how far training is, and an example of what the module writes or learns.

RL keeps its completions (`rollouts.jsonl`): of the current step, the prompt whose samples differ most in reward, with
its best and its worst sample; this difference is what the step learns from. SFT writes nothing while it trains: it
shows the trajectories that it learns to write, in turn.

    sample = Samples(run, "rl")
    sample(3)        # HTML for step 3; "" if there is nothing to show
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, read_records
from rpo_kit.study.html import LABEL, TrajectoryRecord, rollouts_html, trajectory_html

if TYPE_CHECKING:
    from rpo_kit.training.rollouts import Rollout

_TAIL = 2_000_000  # bytes of the rollouts that are read: more than a step writes


class Samples:
    """The example for a step of one stage of a run; it reads files only, and no more than their end."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage, self.task = run, stage, get_task(run.preset.data.task)
        self.examples: dict[str, Example] | None = None
        self.trajectories: list[TrajectoryRecord] | None = None

    def __call__(self, step: int) -> str:
        """HTML; "" if nothing is stored, or what is stored belongs to other data."""
        try:
            if self.examples is None:
                self.examples = {example["id"]: example for example in load_prepared(self.run, "train")}
            return self._trajectory(step) if self.stage == "sft" else self._rollouts()
        except (KitError, OSError, ValueError, KeyError):  # a picture is no reason to stop a training
            return ""

    def _trajectory(self, step: int) -> str:
        if self.trajectories is None:
            path = self.run.stage("synthesize") / "trajectories.jsonl"
            self.trajectories = cast("list[TrajectoryRecord]", read_records(path))
        number = step % len(self.trajectories) if self.trajectories else 0
        record, examples = self.trajectories[number : number + 1], self.examples or {}
        about = f"number {number + 1} of the {len(self.trajectories)} trajectories that the module learns to write"
        return "".join(label_html(about) + trajectory_html(self.task, one, examples[one["example"]]) for one in record)

    def _rollouts(self) -> str:
        rollouts = last_step_of(newest(self.run.stage(self.stage)))
        pair = contrast(rollouts)
        if not pair:
            return ""
        about = f"step {pair[0]['step']}: the prompt whose samples differ most in reward, its best and its worst sample"
        return label_html(about) + rollouts_html(self.task, pair, (self.examples or {})[pair[0]["example"]])


def newest(folder: Path) -> Path | None:
    """The rollouts that are being written: the stage's, or those of a sweep's current trial."""
    files = [*folder.glob("rollouts.jsonl"), *folder.glob("*/rollouts.jsonl")]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def last_step_of(path: Path | None) -> list[Rollout]:
    """The rollouts of the last step in the file."""
    if path is None:
        return []
    start = max(0, path.stat().st_size - _TAIL)
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    rollouts = [cast("Rollout", json.loads(line)) for line in lines[1 if start else 0 :]]  # the first may be cut
    return [rollout for rollout in rollouts if rollout["step"] == rollouts[-1]["step"]]


def contrast(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The best and the worst sample of the prompt whose samples differ most in reward; [] without rollouts."""
    ordered = [sorted(group, key=lambda one: -one["reward"]) for group in groups_of(rollouts)]
    widest = max(ordered, key=lambda group: group[0]["reward"] - group[-1]["reward"], default=[])
    return [widest[0], widest[-1]] if len(widest) > 1 else widest


def groups_of(rollouts: Sequence[Rollout]) -> Iterator[list[Rollout]]:
    """The samples of one prompt after the other; they are numbered from 0."""
    group: list[Rollout] = []
    for rollout in rollouts:
        if rollout["completion"] == 0 and group:
            yield group
            group = []
        group.append(rollout)
    if group:
        yield group


# ---- how far training is ------------------------------------------------------------------------------------------


def label_html(text: str) -> str:
    return f"<div style='{LABEL}'>{text}</div>"


BEGINNING = "Training begins: data and model are being loaded, then comes the first step."
NOTHING = "Nothing was trained: the stage is finished already."


class Progress:
    """Turns the steps that are logged into a sentence. A sweep trains several times: its steps begin anew."""

    def __init__(self, steps: int, now: float, of: str = "") -> None:
        self.steps, self.began, self.of = steps, now, of
        self.first, self.step = (0, now), 0

    def after(self, step: int, now: float) -> str:
        """How far this training is and, from the pace since its first step, how many minutes are left."""
        if step < self.step or not self.step:
            self.first = (step, now)
        self.step = step
        text = f"Step {step} of {self.steps}{self.of}" if step <= self.steps else f"Step {step}{self.of}"
        timed, left = step - self.first[0], self.steps - step
        if timed > 0 and left > 0:
            text += f", about {(now - self.first[1]) / timed * left / 60:.1f} minutes left"
        return f"{text}."

    def ended(self, now: float) -> str:
        return f"Trained in {(now - self.began) / 60:.1f} minutes." if self.step else NOTHING
