"""Every figure is drawn from a handful of numbers written by hand, and drawn the same each time."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from rpo_kit.errors import KitError
from rpo_kit.study import figures
from rpo_kit.study.alt_text import alt_text
from rpo_kit.study.comparisons import resolved
from rpo_kit.study.drawing import REWARDS
from rpo_kit.study.style import ARM_COLORS, UNRESOLVED_COLOR

ARMS = ("fixed-2", "progressive")


def panel(figure, label):
    """The panel of Figure 3 with this label: scores, `reward of ARM`, `k of ARM`."""
    return next(axes for axes in figure.axes if axes.get_label() == label)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def sweep_files(folder: Path, steps: int, seeds: int, shots: tuple[int, ...]) -> str:
    """The three files of a sweep: reward of the arm number a at step t is a + t / 100 + seed / 1000."""
    bar = {"low": 0.5, "high": 0.7, "users": 40, "seeds": seeds}
    arms = ["SFT only", *ARMS, "best guess", "oracle"]
    bars = [{"arm": arm, "shots": k, "score": 0.6 + k / 100} | bar for arm in arms for k in shots]
    curves = [
        {"arm": arm, "seed": seed, "step": t, "reward": a + t / 100 + seed / 1000, "shots": 2}
        for a, arm in enumerate(ARMS)
        for seed in range(seeds)
        for t in range(1, steps + 1)
    ]
    preset = {"data": {"task": "LaMP-3", "source": "personas"}, "reflection": {"name": "smollm2"}}
    pd.DataFrame(bars).to_csv(folder / "x_bars.csv", index=False)
    pd.DataFrame(curves).to_csv(folder / "x_curves.csv", index=False)
    (folder / "x_provenance.json").write_text(json.dumps({"preset": preset}))
    return f"{folder}/x_"


@pytest.mark.parametrize(("steps", "seeds", "shots"), [(1, 1, (2,)), (30, 3, (2, 4, 6))])
def test_figure_3_says_task_users_seeds_and_steps(tmp_path, steps, seeds, shots):
    figure = figures.figure3(sweep_files(tmp_path, steps, seeds, shots))
    caption = " ".join(figure.texts[-1].get_text().split())
    for said in ("LaMP-3", "40 dev users", f"{steps} RL steps", f"seeds: {', '.join(map(str, range(seeds)))}."):
        assert said in caption


@pytest.mark.parametrize("source", ["/srv/set_$1_$/lamp", "$", r"\\alpha $x", "a_b^c", "ümlaut 表"])
def test_figure_3_shows_a_folder_with_dollars_as_it_is(tmp_path, source):
    prefix = sweep_files(tmp_path, 2, 1, (2,))
    preset = {"data": {"task": "LaMP-3", "source": source}, "reflection": {"name": "$smollm2$"}}
    (tmp_path / "x_provenance.json").write_text(json.dumps({"preset": preset}))
    figures.save(figures.figure3(prefix), tmp_path, "figure")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_figure_3_names_every_arm_once_and_the_references_at_their_lines(tmp_path):
    figure = figures.figure3(sweep_files(tmp_path, 5, 1, (2, 6)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SFT only", *ARMS]
    assert [text.get_text() for text in panel(figure, "scores").texts] == ["best guess", "oracle"]


def test_figure_3_draws_the_mean_of_the_seeds(tmp_path):
    figure = figures.figure3(sweep_files(tmp_path, 4, 3, (2,)))
    drawn = lines(panel(figure, "reward of fixed-2"))  # four steps: no smoothing
    assert drawn["mean over seeds"].get_ydata() == pytest.approx([0.011, 0.021, 0.031, 0.041])
    for seed in range(3):
        assert drawn[f"seed {seed}"].get_ydata() == pytest.approx([t / 100 + seed / 1000 for t in range(1, 5)])
        assert drawn[f"seed {seed}"].get_linewidth() < drawn["mean over seeds"].get_linewidth()
    assert "thick, mean over seeds; thin, single seeds" in " ".join(figure.texts[-1].get_text().split())


def test_figure_3_draws_no_mean_of_rewards_that_seeds_earned_with_different_k(tmp_path):
    prefix = sweep_files(tmp_path, 4, 2, (2,))
    curves = pd.read_csv(f"{prefix}curves.csv")
    curves.loc[(curves["arm"] == "progressive") & (curves["seed"] == 1), "shots"] = [2, 6, 3, 3]
    curves.to_csv(f"{prefix}curves.csv", index=False)
    figure = figures.figure3(prefix)
    assert list(lines(panel(figure, "reward of progressive"))) == ["seed 0", "seed 1"]
    assert [line.get_ydata().tolist() for line in panel(figure, "k of progressive").lines][1] == [2, 6, 3, 3]
    assert "mean over seeds" in lines(panel(figure, "reward of fixed-2"))
    assert "single seeds, alone where each has its own k." in " ".join(figure.texts[-1].get_text().split())


def test_figure_3_gives_each_arm_a_panel_with_its_own_k_and_says_that_rewards_are_comparable_only_at_the_same_k(
    tmp_path,
):
    prefix = sweep_files(tmp_path, 4, 1, (2,))
    curves = pd.read_csv(f"{prefix}curves.csv")
    curves.loc[curves["arm"] == "progressive", "shots"] = [2, 4, 6, 8]
    curves.to_csv(f"{prefix}curves.csv", index=False)
    figure = figures.figure3(prefix)
    assert any("comparable only where k is the same" in text.get_text() for text in figure.texts)
    for arm, k in (("fixed-2", [2, 2, 2, 2]), ("progressive", [2, 4, 6, 8])):
        assert list(lines(panel(figure, f"reward of {arm}"))) == ["mean over seeds"]
        assert panel(figure, f"k of {arm}").lines[0].get_ydata().tolist() == k
        low, high = panel(figure, f"k of {arm}").get_ylim()
        assert low < 2
        assert high > 8


@pytest.mark.parametrize(("steps", "style"), [(1, "None"), (2, "None"), (3, "-")])
def test_figure_3_draws_a_curve_only_through_three_points_or_more(tmp_path, steps, style):
    figure = figures.figure3(sweep_files(tmp_path, steps, 2, (2,)))
    for line in (*panel(figure, "reward of fixed-2").lines, *panel(figure, "k of fixed-2").lines):
        assert line.get_linestyle() == style
    assert panel(figure, "reward of fixed-2").lines[0].get_marker() != ""


def test_figure_3_with_one_k_at_evaluation_names_the_arms_below_their_scores(tmp_path):
    figure = figures.figure3(sweep_files(tmp_path, 2, 1, (6,)))
    axes = panel(figure, "scores")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["SFT only", *ARMS]
    assert axes.get_xticks() == pytest.approx([container.lines[0].get_xdata()[0] for container in axes.containers])
    assert "k = 6 at evaluation" in axes.get_title(loc="left")
    assert not figure.legends


@pytest.mark.parametrize("apart", [0.3, 0.001])
def test_figure_3_names_the_references_outside_the_panel_and_apart_from_each_other(tmp_path, apart):
    prefix = sweep_files(tmp_path, 2, 1, (2, 6))
    bars = pd.read_csv(f"{prefix}bars.csv")
    bars.loc[bars["arm"] == "oracle", "score"] += apart
    bars.to_csv(f"{prefix}bars.csv", index=False)
    figure = figures.figure3(prefix)
    figure.canvas.draw()
    axes = panel(figure, "scores")
    low, high = (text.get_window_extent() for text in axes.texts)
    assert min(low.x0, high.x0) >= axes.get_window_extent().x1
    assert max(low.x1, high.x1) <= figure.bbox.x1
    assert not low.overlaps(high)


def test_figure_3_with_five_k_and_one_seed_keeps_its_texts_apart_and_on_the_page(tmp_path):
    shots = (1, 2, 4, 6, 8)
    prefix = with_differences(sweep_files(tmp_path, 24, 1, shots), shots, mde=0.03, p=0.2, p_holm=0.2)
    figure = figures.figure3(prefix)
    figure.canvas.draw()
    axes = panel(figure, "scores")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "6", "8"]
    assert len(axes.containers[0].lines[0].get_xdata()) == 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SFT only", *ARMS]
    rows = figure.axes[-2].get_yticklabels()
    assert [text.get_text() for text in rows] == [f"{arm}, k = {k}" for arm in ARMS for k in shots]
    boxes = [text.get_window_extent() for text in rows]
    assert not any(above.overlaps(below) for above, below in itertools.pairwise(boxes))
    heading, caption = figure.texts[0].get_window_extent(), figure.texts[1].get_window_extent()
    assert not heading.overlaps(figure.legends[0].get_window_extent())
    inner = figure.bbox
    for box in (*boxes, heading, caption):
        assert inner.x0 <= box.x0
        assert box.x1 <= inner.x1


def test_figure_3_smooths_over_a_tenth_of_the_steps(tmp_path):
    figure = figures.figure3(sweep_files(tmp_path, 30, 1, (2,)))
    drawn = lines(panel(figure, "reward of fixed-2"))
    raw, smooth = drawn["seed 0"], drawn["mean over seeds"]
    assert smooth.get_ydata()[10] == pytest.approx(np.mean(raw.get_ydata()[9:12]))


def test_figure_3_shows_scores_with_their_intervals(tmp_path):
    axes = panel(figures.figure3(sweep_files(tmp_path, 2, 1, (2, 6))), "scores")
    first = axes.containers[0]  # SFT only
    assert first.lines[0].get_ydata() == pytest.approx([0.62, 0.66])
    assert [segment[:, 1].tolist() for segment in first.lines[2][0].get_segments()] == [
        pytest.approx([0.5, 0.7]),
        pytest.approx([0.5, 0.7]),
    ]


def test_figure_3_without_its_numbers_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(KitError, match=r"none_bars.csv is missing: finish `python -m rpo_kit sweep --run NAME` first"):
        figures.figure3(f"{tmp_path}/none_")


def test_the_reward_is_drawn_with_the_spread_inside_its_groups():
    rows = [{"step": 1, "reward": 0.4, "reward_std": 0.1}, {"step": 2, "reward": 0.6, "reward_std": 0.2}]
    axes = figures.training_figure(rows, ["reward"]).axes[0]
    band = next(c for c in axes.collections if isinstance(c, PolyCollection)).get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.3, 0.8))
    assert axes.lines[0].get_ydata() == pytest.approx([0.4, 0.6])


def test_a_column_that_the_log_lacks_gets_no_panel():
    figure = figures.training_figure([{"step": 1, "loss": 2.0}], ["loss", "learning_rate"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss"]
    with pytest.raises(KitError, match="no column of kl: choose from step, loss"):
        figures.training_figure([{"step": 1, "loss": 2.0}], ["kl"])


def metrics() -> pd.DataFrame:
    rows = [("base", 0.5), ("sft", 0.6), ("rl", 0.7), ("best guess", 0.55), ("oracle", 0.9)]
    return pd.DataFrame(
        [
            {"system": s, "score": x, "low": x - 0.1, "high": x + 0.1, "task": "LaMP-3", "shots": 6, "examples": 40}
            for s, x in rows
        ]
    )


def test_results_show_each_system_from_top_to_bottom_and_references_as_lines():
    axes = figures.results_figure(metrics()).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["base model", "reflection module after SFT", "reflection module after SFT + RL"]
    assert [container.lines[0].get_xdata()[0] for container in axes.containers] == [0.5, 0.6, 0.7]
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == [0.55, 0.9]
    assert axes.yaxis_inverted()
    rows = metrics().assign(system=["context-4", "pag-0", "majority", *metrics().system[3:]])
    labels = [text.get_text() for text in figures.results_figure(rows).axes[0].get_yticklabels()]
    assert labels == ["context injection, k = 4", "profile summary (PAG), k = 0", "majority label of the user"]
    rows = metrics().assign(system=["echo", "lead-12", "constant", *metrics().system[3:]])
    labels = [text.get_text() for text in figures.results_figure(rows).axes[0].get_yticklabels()]
    assert labels == ["query, unchanged", "first 12 words of the query", "one label for everybody"]


def test_the_oracle_has_one_panel_per_task_with_its_ceiling():
    rows = [{"task": t, "k": k, "score": k / 10, "ceiling": 1.0} for t in ("LaMP-3", "LaMP-7") for k in (1, 2, 4)]
    panels = figures.oracle_figure(rows).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["LaMP-3", "LaMP-7"]
    assert panels[0].lines[0].get_ydata()[0] == 1.0
    assert panels[0].lines[1].get_ydata() == pytest.approx([0.1, 0.2, 0.4])


def test_the_curriculum_is_drawn_step_by_step():
    panels = figures.curriculum_figure({"progressive": [2, 4, 6], "fixed-3": [3, 3, 3]}).axes
    assert [bar.get_height() for bar in panels[0].patches] == [2, 4, 6]
    assert [bar.get_height() for bar in panels[1].patches] == [3, 3, 3]


def test_saved_figures_are_the_same_bytes_each_time_and_carry_no_date(tmp_path):
    first = [path.read_bytes() for path in figures.save(figures.results_figure(metrics()), tmp_path / "a", "r")]
    second = [path.read_bytes() for path in figures.save(figures.results_figure(metrics()), tmp_path / "b", "r")]
    assert first == second
    assert b"<dc:date>" not in first[1]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["r.png", "r.svg"]  # no temporary file is left


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    figures.save(figures.curriculum_figure({"fixed-2": [2]}), tmp_path, "r")
    before = (tmp_path / "r.png").read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        figures.save(figures.curriculum_figure({"fixed-4": [4]}), tmp_path, "r")
    assert (tmp_path / "r.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.png", "r.svg"]


def test_the_bars_of_figure_2_are_centred_rewards_of_one_group():
    figure = figures.figure2()
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"trajectory", "filter", "policy gradient", "$k=2$", "$k=6$"} <= set(words)
    assert any(reward == 0 for reward in REWARDS)  # one attempt does not parse
    assert min(REWARDS) >= 0
    assert max(REWARDS) <= 1


def test_figure_1_keeps_the_profile_away_from_the_base_model():
    words = " ".join(text.get_text() for text in figures.figure1().axes[0].texts)
    for name in ("query", "base model", "generic answer", "profile", "retrieval", "observe", "plan", "rewrite"):
        assert name in words
    assert "the base model never sees the user" in words


def test_the_committed_drawings_are_those_of_the_code(tmp_path):
    committed = Path(__file__).parents[2] / "figures"
    for name, figure in (("figure1", figures.figure1()), ("figure2", figures.figure2())):
        svg = figures.save(figure, tmp_path, name)[1].read_text()
        words = re.compile(r"<!-- (.*?) -->")  # matplotlib writes each text as a comment beside its outlines
        assert words.findall(svg) == words.findall((committed / f"{name}.svg").read_text())
        assert len(words.findall(svg)) > 15


def with_differences(prefix: str, shots: tuple[int, ...], **columns: object) -> str:
    """The first difference of each family is resolved."""
    pairs = [("fixed-2", "SFT only"), ("progressive", "SFT only"), ("progressive", "fixed-2")]
    rows = [
        {"arm": arm, "minus": minus, "shots": k, "score": 0.1, "low": 0.05 if arm == "fixed-2" else -0.1, "high": 0.2}
        for arm, minus in pairs
        for k in shots
    ]
    pd.DataFrame(rows).assign(**columns).to_csv(f"{prefix}differences.csv", index=False)
    return prefix


@pytest.mark.parametrize("shots", [(2,), (2, 4, 6)])
def test_figure_3_shows_the_differences_and_greys_out_what_is_not_resolved(tmp_path, shots):
    panels = figures.figure3(with_differences(sweep_files(tmp_path, 2, 1, shots), shots)).axes[-2:]
    assert [panel.get_title(loc="left") for panel in panels] == [
        "arms minus SFT only",
        "progressive minus each other arm",
    ]
    labels = [text.get_text() for text in panels[0].get_yticklabels()]
    assert labels == [f"{arm}, k = {k}" if len(shots) > 1 else arm for arm in ARMS for k in shots]
    drawn = [container.lines[0].get_color() for container in panels[0].containers]
    assert [color == UNRESOLVED_COLOR for color in drawn] == [False] * len(shots) + [True] * len(shots)
    assert {container.lines[0].get_color() for container in panels[1].containers} == {UNRESOLVED_COLOR}


def test_figure_3_compares_most_with_fewest_items(tmp_path):
    prefix = with_differences(sweep_files(tmp_path, 2, 1, (2, 6)), (2, 6))
    file = tmp_path / "x_differences.csv"
    rows = [
        {"arm": arm, "minus": "k = 2", "shots": 6, "score": 0.1, "low": 0.05, "high": 0.2}
        for arm in ("SFT only", *ARMS)
    ]
    pd.concat([pd.read_csv(file), pd.DataFrame(rows)]).to_csv(file, index=False)
    figure = figures.figure3(prefix)
    panel = figure.axes[-1]
    assert panel.get_title(loc="left") == "k = 6 minus k = 2"
    assert [text.get_text() for text in panel.get_yticklabels()] == ["SFT only", *ARMS]
    assert "progressive, k = 6 minus k = 2 0.100 (0.050 to 0.200)" in alt_text(figure)


def test_figure_3_tells_the_gains_over_the_best_trivial_baseline_in_its_caption(tmp_path):
    prefix = with_differences(sweep_files(tmp_path, 2, 1, (2, 6)), (2, 6), mde=0.03, p_holm=0.01)
    file, gains = tmp_path / "x_differences.csv", {"fixed-2": 0.2, "progressive": 0.1}
    rows = [
        {"arm": arm, "minus": "best trivial", "shots": k, "score": gain + k / 100, "low": 0.05, "high": 0.4}
        for arm, gain in gains.items()
        for k in (2, 6)
    ]
    pd.concat([pd.DataFrame(rows), pd.read_csv(file)]).to_csv(file, index=False)
    figure = figures.figure3(prefix)
    told = "from progressive +0.160 (0.050 to 0.400) to fixed-2 +0.260 (0.050 to 0.400) at k = 6."
    assert f"Over best trivial, the arms gain {told}" in " ".join(figure.texts[-1].get_text().split())
    assert "best trivial" not in [panel.get_title(loc="left") for panel in figure.axes]
    assert "fixed-2 minus best trivial at k = 6 0.260 (0.050 to 0.400)" in alt_text(figure)
    assert resolved(pd.read_csv(file))[: len(rows)].all(), "by the interval, as Holm does not count them"


def test_figure_3_says_by_what_a_difference_counts_as_resolved(tmp_path):
    prefix = with_differences(sweep_files(tmp_path, 2, 2, (2,)), (2,))
    caption = " ".join(figures.figure3(prefix).texts[-1].get_text().split())
    assert "Grey: not resolved (the interval contains 0)" in caption
    assert "bootstrap over users." in caption
    with_differences(prefix, (2,), mde=0.0, p=1.0, p_holm=1.0)
    assert "power" not in figures.figure3(prefix).texts[-1].get_text(), "all arms answered alike"
    with_differences(prefix, (2,), mde=[0.0, 0.03, 0.05], p=0.01, p_holm=[0.2, 0.01, 0.01])
    figure = figures.figure3(prefix)
    caption = " ".join(figure.texts[-1].get_text().split())
    assert "Holm-adjusted p of 0.05 or more" in caption
    assert "80 % power (MDE): 0.030 to 0.050" in caption
    assert "bootstrap over users and seeds." in caption
    colors = [container.lines[0].get_color() for container in figure.axes[-2].containers]
    assert colors[0] == UNRESOLVED_COLOR, "its interval is above 0, its adjusted p is not below"


def test_figure_3_says_that_the_comparisons_were_changed(tmp_path):
    prefix = sweep_files(tmp_path, 2, 1, (2,))
    stored = json.loads((tmp_path / "x_provenance.json").read_text())
    plan = {"plan": {"seeds": [0]}, "changes": [{"changed": {"seeds": [0, 1]}}], "before_first_trial": True}
    (tmp_path / "x_provenance.json").write_text(json.dumps(stored | {"plan": plan}))
    caption = " ".join(figures.figure3(prefix).texts[-1].get_text().split())
    assert caption.endswith("Comparisons changed after the first trial: seeds 0 → 0, 1.")


def test_figure_3_says_where_completions_do_not_parse(tmp_path):
    prefix = sweep_files(tmp_path, 2, 1, (2, 6))
    assert "do not parse" not in figures.figure3(prefix).texts[-1].get_text()
    file = tmp_path / "x_bars.csv"
    bars = pd.read_csv(file)
    bars["unparsed"] = [
        0.33 if (arm, k) == ("fixed-2", 6) else 0.04 for arm, k in zip(bars.arm, bars.shots, strict=True)
    ]
    bars.to_csv(file, index=False)
    figure = figures.figure3(prefix)
    told = "Completions that do not parse, in whose place the generic answer is scored: fixed-2 33 % at k = 6."
    assert told in " ".join(figure.texts[-1].get_text().split())
    assert alt_text(figure).endswith(told)


def test_no_arm_is_grey():
    for color in ARM_COLORS.values():
        channels = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert max(channels) - min(channels) > 20 or max(channels) < 64, "black is SFT only"
