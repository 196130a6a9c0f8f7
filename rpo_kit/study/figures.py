"""Every figure of the kit, drawn from stored numbers: nothing is trained, loaded or measured here.

Each function takes a table (rows of a log, a metrics.csv, the CSVs of a sweep) and returns a matplotlib
`Figure`. pyplot is not used, because its global state breaks in notebook callbacks. `save` writes PNG
and SVG; the same numbers give the same bytes. Figures 1 and 2 are drawings, in `drawing.py`; Figure 3 is drawn in
`sweep_figure.py`.

    figure3("figures/data/long_LaMP-7_")              # reads …bars.csv, …curves.csv, …provenance.json
    save(figure3(…), Path("figures"), "figure3")      # [figures/figure3.png, figures/figure3.svg]
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rpo_kit.errors import KitError
from rpo_kit.runs import write_bytes, write_text
from rpo_kit.study import alt_text
from rpo_kit.study.drawing import BLUE, GREEN, GREY, INK, RED, SKY, figure1, figure2
from rpo_kit.study.results import CONTENT_COLUMNS, reads_other_k, system_name
from rpo_kit.study.style import REFERENCE_STYLES, SMALL, STYLE, style_of
from rpo_kit.study.sweep_figure import figure3

__all__ = [
    "curriculum_figure", "figure1", "figure2", "figure3", "oracle_figure", "png", "results_figure", "save",
    "training_figure",
]  # fmt: skip


# ---- files --------------------------------------------------------------------------------------------------------


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `name`.png (150 dpi) and `name`.svg, each atomically; the same numbers give the same bytes."""
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "rpo_kit"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    write_text(folder / f"{name}.svg", svg.getvalue())
    write_bytes(folder / f"{name}.png", png(figure))
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, without metadata about the program that drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


# ---- the stages ---------------------------------------------------------------------------------------------------

_TITLES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "reward": "reward",
    "kl": "KL to the SFT adapter",
    "parsed": "completions that parse",
    "shots": "history items $k$",
    "frac_reward_zero_std": "groups without variance",
    "completions/clipped_ratio": "truncated completions",
    "completions/mean_length": "tokens per completion",
    "same_answer": "most frequent label",
    "copied_history": "copies of a history item",
    "copied_generic": "copies of the generic answer",
} | CONTENT_COLUMNS
_SHARES = {"parsed", "frac_reward_zero_std", "completions/clipped_ratio"}
_SHARES |= {"same_answer", "copied_history", "copied_generic", "content_kept", "cites_many"}
_SHARES |= {"faithful", "habit_named", "majority"}


def training_figure(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Figure:
    """One small panel per column of a training log; the reward with the spread inside its groups.

    Raises:
        KitError: the log has none of the columns.
    """
    log = pd.DataFrame(rows)
    known = [column for column in columns if column in log]
    if not known:
        raise KitError(
            f"The training log has no column of {', '.join(columns)}: choose from {', '.join(map(str, log.columns))}."
        )
    wide = min(3, len(known))
    high = math.ceil(len(known) / wide)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10 if wide > 1 else 6.5, 2.5 * high + 0.2), facecolor="white", layout="constrained")
        steps = log["step"] if "step" in log else log.index + 1
        for number, column in enumerate(known, 1):
            ax, values = figure.add_subplot(high, wide, number), log[column].astype(float)
            if column == "reward" and "reward_std" in log:
                spread = log["reward_std"].astype(float)
                ax.fill_between(steps, values - spread, values + spread, color=SKY, alpha=0.3, lw=0)
            ax.plot(steps, values, color=BLUE, lw=1.6, marker="o" if len(values) < 30 else None, ms=3.5)
            ax.set(title=_TITLES.get(column, column), xlabel="step")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if column == "shots":
                ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if column in _SHARES:
                ax.set_ylim(-0.05, 1.05)
    return alt_text.described(
        figure, alt_text.of_curves(log, {column: _TITLES.get(column, column) for column in known})
    )


