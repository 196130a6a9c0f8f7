"""A run's systems and, apart from them, what others have published on the task, each with its setup. No ranking.

published_figure("LaMP-7", metrics)      # metrics: a run's metrics.csv
"""

from __future__ import annotations

import textwrap

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rpo_kit.lamp.tasks import get_task
from rpo_kit.study import alt_text
from rpo_kit.study.drawing import BLUE, GREY, INK
from rpo_kit.study.published import NO_RANKING, OURS, published_table
from rpo_kit.study.results import reads_other_k, system_name
from rpo_kit.study.style import SMALL, STYLE

_BAND, _LABEL = "#f0f0f0", 100  # color of the published range; letters


def published_figure(task: str, metrics: pd.DataFrame, *, invented: bool = False) -> Figure | None:
    """The task's first metric: the run's systems as dots, below them other numbers as hollow squares in the order of
    the file, with the range of the published ones as a band. None if the kit knows no number on the task.

    `invented`: the run's users are those of the embedded benchmark; the caption says so.
    """
    metric = get_task(task).metrics[0]
    better = "lower" if get_task(task).kind == "regression" else "higher"
    others = published_table(task)
    others = others[others["metric"] == metric].reset_index(drop=True)
    own = metrics[metrics[metric].notna() & ~metrics["system"].map(reads_other_k)].reset_index(drop=True)
    if others.empty:
        return None
    names = [system_name(name) for name in own["system"]] + [_setup(row) for _, row in others.iterrows()]
    shown = [*own[metric], *others["value"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.4 + 0.32 * len(names)), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        values = others.loc[others["read_as"] != OURS, "value"]
        if len(values):
            ax.axvspan(values.min(), values.max(), color=_BAND, zorder=0)
        ax.plot(own[metric], own.index, ls="none", marker="o", ms=7, color=BLUE)
        ax.plot(others["value"], others.index + len(own), ls="none", marker="s", ms=6, color=GREY, mfc="white")
        ax.axhline(len(own) - 0.5, color=INK, lw=0.8, ls=(0, (4, 3)))
        for at, value in enumerate(shown):
            ax.annotate(f"{value:.3f}", (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
        ax.set_yticks(range(len(names)), names, fontsize=SMALL)
        ax.set_ylim(len(names) - 0.5, -0.5)
        whose = "this run, whose users are invented" if invented else "this run"
        ax.set_xlabel(
            f"{metric}, {better} is better. Dots: {whose}, k = {metrics['shots'][0]}.\n"
            f"Squares: other numbers; band: the range of the published ones. This is {NO_RANKING}.",
            fontsize=SMALL,
        )
        ax.grid(axis="y", visible=False)
    told = [f"{name} {value:.3f}" for name, value in zip(names, shown, strict=True)]
    here, there = "; ".join(told[: len(own)]), "; ".join(told[len(own) :])
    return alt_text.described(figure, f"{metric} of this run: {here}. Other numbers, {NO_RANKING}: {there}.")


def _setup(row: pd.Series) -> str:
    """System, base model, split, users and k of a published number, as far as its source states them."""
    known = [row["system"], *(row[name] for name in ("base_model", "split") if row[name] not in ("none", "not stated"))]
    known += [f"{name} = {row[name]}" for name in ("n", "k") if row[name] != ""]
    known += [OURS] if row["read_as"] == OURS else []
    return textwrap.shorten(", ".join(map(str, known)), _LABEL, placeholder=" …")
