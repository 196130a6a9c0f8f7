"""The executed copies in docs/notebooks/: not older than their sources, small, without a path of a machine."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rpo_kit.study.demo import CHAPTERS, NOTEBOOKS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
render = importlib.import_module("render_notebooks")

COPIES = ROOT / "docs" / "notebooks"
with_copies = pytest.mark.skipif(not COPIES.exists(), reason="no copies yet: `make rendered` writes them")


# ---- the copies that are committed --------------------------------------------------------------------------------


@with_copies
def test_there_is_a_copy_of_every_notebook_of_the_demo() -> None:
    missing = {f"{chapter}.ipynb" for chapter in CHAPTERS} - {path.name for path in COPIES.iterdir()}
    assert not missing, f"docs/notebooks/ lacks {sorted(missing)}: {render.REFRESH}"


@with_copies
@pytest.mark.parametrize("path", sorted(COPIES.glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_a_copy_is_not_older_than_its_source(path: Path) -> None:
    different = render.first_difference(render.read(path), render.read(NOTEBOOKS / path.name))
    assert not different, f"{path.name} is older than its source (cell {different!r}): {render.REFRESH}"


@with_copies
def test_the_copies_keep_their_caps_and_name_no_path_of_a_machine() -> None:
    copies = {path.name: render.read(path) for path in COPIES.glob("*.ipynb")}
    assert max(map(render.kilobytes, copies.values())) <= 600
    assert sum(map(render.kilobytes, copies.values())) <= 3000
    for name, copy in copies.items():
        assert render.local_paths(copy) == [], name
        assert "widgets" not in copy["metadata"], name
        assert "commit" in render.text_of(copy["cells"][0]), name


@with_copies
def test_the_readme_links_every_copy() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    copies = [path.name for path in COPIES.glob("*.ipynb")]
    assert readme == render.with_links(readme, copies)
    assert readme.count("](docs/notebooks/") == len(copies)


# ---- how they are made --------------------------------------------------------------------------------------------


def png(width: int = 300, height: int = 200, noise: bool = False) -> str:
    image = (
        Image.effect_noise((width, height), 90).convert("RGB") if noise else Image.new("RGB", (width, height), "red")
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def cell(name: str, text: str, kind: str = "code", **more: Any) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"id": name, "cell_type": kind, "source": text.splitlines(keepends=True), "metadata": {}} | code | more


SOURCE = {
    "cells": [cell("title", "# 00 · What?\n\n[badge](../docs/badge.svg)", "markdown"), cell("plot", "show()")],
    "metadata": {"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def shown(kind: str = "display_data", **data: Any) -> dict[str, Any]:
    return {"output_type": kind, "metadata": {}, "data": {name.replace("_", "/", 1): v for name, v in data.items()}}


def executed(*outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The source as papermill leaves it in /home/me/kit/runs/r/notebooks/."""
    notebook: dict[str, Any] = json.loads(json.dumps(SOURCE))
    times = {"papermill": {"duration": 1.5, "status": "completed"}, "execution": {"iopub.execute_input": "now"}}
    injected = cell("1a2b", 'preset = "cpu"') | {"metadata": {"tags": ["injected-parameters"]}}
    notebook["cells"].insert(1, injected)
    notebook["cells"][2] |= {"execution_count": 3, "outputs": list(outputs), "metadata": times} | more
    notebook["metadata"] |= {
        "widgets": {"state": {}},
        "papermill": {
            "input_path": "/home/me/kit/notebooks/00_a.ipynb",
            "output_path": "/home/me/kit/runs/r/notebooks/00_a.ipynb",
            "start_time": "2026-11-27T00:05:16.5",
            "parameters": {"run_name": "r"},
        },
    }
    return notebook


