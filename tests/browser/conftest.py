"""One finished tiny run, one JupyterLab and one browser for all tests of this folder.

RPO_BROWSER=required         a missing browser is an error, as in .ci/run; otherwise the tests are skipped
RPO_BROWSER_RUN=runs/demo    show a copy of this finished run instead of a tiny one
RPO_SCREENSHOTS=FOLDER       where pictures of every page go (default: runs/screenshots)
RPO_CHROMIUM=PATH            which browser
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import ROOT, copy_of_the_repository, server

from rpo_kit.pipeline import STAGES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # as root, without a screen, in a container
MISSING = (
    "The browser tests need Chromium (`apt-get install chromium`) and the package playwright "
    "(`.venv/bin/python -m pip install playwright`, without `playwright install`)."
)
EVERY_STAGE = """
from rpo_kit.pipeline import STAGES, stage_function
from rpo_kit.runs import open_run
fewer = {"evaluation.systems": ["base", "copy-nearest", "sft-1", "sft", "rl"], "components.arms": ["no-rl"]}
run = open_run("shown", "tiny", fewer)
for name in STAGES:
    stage_function(name)(run)
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser. Without one, or without playwright, the tests are skipped, or fail if it is required."""
    found = os.environ.get("RPO_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None or importlib.util.find_spec("playwright") is None:
        if os.environ.get("RPO_BROWSER") == "required":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found


@pytest.fixture(scope="module")
def runs(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one, "shown", whose stages are all finished."""
    folder = tmp_path_factory.mktemp("runs")
    if given := os.environ.get("RPO_BROWSER_RUN"):
        shutil.copytree(given, folder / "shown")
        return folder
    own = {"RPO_RUNS": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", EVERY_STAGE], env=os.environ | own, check=True, timeout=600)
    assert all((folder / "shown" / row.name / row.marker).exists() for row in STAGES.values())
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a JupyterLab with copies of the notebooks."""
    folder = tmp_path_factory.mktemp("lab") / "rpo_kit"
    folder.mkdir()
    with server(copy_of_the_repository(folder, "shown"), runs) as url:
        yield url


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Closed after its module: as long as it is open, an event loop seems to run here, which other tests would meet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()
