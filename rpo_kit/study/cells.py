"""The cells of a grid: the parts of `sweep` and `components` that a scheduler may start by themselves.

A cell is an arm with one seed of Figure 3, or an arm of the component study, and consists of stages of its own: cells
may run at once and in any order, and one that was killed resumes. `sweep` and `components` are plain loops over the
same cells; called after them, they find all finished and only join them in the tables (workflow/Snakefile).

    cells(run.preset, "shots")                       # ["sft", "fixed-2-seed0", …]; sft: the adapter that all start from
    compute_cell(run, "shots", "fixed-2-seed0")
"""

from __future__ import annotations

from rpo_kit.errors import KitError
from rpo_kit.presets import Preset
from rpo_kit.runs import Run
from rpo_kit.study.arms import Arm, chosen_arms
from rpo_kit.study.comparisons import trial_name, trials

GRIDS = {"shots": "sweep", "components": "components"}  # name of the grid: the stage that joins its cells


def cells(preset: Preset, grid: str) -> list[str]:
    """The names of the cells, in the order of the plain loop."""
    return list(_arms(preset)) if grid == "components" else ["sft", *_trials(preset)]


def compute_cell(run: Run, grid: str, name: str) -> None:
    """Train and score one cell.

    Raises:
        KitError: the run's settings have no such cell, or as the plain loop.
    """
    known = cells(run.preset, grid)
    if name not in known:
        raise KitError(f"{GRIDS[grid]} of run {run.name!r} has no cell {name!r}; there are {', '.join(known)}.")
    if grid == "components":
        from rpo_kit.study import components

        components.begin(run)
        components.compute(run, _arms(run.preset)[name])
        return
    from rpo_kit.study.ablation import begin, compute_trial, score_sft

    begin(run)
    if name == "sft":
        score_sft(run)
    else:
        compute_trial(run, *_trials(run.preset)[name])


def _trials(preset: Preset) -> dict[str, tuple[str, int]]:
    """The trials by their folders."""
    return {trial_name(*trial): trial for trial in trials(preset)}


def _arms(preset: Preset) -> dict[str, Arm]:
    """The arms by their folders, whose names hold no blanks or slashes."""
    return {arm.folder: arm for arm in chosen_arms(preset)}
