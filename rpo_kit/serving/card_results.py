"""The results in a model card: the score of the exported stage, its gain over the best trivial baseline, the table.

Read from the tables of `evaluate`, and only if that evaluated this adapter.

    results = read_results(export)       # None if not evaluated
    results_text(export, results)
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import current
from rpo_kit.serving.export_files import Export
from rpo_kit.study.results import best_trivial, gain_over_trivial, read_tables, system_name


@dataclass(frozen=True)
class Results:
    """The tables of an evaluation."""

    metrics: pd.DataFrame
    paired: pd.DataFrame

    @property
    def examples(self) -> int:
        return int(self.metrics["examples"].iloc[0])

    def row(self, system: str) -> pd.Series:
        """The row of a system, without the columns that are empty there."""
        return self.metrics[self.metrics["system"] == system].iloc[0].dropna()


def read_results(export: Export) -> Results | None:
    """The evaluation of the exported stage; None if there is none of this adapter."""
    try:
        folder = current(export.run, "evaluate")
    except KitError:
        return None
    results = Results(*read_tables(f"{folder}/"))
    return results if (results.metrics["system"] == export.stage).any() else None


def results_text(export: Export, results: Results | None) -> str:
    """What the card says of them."""
    if results is None:
        return (
            f"Not evaluated: the run holds no evaluation of this adapter (`python -m rpo_kit evaluate --run "
            f"{export.run.name}` makes one; then export again)."
        )
    row, task = results.row(export.stage), get_task(export.run.preset.data.task)
    scored = f"{row['score']:.3f} (95 % interval {row['low']:.3f} to {row['high']:.3f})"
    about = f"{results.examples} dev users, {row['shots']} items"
    lines = [
        f"Score: {scored}, {about}, from 0 to 1; higher is better.",
        _gain(export, results),
        _table(results, task.metrics),
    ]
    if export.dtype:
        lines.append(
            "These numbers are of the kit's own module, base and adapter apart. How much an export differs from it is "
            "in docs/export.md of the kit."
        )
    return "\n\n".join(lines)


def _gain(export: Export, results: Results) -> str:
    best = best_trivial(results.metrics)
    if best is None:
        return "The evaluation has no trivial baseline (one without a model) to compare with."
    gain = gain_over_trivial(results.metrics, results.paired, [export.stage])
    if not gain:
        return f"The evaluation does not compare this stage with the best trivial baseline, {system_name(best)}."
    return f"{gain} Trivial baselines use no model; parentheses hold 95 % intervals over users."


def _table(results: Results, metrics: tuple[str, ...]) -> str:
    names = ["score", "low", "high", *metrics, "unparsed"]
    columns = [name for name in names if name in results.metrics]
    lines = [f"| system | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for _, row in results.metrics.iterrows():
        cells = ["" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in columns]
        lines.append(f"| {system_name(str(row['system']))} | {' | '.join(cells)} |")
    return "\n".join(lines)
