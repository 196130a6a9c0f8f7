"""`demo`: run the whole method by executing the notebooks, so that what a reader sees is what was run.

Each notebook runs in a kernel of its own, because the libraries of SFT patch transformers for their whole process. The
run's settings are the notebook's parameters, and the executed copy goes to `<run>/notebooks/`. A finished notebook is
skipped; an interrupted one is executed again, and its stages resume.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES
from rpo_kit.presets import PRESETS
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import Run, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = ("00_start_here", *dict.fromkeys(stage.notebook for stage in STAGES.values()))


def demo(run: Run) -> None:
    """Execute all notebooks in order and print the result table."""
    start = time.perf_counter()
    for variable in ("RPO_RUNS", "RPO_DATA", "RPO_CACHE"):  # a relative path means another folder in the kernels
        if os.environ.get(variable):
            os.environ[variable] = str(Path(os.environ[variable]).resolve())
    for number, chapter in enumerate(CHAPTERS, 1):
        chapter_start = time.perf_counter()
        done = execute(run, chapter)
        duration = "done before" if done else f"{time.perf_counter() - chapter_start:.0f} s"
        print(f"[{number}/{len(CHAPTERS)}] {chapter}: {duration}", flush=True)
    print(f"\n{summary(run)}\n\nThis call took {(time.perf_counter() - start) / 60:.1f} minutes.")


def execute(run: Run, chapter: str) -> bool:
    """Execute one notebook into `<run>/notebooks/`. Returns True if that was done before, with the same notebook and
    settings.

    Raises:
        KitError: a cell of the notebook failed.
    """
    source, folder = NOTEBOOKS / f"{chapter}.ipynb", run.folder / "notebooks"
    executed, marker = folder / f"{chapter}.ipynb", folder / f"{chapter}.json"
    fingerprints = {"notebook": fingerprint(source), "preset": fingerprint(run.preset)}
    if marker.exists() and pd.read_json(marker, typ="series").to_dict() == fingerprints:
        return True
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"run_name": run.name, "preset": run.preset.name, "overrides": overrides(run)}
    try:
        papermill.execute_notebook(
            source,
            executed,
            parameters,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it speaks TCP with its own machine
        )
    except PapermillExecutionError as error:
        raise KitError(
            f"Notebook {chapter} stopped: {error.ename}: {error.evalue} The cell and its traceback are in {executed}."
        ) from error
    write_json(marker, fingerprints)
    return False


def overrides(run: Run) -> dict[str, object]:
    """The settings in which this run differs from its preset, with dotted keys."""
    return _differences(run.preset, PRESETS[run.preset.name], "")


def _differences(node: DataclassInstance, default: DataclassInstance, prefix: str) -> dict[str, object]:
    changed: dict[str, object] = {}
    for field in dataclasses.fields(node):
        value, usual = getattr(node, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed |= _differences(value, usual, f"{prefix}{field.name}.")
        elif value != usual:
            changed[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return changed


def summary(run: Run) -> str:
    """The result table, and where to find the numbers, figures and notebooks."""
    metrics = pd.read_csv(run.stage("evaluate") / "metrics.csv")
    table = metrics.drop(columns=["task", "shots", "examples"]).round(3).fillna("")
    about = f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, {metrics['shots'][0]} history items"
    return "\n".join(
        [
            f"Result ({about}; score from 0 to 1, higher is better, with 95 % interval):",
            table.to_string(index=False),
            "",
            f"numbers    {run.stage('evaluate')}/metrics.csv, paired.csv",
            f"figures    {run.folder}/figures/",
            f"notebooks  {run.folder}/notebooks/ (as executed)",
            "JupyterLab make lab",
        ]
    )
