"""Figure 3: training curves per arm, scores by k, and the differences that matter, from the stored numbers of a sweep.

A difference that the sweep cannot tell apart from 0 is grey and hollow. Numbers stored by earlier versions have neither
adjusted p-values nor detectable differences; theirs go by their intervals. Use it through `figures`.

    figure3("figures/data/long_LaMP-7_")      # reads …bars.csv, …curves.csv, …provenance.json, and …differences.csv
"""

from __future__ import annotations

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
from rpo_kit.study import alt_text
from rpo_kit.study.comparisons import (
    BEST_TRIVIAL,
    FEWEST,
    ITEMS,
    SFT_ONLY,
    change_sentence,
    family_of,
    mde_range,
    resolved,
)
from rpo_kit.study.drawing import INK
from rpo_kit.study.results import system_name
from rpo_kit.study.significance import LEVEL
from rpo_kit.study.stored import read_record, read_table
from rpo_kit.study.style import REFERENCE_STYLES, SMALL, STYLE, UNRESOLVED_COLOR, style_of

_LINE, _ROW = 0.195, 0.22  # inches: a line of the caption, a row of the differences
_TOP, _CURVES, _SCORES, _GAP = 0.66, 2.2, 2.3, 0.85  # inches: above the panels, the two upper rows, between rows
_MANY_UNPARSED = 0.05  # ours: share of an arm's completions that is told
_CURVE_FROM = 3  # points: a line through fewer looks like a trend
_HEADING = "training reward, earned with the k below it: comparable only where k is the same"


