"""Write the executed notebooks of one finished demo to docs/notebooks/, to be read without running anything.

    make rendered                                   `demo --run rendered`, then this script
    python scripts/render_notebooks.py rendered     this script alone: a name in runs/, or the path of a run's folder

A copy must come from the present source: it holds the same cells (compared by their text). What changes from call to
call is left out: progress bars, widget state, paths of the machine, execution counts, papermill's records. Each copy
begins with the run, date, machine and commit. Pictures are stored with 256 colors and, if a notebook exceeds its cap,
smaller. The stage table of the README gets a link to each copy.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from rpo_kit.study.demo import CHAPTERS

ROOT = Path(__file__).resolve().parents[1]
SOURCES, COPIES = ROOT / "notebooks", ROOT / "docs" / "notebooks"
NOTEBOOK_KB, TOTAL_KB = 600, 3000  # caps
HEADER_ID = "rendered"
REFRESH = "run `make rendered` (about as long as `make demo`; begin with `rm -rf runs/rendered` to train anew)"
WIDGET = "application/vnd.jupyter.widget-view+json"
LOCAL_PATH = re.compile(r"(?<![\w.~/:-])/(?:home|root|work|tmp|mnt|Users|usr|opt|var)/[^\s'\"<>)]*")
_HOME = re.compile(r"(?<![\w.~/:-])/(?:root|(?:home|Users)/[^/\s]+)(?=/)")
_VENV = re.compile(r"(?<![\w.~/:-])/[^\s'\"<>)]*/(?=\.venv\b)")
_BAR = re.compile(r"\d+%\||it/s\]|\?, ?\?")  # of tqdm

Notebook = dict[str, Any]
Cell = dict[str, Any]


class RenderError(Exception):
    """A notebook that cannot be rendered, in a sentence."""


# ---- source and copy ----------------------------------------------------------------------------------------------


def text_of(cell: Cell) -> str:
    return "".join(cell["source"])


def from_copies(text: str) -> str:
    """The Markdown with its links as seen from docs/notebooks/; other notebooks lie beside it there too."""
    return text.replace("](../", "](../../").replace("](solutions/", "](../../notebooks/solutions/")


def cells_of(notebook: Notebook) -> list[tuple[str, str, str]]:
    """(id, kind, text) of each cell but a copy's header."""
    return [(cell["id"], cell["cell_type"], text_of(cell)) for cell in notebook["cells"] if cell["id"] != HEADER_ID]


def first_difference(copy: Notebook, source: Notebook) -> str:
    """The id of the first cell in which the copy is not its source; "" if there is none."""
    theirs = [(name, kind, from_copies(text) if kind == "markdown" else text) for name, kind, text in cells_of(source)]
    pairs = zip_longest(cells_of(copy), theirs)
    return next(((there or here)[0] for here, there in pairs if here != there), "")


# ---- outputs ------------------------------------------------------------------------------------------------------


def kept_output(output: dict[str, Any]) -> dict[str, Any] | None:
    """The output as a copy shows it; None for a progress bar or an empty one."""
    output = {key: value for key, value in output.items() if key not in ("execution_count", "transient")}
    if output["output_type"] == "stream":
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in "".join(output["text"]).split("\n")]
        kept = "\n".join(line for line in lines if not _BAR.search(line))
        return output | {"text": kept.splitlines(keepends=True)} if kept.strip() else None
    if "data" in output:
        data = {kind: value for kind, value in output["data"].items() if kind != WIDGET}
        if set(data) <= {"text/plain"} and WIDGET in output["data"]:  # a widget without a page: a bar
            return None
        if "image/png" in data:
            data["image/png"] = "".join(data["image/png"]).replace("\n", "")
            data.pop("text/html", None)  # the same picture again; its words stay in the metadata
        width = {kind: value for kind, value in output.get("metadata", {}).items() if kind == "image/png"}
        output |= {"data": data, "metadata": width}
    return output | ({"execution_count": None} if output["output_type"] == "execute_result" else {})


