"""Run a training stage in its own process and follow it from a notebook, as is done on a GPU.

Unsloth patches transformers for the whole process in which SFT runs, and a process releases all of its GPU memory only
when it ends. The child does what `python -m rpo_kit STAGE --run NAME` does. Its output is printed here, the rows of its
log.csv reach the live plot, and interrupting the cell or ending this process stops it. On a CPU, the stage runs in this
process. For several GPUs, use the command line (torchrun).

    live = live_plot(lambda rows: training_figure(rows, ["loss"]))
    run_stage(run, "sft", live)
"""

from __future__ import annotations

import contextlib
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pandas as pd
from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.pipeline import stage_function
from rpo_kit.runs import LogRows, OnLog, Run, existing_run

_POLL = 0.5  # seconds between two checks of the child
_PATIENCE = 20.0  # seconds for an interrupted child to end by itself
_ERROR_PREFIX = "rpo_kit: "  # the command line writes it before a KitError


def run_stage(run: Run, stage: str, on_log: OnLog | None = None) -> None:
    """Run "sft", "rl", "sweep" or "components"; `on_log` gets all rows of the log whenever there are new ones.

    In its own process if torch sees a GPU, else in this one; $RPO_OWN_PROCESS (1 or 0) takes precedence.
    """
    if own_process_wanted():
        in_own_process(run, stage, on_log)
    else:
        cast(Callable[[Run, OnLog | None], None], stage_function(stage))(run, on_log)


def own_process_wanted() -> bool:
    wanted = os.environ.get("RPO_OWN_PROCESS", "").strip().lower()
    if wanted:
        return wanted not in ("0", "false", "no", "off")
    import torch

    return torch.cuda.is_available()


def in_own_process(run: Run, stage: str, on_log: OnLog | None = None) -> None:
    """Run a stage in a child process and follow it.

    Raises:
        KitError: the stage failed (the message is the stage's), or the stored settings are not those of `run`.
    """
    if existing_run(run.folder.name, run.folder.parent).preset != run.preset:
        raise KitError(
            f"The settings of run {run.name!r} have changed since this notebook opened it: run the notebook again "
            "from its first cell."
        )
    _release_gpu_memory()
    command = [sys.executable, "-m", "rpo_kit.own_process", stage, "--run", run.folder.name]
    steps, title = getattr(run.preset, stage).steps, f"{stage}, in its own process"
    with tempfile.TemporaryFile() as file, tqdm(total=steps, desc=title, unit="step") as bar:
        output, log = _Output(file), _Log(run.stage(stage), bar, on_log)
        child = subprocess.Popen(
            command,
            env=_environment(run),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # else Ctrl-C would reach it twice
        )
        try:
            while child.poll() is None:
                time.sleep(_POLL)
                output.print_new()
                log.pass_on_new()
        except KeyboardInterrupt:
            print(f"{stage} is being stopped; run this again to resume", flush=True)
            raise
        finally:
            _stop(child)
        output.print_new(last=True)
        log.pass_on_new()
    if child.returncode:
        raise KitError(_why_it_failed(stage, child.returncode, output))


def _release_gpu_memory() -> None:
    """Release the GPU memory that this process no longer uses: the models of earlier cells."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _environment(run: Run) -> dict[str, str]:
    """The environment in which the child finds this copy of the kit and this run."""
    kit = str(Path(__file__).resolve().parents[1])
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [kit, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "RPO_PARENT": str(os.getpid()),
        "RPO_RUNS": str(run.folder.parent),
    }


class _Output:
    """The child's output, printed line by line from a file; a KitError's message is kept for later."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.rest, self.last = file, 0, b"", ""

    def print_new(self, last: bool = False) -> None:
        """Print the lines that have come; with `last` also one without an end."""
        new = os.pread(self.file.fileno(), 1 << 24, self.read)  # leaves the child's own position in the file alone
        self.read += len(new)
        *lines, self.rest = (self.rest + new).replace(b"\r\n", b"\n").split(b"\n")
        self.rest = self.rest[max(0, self.rest.rfind(b"\r", 0, -1)) :]
        if last:
            lines, self.rest = [*lines, self.rest], b""
        for raw in lines:
            line = (
                raw.rpartition(b"\r")[2].decode(errors="replace").rstrip()
            )  # before it: progress bars, overwritten since
            if not line:
                continue
            if not self.last.startswith(_ERROR_PREFIX):  # at exit, libraries may print after it
                self.last = line
            if not line.startswith(_ERROR_PREFIX):
                print(line, flush=True)


class _Log:
    """The log.csv that the child is writing: the stage's, or that of the sweep's current trial."""

    def __init__(self, folder: Path, bar: tqdm[object], on_log: OnLog | None) -> None:
        self.folder, self.bar, self.on_log = folder, bar, on_log
        self.seen = self._written()  # rows of an earlier call are not new

    def pass_on_new(self) -> None:
        written = self._written()
        new = [path for path, at in written.items() if self.seen.get(path) != at]
        self.seen = written
        rows = _rows(max(new, key=lambda path: written[path])) if new else []
        if not rows:
            return
        if rows[-1]["step"] < self.bar.n:  # the next trial of a sweep
            self.bar.reset()
        self.bar.update(int(rows[-1]["step"]) - self.bar.n)
        if self.on_log:
            self.on_log(rows)

    def _written(self) -> dict[Path, int]:
        """When each log was last written."""
        times = {}
        for path in [self.folder / "log.csv", *self.folder.glob("*/log.csv"), *self.folder.glob("*/*/log.csv")]:
            with contextlib.suppress(FileNotFoundError):  # moved aside just now
                times[path] = path.stat().st_mtime_ns
        return times


def _rows(path: Path) -> LogRows:
    """The log's rows as training produced them: a column that a row lacks is empty in the file."""
    try:
        table = pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return []
    return [{name: value for name, value in row.items() if pd.notna(value)} for row in table.to_dict("records")]


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a child that is still running, as Ctrl-C does; if needed, kill it and its own children."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    finally:  # a second interrupt does not wait
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _why_it_failed(stage: str, code: int, output: _Output) -> str:
    if output.last.startswith(_ERROR_PREFIX):
        return output.last.removeprefix(_ERROR_PREFIX)
    if code == -signal.SIGKILL:
        return (
            f"The process of the stage {stage!r} was killed from outside, most likely because memory ran out. Finished "
            "work is kept: free some memory and run this again to resume."
        )
    return (
        f"The stage {stage!r} stopped with an unexpected error ({output.last or f'code {code}'}): its output above "
        "says where. Run this again to resume."
    )


# ---- the child ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Do what the command line does, but end with the process that started this one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands down "ignore"
    parent = int(os.environ["RPO_PARENT"])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    runpy.run_module("rpo_kit", run_name="__main__")  # not imported: the command line imports what imports this


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: a restarted notebook kernel is killed and cannot stop it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
