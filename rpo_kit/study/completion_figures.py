"""Pictures of `completions`: content kept against fit for all systems, and how true RL's observations are by step.

content_figure(read_tables("runs/demo/evaluate/")[0])
faithful_figure(rollout_curve(task, load_prepared(run, "train"), read_records(run.stage("rl") / "rollouts.jsonl")))
"""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rpo_kit.errors import KitError
from rpo_kit.study import alt_text
from rpo_kit.study.drawing import BLUE, GREEN, GREY, ORANGE, RED
from rpo_kit.study.results import CONTENT_COLUMNS, system_name
from rpo_kit.study.style import SMALL, STYLE, marker_every

_LINES = {"faithful": (RED, "o"), "habit_named": (ORANGE, "s"), "majority": (BLUE, "^"), "cites_many": (GREEN, "D")}
_MARKERS = "osD^v<>phX*P"
_LINES |= {"content_kept": (GREY, "v")}


def content_figure(metrics: pd.DataFrame) -> Figure:
    """Score of each system against the content it keeps, with 95 % intervals of both; up and right is better.

    Raises:
        KitError: the table has no such column: its answers are labels, or an earlier version stored it.
    """
    if "content_kept" not in metrics or metrics["content_kept"].isna().all():
        raise KitError("This table has no content_kept: evaluate a task whose answers are texts, with this version.")
    systems = metrics[metrics["content_kept"].notna()].reset_index(drop=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.8), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        for row in systems.itertuples():
            color, marker = {"rl": RED, "sft": BLUE}.get(str(row.system), GREY), _MARKERS[row.Index % len(_MARKERS)]
            wide = [[max(0.0, row.content_kept - row.content_low)], [max(0.0, row.content_high - row.content_kept)]]
            high = [[max(0.0, row.score - row.low)], [max(0.0, row.high - row.score)]]
            ax.errorbar(row.content_kept, row.score, yerr=high, xerr=wide, fmt=marker, color=color, elinewidth=1.4,
                        ms=9, mfc="none", mew=1.8, label=system_name(str(row.system)))  # fmt: skip
        about = f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, k = {metrics['shots'][0]}"
        ax.set(xlim=(-0.03, 1.03), xlabel="content kept, of the generic answer or of the query", ylabel="score (fit)")
        ax.set_title(f"Content and fit, with 95 % intervals\n{about}")
        figure.legend(loc="outside right upper", fontsize=SMALL)  # systems that do not change the answer share a point
    return alt_text.described(figure, f"{alt_text.of_content(systems)} {about}.")


def faithful_figure(curve: pd.DataFrame) -> Figure:
    """Shares of RL's completions by step: true observations, majority followed, several items cited; k below them.

    Raises:
        KitError: there are no rollouts.
    """
    if curve.empty:
        raise KitError("There are no rollouts to draw: raise rl.rollouts_mb and train again.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4.6), facecolor="white", layout="constrained")
        ax, shots = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for column, (color, marker) in _LINES.items():
            if column in curve:
                points = {"marker": marker, "ms": 5, "lw": 1.7, "markevery": marker_every(len(curve), 20)}
                ax.plot(curve["step"], curve[column], color=color, label=CONTENT_COLUMNS[column], **points)
        ax.set(ylim=(-0.03, 1.03), title="Share of RL's completions, by step")
        ax.legend(ncols=3, fontsize=SMALL, loc="upper center", bbox_to_anchor=(0.5, -0.02))
        shots.step(curve["step"], curve["k"], where="mid", color=GREY)
        shots.set(xlabel="RL step", ylabel="$k$")
        for axes in (shots.xaxis, shots.yaxis):
            axes.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    names = {column: CONTENT_COLUMNS[column] for column in _LINES if column in curve} | {"k": "k"}
    return alt_text.described(figure, f"Shares of RL's completions. {alt_text.of_curves(curve, names)}")
