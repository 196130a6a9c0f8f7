"""The stages of the method, one row each: what runs, what it reads and writes, and which notebook walks through it.

The command line, `demo`, notebook 00 and the stages themselves read these rows, so a new stage is a new row here and
the function that it names. Functions are named and not imported: the training libraries take seconds to load, and the
rooms import this module.

    stage_function("sft")(run)                    # as `python -m rpo_kit sft` does
    with stage(run, "sft", **inputs_of(run, "sft")) as work: ...
    current(run, "sft") / "adapter"               # KitError if sft is missing or was made from other inputs
    refuse(run, "synthesize")                     # KitError if it would refuse the settings, before any model is asked
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.presets import Preset
from rpo_kit.runs import Run
from rpo_kit.stages import require

WEIGHTS = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Stage:
    """One stage. Functions are written "module:function", without the leading `rpo_kit.`."""

    name: str  # of the command and of the folder in the run
    about: str
    function: str
    notebook: str
    settings: Mapping[str, str] = field(default_factory=dict)  # name of the input: the setting that decides it
    reads: Mapping[str, str] = field(default_factory=dict)  # name of the input: "STAGE/FILE", written by that stage
    unread: Mapping[str, str] = field(default_factory=dict)  # name of the input: the setting with which it is not read
    inputs: tuple[str, ...] = ()  # functions from a run to further inputs
    all_inputs: str = ""  # a function from a run to all inputs, if the stage adds some that depend on its call
    checks: tuple[str, ...] = ()  # functions from a preset to why the stage would refuse it, "" if it would not
    writes: tuple[str, ...] = ()  # in the stage's folder
    marker: str = "manifest.json"  # written last


_ROWS = (
    Stage(
        name="prepare",
        about="read the benchmark, rank every profile, let the base model write its generic answers",
        function="rewriting.prepare:prepare",
        notebook="01_lamp_and_retrieval",
        settings={"data": "data", "base": "base", "base_tokens": "base_max_new_tokens"},
        inputs=("model_files:base_files", "model_files:retriever_files"),
        checks=("lamp.source:check_data", "training.checks:base", "lamp.recorded:check_recorded"),
        writes=("train", "dev", "generic.jsonl"),
    ),
    Stage(
        name="synthesize",
        about="let a teacher write Structured Rewriting Trajectories",
        function="training.synthesis:synthesize",
        notebook="02_trajectory_synthesis",
        settings={"settings": "synthesis"},
        inputs=("rewriting.prepare:train_inputs", "training.teachers:prompt_inputs", "model_files:teacher_files"),
        checks=(
            "training.checks:train_users",
            "training.checks:rule_based_teacher",
            "training.checks:teacher_model",
            "training.imported:check_imported",
            "training.checks:items",
            "training.checks:module",
        ),
        writes=("trajectories.jsonl", "rejected.jsonl"),
    ),
    Stage(
        name="sft",
        about="fine-tune the reflection module on the teacher's trajectories",
        function="training.sft:train_sft",
        notebook="03_sft_unsloth_4bit",
        settings={"settings": "sft"},
        reads={"trajectories": "synthesize/trajectories.jsonl"},
        inputs=("rewriting.prepare:train_inputs", "rewriting.reflection:module_inputs"),
        checks=("training.checks:module", "training.checks:lora_targets"),
        writes=("adapter", "log.csv"),
    ),
    Stage(
        name="rl",
        about="refine the reflection module with REINFORCE++ with baseline, showing 2 to 6 history items",
        function="training.reinforce:train_rl",
        notebook="04_rl_reinforce_pp",
        settings={"settings": "rl"},
        reads={"sft": f"sft/{WEIGHTS}"},
        unread={"sft": "rl.start=untrained"},
        inputs=("rewriting.prepare:train_inputs", "rewriting.reflection:module_inputs"),
        checks=("training.checks:module", "training.checks:rollouts", "training.checks:content_weight"),
        writes=("adapter", "log.csv"),
    ),
    Stage(
        name="evaluate",
        about="compare base model, context injection, untrained module, SFT and SFT+RL on unseen users",
        function="study.evaluation:evaluate",
        notebook="05_evaluate",
        settings={"settings": "evaluation", "base": "base", "base_tokens": "base_max_new_tokens"},
        # and, for each system that is evaluated, what it reads
        inputs=("rewriting.prepare:prepared_inputs", "model_files:base_files"),
        all_inputs="study.evaluation:all_inputs",
        checks=("training.checks:systems", "training.checks:rewrites"),
        writes=("metrics.csv", "paired.csv", "predictions", "records"),
    ),
    Stage(
        name="sweep",
        about="compare fixed and growing numbers of history items (Figure 3)",
        function="study.ablation:sweep",
        notebook="06_shot_sweep",
        settings={"settings": "sweep"},
        reads={"sft": f"sft/{WEIGHTS}"},
        writes=("bars.csv", "differences.csv", "curves.csv", "scores.csv", "provenance.json"),
        marker="provenance.json",
    ),
    Stage(
        name="components",
        about="switch off or replace one part of the method at a time",
        function="study.components:components",
        notebook="07_components",
        settings={"settings": "components"},
        reads={"sft": f"sft/{WEIGHTS}"},
        checks=("study.arms:check_arms",),
        writes=("components.csv", "provenance.json"),
        marker="provenance.json",
    ),
)
STAGES: dict[str, Stage] = {row.name: row for row in _ROWS}


def stage_function(name: str) -> Callable[[Run], None]:
    """The function that runs a stage."""
    function: Callable[[Run], None] = _load(STAGES[name].function)
    return function


def cell_functions() -> tuple[Callable[[Preset, str], list[str]], Callable[[Run, str, str], None]]:
    """What lists the cells of a sweep or of the component study, and what computes one, as a scheduler's job."""
    return _load("study.cells:cells"), _load("study.cells:compute_cell")


