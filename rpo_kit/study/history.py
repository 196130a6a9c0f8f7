"""Score × k: does the module gain from more history items?

Read from the table of an evaluation whose systems name `sft-K` and `rl-K` beside `sft` and `rl`.

    history_table(metrics)      # system, k, score, low, high: sft 1 .77 …; sft 6 .82 …; oracle 6 .98 …
    history_figure(metrics)
"""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rpo_kit.errors import KitError
from rpo_kit.setting_rules import kind_of
from rpo_kit.study import alt_text
from rpo_kit.study.comparisons import BEST_TRIVIAL
from rpo_kit.study.drawing import BLUE, INK, RED
from rpo_kit.study.results import best_trivial, shots_of, system_name
from rpo_kit.study.style import REFERENCE_STYLES, SMALL, STYLE

_CURVES = {"sft": (BLUE, "o", "solid"), "rl": (RED, "^", "solid"), "oracle": (INK, "", REFERENCE_STYLES["oracle"])}


def history_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per system and k, for the systems that were evaluated at more than one k: system, k, score, low, high."""
    rows = metrics[["system", "score", "low", "high"]].assign(
        kind=metrics["system"].map(kind_of),
        k=[shots_of(name, all_items) for name, all_items in zip(metrics["system"], metrics["shots"], strict=True)],
    )
    rows = rows[rows["kind"].isin(_CURVES)].drop(columns="system").rename(columns={"kind": "system"})
    several = rows.groupby("system")["k"].transform("nunique") > 1
    return rows[several].sort_values(["system", "k"])[["system", "k", "score", "low", "high"]].reset_index(drop=True)


def history_figure(metrics: pd.DataFrame) -> Figure:
    """Score with 95 % interval by the number of history items, for the module after each stage and the oracle; the best
    trivial baseline, which reads the same with any k, is a line across.

    Raises:
        KitError: no system was evaluated at more than one k.
    """
    table = history_table(metrics)
    if table.empty:
        raise KitError("No system was evaluated with more than one k: add sft-1 and rl-1 to evaluation.systems.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4.0), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        for system, rows in table.groupby("system", sort=False):
            color, marker, line = _CURVES[str(system)]
            shift = {"sft": -0.04, "rl": 0.04}.get(str(system), 0)  # otherwise intervals would hide each other
            error = [(rows["score"] - rows["low"]).clip(0), (rows["high"] - rows["score"]).clip(0)]
            ax.errorbar(rows["k"] + shift, rows["score"], error, color=color, marker=marker, ls=line, lw=1.6,
                        elinewidth=1.2, label=system_name(str(system)))  # fmt: skip
        trivial = best_trivial(metrics)
        if trivial:
            score, line = metrics.set_index("system").loc[trivial, "score"], REFERENCE_STYLES[BEST_TRIVIAL]
            ax.axhline(score, color=INK, lw=1.2, ls=line, label=system_name(trivial))
        ax.set(xlabel="history items $k$ at evaluation", ylabel="score", xticks=sorted(table["k"].unique()))
        ax.set_title(f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, 95 % intervals")
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)  # inside it would hide an interval
    across = f" {system_name(trivial)}: {score:.3f} with any k." if trivial else ""
    return alt_text.described(figure, alt_text.of_history(table) + across)
