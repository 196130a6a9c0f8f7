"""Colors, markers and fonts that the figures share. Grey means: not told apart from 0, so no arm is grey.

Two arms differ in their marker, or clearly in lightness, so that they are told apart in grey print as well; their
colors stay apart for color-blind readers. tests/study/test_palette.py computes both. Letters have at least 10 points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rpo_kit.study.comparisons import BEST_TRIVIAL
from rpo_kit.study.drawing import BLUE, GREEN, GREY, INK, LETTERS, ORANGE, RED, SKY

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

ARM_COLORS = {"fixed-2": SKY, "fixed-4": BLUE, "fixed-6": "#003b66", "random": GREEN, "progressive": RED}
ARM_COLORS |= {"reversed": "#cc79a7", "SFT only": INK}
ARM_MARKERS = {"SFT only": "D", "fixed-2": "o", "fixed-4": "o", "fixed-6": "o", "random": "s", "progressive": "^"}
ARM_MARKERS |= {"reversed": "v"}
REFERENCE_STYLES = {BEST_TRIVIAL: (0, (3, 1, 1, 1)), "best guess": (0, (1, 2)), "oracle": (0, (5, 2))}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
    "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
UNRESOLVED_COLOR = "#a8a8a8"
SMALL = LETTERS  # points


def marker_every(count: int, marks: int = 12) -> int:
    """Every how many of `count` points a curve has a marker: on at most `marks` of them."""
    return max(1, -(-count // marks))


def style_of(arm: str) -> tuple[str, str]:
    """Color and marker of an arm."""
    return ARM_COLORS.get(arm, ORANGE), ARM_MARKERS.get(arm, "P")