def without_paths(value: Any, folders: Iterable[str]) -> Any:
    """Texts without the folders of the machine: a path in one of them begins with the repository, else with ~."""
    if isinstance(value, str):
        for folder in folders:
            value = value.replace(f"{folder}/", "").replace(folder, ".")
        return _HOME.sub("~", _VENV.sub("", value))
    if isinstance(value, list):
        return [without_paths(part, folders) for part in value]
    if isinstance(value, dict):
        return {key: part if key == "image/png" else without_paths(part, folders) for key, part in value.items()}
    return value


def machine_folders(executed: Notebook) -> list[str]:
    """The folders in which the notebook was executed, longest first: that of the runs' parent and of the sources."""
    record = executed["metadata"].get("papermill", {})
    output, source = record.get("output_path") or "", record.get("input_path") or ""
    folders = {str(Path(output).parents[3])} if output.count("/") > 4 else set()  # ROOT/runs/NAME/notebooks/NN.ipynb
    folders |= {str(Path(source).parents[1])} if source.count("/") > 2 else set()
    return sorted((folder for folder in folders | {str(ROOT)} if folder != "/"), key=len, reverse=True)


def copied(cell: Cell, folders: list[str]) -> Cell:
    """A cell of the copy: same text, outputs cleaned, nothing about its execution."""
    tags = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    if cell["cell_type"] == "markdown":
        return cell | {"metadata": tags, "source": from_copies(text_of(cell)).splitlines(keepends=True)}
    outputs = [kept for output in cell["outputs"] if (kept := kept_output(output))]
    return cell | {"metadata": tags, "execution_count": None, "outputs": without_paths(outputs, folders)}


def drop_repeated_pictures(cells: list[Cell]) -> None:
    """Keep the last of several equal pictures: the live plot ends as the plot of the whole log."""
    seen: set[str] = set()
    for cell in reversed(cells):
        for output in reversed(cell.get("outputs", [])):
            picture = output.get("data", {}).get("image/png")
            if picture in seen:
                output["data"] = {"text/plain": "(the same picture as in a later cell)"}
            elif picture:
                seen.add(picture)


