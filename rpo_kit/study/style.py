"""Colours, markers and fonts that the figures share. Grey means: not told apart from 0, so no arm is grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rpo_kit.study.drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, SKY

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

ARM_COLORS = {"fixed-2": SKY, "fixed-4": BLUE, "fixed-6": "#003b66", "random": GREEN, "progressive": RED}
ARM_COLORS |= {"reversed": "#cc79a7", "SFT only": INK}
ARM_MARKERS = {"SFT only": "D", "fixed-2": "o", "fixed-4": "o", "fixed-6": "o", "random": "s", "progressive": "^"}
REFERENCE_STYLES = {"any habit": (0, (1, 2)), "oracle": (0, (5, 2))}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
    "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
UNRESOLVED_COLOR = "#a8a8a8"


def style_of(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm."""
    return ARM_COLORS.get(arm, ORANGE), ARM_MARKERS.get(arm, "v")
