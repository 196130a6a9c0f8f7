"""The colors of the arms stay apart for color-blind readers, and the arms do so in grey print.

Color blindness: the matrices of Machado, Oliveira and Fernandes (2009) for full protanopia, deuteranopia and
tritanopia, on linear RGB. Distances are Euclidean in CIELAB (D65), where about 2 can just be seen; lightness is its L*.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rpo_kit.study.completion_figures import _LINES
from rpo_kit.study.drawing import BLUE, GREY, INK, ORANGE, RED
from rpo_kit.study.style import ARM_COLORS, SMALL, STYLE, UNRESOLVED_COLOR, marker_every, style_of

ARMS = (*ARM_COLORS, "an arm of one's own")
COLORS_APART, LIGHTNESS_APART = 15, 20
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = (0.95047, 1.0, 1.08883)


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of a linear RGB color."""
    x, y, z = np.cbrt(np.array(TO_XYZ) @ np.clip(rgb, 0, 1) / WHITE)  # none of ours is dark enough for the linear part
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, sight: str) -> float:
    return float(np.linalg.norm(lab(SIGHT[sight] @ linear(one)) - lab(SIGHT[sight] @ linear(other))))


def lightness(color: str) -> float:
    return float(lab(linear(color))[0])


def contrast_with_white(color: str) -> float:
    return float(1.05 / (linear(color) @ TO_XYZ[1] + 0.05))


def test_the_measures_are_right():
    assert lightness("#ffffff") == pytest.approx(100, abs=0.01)
    assert lightness("#777777") == pytest.approx(50.03, abs=0.05)
    assert distance("#ff0000", "#00ff00", "usual") == pytest.approx(170.6, abs=0.5)
    assert distance("#d04040", "#808000", "deuteranopia") < distance("#d04040", "#808000", "usual") / 2
    assert contrast_with_white("#767676") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colors_of_two_arms_are_told_apart(sight):
    for one, other in combinations(ARMS, 2):
        assert distance(style_of(one)[0], style_of(other)[0], sight) >= COLORS_APART, (one, other)


def test_two_arms_differ_in_grey_print_by_marker_or_lightness():
    for one, other in combinations(ARMS, 2):
        (color, marker), (other_color, other_marker) = style_of(one), style_of(other)
        light = abs(lightness(color) - lightness(other_color))
        assert marker != other_marker or light >= LIGHTNESS_APART, (one, other)


def test_curves_that_share_a_picture_differ_in_marker():
    markers = [marker for _, marker in _LINES.values()]
    assert len(set(markers)) == len(markers)


@pytest.mark.parametrize("sight", SIGHT)
def test_a_resolved_difference_is_darker_than_one_that_is_not(sight):
    """Beside that, the latter is hollow, in Figure 3 and in the component study."""
    for color in (BLUE, RED):
        assert distance(color, UNRESOLVED_COLOR, sight) >= COLORS_APART
        assert lightness(color) < lightness(UNRESOLVED_COLOR)


def test_words_have_enough_contrast_and_size():
    assert min(contrast_with_white(color) for color in (INK, GREY)) >= 4.5  # WCAG 2, level AA
    assert min(SMALL, STYLE["font.size"], STYLE["axes.titlesize"]) >= 10
    assert ORANGE != RED


@pytest.mark.parametrize(("count", "every"), [(1, 1), (12, 1), (13, 2), (60, 5), (0, 1)])
def test_long_curves_have_a_dozen_markers(count, every):
    assert marker_every(count) == every
