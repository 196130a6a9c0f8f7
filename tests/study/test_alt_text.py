"""Every figure carries a sentence with its numbers, and a notebook's picture takes it as its alternative text."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rpo_kit.study import alt_text, figures
from rpo_kit.study.alt_text import described
from rpo_kit.study.completion_figures import content_figure, faithful_figure
from rpo_kit.study.component_figure import components_figure, read_table
from rpo_kit.study.history import history_figure
from rpo_kit.study.widgets import show

STUDY = Path(alt_text.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "figures" / "data"
METRICS = pd.read_csv(DATA / "demo_LaMP-7_metrics.csv")
ROWS = METRICS.set_index("system")  # each demo that is stored has other numbers
COMPONENTS = read_table(str(DATA / "components_LaMP-7"))
CURVE = pd.DataFrame({"step": [1, 2, 3], "faithful": [0.5, 0.6, 0.75], "majority": [None, 0.1, 0.2], "k": [2, 4, 6]})
LOG = [{"step": 1, "loss": 2.1}, {"step": 2, "loss": 0.9}]
ORACLE = [{"task": "LaMP-3", "k": k, "score": score, "ceiling": 0.9} for k, score in ((1, 0.5), (6, 0.8))]


def with_interval(system: str) -> str:
    row = ROWS.loc[system]
    return f"{row.score:.3f} ({row.low:.3f} to {row.high:.3f})"


def minus_full(arm: str) -> str:
    row = COMPONENTS.set_index("system").loc[arm]
    return f"{row.difference:.3f} ({row.difference_low:.3f} to {row.difference_high:.3f})"


FIGURES = {
    "figure1": (figures.figure1, ["generic answer, here 4", "rewrites the answer to 2"]),
    "figure2": (figures.figure2, ["0.78, 1.0, 0.55", "2 to 6"]),
    "figure3": (
        lambda: figures.figure3(str(DATA / "long_LaMP-7_")),
        [
            "fixed-6: 0.645 (0.586 to 0.706) at k = 6",
            "fixed-2 minus SFT only at k = 6 0.043 (-0.015 to 0.105), not resolved",
        ],
    ),
    "training": (lambda: figures.training_figure(LOG, ["loss"]), ["step 1 to 2", "loss 2.1 to 0.9"]),
    "results": (lambda: figures.results_figure(METRICS), ["base model 0.392 (0.348 to 0.437)", "oracle 0.980"]),
    "oracle": (lambda: figures.oracle_figure(ORACLE), ["LaMP-3: 0.500 with k = 1, 0.800 with k = 6, 0.900 if"]),
    "curricula": (
        lambda: figures.curriculum_figure({"up": [2, 2, 3], "mixed": [2, 4] * 9}),
        ["up: 2 (2 steps), 3 (1 step)", "mixed: from 2 to 4 in changing order over 18 steps"],
    ),
    "history": (
        lambda: history_figure(METRICS),
        [f"after SFT: {with_interval('sft-1')} with k = 1, {with_interval('sft')} with k = 6"],
    ),
    "content": (
        lambda: content_figure(METRICS),
        [f"after SFT keeps {ROWS.content_kept['sft']:.2f}, scores {ROWS.score['sft']:.3f}"],
    ),
    "faithful": (lambda: faithful_figure(CURVE), ["true observations 0.5 to 0.75", "majority 0.1 to 0.2", "k 2 to 6"]),
    "components": (
        lambda: components_figure(COMPONENTS),
        [f"SFT on one item {minus_full('sft-1-item')};", f"without RL {minus_full('no-rl')}, not resolved"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_described_with_its_numbers(name):
    draw, said = FIGURES[name]
    words = alt_text.alt_text(draw())
    for part in said:
        assert part in words
    assert "nan" not in words
    assert words.endswith(".")


def test_no_function_that_draws_a_figure_leaves_it_without_words():
    for path in STUDY.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and re.search(r"(^|_)figure\d?$", node.name):
                assert "described(" in ast.unparse(node), f"{path.name}: {node.name}"


def test_a_picture_in_a_notebook_has_the_words_in_html_and_beside_the_png():
    picture = show(described(Figure(figsize=(2, 1)), 'Scores of "a" < b: 1.'))
    bundle, metadata = picture._repr_mimebundle_()
    assert 'alt="Scores of &quot;a&quot; &lt; b: 1."' in bundle["text/html"]
    assert f"base64,{bundle['image/png']}" in bundle["text/html"]
    assert 'width="192"' in bundle["text/html"]
    assert metadata["image/png"]["alt"] == bundle["text/plain"] == 'Scores of "a" < b: 1.'
    json.dumps([bundle, metadata])


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_pictures_of_the_pages_have_words_with_numbers(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    words = [words for words, file in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text) if "figures/" in file]
    assert len(words) >= 3
    for alternative in words:
        assert len(alternative) > 80
        assert re.search(r"\d", alternative.partition(":")[2]), alternative
