"""Every notebook as a reader sees it: open in JupyterLab, run, every control used, light and dark, wide and narrow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import NOTEBOOKS, ROOT, THEMES, WIDTHS, Notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = Path(os.environ.get("RPO_SCREENSHOTS", ROOT / "runs" / "screenshots"))
SECONDS = 240  # of the slowest notebook, on a slow machine


@pytest.fixture(scope="module")
def started() -> dict[str, Notebook]:
    """Notebooks that run already: while one is looked at, the next one runs on the other core."""
    return {}


@pytest.fixture(scope="module", params=[path.stem for path in NOTEBOOKS])
def notebook(
    request: pytest.FixtureRequest, browser: Any, address: str, started: dict[str, Notebook]
) -> Iterator[Notebook]:
    """A notebook after Run All. It runs once, for all tests below."""
    begin = time.perf_counter()
    chosen = sorted({item.callspec.params["notebook"] for item in request.session.items if item.path == request.path})
    for name in chosen[chosen.index(request.param) :][:2]:
        if name not in started:
            started[name] = Notebook(browser, address, name).start()
    opened = started[request.param]
    opened.wait_for_the_end(SECONDS)
    print(f"{request.param}: {time.perf_counter() - begin:.1f} s of waiting")
    yield opened
    opened.close()


def test_it_runs_without_an_error_and_shows_no_blank_picture(notebook):
    assert not notebook.errors()
    assert not notebook.blank_pictures()
    assert not notebook.flaws("broken")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped_or_faint(notebook, width, theme):
    """Of tables with many columns, a narrow page shows a scroll bar."""
    notebook.look(theme, width)
    notebook.picture(SCREENSHOTS / f"{notebook.name}_{width}_{theme}.png", width)
    assert not notebook.flaws("clipped", width < WIDTHS[0])
    assert not notebook.flaws("faint")


def test_every_picture_has_words_and_every_control_a_name_and_the_focus(notebook):
    assert not notebook.flaws("wordless")
    assert not notebook.flaws("unnamed")
    assert not notebook.flaws("unreachable")


def test_every_control_works(notebook):
    notebook.look(THEMES[0], WIDTHS[0])
    changed = notebook.use_every_control()
    assert not notebook.errors()
    if changed:
        acting = {name: value for name, value in changed.items() if ": button " in name or ": slider " in name}
        assert all(acting.values()), acting  # the rest may wait for a button
        assert any(changed.values())
        notebook.picture(SCREENSHOTS / f"{notebook.name}_used.png", WIDTHS[0])


def test_nothing_is_wrong_in_the_console_and_nothing_asked_of_other_hosts(notebook):
    assert not notebook.console
    assert not notebook.outside