def copy_of(*outputs: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = render.rendered(executed(*outputs), SOURCE, cell("rendered", "*A copy*", "markdown"))
    return copy


def outputs_of(copy: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = copy["cells"][2]["outputs"]
    return found


def test_a_copy_holds_the_cells_of_its_source_without_traces_of_the_execution() -> None:
    copy = copy_of(shown("execute_result", text_plain="1"))
    assert [part["id"] for part in copy["cells"]] == ["rendered", "title", "plot"]
    assert copy["metadata"] == SOURCE["metadata"]
    assert copy["cells"][2]["execution_count"] is None
    assert copy["cells"][2]["metadata"] == {}
    assert outputs_of(copy)[0]["execution_count"] is None
    assert "papermill" not in render.as_text(copy)


def test_links_lead_to_the_same_files_from_the_folder_of_the_copies() -> None:
    assert "[badge](../../docs/badge.svg)" in render.text_of(copy_of()["cells"][1])
    copies = ROOT / "docs" / "notebooks"
    for chapter in CHAPTERS:
        for part in render.read(NOTEBOOKS / f"{chapter}.ipynb")["cells"]:
            text = render.from_copies(render.text_of(part)) if part["cell_type"] == "markdown" else ""
            for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
                path = NOTEBOOKS / target if "/" not in target else copies / target
                assert (path.parent / path.name).resolve().exists(), target


def test_progress_bars_go_and_pages_of_browsers_stay() -> None:
    bar = shown(text_plain="training: 0%|")
    bar["data"][render.WIDGET] = {"model_id": "1"}
    page = shown(text_html="<b>first page</b>", text_plain="(a page to browse)")
    page["data"][render.WIDGET] = {"model_id": "2"}
    lines = ["\rtraining:  50%|██ | 1/2 [00:01<00:01, 1.0s/it]\n", "kept\n"]
    stream = {"output_type": "stream", "name": "stderr", "text": lines}
    found = outputs_of(copy_of(bar, page, stream))
    assert [set(output.get("data", {})) for output in found] == [{"text/html", "text/plain"}, set()]
    assert found[1]["text"] == ["kept\n"]


def test_paths_of_the_machine_become_paths_of_the_repository() -> None:
    said = "in /home/me/kit/runs/r/figures, /root/.cache/rpo_kit and /srv/x/.venv, not 3/4 or https://a.b/tmp/c\n"
    stream = {"output_type": "stream", "name": "stdout", "text": [said]}
    assert outputs_of(copy_of(stream))[0]["text"] == [
        "in runs/r/figures, ~/.cache/rpo_kit and .venv, not 3/4 or https://a.b/tmp/c\n"
    ]


def test_a_path_that_cannot_be_named_from_the_repository_is_refused() -> None:
    with pytest.raises(render.RenderError, match="names paths of this machine: /tmp/elsewhere"):
        copy_of(shown(text_html="<td>\n/tmp/elsewhere/x</td>"))


def test_the_last_of_equal_pictures_stays_and_its_width() -> None:
    picture = shown(image_png=png(), text_plain="<Figure>")
    picture["metadata"] = {"image/png": {"width": 850}}
    first, last = outputs_of(copy_of(picture, picture))
    assert first["data"] == {"text/plain": "(the same picture as in a later cell)"}
    assert "image/png" in last["data"]
    assert last["metadata"] == {"image/png": {"width": 850}}


def test_pictures_shrink_until_the_notebook_keeps_its_cap() -> None:
    notebook = executed(shown(image_png=png(600, 400, noise=True)))
    small = render.capped(notebook, 100)
    data = small["cells"][2]["outputs"][0]["data"]["image/png"]
    assert render.kilobytes(small) <= 100 < render.kilobytes(notebook)
    assert Image.open(io.BytesIO(base64.b64decode(data))).width in (450, 300, 210)
    with pytest.raises(render.RenderError, match="more than 5"):
        render.capped(notebook, 5)


def test_a_transparent_picture_gets_a_white_ground() -> None:
    file = io.BytesIO()
    Image.effect_noise((90, 90), 50).convert("RGBA").resize((90, 90)).save(file, "PNG")
    clear = Image.open(file).copy()
    clear.putalpha(0)
    file = io.BytesIO()
    clear.save(file, "PNG")
    found = render.smaller(base64.b64encode(file.getvalue()).decode(), 1.0)
    assert Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("change", "different"),
    [
        (lambda cells: cells[1].update(source=["show(2)"]), "plot"),
        (lambda cells: cells.append(cell("more", "1")), "more"),
        (lambda cells: cells.pop(), "plot"),
        (lambda cells: cells[0].update(id="other"), "other"),
    ],
)
def test_a_changed_source_makes_its_copy_old_whatever_the_dates(change: Any, different: str) -> None:
    copy, source = copy_of(), json.loads(json.dumps(SOURCE))
    assert render.first_difference(copy, source) == ""
    change(source["cells"])
    assert render.first_difference(copy, source) == different
    with pytest.raises(render.RenderError, match=f"older source \\(cell '{different}'\\): run `make rendered`"):
        render.rendered(executed(), source, copy["cells"][0])


def test_a_cell_that_did_not_complete_is_refused() -> None:
    notebook = executed()
    notebook["cells"][2]["metadata"]["papermill"]["status"] = "failed"
    with pytest.raises(render.RenderError, match="'plot' did not complete"):
        render.rendered(notebook, SOURCE, cell("rendered", "", "markdown"))


# ---- a run's folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A finished run, the sources, and where the copies go."""
    run, sources = tmp_path / "runs" / "r", tmp_path / "notebooks"
    for folder in (run / "notebooks", run / "evaluate", sources):
        folder.mkdir(parents=True)
    made = {"commit": "abc123", "processor": "AMD EPYC", "threads": 2, "gpu": "none", "machine": "x86_64, Linux"}
    (run / "run.json").write_text(json.dumps({"preset": {"name": "cpu"}}))
    (run / "evaluate" / "manifest.json").write_text(json.dumps(made))
    (sources / "00_a.ipynb").write_text(json.dumps(SOURCE))
    (run / "notebooks" / "00_a.ipynb").write_text(json.dumps(executed()))
    return run, sources, tmp_path / "copies"


def test_a_copy_says_from_which_run_date_machine_and_commit_it_is(folders: tuple[Path, Path, Path]) -> None:
    assert list(render.render(*folders)) == ["00_a.ipynb"]
    first = render.text_of(render.read(folders[2] / "00_a.ipynb")["cells"][0])
    for part in (
        "run `r`",
        "preset `cpu`",
        "2026-11-27",
        "2 threads of AMD EPYC",
        "commit abc123",
        "notebooks/00_a.ipynb",
    ):
        assert part in first


def test_old_copies_stay_if_one_notebook_cannot_be_rendered(folders: tuple[Path, Path, Path]) -> None:
    run, sources, copies = folders
    render.render(*folders)
    (sources / f"{CHAPTERS[1]}.ipynb").write_text(json.dumps(SOURCE))
    with pytest.raises(render.RenderError, match=rf"{CHAPTERS[1]}\.ipynb: .* is missing: run `make rendered`"):
        render.render(*folders)
    assert [path.name for path in copies.iterdir()] == ["00_a.ipynb"]
    (run / "evaluate" / "manifest.json").unlink()
    with pytest.raises(render.RenderError, match="not a finished demo"):
        render.render(*folders)


def test_a_notebook_that_the_demo_does_not_execute_may_have_no_copy(folders: tuple[Path, Path, Path]) -> None:
    (folders[1] / "98_more.ipynb").write_text(json.dumps(SOURCE))
    assert list(render.render(*folders)) == ["00_a.ipynb"]


def test_a_run_that_does_not_exist_is_told_in_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["render_notebooks.py", "no-such-run"])
    assert render.main() == 2
    assert "There is no run 'no-such-run'" in capsys.readouterr().err


def test_the_stage_table_links_each_copy_once() -> None:
    row = "| [00](notebooks/00_a.ipynb) | `doctor` |\n"
    linked = "| [00](notebooks/00_a.ipynb)<br>[read](docs/notebooks/00_a.ipynb) | `doctor` |\n"
    assert render.with_links(row, ["00_a.ipynb"]) == linked
    assert render.with_links(linked, ["00_a.ipynb"]) == linked
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [f"{chapter}.ipynb" for chapter in CHAPTERS]
    assert render.with_links(readme, names).count("](docs/notebooks/") == len(CHAPTERS)
