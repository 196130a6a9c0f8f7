"""Acceptance on one GPU, without network: `python tests/gpu/gpu_check.py OUT.csv`, or `make gpu-check`.

    greedy    texts with a CUDA graph are those of the same steps without one, in 4-bit and 16-bit
    stages    prepare, synthesize, sft, rl, evaluate of the `tiny` preset on the bundled model, in 4-bit and 16-bit
    resume    rl after a kill -9
    memory    the shapes of colab-t4 within 15 GB and of gpu-24gb within 24 GB (random weights), on the longest prompts
    step      the RL step of the 1.5B shape in 4-bit, ours and Unsloth's trainer's

Each measurement is a row of OUT.csv, with the device, the versions and the commit. Each check runs in a process of its
own; on a card with room for it, four at a time, and at the end, alone, the steps that are timed. What has not begun
after ten minutes is left out, and said. Without a GPU the same functions run on the CPU with tiny shapes: that they run
says nothing about a GPU, and no memory is measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import checks
import torch
from checks import Row

from rpo_kit.bundled import bundled_model
from rpo_kit.machine import gpu, processor
from rpo_kit.memory import KNOWN, Shape
from rpo_kit.presets import ModelSettings, Preset, get_preset
from rpo_kit.provenance import git_commit, package_versions

SECONDS = 600.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
CARDS = {"colab-t4": 15.0, "gpu-24gb": 24.0}  # preset: GB of the card that it is for
STEP = {"prompts": 8, "group": 8, "length": 400, "new": 192, "steps": 2, "micro": 8}  # colab-t4's at 400 tokens
COLUMNS = ("date", "device", "versions", "commit", *(field.name for field in fields(Row)))


@dataclass(frozen=True)
class Check:
    """A function of checks.py and what it is called with; `needs_gb` of the GPU. Those of a lane follow each other."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_gb: float = 0.0
    lane: str = ""


def plan(root: Path) -> Iterator[Check]:
    """What is checked on a GPU; the timed steps, without a lane, last."""
    for name, in_4bit in (("bf16", False), ("4-bit", True)):
        yield Check("greedy", {"settings": ModelSettings("smollm2", in_4bit), "new": 48}, lane=name)
        common = {"root": root, "name": name, "overrides": {"reflection.load_in_4bit": in_4bit}}
        for names in (["prepare", "synthesize"], ["sft"], ["rl", "evaluate"]):
            yield Check("stages", common | {"names": names}, lane=name)
        if not in_4bit:
            yield Check("interrupted", common | {"kill": True}, lane=name)
            yield Check("resumed", common, lane=name)
    for name, gb in CARDS.items():
        preset, folder = get_preset(name), root / name
        shape, longest = KNOWN[preset.reflection.name], preset.reflection.max_seq_length - preset.rl.max_new_tokens
        yield Check("make_model", {"folder": folder, "shape": shape, "tokenizer": bundled_model()}, gb, lane=name)
        of_card = {"folder": folder, "preset": preset, "gb": gb}
        yield Check("rl_memory", of_card | {"shape": shape, "lengths": [400, longest]}, gb, lane=name)
        yield Check("sft_memory", of_card | {"work": root / f"{name}-sft"}, gb, lane=name)
    model = replace(get_preset("colab-t4").reflection, name=str(root / "colab-t4"))
    for ours, checkpointing in ((True, False), (True, True), (False, True)):
        yield Check("step_time", {"model": model, "ours": ours, "shape": STEP, "checkpointing": checkpointing})


def tiny_overrides(model: Path) -> dict[str, Any]:
    """The settings of a run whose base model and reflection module are a tiny model in a folder."""
    models = {"base": f"local:{model}", "reflection.name": str(model), "reflection.max_seq_length": 2048}
    return models | {"data.task": "LaMP-3", "rl.max_new_tokens": 12, "evaluation.max_new_tokens": 12}


