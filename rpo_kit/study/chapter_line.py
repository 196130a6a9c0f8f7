"""The terminal's line for the notebook that `demo` executes: its name at once, what is done while it runs, the result.

The kernel's progress bars stay in the notebook; what is done is read from the files that the stages write.

    [5/8] 04_rl_reinforce_pp … step 2 of 6, 1.3 min, about 3 min left           (a terminal: rewritten in place)
    [5/8] 04_rl_reinforce_pp … 33 % 50 % 83 %, 6 of 6 steps, 5.1 min; reward first .628 at k = 2, last .839 at k = 6
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pandas as pd

from rpo_kit.pipeline import STAGES
from rpo_kit.runs import Run

POLL = 1.0  # seconds between two looks at the files
_QUARTERS = (25, 50, 75)  # percent at which a log, whose line cannot be rewritten, gets a sign of life


@dataclass(frozen=True)
class Count:
    """How much of a stage is done; `total` is 0 if it is not known beforehand."""

    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.done} of {self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"


# ---- what is done, by the files -----------------------------------------------------------------------------------


def count(run: Run, chapter: str) -> Count | None:
    """What the notebook's stage has done; None if nothing is written yet, or the notebook has no stage to follow."""
    for row in STAGES.values():
        if row.notebook == chapter and row.name in _COUNTS:
            counted = _COUNTS[row.name](run)
            return counted if counted.done else None
    return None


def _prepare(run: Run) -> Count:
    data = run.preset.data
    known = data.source == "personas" and not data.leave_one_out
    total = data.train_users + data.dev_users if known else 0
    return Count(_lines(run.stage("prepare") / "generic.jsonl"), total, "generic answers")


def _synthesize(run: Run) -> Count:
    files = ("trajectories.jsonl", "rejected.jsonl")
    return Count(sum(_lines(run.stage("synthesize") / name) for name in files), 0, "trajectories")


def _sft(run: Run) -> Count:
    return Count(last_step(run.stage("sft") / "log.csv"), run.preset.sft.steps, "steps")


def _rl(run: Run) -> Count:
    return Count(last_step(run.stage("rl") / "log.csv"), run.preset.rl.steps, "steps")


def _evaluate(run: Run) -> Count:
    return Count(sum(map(_lines, (run.stage("evaluate") / "records").glob("*.jsonl"))), 0, "answers")


def _sweep(run: Run) -> Count:
    settings = run.preset.sweep
    scored = run.stage("sweep").glob("*-seed*/scores/scores.csv")
    return Count(len(list(scored)), len(settings.arms) * len(settings.seeds), "trials")


def _components(run: Run) -> Count:
    return Count(len(list(run.stage("components").glob("*/scores-seed*/manifest.json"))), 0, "trials")


_COUNTS: dict[str, Callable[[Run], Count]] = {
    "prepare": _prepare,
    "synthesize": _synthesize,
    "sft": _sft,
    "rl": _rl,
    "evaluate": _evaluate,
    "sweep": _sweep,
    "components": _components,
}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def last_step(log: Path) -> int:
    """The last step in a training log; 0 if there is none yet."""
    with suppress(OSError, ValueError, KeyError, IndexError):  # not there yet, or empty
        return int(pd.read_csv(log)["step"].iloc[-1])
    return 0


# ---- the line -----------------------------------------------------------------------------------------------------


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


class ChapterLine:
    """A context in which a thread keeps the line up to date; `close` ends it with the result.

    `tick` calls `on_tick`, if given, which may return a remark to print above the line.
    """

    def __init__(
        self,
        label: str,
        look: Callable[[], Count | None],
        on_tick: Callable[[], str] | None = None,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.label, self.look, self.on_tick, self.clock = label, look, on_tick, clock
        self.out = out or sys.stdout
        self.in_place = self.out.isatty()
        self.began, self.first = clock(), look()
        self.percent, self.is_open = 0, True  # the last percentage that a log got
        self.stopped, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> ChapterLine:
        self._write(f"{self.label} …")
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        if self.is_open:  # interrupted, or failed: what follows begins on a line of its own
            self._write("\n")

    def _follow(self) -> None:
        while not self.stopped.wait(POLL):
            self.tick()

    def tick(self) -> None:
        """Look at the files and show what is new."""
        with self.lock, suppress(OSError, ValueError):  # a file that is being replaced: seen the next time
            remark = self.on_tick() if self.on_tick else ""
            if remark:
                self._write(f"{self._start_of_line()}{remark}\n{self.label} …")
            counted = self.look()
            if self.in_place:
                self._write(f"\r{self.label} … {self._state(counted)}\x1b[K")
            elif counted and counted.total:
                self._mark(100 * counted.done // counted.total)

    def _mark(self, percent: int) -> None:
        """In a log: the percentage, when a quarter more is done."""
        if percent < 100 and any(self.percent < quarter <= percent for quarter in _QUARTERS):
            self._write(f" {percent} %")
            self.percent = percent

    def _state(self, counted: Count | None) -> str:
        """What is done, the minutes so far and, from the pace so far, the minutes that are left."""
        elapsed = self.clock() - self.began
        parts = [*filter(None, [str(counted or "")]), minutes(elapsed)]
        new = counted.done - (self.first.done if self.first else 0) if counted else 0
        if counted and counted.total > counted.done and new > 0:
            parts.append(f"about {minutes(elapsed * (counted.total - counted.done) / new)} left")
        return ", ".join(parts)

    def close(self, result: str) -> None:
        """End the line with the result."""
        with self.lock:
            before = f"\r{self.label} … " if self.in_place else ", " if self.percent else " "
            self._write(f"{before}{result}{chr(27) + '[K' if self.in_place else ''}\n")
            self.is_open = False

    def _start_of_line(self) -> str:
        return "\r\x1b[K" if self.in_place else "\n"

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
