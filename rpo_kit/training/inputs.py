"""What each training stage is made from: its settings, and the files of the stages before it.

In: a run. Out: the keywords for `stage` and, one stage later, for `require`; so the two cannot disagree. Each asks the
stage before it in turn, so the first one that is missing or was made with other settings is the one that is named.

    with stage(run, "sft", **sft_inputs(run)) as work: ...
    adapter = require(run, "sft", **sft_inputs(run)) / "adapter"
"""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets import load_from_disk

from rpo_kit.presets import RLSettings
from rpo_kit.rewriting.prepare import prepared_inputs
from rpo_kit.rewriting.prompts import prompt_fingerprints
from rpo_kit.rewriting.reflection import module_inputs
from rpo_kit.runs import Run, read_records, require

WEIGHTS = "adapter/adapter_model.safetensors"


def synthesize_inputs(run: Run) -> dict[str, Any]:
    """The rule-based teacher reads no prompt."""
    asked = run.preset.synthesis.teacher != "persona"
    prompts = {"prompts": prompt_fingerprints("teacher", "teacher_again")} if asked else {}
    return train_split(run) | {"settings": run.preset.synthesis} | prompts


def sft_inputs(run: Run) -> dict[str, Any]:
    trajectories = require(run, "synthesize", **synthesize_inputs(run)) / "trajectories.jsonl"
    return (
        train_split(run)
        | module_inputs(run.preset.reflection)
        | {"trajectories": trajectories, "settings": run.preset.sft}
    )


def rl_inputs(run: Run, settings: RLSettings | None = None) -> dict[str, Any]:
    start = require(run, "sft", **sft_inputs(run)) / WEIGHTS
    return (
        train_split(run) | module_inputs(run.preset.reflection) | {"sft": start, "settings": settings or run.preset.rl}
    )


def train_split(run: Run) -> dict[str, Any]:
    """What training reads of `prepare`: not the dev users, so to evaluate on more of them trains nothing anew."""
    found = prepared_inputs(run)
    generic = found["generic"]
    ids = set(load_from_disk(str(generic.parent / "train"))["id"])
    answers = {record["id"]: record["text"] for record in read_records(generic) if record["id"] in ids}
    files = {name: made for name, made in found.items() if name.startswith("train_")}
    return {"data": dataclasses.replace(run.preset.data, dev_users=0), "generic": answers} | files