def tiny_plan(root: Path, model: Path) -> Iterator[Check]:
    """The same functions with tiny shapes, for a CPU; `model` is the folder of a tiny model."""
    yield Check("greedy", {"settings": ModelSettings(str(model)), "new": 6})
    common = {"root": root, "name": "tiny", "overrides": tiny_overrides(model)}
    yield Check("stages", common | {"names": ["prepare", "synthesize", "sft", "rl", "evaluate"]})
    yield Check("interrupted", common | {"kill": False})
    yield Check("resumed", common)
    shape, folder = Shape(16, 24, 2, 4, 2, 4, 49152, True), root / "shape"
    yield Check("make_model", {"folder": folder, "shape": shape, "tokenizer": model})
    small = get_preset(
        "colab-t4",
        {"rl.prompts_per_step": 2, "rl.group_size": 2, "rl.max_new_tokens": 6, "evaluation.max_new_tokens": 6}
        | {"evaluation.batch_size": 3, "reflection.max_seq_length": 256, "reflection.load_in_4bit": False},
    )
    of_card = {"folder": folder, "preset": small, "gb": None}
    yield Check("rl_memory", of_card | {"shape": shape, "lengths": [20, 40]})
    yield Check("sft_memory", of_card | {"work": root / "shape-sft"})
    shape_of_step = {"prompts": 1, "group": 2, "length": 120, "new": 4, "steps": 1, "micro": 0}
    for ours in (True, False):
        arguments = {"model": ModelSettings(str(folder), max_seq_length=512), "ours": ours, "shape": shape_of_step}
        yield Check("step_time", arguments | {"checkpointing": ours})


# ---- running ------------------------------------------------------------------------------------------------------


def run_all(plan: Iterable[Check], run: Callable[[Check, float], list[Row]], seconds: float = SECONDS) -> list[Row]:
    """The rows of all checks; one that fails, or has no time or room, is a row with the reason in `note`.

    Lanes run beside each other where the card has room for all of them; checks without a lane follow, alone.
    """
    end, lanes = time.monotonic() + seconds, defaultdict[str, list[Check]](list)
    for check in plan:
        lanes[check.lane].append(check)
    alone = lanes.pop("", [])

    def run_lane(checks: list[Check]) -> list[Row]:
        return [row for check in checks for row in rows_of(check, run, end)]

    beside = len(lanes) if card_gb() > 1.5 * sum(CARDS.values()) else 1
    with ThreadPoolExecutor(max(1, beside)) as pool:
        rows = [row for of_lane in pool.map(run_lane, lanes.values()) for row in of_lane]
    for row in rows if beside > 1 else ():
        row.note = "; ".join(part for part in (row.note, "other checks ran beside it") if part)
    return rows + run_lane(alone)


def rows_of(check: Check, run: Callable[[Check, float], list[Row]], end: float) -> list[Row]:
    """The rows of one check, printed."""
    began, room = time.monotonic(), card_gb()
    if began > end:
        rows = [Row(check.function, label(check), 0.0, note="left out: the time is over")]
    elif check.needs_gb > room > 0:
        rows = [Row(check.function, label(check), 0.0, note=f"left out: the card has {room:.0f} GB")]
    else:
        try:
            rows = run(check, end - began)
        except Exception as error:
            note = f"FAILED: {type(error).__name__}: {error}"
            rows = [Row(check.function, label(check), time.monotonic() - began, note=note)]
    for row in rows:
        print(f"{row.check:8} {row.what:70} {row.seconds:8.2f} s {gb_text(row)} {row.note}", flush=True)
    return rows


def label(check: Check) -> str:
    """A check in one line."""
    plain = {key: value.name if isinstance(value, Preset) else value for key, value in check.arguments.items()}
    return ", ".join(f"{key}={value}" for key, value in plain.items() if key not in ("root", "shape", "folder", "work"))


