"""How long a demo takes on this machine, told after the first SFT steps, and how to make it shorter.

One demo was timed on the machine of docs/benchmarks.md. Its seconds are split by what the settings count (SFT
sequences, completions, trials), so that they can be scaled to other sizes, and then by the time of an SFT step here.
For the presets `cpu` and `short` and their model alone: with other models or on a GPU the stages take other shares.

    known_seconds(get_preset("cpu"))["sft"]         # 275
    Pace(run).told()                                # "", until the fourth step; then, once, what the terminal shows
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from rpo_kit.presets import PRESETS, ComponentsSettings, Preset, SweepSettings, changed, get_preset
from rpo_kit.runs import Run
from rpo_kit.setting_rules import kind_of
from rpo_kit.study.arms import chosen_arms
from rpo_kit.study.chapter_line import last_step

# measured: `make demo` of 2026-11-27, two cores with bf16 instructions (docs/benchmarks.md)
SEQUENCE = 251 / 480  # seconds per sequence in SFT, in 60 steps of 8
COMPLETION = 313 / 768  # per completion sampled and scored in RL
ANSWER = 159 / 600  # per completion in the evaluation
GENERIC = 37 / 500  # per generic answer
TRIAL = 12.5  # per trial of a sweep, beside its completions: few are sampled at once, so that they take longer each
OPENING = {  # all else: in the last notebook, everything
    **{"00": 4.0, "prepare": 10.0, "synthesize": 6.0, "sft": 24.0, "rl": 55.0, "evaluate": 6.0},
    "playground": 20.0,
}

TOO_LONG = 30  # ours: minutes from which the preset `short` is proposed
_WARM = 1  # steps that are not timed: the first one also compiles
_TIMED = 3  # steps that are


def known_seconds(preset: Preset) -> dict[str, float]:
    """Seconds of each stage on the machine that was measured."""
    data, sft, rl, evaluation = preset.data, preset.sft, preset.rl, preset.evaluation
    asked = sum(kind_of(name) in ("context", "pag", "untrained", "sft", "rl") for name in evaluation.systems)
    sweep, study = preset.sweep, preset.components
    trained = [arm for arm in chosen_arms(preset) if arm.stage == "rl"]
    trials: dict[str, tuple[int, SweepSettings | ComponentsSettings, int]] = {
        "sweep": (len(sweep.arms) * len(sweep.seeds), sweep, sweep.dev_users * len(sweep.eval_shots)),
        "components": (len(trained) * len(study.seeds), study, study.dev_users),
    }
    work = {
        "00": 0.0,
        "prepare": GENERIC * (data.train_users + data.dev_users),
        "synthesize": 0.0,
        "sft": SEQUENCE * sft.steps * sft.batch_size * sft.accumulate,
        "rl": COMPLETION * rl.steps * rl.prompts_per_step * rl.group_size,
        "evaluate": ANSWER * data.dev_users * asked,
    }
    seconds = {name: OPENING[name] + work[name] for name in work}
    for name, (count, settings, answers) in trials.items():
        sampled = settings.steps * settings.prompts_per_step * rl.group_size
        seconds[name] = count * (TRIAL + COMPLETION * sampled + ANSWER * answers)
    return seconds | {"playground": OPENING["playground"]}


def is_known(preset: Preset) -> bool:
    """Whether the measured shares hold: the preset `cpu` or `short` with its own models, on a machine without a GPU."""
    cpu = PRESETS["cpu"]
    same = (preset.base, preset.reflection) == (cpu.base, cpu.reflection)
    return preset.name in ("cpu", "short") and same and shutil.which("nvidia-smi") is None


def known_step(preset: Preset) -> float:
    """Seconds of an SFT step on the machine that was measured."""
    return SEQUENCE * preset.sft.batch_size * preset.sft.accumulate


def seconds_here(preset: Preset, step: float, begin: str = "00") -> float:
    """Seconds from the stage `begin` on, if an SFT step takes `step` seconds."""
    seconds = known_seconds(preset)
    names = list(seconds)
    return sum(seconds[name] for name in names[names.index(begin) :]) * step / known_step(preset)


def shorter(preset: Preset) -> tuple[Preset, dict[str, Any]]:
    """The preset `short` with the settings that were changed, and these; {} for none."""
    changes = changed(preset)
    return get_preset("short", changes), changes


def command(name: str, changes: Mapping[str, Any]) -> str:
    """The command that runs the demo in this time, as a run of its own."""
    settings = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    options = [part for setting in settings for part in ("--set", setting)]
    return shlex.join(["python", "-m", "rpo_kit", "demo", "--preset", "short", "--run", f"{name}-short", *options])


class Pace:
    """Times the first SFT steps of a demo by the log they write."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
        self.run, self.clock = run, clock
        self.log = run.stage("sft") / "log.csv"
        self.started = last_step(self.log)  # of an earlier call
        self.seen: tuple[int, float] | None = None  # the first step that counts, and when it was seen
        self.is_over = not is_known(run.preset)

    def told(self) -> str:
        """What to tell, once, when the pace is known; "" before and after."""
        step = 0 if self.is_over else last_step(self.log)
        if step < self.started:  # the log of other settings was moved away
            self.started = 0
        if step < self.started + _WARM:
            return ""
        if self.seen is None:
            self.seen = (step, self.clock())
        steps = step - self.seen[0]
        if steps < _TIMED:
            return ""
        self.is_over = True
        return estimate(self.run, (self.clock() - self.seen[1]) / steps)


def estimate(run: Run, step: float) -> str:
    """How long the demo takes here and, if that is long, the command for a shorter one."""
    preset = run.preset
    whole = seconds_here(preset, step) / 60
    left = (seconds_here(preset, step, "sft") - step * (_WARM + _TIMED)) / 60
    text = (
        f"    An SFT step takes {step:.1f} s here, {known_step(preset):.1f} s on the machine of docs/benchmarks.md. "
        f"The whole demo will take about {whole:.0f} minutes here, {left:.0f} from now."
    )
    small, changes = shorter(preset)
    less = seconds_here(small, step) / 60
    if whole <= TOO_LONG or less >= left:
        return text
    return (
        f"{text}\n    For about {less:.0f} minutes from now, and numbers that say less, stop this (Ctrl-C) and run\n"
        f"    {command(run.name, changes)}"
    )
