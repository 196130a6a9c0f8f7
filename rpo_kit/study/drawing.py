"""Figure 1 (inference) and Figure 2 (the two training stages) of the method, in our own drawing.

Boxes and arrows are placed in inches on one canvas, so that text has the same size everywhere. The bars of Figure 2 are
computed by the formula that they illustrate. Figures with measured numbers are in `figures.py`.

    save(figure1(), Path("figures"), "figure1")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from rpo_kit.study.alt_text import described

# Okabe and Ito's colors, which color-blind readers can tell apart; the pale ones are tints of them.
INK, GREY, PALE = "#222222", "#767676", "#f2f2f2"
BLUE, SKY, ORANGE, GREEN, RED = "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#d55e00"
PALE_BLUE, PALE_ORANGE, PALE_GREEN = "#e3f0f8", "#fdf1d9", "#dff2ec"
LETTERS = 10  # points
Point = tuple[float, float]
REWARDS = (0.78, 1.0, 0.55, 0.78, 1.0, 0.0, 0.78, 0.55)  # of one invented group: 1 is correct, 0 did not parse
FIGURE1 = (
    "Figure 1: RPO at inference time. The query goes to the base model, a black box that never sees the user and gives "
    "a generic answer, here 4. Retrieval picks k items of the user's profile. The reflection module reads both, "
    "observes that the user is harsh, plans, and rewrites the answer to 2."
)
FIGURE2 = (
    "Figure 2: the two training stages. Stage 1, supervised fine-tuning: from query, generic answer, 1, 3 or 6 history "
    "items and the gold answer, a teacher writes trajectories; those that pass a filter train the reflection module. "
    f"Stage 2, reinforcement learning: rewards {', '.join(map(str, REWARDS))} of one group, minus their mean and "
    "whitened, become advantages of a policy gradient, while the number of history items grows from 2 to 6."
)


def figure1() -> Figure:
    """Inference: the base model answers without the user, the reflection module rewrites with k history items."""
    figure, ax = _canvas(10, 3.95, bottom=0.4)
    _box(ax, 0.15, 3.05, 1.85, 1.15, "query $q$", "“The lid fits, but it\nleaks. Okay for\nthe price.”")
    _box(ax, 2.35, 3.2, 1.4, 0.85, "base model", "a black box", fill=INK, ink="white")
    _box(ax, 4.1, 3.2, 1.5, 0.85, "generic answer $g$", "“4”")
    _box(ax, 0.15, 0.55, 1.85, 1.55, "profile $U$", "", fill=PALE_ORANGE, edge=ORANGE)
    _box(ax, 2.35, 0.9, 1.4, 0.85, "retrieval", "BM25, recency …", fill=PALE_ORANGE, edge=ORANGE)
    _box(ax, 4.1, 0.55, 1.5, 1.55, "$k$ items $P$", "", fill=PALE_ORANGE, edge=ORANGE)
    _cards(ax, (0.28, 0.7), 1.59, [("“Sharp blade …”", "3"), ("“The zip jams …”", "1"), ("“Warm, light …”", "3")])
    ax.text(1.07, 0.63, "⋮", ha="center", va="center", color=GREY, fontsize=LETTERS)
    _cards(ax, (4.2, 0.7), 1.3, [("“leaks …”", "1"), ("“a lid …”", "2"), ("“okay …”", "2")], numbered=True)
    _reflection(ax)
    _box(ax, 8.72, 1.93, 1.15, 0.95, "prediction", "“2”", fill=PALE_GREEN, edge=GREEN, big=True)
    for start, end in [((2.0, 3.62), (2.35, 3.62)), ((3.75, 3.62), (4.1, 3.62)), ((8.4, 2.4), (8.72, 2.4))]:
        _arrow(ax, start, end)
    for start, end in [((2.0, 1.32), (2.35, 1.32)), ((3.75, 1.32), (4.1, 1.32))]:
        _arrow(ax, start, end, ORANGE)
    _arrow(ax, (5.6, 3.62), (5.95, 2.9))
    _arrow(ax, (5.6, 1.32), (5.95, 1.9), ORANGE)
    _arrow(ax, (1.05, 3.05), (2.8, 1.75), GREY, dashed=True)
    ax.text(1.42, 2.42, "what to look for", color=GREY, fontsize=LETTERS, ha="right")
    # The line that no profile text crosses: the base model is above it.
    ax.plot([2.8, 5.65], [2.62, 2.62], color=RED, lw=1.4, ls=(0, (4, 3)))
    ax.text(4.22, 2.72, "the base model never sees the user", color=RED, fontsize=LETTERS, ha="center", va="bottom")
    return described(figure, FIGURE1)


def _reflection(ax: Axes) -> None:
    _box(ax, 5.95, 0.75, 2.45, 3.3, "reflection module $\\pi_\\theta$", "", fill=PALE_BLUE, edge=BLUE)
    parts = [
        ("observe", "[1] reads 2, gave 1: harsh\n[2] reads 3, gave 2: harsh"),
        ("plan", "reads 3, harsh: give 2"),
        ("rewrite", "2"),
    ]
    for row, (name, text) in enumerate(parts):
        y, height = (2.72, 1.75, 0.88)[row], (0.9, 0.68, 0.58)[row]
        _box(ax, 6.06, y, 2.23, height, name, text, edge=BLUE)
        if row:
            _arrow(ax, (7.17, (2.72, 1.75)[row - 1]), (7.17, y + height), BLUE)


def figure2() -> Figure:
    """Training: supervised fine-tuning on a teacher's trajectories, then RL with 2 to 6 history items."""
    figure, ax = _canvas(10, 6.9)
    for y, height, text in (
        (4.05, 2.75, "Stage 1\nsupervised fine-tuning"),
        (0.1, 3.8, "Stage 2\nreinforcement learning"),
    ):
        ax.add_patch(Rectangle((0.05, y), 9.9, height, facecolor=PALE, edgecolor="none", zorder=0))
        ax.text(0.2, y + height - 0.12, text, fontsize=12, weight="bold", color=INK, va="top")
    _stage1(ax)
    _stage2(ax)
    ax.plot([9.03, 9.03, 2.57], [4.45, 3.975, 3.975], color=BLUE, lw=1.3)
    _arrow(ax, (2.57, 3.975), (2.57, 3.2), BLUE)
    ax.text(2.65, 3.6, "starts as the\nSFT adapter", fontsize=LETTERS, color=BLUE, va="center")
    ax.text(9.85, 3.78, "REINFORCE++ with baseline", fontsize=LETTERS, color=GREY, va="top", ha="right")
    _curriculum(ax)
    return described(figure, FIGURE2)


