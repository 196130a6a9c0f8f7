"""Published numbers: each has a value in range, a setup and a source, and none is presented as a ranking."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task
from rpo_kit.runs import open_run, write_text
from rpo_kit.stages import stage
from rpo_kit.study import published as module
from rpo_kit.study.alt_text import alt_text
from rpo_kit.study.published import READ_AS, published, published_report, published_table
from rpo_kit.study.published_figure import published_figure
from rpo_kit.study.results import PAIRED_COLUMNS

AVERAGE = "LaMP+LongLaMP average"
COLUMNS = [
    "task",
    "metric",
    "value",
    "low",
    "high",
    "system",
    "base_model",
    "split",
    "n",
    "k",
    "source",
    "read_as",
    "published_as",
]
LARGEST = {"MAE": 4, "RMSE": 4}  # ratings are 1 to 5; all other metrics are at most 1


def rows() -> list[dict[str, str]]:
    with Path(module.__file__).with_name("published_lamp.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_file_holds_one_number_per_row_with_its_setup_and_source():
    assert len(rows()) == 100
    for row in rows():
        assert list(row) == COLUMNS
        assert row["task"] in TASKS | MORE_TASKS | {AVERAGE: None}
        wanted = {"accuracy", "rouge-1", "rouge-L"} if row["task"] == AVERAGE else set(get_task(row["task"]).metrics)
        assert row["metric"] in wanted | ({"accuracy"} if row["task"] == "LaMP-3" else set()), row
        assert 0 < float(row["value"]) <= LARGEST.get(row["metric"], 1), row
        assert all(row[name].strip() == row[name] != "" for name in ("system", "base_model", "split", "published_as"))
        assert row["read_as"] in READ_AS
        assert len(row["source"]) > 20
        assert row["source"] != "same"


def test_bounds_enclose_the_value_and_counts_are_whole_numbers():
    for row in rows():
        assert bool(row["low"]) == bool(row["high"])
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert row["n"] == "" or int(row["n"]) > 0
        assert row["k"] == "" or int(row["k"]) >= 0


def test_no_number_is_there_twice():
    keys = [tuple(row[name] for name in COLUMNS if name not in ("value", "low", "high")) for row in rows()]
    assert len(set(keys)) == len(keys)


def test_it_is_packaged():
    assert '"*.csv"' in (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_the_loader_chooses_task_split_and_items():
    table = published("LaMP-7")
    assert list(table) == COLUMNS
    assert set(table["task"]) == {"LaMP-7"}
    assert (table["value"].dtype, table["k"].dtype) == ("float64", "Int64")
    assert set(published("LaMP-7", split="USER dev")["split"]) == {"user dev official"}
    assert len(published("LaMP-1", split="user dev", k=4)) == 3
    assert published("LaMP-2M").equals(published("LaMP-2"))
    assert len(published(AVERAGE)) == 9
    assert published("LaMP-6").empty
    with pytest.raises(KitError, match="There is no task 'LaMP-9'"):
        published("LaMP-9")


def test_a_base_model_called_none_is_text():
    assert "none" in set(published("LaMP-7")["base_model"])


def test_the_table_holds_the_tasks_own_metrics_in_their_order():
    assert list(published_table("LaMP-3")["metric"].unique()) == ["MAE", "RMSE"], "accuracy is not a metric of LaMP-3"
    table = published_table("LaMP-1")
    assert table["interval"][1] == "0.404 – 0.596"
    assert not table.isna().any().any()


@pytest.mark.parametrize("task", [*TASKS, "LaMP-2-news"])
def test_the_report_gives_the_range_without_our_own_measurements_and_every_source(task):
    said = published_report(task)
    assert said.startswith(f"What others have published on {task}. This is no ranking: other models, other splits")
    for metric in get_task(task).metrics:
        rows = published(task)[lambda table, metric=metric: table["metric"] == metric]
        values = rows.loc[rows["read_as"] != "measured here", "value"]
        assert f"\n{metric}: {len(values)} published, from {values.min():.3f} to {values.max():.3f}\n" in said
        assert all(f"] {source} (" in said for source in rows["source"])
    assert "nan" not in said.lower().split()
    assert "<NA>" not in said


def test_a_task_without_published_numbers_has_one_sentence():
    assert published_report("LaMP-6") == "No published number on LaMP-6 is known to the kit."


def test_results_prints_them_below_the_runs_table_and_apart_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    run = open_run("r", "tiny", {"data.task": "LaMP-3"})
    row = {"system": "base", "score": 0.7, "low": 0.6, "high": 0.8, "MAE": 1.2, "RMSE": 1.4}
    table = pd.DataFrame([row]).assign(task="LaMP-3", shots=6, examples=6)
    with stage(run, "evaluate") as folder:
        write_text(folder / "metrics.csv", table.to_csv(index=False))
        write_text(folder / "paired.csv", ",".join(PAIRED_COLUMNS) + "\n")
    assert main(["results", "--run", "r"]) == 0
    assert "published" not in capsys.readouterr().out
    assert not (run.folder / "figures" / "published.png").exists()
    assert main(["results", "--run", "r", "--published"]) == 0
    own, line, others = capsys.readouterr().out.partition("-" * 100)
    assert "Result (LaMP-3, 6 dev examples, 6 history items" in own
    assert line
    assert "no ranking" in others
    assert "MAE: " in others
    assert "invented (embedded benchmark), so its numbers are not numbers on LaMP" in others
    assert (run.folder / "figures" / "published.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-3", "LaMP-7"])
def test_the_figure_shows_every_published_number_with_its_setup_apart_from_the_runs(task):
    metric = get_task(task).metrics[0]
    own = pd.DataFrame({"system": ["base", "rl", "rl-1"], metric: [0.25, 0.5, 0.4], "shots": 6})
    figure = published_figure(task, own)
    (ax,) = figure.axes
    rows = published_table(task)[lambda table: table["metric"] == metric]
    ours, others = (line for line in ax.lines if line.get_marker() in ("o", "s"))
    assert list(ours.get_xdata()) == [0.25, 0.5], "the module with another number of items is left out"
    assert list(others.get_xdata()) == list(rows["value"]), "in the order of the file, not by value"
    assert others.get_markerfacecolor() == "white"
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[:2] == ["base model", "reflection module after SFT + RL"]
    for name, (_, row) in zip(names[2:], rows.iterrows(), strict=True):
        assert name.startswith(row["system"][:30])
    assert "no ranking" in ax.get_xlabel()
    assert all(f"{value:.3f}" in alt_text(figure) for value in rows["value"])


def test_there_is_no_figure_without_published_numbers():
    own = pd.DataFrame({"system": ["base"], "rouge-1": [0.25], "shots": 6})
    assert published_figure("LaMP-6", own) is None
