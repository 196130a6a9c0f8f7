"""Check that the notebooks' installation cell still fits Google Colab, without being on Colab.

1. Resolve: pip resolves the cell's requirements in an environment that seems to hold the packages of Colab's GPU image
   (scripts/colab_packages.txt): one folder of metadata per package, without its files or its own requirements. The cell
   is refused if pip would change a package that it promises to keep (torch, numpy, pandas, ipywidgets).
2. With --notebooks: execute notebooks 00 to 06 with preset `tiny` in an environment of Colab's versions, except torch,
   which is the CPU build of constraints-cpu.txt, and what only a GPU uses.

    python scripts/check_colab.py                      resolve
    python scripts/check_colab.py --notebooks DIR      both; DIR is the environment's folder and is replaced
    python scripts/check_colab.py --write              note the result in scripts/colab_checked.json
    python scripts/check_colab.py --refresh            fetch Colab's present list from GitHub first

It needs a package index. The first of python3.13, python3.12 and python3.11 that starts is used (or --python PATH); for
the notebooks, the first for which the index has torch's CPU build. The output says which.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import colab_cell
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = colab_cell.ROOT
LIST, CHECKED = ROOT / "scripts" / "colab_packages.txt", ROOT / "scripts" / "colab_checked.json"
UPSTREAM = "https://raw.githubusercontent.com/googlecolab/backend-info/main"
HEADER = """# The packages of Colab's GPU image: input of scripts/check_colab.py, which renews it with --refresh.
# source: pip-freeze.gpu.txt and os-info-gpu.txt of the public repository googlecolab/backend-info, branch main
# note: the day on which they were fetched
# date: {date}
# python: {python}
"""
# Colab's are for CUDA; setuptools: the torch of constraints-cpu.txt asks for a newer one than Colab's
NOT_ON_CPU = r"setuptools|torch|torch(vision|audio|ao|codec|data|tune)|triton|xformers|nvidia-.*|cuda-.*"
NO_TORCH = 'set PIP_EXTRA_INDEX_URL to the CPU index that PyTorch\'s "Get Started" page names.'
RUN = """
import time
from rpo_kit.runs import open_run
from rpo_kit.study.demo import CHAPTERS, execute
run, start = open_run("colab", "tiny"), time.perf_counter()
for chapter in [chapter for chapter in CHAPTERS if chapter < "07"]:
    execute(run, chapter)
    print(f"{chapter}: {time.perf_counter() - start:.0f} s after the start", flush=True)
"""


@dataclass(frozen=True)
class Verdict:
    """What an installation would do to Colab: {name: version}, {name: (before, after)}, and reasons against it."""

    new: dict[str, str]
    changed: dict[str, tuple[str, str]]
    refused: list[str]


def canonical(name: str) -> str:
    return str(canonicalize_name(name))


# ---- the stored list -------------------------------------------------------------------------------------------------


def read_list(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """(header, {package: version}) of a stored list. A package installed from a file has its version in the name."""
    header = dict(re.findall(r"^# (\w+): (.+)$", text, re.MULTILINE))
    packages: dict[str, str] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        name, at, source = line.partition(" @ ")
        if at:
            found = re.search(r"-(\d[\w.]*?)(?:-|\.tar|\.zip)", source)
            packages[canonical(name)] = found[1] if found else "0"
        else:
            name, _, version = line.partition("==")
            packages[canonical(name)] = version
    return header, packages


def refresh(fetch: Callable[[str], str]) -> str:
    """The text of a new list, from the repository that Colab publishes it in."""
    python = re.search(r"^Python (\S+)$", fetch(f"{UPSTREAM}/os-info-gpu.txt"), re.MULTILINE)
    lines = [line for line in fetch(f"{UPSTREAM}/pip-freeze.gpu.txt").splitlines() if not line.startswith("#")]
    if python is None or len(lines) < 100:
        raise SystemExit(f"{UPSTREAM} does not hold the expected files; the stored list stays as it is")
    return HEADER.format(date=date.today(), python=python[1]) + "\n".join(lines) + "\n"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


# ---- resolving -------------------------------------------------------------------------------------------------------


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def requirements(keep: Mapping[str, str]) -> list[str]:
    """What pip gets from the cell: the project's requirements, those of the extra, and Colab's versions to keep."""
    extra = project()["optional-dependencies"][colab_cell.settings()["extra"]]
    return [*project()["dependencies"], *extra, *(f"{name}=={version}" for name, version in keep.items())]


def decide(report: Mapping[str, Any], colab: Mapping[str, str], keep: Sequence[str], python: str) -> Verdict:
    """Judge pip's report (`pip install --dry-run --report`) against Colab's packages and Python version."""
    chosen = {canonical(part["metadata"]["name"]): part["metadata"]["version"] for part in report["install"]}
    new = {name: version for name, version in sorted(chosen.items()) if name not in colab}
    changed = {name: (colab[name], version) for name, version in sorted(chosen.items()) if name in colab}
    refused = [f"{name} is not among Colab's packages any more" for name in keep if name not in colab]
    refused += [f"{name} would change from {' to '.join(changed[name])}" for name in keep if name in changed]
    if not SpecifierSet(project()["requires-python"]).contains(python):
        refused.append(f"the project does not allow Colab's Python {python}")
    return Verdict(new, changed, refused)


def pretend(folder: Path, python: str, packages: Mapping[str, str]) -> str:
    """An environment in which pip believes these packages to be installed. Returns its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    for name, version in packages.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    return str(folder / "bin" / "python")