def inputs_of(run: Run, name: str) -> dict[str, Any]:
    """Everything that determines the result of a stage: settings, files of earlier stages, and plain values.

    Raises:
        KitError: an earlier stage is missing or was made from other inputs; the message names the first one.
    """
    row = STAGES[name]
    inputs: dict[str, Any] = {key: attrgetter(path)(run.preset) for key, path in row.settings.items()}
    for key, path in row.reads.items():
        stage, _, file = path.partition("/")
        setting, _, value = row.unread.get(key, "").partition("=")
        if not setting or str(attrgetter(setting)(run.preset)) != value:
            inputs[key] = current(run, stage) / file
    for function in row.inputs:
        inputs |= _load(function)(run)
    return inputs


def all_inputs(run: Run, name: str) -> dict[str, Any]:
    """`inputs_of`, and what the stage adds to them when it is called. Raises KitError likewise."""
    inputs: dict[str, Any] = _load(STAGES[name].all_inputs)(run) if STAGES[name].all_inputs else inputs_of(run, name)
    return inputs


def current(run: Run, name: str) -> Path:
    """The folder of a stage that is finished and up to date with the settings. Raises KitError otherwise."""
    return require(run, name, **inputs_of(run, name))


def refusals(run: Run, *stages: str) -> dict[str, str]:
    """{stage: why it would refuse the run's settings}, for these stages, by default all; not for finished ones.

    Seen before the first model is asked and before settings are stored: a teacher that cannot work with the data would
    otherwise be refused only after the base model was paid for all its answers. A reason that an arm of `components`
    has in common with an earlier stage is told once.
    """
    found = {name: why for name, why in refused_settings(run.preset, *stages).items() if not _is_current(run, name)}
    return {
        name: why
        for name, why in found.items()
        if not any(why != other and why.endswith(other) for other in found.values())
    }


def refused_settings(preset: Preset, *stages: str) -> dict[str, str]:
    """{stage: why it would refuse these settings}, for these stages, by default all."""
    found: dict[str, str] = {}
    for name in stages or STAGES:
        for check in STAGES[name].checks:
            try:
                reason: str = _load(check)(preset)
            except KitError as error:
                reason = str(error)
            if reason:
                found[name] = reason
                break
    return found


def refuse(run: Run, *stages: str) -> None:
    """Raise KitError if one of these stages, by default any, would refuse the run's settings."""
    for reason in refusals(run, *stages).values():
        raise KitError(reason)


def _is_current(run: Run, name: str) -> bool:
    try:
        current(run, name)
    except KitError:
        return False
    return True


def _load(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(f"rpo_kit.{module}"), name)
