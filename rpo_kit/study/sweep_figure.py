"""Figure 3: training curves, scores by k, and the differences that matter, from the stored numbers of a sweep.

A difference that the sweep cannot tell apart from 0 is grey and hollow. Numbers stored by earlier versions have neither
adjusted p-values nor detectable differences; theirs go by their intervals. Use it through `figures`.

    figure3("figures/data/long_LaMP-7_")      # reads …bars.csv, …curves.csv, …provenance.json, and …differences.csv
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rpo_kit.errors import KitError
from rpo_kit.study.comparisons import SFT_ONLY, change_sentence, family_of, resolved
from rpo_kit.study.drawing import GREY, INK
from rpo_kit.study.significance import LEVEL
from rpo_kit.study.style import REFERENCE_STYLES, STYLE, UNRESOLVED_COLOR, style_of

_LINE, _ROW = 0.165, 0.2  # inches: a line of the caption, a row of the differences
_CURVES = 3.35  # inches


def figure3(prefix: str) -> Figure:
    """Fixed and growing k, from `<prefix>bars.csv`, `curves.csv`, `provenance.json` and, if stored, `differences.csv`.

    Raises:
        KitError: one of the first three files is missing.
    """
    for name in ("bars.csv", "curves.csv", "provenance.json"):
        if not Path(prefix + name).exists():
            raise KitError(f"The file {prefix}{name} is missing: finish `python -m rpo_kit sweep --run NAME` first.")
    bars, curves = pd.read_csv(f"{prefix}bars.csv"), pd.read_csv(f"{prefix}curves.csv")
    stored = json.loads(Path(f"{prefix}provenance.json").read_text(encoding="utf-8"))
    file = Path(f"{prefix}differences.csv")
    differences = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["minus"])
    window = max(1, int(curves["step"].max()) // 10)
    caption = _caption(bars, curves, differences, stored, window)
    with matplotlib.rc_context(STYLE):
        figure = _canvas(bars, curves, differences, window, 0.62 + _LINE * (caption.count("\n") + 1))
        # parse_math=False: a folder's name may contain a dollar sign
        figure.text(0.012, 0.012, caption, fontsize=8.5, color=GREY, va="bottom", parse_math=False)
    return figure


def _canvas(bars: pd.DataFrame, curves: pd.DataFrame, differences: pd.DataFrame, window: int, bottom: float) -> Figure:
    """The panels and the legend, placed in inches above a caption that needs `bottom` inches."""
    families = [part for _, part in differences.groupby(differences["minus"] == SFT_ONLY, sort=True)][::-1]
    rows = max(map(len, families), default=0)
    below = _ROW * rows + 0.85 if rows else 0.0
    high = 0.74 + _CURVES + below + bottom
    figure = Figure(figsize=(10, high), facecolor="white")
    grid = figure.add_gridspec(
        2, 2, height_ratios=(4, 1), width_ratios=(1, 1.05), left=0.065, right=0.985, top=1 - 0.74 / high,
        bottom=(bottom + below) / high, wspace=0.16, hspace=0.14,
    )  # fmt: skip
    reward, shots = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _draw_curves(reward, shots, curves, window)
    _draw_bars(figure.add_subplot(grid[:, 1]), bars)
    lines = {line.get_label(): line for ax in figure.axes for line in ax.get_legend_handles_labels()[0]}
    arms = [arm for arm in bars["arm"].unique() if arm in lines]
    figure.legend([lines[arm] for arm in arms], arms, loc="upper center", ncols=len(arms), fontsize=9.5)
    if rows:
        under = figure.add_gridspec(
            1, 2, left=0.145, right=0.985, top=(bottom + _ROW * rows) / high, bottom=bottom / high, wspace=0.32
        )
        for column, part in enumerate(families):
            _draw_differences(figure.add_subplot(under[0, column]), part, rows)
    return figure


def _draw_differences(ax: Axes, differences: pd.DataFrame, rows: int) -> None:
    """One row per comparison and k, with its 95 % interval; grey and hollow if it is not resolved."""
    is_family_of_sft = differences["minus"].iloc[0] == SFT_ONLY
    names = differences["arm" if is_family_of_sft else "minus"]
    several = differences["shots"].nunique() > 1
    for at, (row, is_resolved) in enumerate(zip(differences.itertuples(), resolved(differences), strict=True)):
        color, marker = style_of(names.iloc[at])
        color = color if is_resolved else UNRESOLVED_COLOR
        error = [[max(0.0, row.score - row.low)], [max(0.0, row.high - row.score)]]
        ax.errorbar(row.score, at, xerr=error, ls="none", color=color, marker=marker, ms=5.5, elinewidth=1.6,
                    mfc=color if is_resolved else "white")  # fmt: skip
    ax.axvline(0, color=INK, lw=1)
    labels = [f"{name}, k = {k}" if several else name for name, k in zip(names, differences["shots"], strict=True)]
    ax.set_yticks(range(len(labels)), labels, fontsize=9)
    ax.set_ylim(rows - 0.4, -0.6)
    ax.set(title=family_of(differences["minus"].iloc[0]), xlabel="difference, with 95 % interval")
    ax.grid(axis="y", visible=False)


def _draw_curves(reward: Axes, shots: Axes, curves: pd.DataFrame, window: int) -> None:
    """Mean reward over the seeds, a centred running mean over `window` steps; below it the k of each arm."""
    arms = list(curves["arm"].unique())
    for index, arm in enumerate(arms):
        mean = curves[curves["arm"] == arm].groupby("step")[["reward", "shots"]].mean()
        smooth = mean["reward"].rolling(window, center=True, min_periods=1).mean()
        color, marker = style_of(arm)
        marker = marker if len(mean) < 6 else ""  # few points are invisible without one
        if window > 1:
            reward.plot(mean.index, mean["reward"], color=color, alpha=0.18, lw=0.8)
        reward.plot(smooth.index, smooth, color=color, lw=2.6 if arm == "progressive" else 1.7, marker=marker, ms=5)
        offset = (index - (len(arms) - 1) / 2) * 0.06  # otherwise lines of equal k would hide each other
        k = mean["shots"] + offset
        shots.step(mean.index, k, where="mid", color=color, lw=1.2, alpha=0.55, marker=marker, ms=4)
    reward.set(title="training reward", xlim=_steps(curves))
    reward.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    reward.tick_params(labelbottom=False)
    shots.set(xlabel="RL step", ylabel="$k$", yticks=(2, 4, 6), ylim=(1.5, 6.6), xlim=_steps(curves))
    shots.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _steps(curves: pd.DataFrame) -> tuple[float, float]:
    first, last = float(curves["step"].min()), float(curves["step"].max())
    return (first, last) if last > first else (first - 0.5, last + 0.5)


def _draw_bars(ax: Axes, bars: pd.DataFrame) -> None:
    """Score with 95 % interval of each arm, grouped by k; the references are lines across their group."""
    arms = [arm for arm in bars["arm"].unique() if arm not in REFERENCE_STYLES]
    groups = sorted(bars["shots"].unique())
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        rows = bars[bars["arm"] == arm]
        x = [groups.index(k) + (index - (len(arms) - 1) / 2) * width for k in rows["shots"]]
        error = np.array([rows["score"] - rows["low"], rows["high"] - rows["score"]]).clip(0)
        color, marker = style_of(arm)
        ax.errorbar(x, rows["score"], error, label=arm, ls="none", color=color, marker=marker, ms=6.5, elinewidth=1.6)
    for name, style in REFERENCE_STYLES.items():
        for row in bars[bars["arm"] == name].itertuples():
            at = groups.index(row.shots)
            ax.plot([at - 0.45, at + 0.45], [row.score] * 2, color=INK, lw=1.2, ls=style)
            if at == len(groups) - 1:
                ax.annotate(name, (at + 0.45, row.score), (0, 3), textcoords="offset points", ha="right", fontsize=9)
    ax.set(title="score on dev users, with 95 % intervals", xlabel="history items $k$ at evaluation")
    ax.set_xticks(range(len(groups)), [str(k) for k in groups])
    ax.set_xlim(-0.55, len(groups) - 0.45)
    ax.grid(axis="x", visible=False)


def _caption(
    bars: pd.DataFrame, curves: pd.DataFrame, differences: pd.DataFrame, stored: Mapping[str, Any], window: int
) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(curves["seed"].unique()))
    smoothing = f"Reward: mean over seeds, running mean over {window} steps. " if window > 1 else ""
    preset = stored["preset"]
    data, model, steps = preset["data"], preset["reflection"]["name"], curves["step"].max()
    of_seeds = " and seeds" if "mde" in differences and curves["seed"].nunique() > 1 else ""
    text = (
        f"{data['task']} ({data['source']}), {bars['users'].max()} dev users; {model}; each arm {steps} RL steps from "
        f"the same SFT adapter; seeds: {seeds}. {smoothing}Intervals: bootstrap over users{of_seeds}. any habit: "
        "understands every text, does not know the user. oracle: follows the majority habit of the same k items."
        f"{_about_differences(differences)} {change_sentence(stored.get('plan'))}"
    )
    return textwrap.fill(text, 152)


def _about_differences(differences: pd.DataFrame) -> str:
    if differences.empty:
        return ""
    if "p_holm" not in differences:
        return " Grey: not resolved (the interval contains 0)."
    low, high = differences["mde"].min(), differences["mde"].max()
    span = f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
    return (
        f" Grey: not resolved (Holm-adjusted p of {LEVEL} or more). Smallest differences that one comparison could "
        f"have shown with 80 % power: {span}."
    )