def figure3(prefix: str) -> Figure:
    """Fixed and growing k, from `<prefix>bars.csv`, `curves.csv`, `provenance.json` and, if stored, `differences.csv`.

    Raises:
        KitError: one of the first three files is missing, or one is damaged.
    """
    for name in ("bars.csv", "curves.csv", "provenance.json"):
        if not Path(prefix + name).exists():
            raise KitError(f"The file {prefix}{name} is missing: finish `python -m rpo_kit sweep --run NAME` first.")
    bars = read_table(f"{prefix}bars.csv", ("shots", "score", "low", "high"), ("arm",))
    bars[["low", "high"]] = bars[["low", "high"]].clip(0.0, 1.0)  # as the scores; Student's t knows no such bounds
    curves = read_table(f"{prefix}curves.csv", ("seed", "step", "reward", "shots"), ("arm",))
    stored, file = read_record(f"{prefix}provenance.json"), Path(f"{prefix}differences.csv")
    differences = pd.DataFrame(columns=["minus"])
    if file.exists():
        differences = read_table(file, ("shots", "score", "low", "high"), ("arm", "minus"))
    window = max(1, int(curves["step"].max()) // 10)
    caption = _caption(bars, curves, differences, stored, window)
    with matplotlib.rc_context(STYLE):
        figure = _canvas(bars, curves, differences, window, 0.62 + _LINE * (caption.count("\n") + 1))
        # parse_math=False: a folder's name may contain a dollar sign
        figure.text(0.012, 0.012, caption, fontsize=SMALL, color=INK, va="bottom", parse_math=False)
    is_resolved = [] if differences.empty else resolved(differences)
    words = alt_text.of_sweep(bars, differences, is_resolved)
    return alt_text.described(figure, f"{words} {unparsed_told(bars)}".strip())


def _canvas(bars: pd.DataFrame, curves: pd.DataFrame, differences: pd.DataFrame, window: int, bottom: float) -> Figure:
    """Three rows of panels and the legend, placed in inches above a caption that needs `bottom` inches."""
    compared = differences[differences["minus"] != BEST_TRIVIAL]  # what is gained over it stands in the caption
    families = [part for _, part in compared.groupby(compared["minus"].map(family_of), sort=False)]
    rows = max(map(len, families), default=0)
    below = _ROW * rows + _GAP if rows else 0.0
    legend = 0.3 if bars["shots"].nunique() > 1 else 0.0  # with one k, the arms are named below their scores
    high = legend + _TOP + _CURVES + _GAP + _SCORES + below + bottom
    figure = Figure(figsize=(10, high), facecolor="white")

    def from_top(inches: float) -> float:
        return 1 - (legend + inches) / high

    figure.text(0.065, from_top(0.3), _HEADING, fontsize=11, weight="bold", va="bottom")
    _draw_curves(figure, curves, window, from_top(_TOP), from_top(_TOP + _CURVES))
    at = from_top(_TOP + _CURVES + _GAP + _SCORES)
    scores = figure.add_axes((0.065, at, 0.845, _SCORES / high), label="scores")  # right: names of the references
    _draw_bars(scores, bars)
    if legend:
        handles, names = scores.get_legend_handles_labels()
        figure.legend(handles, names, loc="upper center", ncols=len(names), fontsize=SMALL)
    if rows:
        is_narrow = len(families) > 2
        apart = 0.6 if is_narrow else 0.32  # room for the names of the rows
        grid = (1, 3 if is_narrow else 2)
        under = figure.add_gridspec(
            *grid, left=0.152, right=0.985, top=(bottom + _ROW * rows) / high, bottom=bottom / high, wspace=apart
        )
        for column, part in enumerate(families):
            _draw_differences(figure.add_subplot(under[0, column]), part, rows, is_narrow)
    return figure


def _draw_differences(ax: Axes, differences: pd.DataFrame, rows: int, is_narrow: bool) -> None:
    """One row per comparison and k, with its 95 % interval; grey and hollow if it is not resolved."""
    minus = differences["minus"].iloc[0]
    names = differences["arm" if minus.startswith((SFT_ONLY, FEWEST)) else "minus"]
    several = differences["shots"].nunique() > 1
    for at, (row, is_resolved) in enumerate(zip(differences.itertuples(), resolved(differences), strict=True)):
        color, marker = style_of(names.iloc[at])
        color = color if is_resolved else UNRESOLVED_COLOR
        error = [[max(0.0, row.score - row.low)], [max(0.0, row.high - row.score)]]
        ax.errorbar(row.score, at, xerr=error, ls="none", color=color, marker=marker, ms=5.5, elinewidth=1.6,
                    mfc=color if is_resolved else "white")  # fmt: skip
        if at and names.iloc[at] != names.iloc[at - 1] and several:
            ax.axhline(at - 0.5, color="#e6e6e6", lw=0.8, zorder=0)
    ax.axvline(0, color=INK, lw=1)
    labels = [f"{name}, k = {k}" if several else name for name, k in zip(names, differences["shots"], strict=True)]
    ax.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    ax.set_ylim(rows - 0.4, -0.6)
    title = f"k = {differences['shots'].iloc[0]} minus {minus}" if family_of(minus) == ITEMS else family_of(minus)
    usual = matplotlib.rcParams
    ax.set_title(title, fontsize=SMALL if is_narrow else usual["axes.titlesize"])
    ax.set_xlabel("difference", fontsize=SMALL if is_narrow else usual["axes.labelsize"])
    ax.xaxis.set_major_locator(MaxNLocator(3 if is_narrow else 5))  # more labels would run into each other
    ax.grid(axis="y", visible=False)


def _draw_curves(figure: Figure, curves: pd.DataFrame, window: int, top: float, bottom: float) -> None:
    """A panel per arm: reward by step, and below it the k by which it was earned. The panels share their axes."""
    arms = list(curves["arm"].unique())
    panels = figure.add_gridspec(
        2, len(arms), height_ratios=(3, 1), left=0.065, right=0.985, top=top, bottom=bottom, wspace=0.1, hspace=0.14
    ).subplots(sharex=True, sharey="row", squeeze=False)
    for arm, (reward, shots) in zip(arms, panels.T, strict=True):
        _draw_arm(reward, shots, arm, curves[curves["arm"] == arm], window)
    reward, shots = panels[:, 0]
    shots.set(ylabel="$k$", ylim=(curves["shots"].min() - 0.7, curves["shots"].max() + 0.7))
    shots.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    reward.set_xlim(_steps(curves))
    reward.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _draw_arm(reward: Axes, shots: Axes, arm: str, curves: pd.DataFrame, window: int) -> None:
    """Thick: the mean over the seeds, as a centred running mean over `window` steps. Thin: each seed's own rewards,
    alone where each seed has a k of its own ("random"), as rewards with different k have no mean worth drawing.
    """
    color, marker = style_of(arm)
    mean = curves.groupby("step")["reward"].mean()
    has_one_k = curves.groupby("step")["shots"].nunique().max() == 1
    is_curve, few = len(mean) >= _CURVE_FROM, len(mean) < 2 * _CURVE_FROM  # few points are invisible without a marker
    line, dots = ("-" if is_curve else "none"), (marker if few else "")
    if window > 1 or curves["seed"].nunique() > 1:
        for seed, own in curves.groupby("seed"):
            reward.plot(own["step"], own["reward"], ls=line, color=color, marker=dots, ms=3.5, label=f"seed {seed}",
                        alpha=0.4 if has_one_k else 0.8, lw=0.8 if has_one_k else 1.2)  # fmt: skip
    if has_one_k:
        smooth = mean.rolling(window, center=True, min_periods=1).mean()
        reward.plot(smooth.index, smooth, ls=line, color=color, lw=2.2, marker=dots, ms=6, label="mean over seeds")
    reward.set_title(arm, fontsize=SMALL)
    reward.set_label(f"reward of {arm}")
    shots.set(label=f"k of {arm}", xlabel="RL step")
    for _, own in list(curves.groupby("seed"))[: 1 if has_one_k else None]:
        if is_curve:
            shots.step(own["step"], own["shots"], where="mid", color=color, lw=1.4 if has_one_k else 0.8)
        else:
            shots.plot(own["step"], own["shots"], ls="none", color=color, marker=marker, ms=4)


def _steps(curves: pd.DataFrame) -> tuple[float, float]:
    """Limits that leave room for the markers of the first and the last step."""
    first, last = float(curves["step"].min()), float(curves["step"].max())
    room = 0.07 * (last - first) or 0.5
    return first - room, last + room


def _draw_bars(ax: Axes, bars: pd.DataFrame) -> None:
    """Score with 95 % interval of each arm, grouped by k; the references are lines across their group."""
    arms = [arm for arm in bars["arm"].unique() if arm not in REFERENCE_STYLES]
    groups = sorted(bars["shots"].unique())
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        rows = bars[bars["arm"] == arm].sort_values("shots")
        x = [groups.index(k) + (index - (len(arms) - 1) / 2) * width for k in rows["shots"]]
        error = np.array([rows["score"] - rows["low"], rows["high"] - rows["score"]]).clip(0)
        color, marker = style_of(arm)
        ax.errorbar(x, rows["score"], error, label=arm, ls="none", color=color, marker=marker, ms=6.5, elinewidth=1.6)
    _draw_references(ax, bars, groups)
    if len(groups) > 1:
        ax.set(title="score on dev users, with 95 % intervals", xlabel="history items $k$ at evaluation")
        ax.set_xticks(range(len(groups)), [str(k) for k in groups])
    else:
        ax.set_title(f"score on dev users with k = {groups[0]} at evaluation, with 95 % intervals")
        ax.set_xticks([(index - (len(arms) - 1) / 2) * width for index in range(len(arms))], arms)
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.grid(axis="x", visible=False)


def _draw_references(ax: Axes, bars: pd.DataFrame, groups: list[int]) -> None:
    """A line across each k, named to the right of the panel, where no interval is."""
    named = {}
    for name, style in REFERENCE_STYLES.items():
        for row in bars[bars["arm"] == name].itertuples():
            at = groups.index(row.shots)
            ax.plot([at - 0.45, at + 0.45], [row.score] * 2, color=INK, lw=1.2, ls=style)
            if at == len(groups) - 1:
                named[name] = float(row.score)
    low, high = ax.get_ylim()
    height, apart = -np.inf, 0.075 * (high - low)  # lines closer than a line of text have their names above each other
    for name, score in sorted(named.items(), key=lambda row: row[1]):
        height = max(score, height + apart)
        ax.annotate(name, (1, height), (4, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
                    va="center", fontsize=SMALL)  # fmt: skip


def _caption(
    bars: pd.DataFrame, curves: pd.DataFrame, differences: pd.DataFrame, stored: Mapping[str, Any], window: int
) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(curves["seed"].unique()))
    preset = stored["preset"]
    data, model, steps = preset["data"], preset["reflection"]["name"], curves["step"].max()
    of_seeds = " and seeds" if "mde" in differences and curves["seed"].nunique() > 1 else ""
    text = (
        f"{data['task']} ({data['source']}), {bars['users'].max()} dev users; {model}; each arm {steps} RL steps from "
        f"the same SFT adapter; seeds: {seeds}. {_reward_lines(curves, window)}"
        f"Intervals: 95 %, bootstrap over users{of_seeds}. {_trivial(stored)}"
        "best guess: understands every text, does not know the user. oracle: follows the majority habit of the same k "
        f"items. {unparsed_told(bars)}{_gain_over_trivial(differences)}{_about_differences(differences)} "
        f"{change_sentence(stored.get('plan'))}"
    )
    return textwrap.fill(text, 130)


def _trivial(stored: Mapping[str, Any]) -> str:
    """Which baseline the line is; "" for numbers of earlier versions, which have none."""
    name = stored.get("best_trivial")
    return f"{BEST_TRIVIAL}: the best baseline without a model ({system_name(name)}). " if name else ""


def _reward_lines(curves: pd.DataFrame, window: int) -> str:
    """What the thick and the thin lines of the reward are; "" if there is one seed and nothing is smoothed."""
    running = f", running mean over {window} steps" if window > 1 else ""
    if curves["seed"].nunique() > 1:
        own_k = curves.groupby(["arm", "step"])["shots"].nunique().max() > 1
        each = ", alone where each has its own k" if own_k else ""
        return f"Reward: thick, mean over seeds{running}; thin, single seeds{each}. "
    return f"Reward: thick{running}; thin, single steps. " if running else ""


def unparsed_told(bars: pd.DataFrame) -> str:
    """A sentence: where many completions do not parse, as when a module reads more items than in RL; else ""."""
    rows = bars[bars["unparsed"] >= _MANY_UNPARSED] if "unparsed" in bars else bars[:0]
    named = ", ".join(f"{row.arm} {100 * row.unparsed:.0f} % at k = {row.shots}" for row in rows.itertuples())
    return f"Completions that do not parse, in whose place the generic answer is scored: {named}. " if named else ""


def _gain_over_trivial(differences: pd.DataFrame) -> str:
    """The least and the largest gain of an arm, with most items; "" for numbers of earlier versions."""
    gains = differences[differences["minus"] == BEST_TRIVIAL]
    if gains.empty:
        return ""
    gains = gains[gains["shots"] == gains["shots"].max()].sort_values("score").iloc[[0, -1]]
    least, most = (f"{row.arm} {row.score:+.3f} ({row.low:.3f} to {row.high:.3f})" for row in gains.itertuples())
    return f"Over {BEST_TRIVIAL}, the arms gain from {least} to {most} at k = {gains['shots'].iloc[0]}. "


def _about_differences(differences: pd.DataFrame) -> str:
    if differences.empty:
        return ""
    if "p_holm" not in differences:
        return "Grey: not resolved (the interval contains 0)."
    grey = f"Grey: not resolved (Holm-adjusted p of {LEVEL} or more)."
    mde = mde_range(differences)
    return f"{grey} Smallest true differences that one comparison finds with 80 % power (MDE): {mde}." if mde else grey