def _stage1(ax: Axes) -> None:
    inputs = [
        ("query, generic answer", PALE, INK),
        ("1, 3 or 6 history items", PALE_ORANGE, ORANGE),
        ("gold answer $y$", PALE_GREEN, GREEN),
    ]
    for row, (text, fill, edge) in enumerate(inputs):
        y = 5.6 - row * 0.55
        _box(ax, 0.2, y, 1.95, 0.42, "", text, fill="white" if fill == PALE else fill, edge=edge)
        _arrow(ax, (2.15, y + 0.21), (2.45, 5.27))
    _box(ax, 2.45, 4.85, 1.3, 0.85, "teacher", "an LLM, or rules", fill=INK, ink="white")
    lines = "observe  [1] reads 2,\n               gave 1: harsh\nplan  reads 3, harsh: give 2\nrewrite  2"
    _box(ax, 4.0, 4.65, 2.25, 1.25, "trajectory", lines, edge=BLUE, left=True)
    _box(ax, 6.5, 4.7, 1.45, 1.15, "filter", "parses · cites\nwhat exists · ends\nin the gold")
    _box(
        ax,
        8.2,
        4.45,
        1.65,
        1.95,
        "reflection\nmodule",
        "\n\nLoRA on a small\nmodel; the loss\ncounts the\ntrajectory only",
        fill=PALE_BLUE,
        edge=BLUE,
    )
    for x in ((3.75, 4.0), (6.25, 6.5), (7.95, 8.2)):
        _arrow(ax, (x[0], 5.27), (x[1], 5.27), BLUE)
    _arrow(ax, (7.22, 4.7), (7.22, 4.45), GREY, dashed=True)
    ax.text(7.22, 4.41, "rejected: logged with the reason", fontsize=LETTERS, color=GREY, ha="center", va="top")


def _stage2(ax: Axes) -> None:
    _box(ax, 0.2, 1.95, 1.4, 1.25, "prompt", "query\ngeneric answer\n$k$ history items", fill=PALE_ORANGE, edge=ORANGE)
    _box(ax, 1.95, 1.95, 1.25, 1.25, "reflection\nmodule $\\pi_\\theta$", "", fill=PALE_BLUE, edge=BLUE)
    _arrow(ax, (1.6, 2.57), (1.95, 2.57), ORANGE)
    _arrow(ax, (3.2, 2.57), (3.55, 2.57), BLUE)
    rewards = np.array(REWARDS)
    centred = rewards - rewards.mean()
    _bars(ax, (3.6, 2.0), 1.75, rewards, 1.0, "rewards $r_i$ of $G$ rewrites", mean=float(rewards.mean()))
    _arrow(ax, (5.45, 2.57), (6.0, 2.57))
    ax.text(5.72, 2.66, "− mean", fontsize=LETTERS, ha="center", va="bottom", color=INK)
    ax.text(5.72, 2.47, "whiten", fontsize=LETTERS, ha="center", va="top", color=INK)
    _bars(ax, (6.1, 2.6), 1.75, centred / centred.std(), 0.26, "advantages $A_i$")
    _arrow(ax, (7.9, 2.57), (8.2, 2.57))
    _box(
        ax,
        8.2,
        1.95,
        1.65,
        1.25,
        "policy gradient",
        "tokens with $A>0$ up,\n$A<0$ down; KL to\nthe SFT adapter",
    )
    ax.add_patch(
        FancyArrowPatch(
            (9.03, 1.95),
            (2.57, 1.95),
            connectionstyle="bar,fraction=-0.055",
            arrowstyle="-|>",
            mutation_scale=11,
            lw=1.3,
            color=BLUE,
        )
    )
    ax.text(5.8, 1.5, "update $\\theta$, next step", fontsize=LETTERS, color=BLUE, ha="center", va="top")


