"""What must hold for every notebook, checked without running it, and two executions that the demo does not cover."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import rpo_kit
from rpo_kit.lamp.data import write_lamp
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import STAGES
from rpo_kit.runs import open_run
from rpo_kit.study.demo import CHAPTERS, NOTEBOOKS, execute

PARAMETERS = (
    'run_name = "demo"\npreset = None  # a new run uses "cpu"; an existing run keeps its settings\noverrides = {}'
)
LONGEST = 15  # lines of a code cell
COLAB = "https://colab.research.google.com/github/"
COMMANDS = {  # of formulas
    *("text", "frac", "tfrac", "sum", "ln", "log", "bar", "tilde", "min", "max", "Pr", "pm", "cdot", "times", "dots"),
    *("lfloor", "rfloor", "sqrt", "rho", "beta", "alpha", "varepsilon", "sigma", "mu", "theta", "pi", "ell", "Big"),
    *("big", "qquad", "quad", "in", "le", "ge", "mid", "approx"),
}


def read(chapter):
    return json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))


def cells(chapter, kind=None):
    return [c | {"text": "".join(c["source"])} for c in read(chapter)["cells"] if kind in (None, c["cell_type"])]


def imported_from_kit(chapter):
    for cell in cells(chapter, "code"):
        for node in ast.walk(ast.parse(cell["text"])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rpo_kit"):
                yield from ((node.module, alias.name) for alias in node.names)


every_notebook = pytest.mark.parametrize("chapter", CHAPTERS)


def test_the_demo_runs_every_notebook():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))[: len(CHAPTERS)] == list(CHAPTERS)


@every_notebook
def test_it_is_committed_without_outputs_or_widget_state(chapter):
    notebook = read(chapter)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in cells(chapter, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}


@every_notebook
def test_cell_ids_are_unique_and_made_of_words(chapter):
    ids = [cell["id"] for cell in cells(chapter)]
    assert len(set(ids)) == len(ids)
    assert all(name.replace("-", "").isalnum() and len(name) <= 64 for name in ids)


@every_notebook
def test_it_has_the_parameters_cell_that_papermill_sets(chapter):
    tagged = [cell["text"] for cell in cells(chapter, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == [PARAMETERS]


@every_notebook
def test_it_opens_with_its_question_then_colab_then_parameters_then_the_run(chapter):
    first, colab, second, third = cells(chapter)[:4]
    assert first["text"].startswith(f"# {chapter[:2]} · ")
    assert first["text"].splitlines()[0].endswith("?")
    assert "**At the end**" in first["text"]
    assert colab["id"] == "colab"  # what is in it: test_colab.py
    assert second["id"] == "parameters"
    assert third["text"].startswith("from rpo_kit import ")
    assert "run = open_run(run_name, preset, overrides)\nintroduce(run, " in third["text"]


@every_notebook
def test_every_cell_parses_and_is_short_and_defines_no_long_function(chapter):
    for cell in cells(chapter, "code"):
        assert len(cell["text"].splitlines()) <= LONGEST + 2 * (cell["id"] == "colab"), cell["id"]
        for node in ast.walk(ast.parse(cell["text"])):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 4, f"{node.name} in {cell['id']} belongs in rpo_kit"


@every_notebook
def test_every_name_it_imports_from_the_kit_exists(chapter):
    for module, name in imported_from_kit(chapter):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@every_notebook
def test_names_that_rpo_kit_exports_are_imported_once_and_from_there(chapter):
    imports = [(module, name) for module, name in imported_from_kit(chapter) if name in rpo_kit.__all__]
    assert imports == [("rpo_kit", name) for name in sorted({name for _, name in imports}, key=rpo_kit.__all__.index)]


@every_notebook
def test_the_users_own_answer_is_called_gold(chapter):
    text = "\n".join(cell["text"] for cell in cells(chapter))
    assert not re.search(r"true (answer|output)s?\b", text)


@every_notebook
def test_every_name_is_bound_before_it_is_used(chapter):
    known = set(dir(__builtins__)) | set(__builtins__ if isinstance(__builtins__, dict) else ())
    for cell in cells(chapter, "code"):
        kinds = ast.Name | ast.alias | ast.arg | ast.ExceptHandler | ast.FunctionDef
        names = [node for node in ast.walk(ast.parse(cell["text"])) if isinstance(node, kinds)]
        for node in names:
            if isinstance(node, ast.alias):
                known.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.ExceptHandler | ast.FunctionDef):
                known.add(node.name)
            elif isinstance(node.ctx, ast.Store):
                known.add(node.id)
        used = {node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert used <= known, f"{sorted(used - known)} in {cell['id']}"


@every_notebook
def test_its_formulas_are_ones_that_jupyterlab_and_github_can_show(chapter):
    """KaTeX and MathJax know these commands; "<" before a letter is HTML to a page."""
    for cell in cells(chapter, "markdown"):
        text = re.sub(r"`[^`]*`", "", cell["text"])
        assert text.count("$") % 2 == 0, cell["id"]
        for formula in re.findall(r"\$\$(.+?)\$\$", text, re.S) + re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", text):
            assert not re.search(r"<\S", formula), formula
            assert formula.count("{") == formula.count("}"), formula
            assert set(re.findall(r"\\([A-Za-z]+)", formula)) <= COMMANDS, formula


@every_notebook
def test_it_uses_neither_pyplot_nor_magics(chapter):
    text = "\n".join(cell["text"] for cell in cells(chapter, "code"))
    assert "pyplot" not in text
    assert not any(line.lstrip().startswith(("%", "!")) for line in text.splitlines())


@every_notebook
def test_no_table_or_picture_is_lost_in_the_middle_of_a_cell(chapter):
    """An expression that is not the last one of its cell is shown only by `display`."""
    shows = {"show", "show_table", "page", "user_browser", "trajectory_browser", "rollout_browser"}
    for cell in cells(chapter, "code"):
        tree = ast.parse(cell["text"])
        dropped = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and node is not tree.body[-1]]
        names = {node.func.id for node in dropped if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not names & shows, cell["id"]


@pytest.mark.parametrize("name", ["sft", "rl", "sweep", "components"])
def test_a_training_stage_is_called_so_that_it_can_run_in_its_own_process(name):
    text = "\n".join(cell["text"] for cell in cells(STAGES[name].notebook, "code"))
    assert f'run_stage(run, "{name}", live)\nlive.finish()' in text
    assert STAGES[name].function.rpartition(":")[2] + "(" not in text


@every_notebook
def test_it_asserts_something(chapter):
    nodes = [node for cell in cells(chapter, "code") for node in ast.walk(ast.parse(cell["text"]))]
    assert sum(isinstance(node, ast.Assert) for node in nodes) >= 2


@every_notebook
def test_it_ends_with_what_was_made_exercises_to_check_and_the_next_notebook(chapter):
    last = cells(chapter)[-1]["text"]
    assert last.startswith("## What you made, where it is, what to try")
    exercises = [line for line in last.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert len(exercises) in (2, 3)
    assert any("Check" in line for line in exercises)
    after = (*CHAPTERS, CHAPTERS[0])[CHAPTERS.index(chapter) + 1]
    assert f"]({after}.ipynb)" in last


@every_notebook
def test_its_links_lead_to_files_that_exist(chapter):
    for cell in cells(chapter, "markdown"):
        for target in (part.split(")")[0] for part in cell["text"].split("](")[1:]):
            assert (Path(NOTEBOOKS) / target).exists() or target.startswith(COLAB), target


@every_notebook
def test_it_contains_no_machine_path_and_no_address(chapter):
    text = (NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8")
    assert text.count(COLAB) == text.count("https://github.com/") == 1  # the badge, and the clone of the Colab cell
    text = text.replace(COLAB, "").replace("https://github.com/", "")
    assert not re.search(r"/(home|root|work|tmp)/|localhost|https://", text)


def test_notebook_01_shows_the_users_of_the_run_even_if_they_are_not_personas(tiny_llama, tmp_path, monkeypatch):
    """Made-up rows shaped like LaMP's time split of a task without personas: dates, and users that dev knows."""
    task, folder = get_task("LaMP-2-news"), tmp_path / "lamp"
    for split, place in (("train", 0), ("dev", 1)):
        rows = []
        for n in range(3):
            day = {"text": f"Trains are late in town {n}.", "title": "Late", "category": "travel", "date": "2015-02-03"}
            profile = [{"id": f"{place}{n}{m}", **day, "title": f"Late again {m}"} for m in range(3)]
            query = task.make_input(text=f"The bus {n} did not come.")
            user = f"reader-{n}"
            rows.append({"id": f"{place}{n}", "user_id": user, "input": query, "output": "travel", "profile": profile})
        write_lamp(folder, task, split, rows)
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    models = {"base": f"local:{tiny_llama}", "reflection.name": str(tiny_llama)}
    run = open_run("own", "tiny", {"data.source": str(folder), "data.task": task.name} | models)
    execute(run, "01_lamp_and_retrieval")
    shown = (run.folder / "notebooks" / "01_lamp_and_retrieval.ipynb").read_text(encoding="utf-8")
    for said in ("the first 3 of the 3 items of user reader-0", "the habit is unknown"):
        assert said in shown
    assert "3 of 3 dev users are in train as well" in shown
    assert "html_entities" in shown


@pytest.mark.slow
def test_notebook_00_runs_before_anything_is_prepared_and_says_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    run = open_run("new", "tiny")
    execute(run, "00_start_here")
    shown = (run.folder / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")
    assert "Not yet: " in shown
    assert "Until then, the stored text above takes its place." in shown