def gb_text(row: Row) -> str:
    if row.gb is None:
        return ""
    return f"{row.gb:5.1f} GB, used {row.used_gb:.1f}" + (
        f" (estimated {row.estimated_gb:.1f})" if row.estimated_gb else ""
    )


def card_gb() -> float:
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0


def here(check: Check, _: float) -> list[Row]:
    """In this process."""
    rows: list[Row] = getattr(checks, check.function)(**check.arguments)
    return rows


def in_a_process(check: Check, seconds: float) -> list[Row]:
    """In a process of its own, which is stopped after `seconds`; a process that kills itself has no rows."""
    command = [sys.executable, __file__, "--child", json.dumps(as_json(check))]
    limit = max(seconds, 30.0)
    with tempfile.TemporaryDirectory(prefix="gpu-check-compiled-") as folder:  # two that compile would mix their files
        environment = os.environ | OFFLINE | {"UNSLOTH_COMPILE_LOCATION": folder}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    if done.returncode == -signal.SIGKILL and check.arguments.get("kill"):
        return []
    if done.returncode:
        raise RuntimeError(" | ".join((done.stdout + done.stderr).strip().splitlines()[-4:]))
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def as_json(check: Check) -> dict[str, Any]:
    """A check as JSON; `from_json` reads it back. A preset travels as its name."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, Preset):
            return {"preset": value.name}
        if isinstance(value, ModelSettings):
            return {"model": asdict(value)}
        return {"shape": asdict(value)} if isinstance(value, Shape) else {"value": value}

    return {"function": check.function, "arguments": {key: plain(value) for key, value in check.arguments.items()}}


def from_json(stored: dict[str, Any]) -> Check:
    def read(kind: str, value: Any) -> Any:
        if kind == "model":
            return ModelSettings(**{key: tuple(v) if isinstance(v, list) else v for key, v in value.items()})
        kinds: dict[str, Callable[[Any], Any]] = {
            "path": Path,
            "preset": get_preset,
            "shape": lambda shape: Shape(**shape),
            "value": lambda plain: plain,
        }
        return kinds[kind](value)

    return Check(stored["function"], {key: read(*next(iter(v.items()))) for key, v in stored["arguments"].items()})


def write(rows: list[Row], path: Path) -> None:
    """The rows as CSV, each with the device, the versions and the commit."""
    versions = " ".join(f"{name}=={version}" for name, version in package_versions().items())
    device = gpu() or f"CPU {processor()}, tiny shapes: not a GPU measurement"
    first = {"date": date.today().isoformat(), "device": device, "versions": versions, "commit": git_commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(first | asdict(row) for row in rows)


def run_on_cpu(root: Path, model: Path | None = None) -> list[Row]:
    """All functions with tiny shapes, in this process. `model`: a tiny one in a folder; else one is made."""
    folder = model or checks.random_model.make(Shape(16, 24, 1, 4, 2, 4, 49152, True), root / "m", bundled_model())
    return run_all(tiny_plan(root, folder), here)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="the CSV to write")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        rows = here(from_json(options.child), 0.0)
        print("\n" + json.dumps([asdict(row) for row in rows]))
        return 0
    if options.out is None:
        parser.error("say where to write the CSV")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        if torch.cuda.is_available():
            rows = run_all(plan(Path(folder)), in_a_process)
        else:
            print("torch sees no GPU: the same functions run on the CPU with tiny shapes, which measures nothing.")
            rows = run_on_cpu(Path(folder))
    write(rows, options.out)
    times = {row.what: row.seconds for row in rows if row.check == "step"}
    for what in times if torch.cuda.is_available() and checks.UNSLOTHS in times else ():
        print(f"RL step: {checks.UNSLOTHS} / {what} = {times[checks.UNSLOTHS] / times[what]:.2f}")
    bad = [row for row in rows if row.note.startswith(("FAILED", "left out"))]
    print(f"{len(rows)} rows in {options.out}; {len(bad) or 'none'} failed or left out")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