def results_figure(metrics: pd.DataFrame) -> Figure:
    """Score of each system as a point with its 95 % interval; the references are vertical lines.

    The module on other numbers of items ("rl-1") is left to `history_figure`.
    """
    metrics = metrics[~metrics["system"].map(reads_other_k)]
    references = metrics[metrics["system"].isin(REFERENCE_STYLES)]
    systems = metrics[~metrics["system"].isin(REFERENCE_STYLES)].reset_index(drop=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.3 + 0.48 * len(systems)), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        for row in systems.itertuples():
            color = {"rl": RED, "sft": BLUE}.get(str(row.system), GREY)
            error = [[max(0.0, row.score - row.low)], [max(0.0, row.high - row.score)]]
            ax.errorbar(row.score, row.Index, xerr=error, fmt="o", color=color, ms=7, elinewidth=2)
            ax.annotate(f"{row.score:.3f}", (row.score, row.Index), (0, 7), textcoords="offset points", ha="center",
                        fontsize=SMALL, color=INK, bbox={"fc": "white", "ec": "none", "pad": 0.5})  # fmt: skip
        for row in references.itertuples():
            ax.axvline(row.score, color=INK, lw=1.2, ls=REFERENCE_STYLES[str(row.system)])
            ax.annotate(row.system, (row.score, 1), (0, 2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", ha="center", va="bottom", fontsize=SMALL)  # fmt: skip
        ax.set_yticks(range(len(systems)), [system_name(name) for name in systems["system"]])
        ax.set_ylim(len(systems) - 0.5, -0.6)
        about = f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, k = {metrics['shots'][0]}"
        ax.set_xlabel(f"score (0 to 1, higher is better) with 95 % interval\n{about}")
        ax.grid(axis="y", visible=False)
    return alt_text.described(figure, f"{alt_text.of_scores(metrics, list(REFERENCE_STYLES))} {about}.")


def oracle_figure(rows: Sequence[Mapping[str, str | float]]) -> Figure:
    """Score of the model-free oracle by k, one panel per task; `rows` are those of `personas.oracle.oracle_table`."""
    table = pd.DataFrame(rows)
    tasks, lowest = list(table["task"].unique()), float(table["score"].min())
    wide = min(3, len(tasks))
    high = math.ceil(len(tasks) / wide)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10 if wide > 1 else 6, 2.7 * high + 0.2), facecolor="white", layout="constrained")
        for number, task in enumerate(tasks, 1):
            ax, part = figure.add_subplot(high, wide, number), table[table["task"] == task]
            top = part["ceiling"].iloc[0]
            ax.axhline(top, color=INK, lw=1.2, ls=REFERENCE_STYLES["oracle"])
            ax.plot(part["k"], part["score"], color=GREEN, marker="o", ms=5, lw=1.8)
            ax.set(title=task, xlabel="history items $k$", ylabel="score", xticks=part["k"])
            ax.annotate(
                "true habit known", (part["k"].iloc[0], top), (0, 3), textcoords="offset points", fontsize=SMALL
            )
            ax.set_ylim(lowest - 0.03, float(table["ceiling"].max()) + 0.05)  # one scale for all tasks
    return alt_text.described(figure, alt_text.of_oracle(table))


def curriculum_figure(curricula: Mapping[str, Sequence[int]]) -> Figure:
    """k at each RL step of each curriculum, one small panel per curriculum."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.4), facecolor="white", layout="constrained")
        axes = figure.subplots(1, len(curricula), sharey=True, squeeze=False)[0]
        highest = max(max(shots) for shots in curricula.values())
        for ax, (name, shots) in zip(axes, curricula.items(), strict=True):
            ax.bar(range(1, len(shots) + 1), shots, width=0.85, color=style_of(name)[0])
            ax.set(title=name, xlabel="RL step", ylim=(0, highest + 0.5), yticks=range(0, highest + 1, 2))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("history items $k$")
    return alt_text.described(figure, alt_text.of_curricula(curricula))
