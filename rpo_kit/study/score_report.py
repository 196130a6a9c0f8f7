"""What `score` prints: LaMP's metrics of a run's predictions, or of any prediction file in LaMP's format.

The numbers behind the tables, as LaMP's own script would print them; intervals and comparisons are `evaluate`'s. A run
is scored against all questions of its dev split, those included which were excluded from it (their empty output counts
as wrong, as it does at LaMP). What a file has no prediction for is counted and said.

    LaMP-3: Product rating, 100 questions of the dev split of run 'mine'
    system             MAE      RMSE
    majority      0.825000  1.006231
    copy-nearest  0.850000  1.153256
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import read_outputs
from rpo_kit.lamp.metrics import read_pair, score_outputs
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.rewriting.prepare import load_golds
from rpo_kit.runs import Run, require


def scores_of_files(golds: Path, predictions: Path) -> str:
    """One line a metric, below a line that names the task in words."""
    task, gold_of, pred_of = read_pair(golds, predictions)
    lines = [f"{_named(task)}, {len(gold_of)} questions"]
    if task.shares_official_name:
        lines[0] += " (the files say LaMP_2, which is movies or news; the labels of the golds tell)"
    return "\n".join(
        lines + [f"{name:10} {value:.6f}" for name, value in score_outputs(task, gold_of, pred_of).items()]
    )


def scores_of_run(run: Run) -> str:
    """One line a system, in the order of the settings."""
    task, golds = get_task(run.preset.data.task), load_golds(run, "dev")
    order = {name: place for place, name in enumerate(run.preset.evaluation.systems)}
    files = list((require(run, "evaluate") / "predictions").glob("*.json"))
    files.sort(key=lambda path: (order.get(path.stem, len(order)), path.stem))
    found = {path.stem: _predictions(run, path, task, golds) for path in files}
    width = max(len(name) for name in ("system", *found))
    lines = [f"{_named(task)}, {len(golds)} questions of the dev split of run {run.name!r}"]
    lines.append(f"{'system':{width}}" + "".join(f"{name:>10}" for name in task.metrics))
    for name, predictions in found.items():
        values = score_outputs(task, {key: golds[key] for key in predictions}, predictions).values()
        lines.append(f"{name:{width}}" + "".join(f"{value:10.6f}" for value in values))
    lacking = {name: len(golds) - len(predictions) for name, predictions in found.items()}
    return "\n".join(
        lines + [f"{name}: {n} of them have no prediction and count nowhere" for name, n in lacking.items() if n]
    )


def _predictions(run: Run, path: Path, task: Task, golds: Mapping[str, str]) -> dict[str, str]:
    name, predictions = read_outputs(path)
    strange = predictions.keys() - golds.keys()
    if name != task.official_name or strange:
        what = f"{len(strange)} of its ids are not in the dev split" if strange else f"it is of {name}"
        raise KitError(
            f"{path} does not fit what run {run.name!r} now holds, {task.name} ({what}): give "
            f"`python -m rpo_kit evaluate --run {run.name}` again."
        )
    return predictions


def _named(task: Task) -> str:
    return f"{task.name}: {task.title}"
