"""How a cell shows an error that the user can fix: one sentence that names the notebook to run."""

from __future__ import annotations

import io
import sys

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES
from rpo_kit.runs import open_run
from rpo_kit.stages import require
from rpo_kit.study import kernel
from rpo_kit.study.kernel import explain_errors, name_notebooks


@pytest.mark.parametrize("name", STAGES)
def test_a_missing_stage_names_its_notebook(tmp_path, name):
    with pytest.raises(KitError) as error:
        require(open_run("r", "tiny", root=tmp_path), name)
    message = name_notebooks(str(error.value))
    assert f"first run notebook {STAGES[name].notebook} (or `python -m rpo_kit {name} --run r`)" in message


@pytest.mark.parametrize(
    "message",
    ["There is no setting 'x'.", "`python -m rpo_kit doctor` says", "`python -m rpo_kit sft --run a --set b=1`"],
)
def test_other_messages_stay_as_they_are(message):
    assert name_notebooks(message) == message


def test_outside_of_a_notebook_nothing_happens(monkeypatch):
    monkeypatch.setattr(kernel, "get_ipython", lambda: None)
    hook = sys.excepthook
    explain_errors()
    assert sys.excepthook is hook


@pytest.fixture
def shell(monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr(kernel, "get_ipython", lambda: shell)
    explain_errors()
    shell.push({"KitError": KitError})
    yield shell
    InteractiveShell.clear_instance()


def output_of(shell, code, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    result = shell.run_cell(code)
    return result, text.getvalue()


def test_a_kit_error_is_one_line_and_still_an_error(shell, monkeypatch):
    code = "def deep():\n    raise KitError('first run `python -m rpo_kit sft --run a`.')\ndeep()"
    result, shown = output_of(shell, code, monkeypatch)
    assert isinstance(result.error_in_exec, KitError)
    assert "KitError" in shown
    assert "first run notebook 03_sft_unsloth_4bit (or `python -m rpo_kit sft --run a`)." in shown
    assert len(shown.strip().splitlines()) == 1
    assert isinstance(sys.last_value, KitError)  # what %tb shows


def test_other_errors_keep_their_traceback(shell, monkeypatch):
    _, shown = output_of(shell, "1 / 0", monkeypatch)
    assert "ZeroDivisionError" in shown
    assert "Traceback" in shown


def test_whoever_executes_the_notebook_sees_the_error_and_stops():
    """Even in the cell that imports the kit, as a notebook's first cell does."""
    code = "from rpo_kit import introduce, open_run\nrun = open_run('../x')\nintroduce(run, {})"
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("print('not reached')")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError, match="cannot be the name of a run"):
        NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    (error,) = [output for output in notebook.cells[0].outputs if output.output_type == "error"]
    assert (error.ename, len(error.traceback)) == ("KitError", 1)
    assert error.evalue in error.traceback[0]
    assert notebook.cells[1].outputs == []
