"""The demo executes the notebooks with the run's own settings, each once, and ends with the table."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.presets import PRESETS, changed, get_preset
from rpo_kit.runs import append_records, open_run, write_text
from rpo_kit.study import demo as demo_module
from rpo_kit.study.demo import CHAPTERS, demo, execute, opening, summary


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Notebooks of our own, and papermill replaced by a list of its calls."""
    calls: list[tuple[str, dict[str, Any]]] = []
    notebooks = tmp_path / "notebooks"
    for chapter in CHAPTERS:
        write_text(notebooks / f"{chapter}.ipynb", chapter)

    def execute_notebook(source: Path, target: Path, parameters: dict[str, Any], **_: Any) -> None:
        calls.append((Path(source).stem, parameters))
        write_text(Path(target), "executed")

    monkeypatch.setattr(demo_module, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    return calls


def finished_run(tmp_path: Path, settings: dict[str, Any] | None = None) -> Any:
    run = open_run("r", "tiny", settings, root=tmp_path)
    row = {"system": "sft", "score": 0.71234, "low": 0.6, "high": 0.8, "task": "LaMP-3", "shots": 6, "examples": 6}
    write_text(run.stage("evaluate") / "metrics.csv", pd.DataFrame([row]).to_csv(index=False))
    write_text(run.stage("evaluate") / "paired.csv", "system,minus,score,low,high,mde\n")
    return run


def test_all_chapters_run_in_order_with_the_runs_settings(tmp_path, executed, capsys):
    run = finished_run(tmp_path, {"rl.steps": 3, "sweep.arms": ["random"]})
    demo(run)
    assert [chapter for chapter, _ in executed] == list(CHAPTERS)
    assert CHAPTERS[0] == "00_start_here"
    assert CHAPTERS[-1] == "08_playground"
    for _, parameters in executed:
        assert parameters == {
            "run_name": "r",
            "preset": "tiny",
            "overrides": {"rl.steps": 3, "sweep.arms": ["random"]},
        }
    said = capsys.readouterr().out
    assert "[9/9] 08_playground" in said
    assert "0.712" in said
    assert "make lab" in said


def test_the_terminal_shows_one_line_per_notebook_with_its_result_and_none_of_papermills_bars(
    tmp_path, executed, monkeypatch, capsys
):
    run, bars, execute_notebook = finished_run(tmp_path), [], papermill.execute_notebook

    def noted(*paths: Any, progress_bar: bool = True, **more: Any) -> None:
        bars.append(progress_bar)
        write_text(run.stage("sft") / "log.csv", "step,loss\n1,2.0\n2,1.5\n3,1.0\n")
        execute_notebook(*paths, **more)

    monkeypatch.setattr(papermill, "execute_notebook", noted)
    demo(run)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{len(CHAPTERS)} notebooks with the settings of run 'r' (preset tiny)."
    labels = [f"[{number}/{len(CHAPTERS)}] {name}" for number, name in enumerate(CHAPTERS, 1)]
    assert [line.split(" …")[0] for line in said[1 : len(labels) + 1]] == labels
    assert said[4].endswith("3 of 3 steps, 0 s; loss 2.00 to 1.00")
    assert said[6].endswith("; score: SFT .712")
    assert bars == [False] * len(CHAPTERS)


def test_a_notebook_that_stops_leaves_the_next_line_to_the_error(tmp_path, executed, monkeypatch, capsys):
    def failed(*_: Any, **__: Any) -> None:
        raise PapermillExecutionError(0, 1, "stage", "KitError", "The data are missing.", [])

    monkeypatch.setattr(papermill, "execute_notebook", failed)
    with pytest.raises(KitError):
        demo(finished_run(tmp_path))
    assert capsys.readouterr().out.endswith(f"[1/{len(CHAPTERS)}] 00_start_here …\n")


def test_the_demo_tells_beforehand_how_long_it_took_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("rpo_kit.study.duration.shutil.which", lambda name: None)
    told = opening(open_run("c", "cpu", root=tmp_path))
    assert "about 19 minutes on the machine of docs/benchmarks.md" in told
    assert "after the first steps of SFT" in told


def test_folders_in_environment_variables_become_absolute_paths_for_the_kernels(tmp_path, executed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RPO_RUNS", "out")
    demo(finished_run(tmp_path / "out"))
    assert os.environ["RPO_RUNS"] == str(tmp_path / "out")


def test_a_finished_notebook_is_skipped_and_a_changed_one_is_executed_again(tmp_path, executed):
    run = finished_run(tmp_path)
    assert execute(run, CHAPTERS[0]) is False
    assert execute(run, CHAPTERS[0]) is True
    write_text(demo_module.NOTEBOOKS / f"{CHAPTERS[0]}.ipynb", "new text")
    assert execute(run, CHAPTERS[0]) is False
    assert execute(finished_run(tmp_path, {"rl.steps": 3}), CHAPTERS[0]) is False
    assert len(executed) == 3


def test_an_interrupted_notebook_is_executed_again(tmp_path, executed, monkeypatch):
    run, good = finished_run(tmp_path), papermill.execute_notebook

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(run, CHAPTERS[0])
    monkeypatch.setattr(papermill, "execute_notebook", good)
    assert execute(run, CHAPTERS[0]) is False


def test_a_notebook_that_fails_is_named_with_its_error_and_its_path(tmp_path, executed, monkeypatch):
    def failed(*_: Any, **__: Any) -> None:
        raise PapermillExecutionError(0, 1, "stage", "KitError", "The data are missing.", [])

    monkeypatch.setattr(papermill, "execute_notebook", failed)
    with pytest.raises(KitError, match=r"Notebook 00_start_here stopped: KitError: The data are missing\. .*\.ipynb"):
        execute(finished_run(tmp_path), CHAPTERS[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_and_overrides_together_give_the_runs_settings(tmp_path, preset):
    settings = {"rl.steps": 3, "data.task": "LaMP-5", "base": "openai:m", "sweep.seeds": [4, 5], "sft.warmup": 0.5}
    run = open_run("r", preset, settings, root=tmp_path)
    found = changed(run.preset)
    assert get_preset(preset, json.loads(json.dumps(found))) == run.preset
    assert found == settings
    assert changed(open_run("r", preset, root=tmp_path).preset) == {}


def test_the_summary_shows_the_table_and_where_to_find_the_rest(tmp_path):
    run = finished_run(tmp_path)
    text = summary(run)
    assert "LaMP-3, 6 dev examples, 6 history items" in text
    assert "0.712" in text
    assert "reflection module after SFT" in text
    for part in ("Legend:", "Verdict (differences of scores, with 95 % intervals):"):
        assert part in text
    for place in ("metrics.csv", "figures/", "notebooks/"):
        assert place in text


# ---- an old notebook is not shown as new ---------------------------------------------------------------------------


def run_all(run):
    return [chapter for chapter in CHAPTERS if not execute(run, chapter)]


def after(chapter_number: int) -> list[str]:
    return [chapter for chapter in CHAPTERS if int(chapter[:2]) >= chapter_number]


@pytest.mark.parametrize(
    ("harm", "first"),
    [
        (lambda run: (run.stage("prepare") / "generic.jsonl").unlink(), 1),
        (lambda run: shutil.rmtree(run.stage("prepare") / "train"), 1),
        (lambda run: (run.stage("synthesize") / "manifest.json").unlink(), 2),
        (lambda run: (run.stage("sft") / "adapter" / "adapter_model.safetensors").write_text("other"), 3),
        (lambda run: shutil.rmtree(run.stage("rl")), 4),
        (lambda run: write_text(run.stage("sweep") / "bars.csv", "arm,score"), 6),
        (lambda run: write_text(run.stage("components") / "components.csv", "system,score"), 7),
    ],
)
def test_notebooks_whose_stages_have_changed_are_executed_again(trained, executed, harm, first):
    run = trained()
    assert run_all(run) == list(CHAPTERS)
    assert run_all(run) == []
    harm(run)
    assert run_all(run) == after(first)


def test_a_notebook_with_failed_answers_retries_them(trained, executed):
    run = trained()
    run_all(run)
    append_records(run.stage("prepare") / "failed.jsonl", [{"id": "1", "reason": "no"}])
    assert run_all(run) == [CHAPTERS[1]]


def test_changed_lamp_files_make_every_notebook_that_read_them_stale(new_run, executed, tmp_path):
    folder = tmp_path / "lamp"
    personas.write(folder, "LaMP-3", {"train": 3, "dev": 2})
    run = new_run({"data.source": str(folder)})
    assert run_all(run) == list(CHAPTERS)
    golds = json.loads((folder / "dev_outputs.json").read_text())
    golds["golds"][0]["output"] = "5" if golds["golds"][0]["output"] != "5" else "1"
    (folder / "dev_outputs.json").write_text(json.dumps(golds))
    assert run_all(run) == after(1)


def test_other_files_of_a_model_make_every_notebook_old_and_a_demo_of_before_holds(
    trained, executed, tiny_llama, tmp_path
):
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    run = trained({"base": f"local:{model}"})
    run_all(run)
    for marker in (run.folder / "notebooks").glob("*.json"):  # as an earlier version wrote it
        stored = json.loads(marker.read_text())
        del stored["models"]
        marker.write_text(json.dumps(stored))
    assert run_all(run) == []
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert run_all(run) == after(1)


def test_what_a_stage_would_refuse_is_told_before_anything_is_executed_or_stored(
    executed, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "lamp"
    personas.write(folder, "LaMP-3", {"train": 3, "dev": 2})
    settings = {"data.source": str(folder), "data.task": "LaMP-3", "synthesis.teacher": "persona"}
    run = open_run("r", "tiny", settings, root=tmp_path)
    with pytest.raises(KitError, match=r"synthesis\.teacher=persona reads hidden facts"):
        demo(run)
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    persona = ["--set", "synthesis.teacher=persona"]
    for more in (["--data", str(folder), *persona], ["--set", "synthesis.shots=30"], ["--task", "LaMP-2-news"]):
        assert main(["demo", "--run", "n", "--task", "LaMP-3", "--preset", "tiny", *more]) == 2
        assert capsys.readouterr().err.startswith("rpo_kit: ")
    assert executed == []
    assert not (tmp_path / "runs" / "n").exists()


def test_braces_in_a_path_reach_papermill_as_braces(tmp_path, executed, monkeypatch):
    root = tmp_path / "{0} {x}"
    run = finished_run(root)
    seen = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *paths, **_: seen.extend(paths[:2]))
    execute(run, CHAPTERS[0])
    assert Path(seen[1].format(x="wrong")) == run.folder / "notebooks" / f"{CHAPTERS[0]}.ipynb"
