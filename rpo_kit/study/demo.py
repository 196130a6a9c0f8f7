"""`demo`: run the whole method by executing the notebooks, so that what a reader sees is what was run.

Each notebook runs in a kernel of its own, because the libraries of SFT patch transformers for their whole process. The
run's settings are the notebook's parameters, and the executed copy goes to `<run>/notebooks/`. A finished notebook is
skipped; an interrupted one is executed again, and its stages resume.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.source import source_files
from rpo_kit.model_files import all_files
from rpo_kit.pipeline import STAGES, refuse
from rpo_kit.presets import PRESETS, flat
from rpo_kit.provenance import fingerprint
from rpo_kit.rewriting.failures import FAILED
from rpo_kit.runs import Run, read_json, read_records, write_json
from rpo_kit.stages import result_state
from rpo_kit.study.results import read_tables, result_text

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = ("00_start_here", *dict.fromkeys(stage.notebook for stage in STAGES.values()), "08_playground")


def demo(run: Run) -> None:
    """Execute all notebooks in order and print the result table.

    Raises:
        KitError: a stage would refuse the settings, told before anything is executed; or a notebook stopped.
    """
    refuse(run)
    start = time.perf_counter()
    for variable in ("RPO_RUNS", "RPO_DATA", "RPO_CACHE"):  # the kernels run in another folder
        if os.environ.get(variable):
            os.environ[variable] = str(Path(os.environ[variable]).resolve())
    for number, chapter in enumerate(CHAPTERS, 1):
        chapter_start = time.perf_counter()
        done = execute(run, chapter)
        duration = "done before" if done else f"{time.perf_counter() - chapter_start:.0f} s"
        print(f"[{number}/{len(CHAPTERS)}] {chapter}: {duration}", flush=True)
    print(f"\n{summary(run)}\n\nThis call took {(time.perf_counter() - start) / 60:.1f} minutes.")


def execute(run: Run, chapter: str) -> bool:
    """Execute one notebook into `<run>/notebooks/`. Returns True if it was executed before and is still up to date.

    It is up to date if the notebook, the settings, LaMP's files and the results of all stages up to this one are
    unchanged and none of its own stages has failed answers to retry.

    Raises:
        KitError: a cell of the notebook failed.
    """
    source, folder = NOTEBOOKS / f"{chapter}.ipynb", run.folder / "notebooks"
    executed, marker = folder / f"{chapter}.ipynb", folder / f"{chapter}.json"
    failed = any(read_records(run.stage(row.name) / FAILED) for row in STAGES.values() if row.notebook == chapter)
    if not failed and _holds(marker, _state(run, chapter)):
        return True
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"run_name": run.name, "preset": run.preset.name, "overrides": overrides(run)}
    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(executed),
            parameters,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            extra_arguments=[
                "--log-level=CRITICAL"
            ],  # else each kernel warns of TCP at its start, and of zmq after Ctrl-C
        )
    except PapermillExecutionError as error:
        raise KitError(
            f"Notebook {chapter} stopped: {error.ename}: {error.evalue} The cell and its traceback are in {executed}."
        ) from error
    write_json(marker, _state(run, chapter))
    return False


def _state(run: Run, chapter: str) -> dict[str, Any]:
    """Everything that determines what the executed notebook shows."""
    chapters = CHAPTERS[: CHAPTERS.index(chapter) + 1] if chapter in CHAPTERS else CHAPTERS
    stages = [row.name for row in STAGES.values() if row.notebook in chapters]
    files = source_files(run.preset.data) if stages else {}
    return {
        "models": all_files(run) if stages else {},
        "notebook": fingerprint(NOTEBOOKS / f"{chapter}.ipynb"),
        "preset": fingerprint(run.preset),
        "data": {name: fingerprint(path) for name, path in files.items()},
        "stages": {name: result_state(run.stage(name)) for name in stages},
    }


def _holds(marker: Path, state: dict[str, Any]) -> bool:
    """Whether nothing has changed since the marker was written. A model of which it says nothing counts as unchanged,
    and is noted from then on.
    """
    stored = read_json(marker)
    if not isinstance(stored, dict):
        return False
    before = stored | {"models": state["models"] | stored.get("models", {})}
    if before != state | {"models": before["models"]} or not state["models"].items() <= before["models"].items():
        return False
    if before != stored:
        write_json(marker, before)
    return True


def _literal(path: Path) -> str:
    """The path with doubled braces, because papermill would fill in parameters between single ones."""
    return str(path).replace("{", "{{").replace("}", "}}")


def overrides(run: Run) -> dict[str, object]:
    """The settings in which this run differs from its preset, with dotted keys."""
    usual = flat(PRESETS[run.preset.name])
    return {key: value for key, value in flat(run.preset).items() if value != usual[key]}


def summary(run: Run) -> str:
    """The result with its table, and where to find the numbers, figures and notebooks."""
    return "\n".join(
        [
            result_text(*read_tables(f"{run.stage('evaluate')}/")),
            "",
            f"numbers    {run.stage('evaluate')}/metrics.csv, paired.csv",
            f"figures    {run.folder}/figures/",
            f"notebooks  {run.folder}/notebooks/ (as executed)",
            "JupyterLab make lab",
        ]
    )
