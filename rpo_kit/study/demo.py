"""`demo`: run the whole method by executing the notebooks, so that what a reader sees is what was run.

Each notebook runs in a kernel of its own, because the libraries of SFT patch transformers for their whole process. The
run's settings are the notebook's parameters, and the executed copy goes to `<run>/notebooks/`. A finished notebook is
skipped; an interrupted one is executed again, and its stages resume. The terminal shows one line per notebook, with
what is done and the score so far (`chapter_line`), and at the end the tables, a legend and a verdict (`verdict`).
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
from rpo_kit.presets import changed
from rpo_kit.provenance import fingerprint
from rpo_kit.rewriting.failures import FAILED
from rpo_kit.runs import Run, read_json, read_records, write_json
from rpo_kit.stages import result_state
from rpo_kit.study.chapter_line import ChapterLine, count, minutes
from rpo_kit.study.duration import Pace, is_known, known_seconds
from rpo_kit.study.results import read_tables, result_text
from rpo_kit.study.verdict import final_words, score_so_far

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
    print(opening(run), flush=True)
    for number in range(len(CHAPTERS)):
        one_chapter(run, number)
    print(f"\n{summary(run)}\n\nThis call took {minutes(time.perf_counter() - start)}.")


def opening(run: Run) -> str:
    """What will happen, and how long it takes as far as that is known."""
    text = f"{len(CHAPTERS)} notebooks with the settings of run {run.name!r} (preset {run.preset.name})"
    if not is_known(run.preset):
        return f"{text}."
    known = sum(known_seconds(run.preset).values()) / 60
    return (
        f"{text}: about {known:.0f} minutes on the machine of docs/benchmarks.md; how long it takes here is told after "
        "the first steps of SFT."
    )


def one_chapter(run: Run, number: int) -> None:
    """Execute a notebook under its line in the terminal."""
    chapter, start = CHAPTERS[number], time.perf_counter()
    pace = Pace(run) if chapter == STAGES["sft"].notebook else None
    label = f"[{number + 1}/{len(CHAPTERS)}] {chapter}"
    with ChapterLine(label, lambda: count(run, chapter), pace.told if pace else None) as line:
        done = execute(run, chapter)
        took = "done before" if done else minutes(time.perf_counter() - start)
        result = ", ".join(filter(None, [str(count(run, chapter) or ""), took]))
        line.close("; ".join(filter(None, [result, score_so_far(run, chapter)])))


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
    parameters = {"run_name": run.name, "preset": run.preset.name, "overrides": changed(run.preset)}
    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(executed),
            parameters,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            progress_bar=False,  # the terminal has its own line
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


def summary(run: Run) -> str:
    """The result with its tables, legend and verdict, and where to find the numbers, figures and notebooks."""
    metrics, paired = read_tables(f"{run.stage('evaluate')}/")
    return "\n".join(
        [
            result_text(metrics, paired),
            "",
            final_words(metrics, paired),
            "",
            f"numbers    {run.stage('evaluate')}/metrics.csv, paired.csv",
            f"figures    {run.folder}/figures/",
            f"notebooks  {run.folder}/notebooks/ (as executed)",
            "JupyterLab make lab",
            f"use it     .venv/bin/python -m rpo_kit serve --run {run.name} (or export, see the README)",
            "next       draw your own Figure 3: docs/workshop.md, the last exercise",
        ]
    )