def pip(python: str, *arguments: str) -> None:
    """Run this Python's pip on another interpreter's environment. Raises SystemExit with pip's words."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
    if result.returncode:
        lines = [*result.stdout.splitlines()[-12:], *result.stderr.splitlines()]
        raise SystemExit("pip cannot install it:\n" + "\n".join(line for line in lines if "WARNING" not in line))


def resolve(python: str, colab: Mapping[str, str], keep: Sequence[str], colab_python: str) -> Verdict:
    """What the cell would do to Colab, by pip's own resolver."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        inside = pretend(Path(folder) / "env", python, colab)
        known = {name: colab[name] for name in keep if name in colab}
        pip(inside, "--dry-run", "--report", str(report), *requirements(known))
        return decide(json.loads(report.read_text(encoding="utf-8")), colab, keep, colab_python)


# ---- executing -------------------------------------------------------------------------------------------------------


def version_of(python: str) -> str:
    """The version of an interpreter; "" if it does not start."""
    code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def find_python(candidates: Sequence[str], suits: Callable[[str], bool], otherwise: str) -> str:
    """The path of the first of these interpreters that starts and suits; SystemExit if there is none."""
    for python in filter(None, map(shutil.which, candidates)):
        if version_of(python) and suits(python):
            return python
    raise SystemExit(f"None of {', '.join(candidates)} {otherwise}")


def has_torch(python: str, pin: str) -> bool:
    """Whether the index has torch's CPU build for this interpreter. The default build would bring 4 GB of CUDA."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "--no-deps"]
    return subprocess.run([*command, "--ignore-installed", pin], capture_output=True, check=False).returncode == 0


def environment(folder: Path, python: str, torch: str, colab: Mapping[str, str], verdict: Verdict) -> str:
    """An environment with Colab's versions of what the kit uses, and what the cell adds. Returns its interpreter."""
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    inside = str(folder / "bin" / "python")
    versions = {**colab, **verdict.new, **{name: after for name, (_, after) in verdict.changed.items()}}
    pins = [f"{name}=={version}\n" for name, version in versions.items() if not re.fullmatch(NOT_ON_CPU, name)]
    (folder / "constraints.txt").write_text("".join(pins), encoding="utf-8")
    pip(inside, "--no-deps", torch)
    pip(inside, "-c", str(folder / "constraints.txt"), torch, *project()["dependencies"], "ipykernel", "ipywidgets")
    pip(inside, "--no-deps", "-r", str(ROOT / "requirements-cpu-nodeps.txt"))
    subprocess.run([inside, "-m", "ipykernel", "install", "--sys-prefix", "--name", "python3"], check=True)
    return inside


def execute_notebooks(inside: str) -> None:
    """Execute notebooks 00 to 06 at `tiny`, on the CPU; the executed copies are thrown away."""
    with tempfile.TemporaryDirectory() as runs:
        own = {"PYTHONPATH": str(ROOT), "RPO_RUNS": runs, "JUPYTER_PREFER_ENV_PATH": "1"}
        subprocess.run([inside, "-c", RUN], check=True, cwd=runs, env=os.environ | own)


# ---- the report ------------------------------------------------------------------------------------------------------


def text(verdict: Verdict) -> str:
    lines = [f"new       {name} {version}" for name, version in verdict.new.items()]
    lines += [f"changed   {name} {before} -> {after}" for name, (before, after) in verdict.changed.items()]
    return "\n".join(lines + [f"REFUSED   {reason}" for reason in verdict.refused])


def run_notebooks(folder: Path, pythons: Sequence[str], colab: Mapping[str, str], verdict: Verdict) -> dict[str, Any]:
    """Build the environment, execute the notebooks, and return what was used."""
    pin = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()[-1] + "+cpu"
    python = find_python(pythons, lambda python: has_torch(python, pin), f"can have {pin}: {NO_TORCH}")
    print(f"notebooks in Python {version_of(python)} with {pin}, which is not Colab's; without what only a GPU uses")
    inside, start = environment(folder, python, pin, colab, verdict), time.perf_counter()
    execute_notebooks(inside)
    minutes = round((time.perf_counter() - start) / 60, 1)
    return {"date": str(date.today()), "python": version_of(python), "torch": pin, "minutes": minutes}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the installation cell still fits Google Colab.")
    parser.add_argument("--refresh", action="store_true", help="fetch Colab's package list first (needs GitHub)")
    parser.add_argument("--python", help="interpreter to use (default: one of Colab's version)")
    parser.add_argument("--notebooks", type=Path, metavar="DIR", help="execute 00 to 06 in an environment made in DIR")
    parser.add_argument("--write", action="store_true", help=f"note the result in {CHECKED.name}")
    options = parser.parse_args()
    if options.refresh:
        LIST.write_text(refresh(fetch), encoding="utf-8")
    header, colab = read_list(LIST.read_text(encoding="utf-8"))
    pythons = [options.python] if options.python else [f"python3.{minor}" for minor in (13, 12, 11)]
    python = find_python(pythons, lambda python: True, "starts: name one with --python")
    print(f"Colab's list of {header['date']} ({len(colab)} packages, Python {header['python']}), ", end="")
    print(f"resolved in Python {version_of(python)}", flush=True)
    verdict = resolve(python, colab, colab_cell.settings()["keep"], header["python"])
    print(text(verdict), flush=True)
    if verdict.refused:
        return 1
    result = json.loads(CHECKED.read_text(encoding="utf-8")) if CHECKED.exists() else {}
    result |= {"date": str(date.today()), "list": header["date"], "python": version_of(python), **asdict(verdict)}
    if options.notebooks:
        result["notebooks"] = run_notebooks(options.notebooks, pythons, colab, verdict)
    if options.write:
        CHECKED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