def _curriculum(ax: Axes) -> None:
    """The steps of k below stage 2: one card per history item in the prompt."""
    ax.text(0.2, 1.12, "history items $k$\ngrow from 2 to 6", fontsize=LETTERS, color=INK, va="top")
    for stair, k in enumerate(range(2, 7)):
        x = 1.75 + stair * 1.62
        for card in range(k):
            ax.add_patch(
                Rectangle(
                    (x, 0.3 + card * 0.13), 1.5, 0.1, facecolor=ORANGE, alpha=0.35 + 0.1 * stair, edgecolor="none"
                )
            )
        ax.text(x + 0.75, 0.33 + k * 0.13, f"$k={k}$", fontsize=LETTERS, ha="center", va="bottom", color=INK)
    ax.text(9.85, 0.24, "steps →", fontsize=LETTERS, color=GREY, ha="right", va="top")


# ---- pieces -------------------------------------------------------------------------------------------------------


def _canvas(width: float, height: float, bottom: float = 0.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(bottom, bottom + height))
    ax.axis("off")
    return figure, ax


def _box(
    ax: Axes, x: float, y: float, width: float, height: float, title: str, text: str = "", *, fill: str = "white",
    edge: str = INK, ink: str = INK, big: bool = False, left: bool = False,
) -> None:  # fmt: skip
    shape = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=fill, edgecolor=edge, lw=1.3))
    if not title:
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=LETTERS, color=ink)
        return
    ax.text(x + width / 2, y + height - 0.1, title, ha="center", va="top", fontsize=LETTERS, weight="bold", color=ink)
    middle = y + (height - 0.25) / 2
    anchor, align = (x + 0.12, "left") if left else (x + width / 2, "center")
    size = 16 if big else LETTERS
    ax.text(anchor, middle, text, ha=align, va="center", fontsize=size, color=ink, linespacing=1.35)


def _arrow(ax: Axes, start: Point, end: Point, color: str = INK, dashed: bool = False) -> None:
    style = (0, (4, 3)) if dashed else "solid"
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.3, color=color, linestyle=style,
                        shrinkA=2, shrinkB=2)
    )  # fmt: skip


def _cards(ax: Axes, corner: Point, width: float, rows: Sequence[tuple[str, str]], numbered: bool = False) -> None:
    for index, (text, value) in enumerate(rows):
        y = corner[1] + 0.07 + (len(rows) - 1 - index) * 0.35
        ax.add_patch(Rectangle((corner[0], y), width, 0.29, facecolor="white", edgecolor=ORANGE, lw=0.8))
        label = f"[{index + 1}] {text}" if numbered else text
        ax.text(corner[0] + 0.06, y + 0.14, label, fontsize=LETTERS, va="center", color=INK)
        ax.text(
            corner[0] + width - 0.06,
            y + 0.14,
            value,
            fontsize=LETTERS,
            va="center",
            ha="right",
            weight="bold",
            color=INK,
        )


def _bars(
    ax: Axes, origin: Point, width: float, values: np.ndarray, scale: float, title: str, mean: float | None = None
) -> None:
    """Bars of `values` on a zero line at `origin`, green above the mean (or zero), red below it."""
    x, y = origin
    step = width / len(values)
    for index, value in enumerate(values):
        color = GREEN if value > (mean or 0) else RED
        ax.add_patch(Rectangle((x + index * step + 0.03, y), step - 0.06, value * scale, facecolor=color, alpha=0.85))
    ax.plot([x, x + width], [y, y], color=INK, lw=1)
    if mean is not None:
        ax.plot([x, x + width], [y + mean * scale] * 2, color=INK, lw=1, ls=(0, (3, 2)))
    ax.text(x + width / 2, 3.2, title, fontsize=LETTERS, ha="center", va="bottom", color=INK)
