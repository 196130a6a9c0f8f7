"""A JupyterLab server, and a notebook that is open in it: what a reader does with it, and what it then shows.

The notebooks are copies with the run's name as parameter, in a folder laid out as this repository, so that links and
pictures are found and no output reaches the sources. Own folders for settings, so that a user's are neither read nor
changed. Every request to another host is blocked and noted.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDTHS, THEMES = (1280, 800), ("light", "dark")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
SETTINGS = {  # windowingMode: every cell is on the page
    "notebook-extension/tracker": {
        "windowingMode": "none",
        "autoStartDefaultKernel": True,
    },
    "docmanager-extension/plugin": {"autosave": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
QUIET = (300, 60_000)  # milliseconds: how long a kernel says nothing before it counts as done, and the longest wait
# What JupyterLab itself says, with nothing from us: that a kernel of another process has no language server, and so on.
NOT_OURS = ("favicon", "ResizeObserver loop", "[webpack", "was preloaded using link preload")


def copy_of_the_repository(folder: Path, run: str) -> Path:
    """Notebooks whose parameter is `run`, with the pages and pictures that they link to."""
    for name in ("docs", "figures"):
        shutil.copytree(ROOT / name, folder / name)
    for file in ("README.md", "CONTRIBUTING.md"):
        shutil.copyfile(ROOT / file, folder / file)
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = "".join(cell["source"]).replace('"demo"', repr(run))
        (folder / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    return folder


@contextmanager
def server(folder: Path, runs: Path) -> Iterator[str]:
    """JupyterLab with `folder` as its root; yields its address."""
    settings = folder.parent / "settings"
    for name, values in SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder.parent / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(folder.parent / "workspaces")}
    own |= {"RPO_RUNS": str(runs), "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "IPYTHONDIR": str(settings)}
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token="]
    command += ["--ServerApp.ip=127.0.0.1", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()  # the server then ends its kernels
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "JupyterLab did not start: see server.log"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("JupyterLab does not answer after a minute")


class Notebook:
    """One notebook in a tab of its own."""

    def __init__(self, browser: Any, address: str, name: str) -> None:
        self.name, self.address = name, address
        self.console: list[str] = []
        self.outside: list[str] = []
        self.page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
        self.page.set_default_timeout(QUIET[1])
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.route(lambda url: not url.startswith(address), self._blocked)
        self.page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
        self.page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext !== undefined")
        self.page.evaluate(SCRIPT)
        # Run All before the kernel is idle opens the dialog "Select Kernel"
        self.page.wait_for_function("() => rpo.kernel()?.status === 'idle'")

    def _said(self, message: Any) -> None:
        if message.type == "error" and not any(part in message.text for part in NOT_OURS):
            self.console.append(f"{message.text} ({message.location.get('url', '')})")

    def _blocked(self, route: Any) -> None:
        url = route.request.url
        if url.startswith(("data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    # ---- what a reader does ----

    def start(self) -> Notebook:
        """Run All, without waiting for its end."""
        self.page.evaluate("rpo.listen(); rpo.runAll()")
        return self

    def wait_for_the_end(self, seconds: int) -> None:
        self.page.wait_for_function("() => rpo.ended", timeout=seconds * 1000)
        self.settle()

    def settle(self) -> None:
        """Wait until the kernel has answered all that was asked."""
        self.page.wait_for_function("quiet => rpo.isQuiet(quiet)", arg=QUIET[0], timeout=QUIET[1])

    def use_every_control(self) -> dict[str, bool]:
        """Use each control of each widget once, as a reader does: {what it is: whether the page changed}."""
        changed, index = {}, -1
        while (index := index + 1) < self.page.evaluate("rpo.controls().length"):  # an answer may bring more of them
            control = self.page.evaluate("index => rpo.describe(index)", index)
            if not control["usable"]:
                continue
            before = self.page.evaluate("rpo.state()")
            for _ in range(2 if control["kind"] == "box" else 1):  # on again, so that what hangs on it works as well
                self._use(control, self.page.evaluate_handle("index => rpo.controls()[index]", index).as_element())
                self.settle()  # a click may otherwise overtake a slider's message
            changed[f"{index} {control['name']}"] = self.page.evaluate("rpo.state()") != before
        return changed

    def _use(self, control: dict[str, Any], element: Any) -> None:
        element.scroll_into_view_if_needed()
        if control["kind"] == "select":
            element.select_option(index=control["other"])
        elif control["kind"] == "slider":
            element.focus()
            element.press(control["key"])
        elif control["kind"] == "number":
            element.fill(control["other"])
            element.press("Enter")
        elif control["kind"] == "text":
            element.press("End")
            element.type(" x")
            element.press("Tab")
        else:
            element.click()

    def look(self, theme: str, width: int) -> None:
        """Switch the finished page to a theme and a width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.evaluate("([theme, narrow]) => rpo.look(theme, narrow)", [theme, width < WIDTHS[0]])
        self.page.wait_for_timeout(300)

    def picture(self, file: Path, width: int) -> None:
        """The whole notebook as PNG."""
        high = self.page.evaluate("rpo.scroller().scrollHeight")
        self.page.set_viewport_size({"width": width, "height": min(16_000, high + 120)})
        self.page.evaluate("rpo.scroller().scrollTop = 0")
        self.page.wait_for_timeout(200)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)
        self.page.set_viewport_size({"width": width, "height": 900})

    # ---- what it shows ----

    def errors(self) -> list[str]:
        """Error outputs, tracebacks on stderr, and those that a hidden Output widget keeps for itself."""
        return list(self.page.evaluate("rpo.errors()"))

    def blank_pictures(self) -> list[str]:
        """Cells with a picture whose pixels are all alike, or nearly so."""
        blank = []
        for cell, data in self.page.evaluate("rpo.pictures()"):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)
            if pixels.var() < 20:
                blank.append(cell)
        return blank

    def flaws(self, check: str, argument: bool = False) -> list[str]:
        """What a check of page.js has found: layout, names, alternatives."""
        return list(self.page.evaluate(f"argument => rpo.{check}(argument)", argument))

    def close(self) -> None:
        self.page.evaluate("rpo.shutdown()")
        self.page.close()
