"""Every exercise has a stated number of minutes and a solution, and the solutions run and hold at the preset `tiny`."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import RecordingChat

from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import Run, open_run, write_text
from rpo_kit.stages import stage
from rpo_kit.study.demo import CHAPTERS, NOTEBOOKS
from rpo_kit.training.synthesis import synthesize

SOLUTIONS = NOTEBOOKS / "solutions"
PARAMETERS = (
    'run_name = "demo"\npreset = None  # a new run uses "cpu"; an existing run keeps its settings\noverrides = {}'
)
MINUTES = r"\((\d+) minutes(?:, \d+ of them (?:training|computing))?\)"

every_solution = pytest.mark.parametrize("chapter", CHAPTERS)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [c | {"text": "".join(c["source"])} for c in notebook["cells"] if c["cell_type"] == kind]


def exercises(chapter: str) -> list[str]:
    last = cells(NOTEBOOKS / f"{chapter}.ipynb", "markdown")[-1]["text"]
    return [line for line in last.splitlines() if re.match(r"\d\. ", line)]


# ---- without running them -----------------------------------------------------------------------------------------


def test_there_is_one_for_each_notebook():
    assert sorted(path.stem for path in SOLUTIONS.glob("*.ipynb")) == sorted(CHAPTERS)


@every_solution
def test_every_exercise_has_minutes_and_a_solution_that_states_the_same(chapter):
    stated = [re.match(rf"(\d)\. ({MINUTES}) ", line) for line in exercises(chapter)]
    assert all(stated), "each begins with its number and its minutes"
    solved = [
        heading
        for cell in cells(SOLUTIONS / f"{chapter}.ipynb", "markdown")
        for heading in re.findall(rf"^## (\d)\. .* ({MINUTES})$", cell["text"], re.M)
    ]
    assert [(match[1], match[2]) for match in stated] == [(number, minutes) for number, minutes, _ in solved]


@every_solution
def test_the_notebook_and_its_solutions_link_to_each_other(chapter):
    last = cells(NOTEBOOKS / f"{chapter}.ipynb", "markdown")[-1]["text"]
    assert f"](solutions/{chapter}.ipynb)" in last
    assert f"](../{chapter}.ipynb)" in cells(SOLUTIONS / f"{chapter}.ipynb", "markdown")[0]["text"]


@every_solution
def test_it_is_committed_clean_and_each_solution_asserts_something(chapter):
    path = SOLUTIONS / f"{chapter}.ipynb"
    code = cells(path, "code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["text"] for cell in code if cell["metadata"].get("tags") == ["parameters"]] == [PARAMETERS]
    assert max(len(cell["text"].splitlines()) for cell in code) <= 15
    assert not re.search(r"/(home|root|work|tmp)/|localhost|https://", path.read_text(encoding="utf-8"))
    parts = path.read_text(encoding="utf-8").split('"## ')[1:]
    assert all("assert " in part for part in parts)


# ---- at `tiny` ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_llama, tmp_path_factory) -> Run:
    """A run of LaMP-7 with all stages finished, in seconds: the random Llama in all roles, the queries as generic
    answers, so that scores differ, and a new LoRA as SFT adapter, because Unsloth would change this process.
    """
    from rpo_kit.models.local import load_trainable
    from rpo_kit.pipeline import inputs_of
    from rpo_kit.study.ablation import sweep
    from rpo_kit.study.components import components
    from rpo_kit.study.evaluation import evaluate
    from rpo_kit.training.progress import finish_training
    from rpo_kit.training.reinforce import train_rl

    settings = {"base": f"local:{tiny_llama}", "reflection.name": str(tiny_llama), "reflection.max_seq_length": 2048}
    settings |= {"data.dev_users": 12, "sweep.steps": 2, "components.steps": 2, "components.arms": ["grpo"]}
    run = open_run("demo", "tiny", settings, root=tmp_path_factory.mktemp("solutions"))
    task = get_task(run.preset.data.task)
    prepare(run, lambda spec: RecordingChat(lambda conversation: task.query_text(conversation[0]["content"])))
    synthesize(run)
    with stage(run, "sft", **inputs_of(run, "sft")) as work:
        loaded = load_trainable(run.preset.reflection, None, 0)
        write_text(work / "log.csv", "step,loss\n1,2.0\n")
        finish_training(loaded.model, loaded.tokenizer, work)
    for later in (train_rl, evaluate, sweep, components):
        later(run)
    return run


def execute(chapter: str, values: dict[str, Any], change: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """Run the code cells in one namespace, with these parameters; `change` replaces a piece of the text."""
    names: dict[str, Any] = {}
    for cell in cells(SOLUTIONS / f"{chapter}.ipynb", "code"):
        exec(compile(cell["text"].replace(*change), f"<{chapter}: {cell['id']}>", "exec"), names)
        if cell["id"] == "parameters":
            names |= values
    return names


@pytest.mark.slow
@every_solution
def test_the_solutions_run_and_hold(chapter, tiny, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tiny.folder.parent))
    before = (tiny.folder / "run.json").read_bytes()
    if chapter.startswith("03"):
        monkeypatch.setenv("RPO_OWN_PROCESS", "1")  # for Unsloth
    execute(chapter, {"run_name": tiny.name})
    assert (tiny.folder / "run.json").read_bytes() == before, "the run itself is left alone"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chapter", "right", "wrong"),
    [
        ("00_start_here", "[1.0, 0.9]", "[1.0, 1.0]"),
        ("01_lamp_and_retrieval", "by_k[1] == by_k[2]", "by_k[1] < by_k[2]"),
        ("02_trajectory_synthesis", 'r["rewrite"] != e["generic"]', 'r["rewrite"] == e["generic"]'),
        ("04_rl_reinforce_pp", 'rollout["tokens"] * rollout["advantage"]', 'rollout["tokens"] * 1.0'),
        ("05_evaluate", 'append(check(answer["raw"]', 'append(1 - check(answer["raw"]'),
        ("06_shot_sweep", "(half / 0.02) ** 2", "half / 0.02"),
        ("07_components", "idxmax", "idxmin"),
        ("08_playground", "shows != habit", "shows == habit"),
    ],
)
def test_a_wrong_answer_does_not_hold(chapter, right, wrong, tiny, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tiny.folder.parent))
    text = "\n".join(cell["text"] for cell in cells(SOLUTIONS / f"{chapter}.ipynb", "code"))
    assert text.count(right) == 1
    ast.parse(text.replace(right, wrong))
    with pytest.raises(AssertionError):
        execute(chapter, {"run_name": tiny.name}, (right, wrong))