def smaller(picture: str, scale: float) -> str:
    """A PNG (base64) with 256 colors, scaled; the original if that is not smaller."""
    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).quantize(256, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    found = base64.b64encode(file.getvalue()).decode()
    return found if len(found) < len(picture) else picture


def kilobytes(notebook: Notebook) -> float:
    return len(as_text(notebook).encode()) / 1000


def as_text(notebook: Notebook) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def capped(notebook: Notebook, limit_kb: float) -> Notebook:
    """The notebook with its pictures as large as the cap allows.

    Raises:
        RenderError: it exceeds the cap even with small pictures.
    """
    for scale in (1.0, 0.75, 0.5, 0.35):
        result: Notebook = json.loads(json.dumps(notebook))
        for cell in result["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output["data"]["image/png"] = smaller(output["data"]["image/png"], scale)
        if kilobytes(result) <= limit_kb:
            return result
    raise RenderError(f"with small pictures too it has {kilobytes(result):.0f} kB, more than {limit_kb:.0f}")


# ---- one notebook, and all of them --------------------------------------------------------------------------------


def header(run: Path, executed: Notebook, name: str) -> Cell:
    """The first cell: from which run, when, on which machine, with which commit."""
    record = executed["metadata"].get("papermill", {})
    made = newest_provenance(run)
    preset = json.loads((run / "run.json").read_text(encoding="utf-8"))["preset"]["name"]
    gpu = "" if made["gpu"] == "none" else f", {made['gpu']}"
    text = (
        f"*An executed copy, to read: run `{record['parameters']['run_name']}` with the preset `{preset}`, "
        f"{record['start_time'][:10]}, {made['threads']} threads of {made['processor']}{gpu} ({made['machine']}), "
        f"commit {made['commit']}. To run it, open [the notebook](../../notebooks/{name}). Of pages to browse it shows "
        "the first.*"
    )
    return {"cell_type": "markdown", "id": HEADER_ID, "metadata": {}, "source": [text]}


def newest_provenance(run: Path) -> dict[str, Any]:
    """What the run's last stage was made with.

    Raises:
        RenderError: the run is not evaluated.
    """
    path = run / "evaluate" / "manifest.json"
    if not path.exists():
        raise RenderError(f"{run} is not a finished demo (no evaluate/manifest.json): run `make demo` first")
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return made


def rendered(executed: Notebook, source: Notebook, first: Cell) -> Notebook:
    """The copy of an executed notebook.

    Raises:
        RenderError: the source has changed since, a cell failed or was not executed, or the copy exceeds its cap.
    """
    cells = [cell for cell in executed["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    for cell in cells:
        if cell["metadata"].get("papermill", {}).get("status", "completed") != "completed":
            raise RenderError(f"its cell {cell['id']!r} did not complete")
    copies = [copied(cell, machine_folders(executed)) for cell in cells]
    drop_repeated_pictures(copies)
    names = ("kernelspec", "language_info")
    metadata = {name: source["metadata"][name] for name in names if name in source["metadata"]}
    notebook = {"cells": [first, *copies], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    if different := first_difference(notebook, source):
        raise RenderError(f"it was executed from an older source (cell {different!r}): {REFRESH}")
    if found := local_paths(notebook):
        raise RenderError(f"it names paths of this machine: {', '.join(found[:3])}")
    return capped(notebook, NOTEBOOK_KB)


def local_paths(notebook: Notebook) -> list[str]:
    """Paths of a machine in the outputs and in the header."""
    texts = [text_of(cell) for cell in notebook["cells"] if cell["id"] == HEADER_ID]
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        parts = output.get("data", {}) | {key: value for key, value in output.items() if key != "data"}
        texts += [
            "".join(value) for kind, value in parts.items() if kind != "image/png" and isinstance(value, str | list)
        ]
    return [found for text in texts for found in LOCAL_PATH.findall(text)]


def render(run: Path, sources: Path = SOURCES, copies: Path = COPIES) -> dict[str, float]:
    """Write all copies, or none; returns their kilobytes. Only what the demo does not execute may be missing.

    Raises:
        RenderError: a notebook cannot be rendered, or all together exceed the cap.
    """
    newest_provenance(run)
    made: dict[str, Notebook] = {}
    for path in sorted(sources.glob("[0-9]*.ipynb")):
        executed = run / "notebooks" / path.name
        if not executed.exists() and path.stem not in CHAPTERS:
            continue
        if not executed.exists():
            raise RenderError(f"{path.name}: {executed} is missing: {REFRESH}")
        try:
            notebook = read(executed)
            made[path.name] = rendered(notebook, read(path), header(run, notebook, path.name))
        except RenderError as error:
            raise RenderError(f"{path.name}: {error}") from None
    sizes = {name: kilobytes(notebook) for name, notebook in made.items()}
    if sum(sizes.values()) > TOTAL_KB:
        raise RenderError(f"all copies together have {sum(sizes.values()):.0f} kB, more than {TOTAL_KB}")
    copies.mkdir(parents=True, exist_ok=True)
    for old in copies.glob("*.ipynb"):
        old.unlink()
    for name, notebook in made.items():
        (copies / name).write_text(as_text(notebook), encoding="utf-8")
    return sizes


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def with_links(readme: str, names: Iterable[str]) -> str:
    """The README whose stage table links the copies, below each notebook."""
    readme = re.sub(r"<br>\[read\]\(docs/notebooks/[^)]+\)", "", readme)
    for name in names:
        link = f"[{name[:2]}](notebooks/{name})"
        readme = readme.replace(f"| {link} |", f"| {link}<br>[read](docs/notebooks/{name}) |")
    return readme


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the executed notebooks of a finished demo to docs/notebooks/.")
    parser.add_argument("run", help="name of a run in runs/, or the path of its folder")
    given = parser.parse_args().run
    run = next((path for path in (Path(given), ROOT / "runs" / given) if (path / "run.json").exists()), None)
    if run is None:
        print(f"There is no run {given!r}: {REFRESH}", file=sys.stderr)
        return 2
    try:
        sizes = render(run.resolve())
    except RenderError as error:
        print(f"Nothing was written. {error}", file=sys.stderr)
        return 2
    page = ROOT / "README.md"
    page.write_text(with_links(page.read_text(encoding="utf-8"), sizes), encoding="utf-8")
    for name, size in sizes.items():
        print(f"{size:5.0f} kB  {name}")
    print(f"{sum(sizes.values()):5.0f} kB  in all, in {COPIES.relative_to(ROOT)}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
