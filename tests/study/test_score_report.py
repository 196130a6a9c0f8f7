"""The report of a run holds LaMP's metrics of its prediction files."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import metrics_of_files
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import open_run, write_text
from rpo_kit.study.evaluation import evaluate
from rpo_kit.study.score_report import report_of_files, report_of_run

SYSTEMS = ["base", "majority", "copy-nearest"]


def rows_of(said: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in said.splitlines()[1:]}


@pytest.mark.parametrize("name", ["LaMP-2", "LaMP-3", "LaMP-4"])
def test_a_run_is_scored_as_its_prediction_files_are(prepared, name):
    run = prepared({"data.task": name})
    evaluate(run, [system for system in SYSTEMS if (name, system) != ("LaMP-4", "majority")])
    said, task = report_of_run(run), get_task(name)
    assert said.startswith(f"{name}: {task.title}, 6 examples of the dev split of run 'r'\n")
    rows = rows_of(said)
    assert rows.pop("system") == list(task.metrics)
    metrics = pd.read_csv(run.stage("evaluate") / "metrics.csv").set_index("system")
    assert list(rows) == [system for system in SYSTEMS if system in metrics.index], "in the order of the settings"
    for system, numbers in rows.items():
        path = run.stage("evaluate") / "predictions" / f"{system}.json"
        found = metrics_of_files(run.stage("prepare") / "personas" / "dev_outputs.json", path)
        assert numbers == [f"{value:.6f}" for value in found.values()]
        assert [float(number) for number in numbers] == pytest.approx(metrics.loc[system, task.metrics], abs=1e-6)


def test_an_excluded_example_counts_as_it_does_with_the_official_files(new_run, recording_chat, tmp_path):
    task, lamp = get_task("LaMP-2"), tmp_path / "lamp"
    for number, split in enumerate(("train", "dev")):
        rows = [{"id": f"{number}1{n}", "input": task.make_input(text=f"Film {n}."), "profile": []} for n in range(4)]
        rows[0]["input"] = "x Overwhelmed by her suffocating schedule"
        golds = [{"id": row["id"], "output": "comedy"} for row in rows]
        write_text(lamp / f"{split}_questions.json", json.dumps(rows))
        write_text(lamp / f"{split}_outputs.json", json.dumps({"task": "LaMP_2", "golds": golds}))
    run = new_run({"data.task": "LaMP-2", "data.source": str(lamp)})
    prepare(run, lambda spec: recording_chat(lambda conversation: "comedy"))
    evaluate(run, ["base"])
    assert rows_of(report_of_run(run))["base"] == ["0.750000", f"{(6 / 7) / 15:.6f}"]
    said = report_of_files(lamp / "dev_outputs.json", run.stage("evaluate") / "predictions" / "base.json")
    first, second, _ = said.splitlines()
    assert first.startswith("LaMP-2: Movie tagging, 4 examples (the files say LaMP_2, which is movies or news; ")
    assert second == "accuracy   0.750000"


def test_the_command_line_scores_a_run_by_its_name(prepared, tmp_path, monkeypatch, capsys):
    run = prepared()
    evaluate(run, ["base"])
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    capsys.readouterr()
    assert main(["score", "--run", "r"]) == 0
    assert capsys.readouterr().out == report_of_run(run) + "\n"


def test_examples_without_a_prediction_are_counted(prepared):
    run = prepared()
    evaluate(run, ["base"])
    path = run.stage("evaluate") / "predictions" / "base.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"golds": content["golds"][2:]}))
    assert report_of_run(run).endswith("\nbase: 2 examples have no prediction and are not scored")


def test_for_a_run_that_is_not_evaluated_or_has_changed_the_error_says_what_to_do(prepared, tmp_path):
    run = prepared()
    with pytest.raises(KitError, match="first run `python -m rpo_kit evaluate --run r`"):
        report_of_run(run)
    evaluate(run, ["base"])
    with pytest.raises(
        KitError,
        match=r"prediction file .*base.json does not match .*LaMP-4 \(its task is LaMP_3\): run `python -m rpo_kit ev",
    ):
        report_of_run(open_run("r", "tiny", {"data.task": "LaMP-4"}, root=tmp_path))
    with pytest.raises(KitError, match=r"was evaluated before .*data\.seed.* changed: run evaluate again"):
        report_of_run(open_run("r", "tiny", {"data.task": "LaMP-3", "data.seed": 1}, root=tmp_path))
    path = run.stage("evaluate") / "predictions" / "base.json"
    path.write_text(json.dumps({"task": "LaMP_3", "golds": [{"id": "x", "output": "3"}]}))
    with pytest.raises(KitError, match=r"base.json does not match .*\(1 of its ids are not in the dev split\)"):
        report_of_run(run)
