"""The report of the command `score`: LaMP's metrics for a run's predictions, or for any file in LaMP's format.

The numbers behind the tables, as LaMP's own script prints them; `evaluate` adds intervals and comparisons. A run is
scored on all examples of its dev split. Those excluded from the data count as well: their empty output is wrong, as it
is for LaMP. Examples without a prediction are counted and reported.

    LaMP-3: Product rating, 100 examples of the dev split of run 'mine'
    system             MAE      RMSE
    majority      0.825000  1.006231
    copy-nearest  0.850000  1.153256
"""

from __future__ import annotations

from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.files import PREDICTIONS, read_outputs
from rpo_kit.lamp.metrics import metrics_of_outputs, read_pair
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import load_golds
from rpo_kit.runs import Run
from rpo_kit.stages import require
from rpo_kit.study.over_seeds import check_current


def report_of_files(golds: Path, predictions: Path) -> str:
    """One line per metric, below a line that names the task."""
    task, gold_of, prediction_of = read_pair(golds, predictions)
    heading = f"{task.name}: {task.title}, {len(gold_of)} examples"
    if task.shares_official_name:
        heading += " (the files say LaMP_2, which is movies or news; the labels of the golds decide)"
    metrics = metrics_of_outputs(task, gold_of, prediction_of)
    return "\n".join([heading, *(f"{name:10} {value:.6f}" for name, value in metrics.items())])


def report_of_run(run: Run) -> str:
    """One line per system, in the order of the settings.

    Raises:
        KitError: the run is not evaluated, or was so with other settings or data than its present ones.
    """
    task, golds = get_task(run.preset.data.task), load_golds(run, "dev")
    order = {name: index for index, name in enumerate(run.preset.evaluation.systems)}
    paths = list((require(run, "evaluate") / "predictions").glob("*.json"))
    paths.sort(key=lambda path: (order.get(path.stem, len(order)), path.stem))
    width = max(len(name) for name in ("system", *(path.stem for path in paths)))
    lines = [f"{task.name}: {task.title}, {len(golds)} examples of the dev split of run {run.name!r}"]
    lines.append(f"{'system':{width}}" + "".join(f"{name:>10}" for name in task.metrics))
    missing = []
    for path in paths:
        name, predictions = read_outputs(path, PREDICTIONS)
        unknown = predictions.keys() - golds.keys()
        if name != task.official_name or unknown:
            why = f"{len(unknown)} of its ids are not in the dev split" if unknown else f"its task is {name}"
            raise KitError(
                f"The prediction file {path} does not match the present data of run {run.name!r}, {task.name} ({why}): "
                f"run `python -m rpo_kit evaluate --run {run.name}` again."
            )
        metrics = metrics_of_outputs(task, {id_: golds[id_] for id_ in predictions}, predictions).values()
        lines.append(f"{path.stem:{width}}" + "".join(f"{value:10.6f}" for value in metrics))
        if lacking := len(golds) - len(predictions):
            missing.append(f"{path.stem}: {lacking} examples have no prediction and are not scored")
    check_current(run)  # other data may have the same ids
    return "\n".join(lines + missing)
