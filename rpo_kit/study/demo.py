"""`demo`: the whole method by executing the notebooks themselves, so that what a reader sees is what was run.

Each notebook runs in a kernel of its own (SFT and RL must not share a process, facts) with the run's settings as
parameters; the executed copy lies in the run folder. One that is finished is skipped, one that was interrupted goes on:
its stages skip what is done.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES
from rpo_kit.presets import PRESETS
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import Run, write_json

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = ("00_start_here", *dict.fromkeys(stage.notebook for stage in STAGES.values()))


def demo(run: Run) -> None:
    """Execute notebooks 00 to 06 and print what came out."""
    start = time.perf_counter()
    for place in ("RPO_RUNS", "RPO_DATA", "RPO_CACHE"):  # the kernels work in another folder
        if os.environ.get(place):
            os.environ[place] = str(Path(os.environ[place]).resolve())
    for number, chapter in enumerate(CHAPTERS, 1):
        began = time.perf_counter()
        done = execute(run, chapter)
        took = "done before" if done else f"{time.perf_counter() - began:.0f} s"
        print(f"[{number}/{len(CHAPTERS)}] {chapter}: {took}", flush=True)
    print(f"\n{summary(run)}\n\nThis call took {(time.perf_counter() - start) / 60:.1f} minutes.")


def execute(run: Run, chapter: str) -> bool:
    """Execute one notebook into `<run>/notebooks/`; True where that was done before with the same text and settings."""
    source, folder = NOTEBOOKS / f"{chapter}.ipynb", run.folder / "notebooks"
    mark, wanted = folder / f"{chapter}.json", {"notebook": fingerprint(source), "preset": fingerprint(run.preset)}
    if mark.exists() and pd.read_json(mark, typ="series").to_dict() == wanted:
        return True
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"run_name": run.name, "preset": run.preset.name, "overrides": overrides(run)}
    try:
        papermill.execute_notebook(
            source,
            folder / f"{chapter}.ipynb",
            parameters,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it speaks TCP with its own machine
        )
    except PapermillExecutionError as error:
        where = folder / f"{chapter}.ipynb"
        raise KitError(
            f"Notebook {chapter} stopped: {error.ename}: {error.evalue} The whole story is in {where}."
        ) from error
    write_json(mark, wanted)
    return False


def overrides(run: Run) -> dict[str, Any]:
    """What makes this run's settings differ from its preset, as dotted keys."""
    changed: dict[str, Any] = {}
    _collect(run.preset, PRESETS[run.preset.name], "", changed)
    return changed


def _collect(node: Any, default: Any, prefix: str, changed: dict[str, Any]) -> None:
    for field in dataclasses.fields(node):
        value, usual = getattr(node, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            _collect(value, usual, f"{prefix}{field.name}.", changed)
        elif value != usual:
            changed[prefix + field.name] = list(value) if isinstance(value, tuple) else value


def summary(run: Run) -> str:
    """The result table, and where everything is."""
    metrics = pd.read_csv(run.stage("evaluate") / "metrics.csv")
    shown = metrics.drop(columns=["task", "shots", "examples"]).round(3).fillna("")
    about = f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, {metrics['shots'][0]} history items"
    return "\n".join(
        [
            f"Result ({about}; score is 0 to 1, higher is better, with its 95 % interval):",
            shown.to_string(index=False),
            "",
            f"numbers    {run.stage('evaluate')}/metrics.csv, paired.csv",
            f"figures    {run.folder}/figures/",
            f"notebooks  {run.folder}/notebooks/ (as executed)",
            "JupyterLab make lab",
        ]
    )
