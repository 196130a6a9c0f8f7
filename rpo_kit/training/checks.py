"""Why a stage would refuse settings: what can be seen before any model is asked.

Each function takes a preset and returns a sentence, "" if there is nothing to refuse, or raises KitError with one. It
looks at settings, at files on this disk and at environment variables. `pipeline.py` names the functions of each stage
and calls them.

    rule_based_teacher(preset)      # "synthesis.teacher=persona reads …: set synthesis.teacher to …"
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from rpo_kit.bundled import cache_folder, is_complete
from rpo_kit.lamp import personas
from rpo_kit.lamp.leave_one_out import examples_from_items
from rpo_kit.lamp.source import split_of_files
from rpo_kit.lamp.tasks import get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.models.open import check_spec
from rpo_kit.presets import DataSettings, Preset, teacher_of
from rpo_kit.runs import read_json
from rpo_kit.setting_rules import MODEL_FORMS, RULE_TEACHERS, TRIVIAL, kind_of

_WITHOUT_TRAINING = '--set \'evaluation.systems=["base", "echo", "majority", "copy-nearest", "context"]\''


# ---- prepare ------------------------------------------------------------------------------------------------------


def base(preset: Preset) -> str:
    check_spec(preset.base, preset.endpoint)
    return ""


# ---- synthesize ---------------------------------------------------------------------------------------------------


def train_users(preset: Preset) -> str:
    if split_of_files(preset.data, "train"):
        return ""
    return (
        f"There is nothing to train on, because {preset.data.source} has no train files: set data.dev_share=0.2 to "
        f"make train and dev of its users, or evaluate what needs no training ({_WITHOUT_TRAINING})."
    )


def rule_based_teacher(preset: Preset) -> str:
    data = preset.data
    if teacher_of(preset) != "persona":
        return ""
    if data.source != "personas":
        return (
            "synthesis.teacher=persona reads hidden facts, which the embedded benchmark alone has: set "
            f"synthesis.teacher to hindsight, {MODEL_FORMS}, or evaluate what needs no training ({_WITHOUT_TRAINING})."
        )
    if data.leave_one_out and not _facts_of_items(data):
        return (
            f"synthesis.teacher=persona has no facts on items of {data.task} that become queries: set "
            f"data.leave_one_out=0, or synthesis.teacher to hindsight, {MODEL_FORMS}."
        )
    return ""


def _facts_of_items(data: DataSettings) -> bool:
    task = get_task(data.task)
    row = next(personas.build(task.name, "train", 1))
    made = examples_from_items(task, [row], {row["id"]: row["facts"]}, 1, data.seed)
    return all(facts for _, facts in made)


def teacher_model(preset: Preset) -> str:
    named = preset.synthesis.teacher
    if named not in RULE_TEACHERS and not recorded_files(named):
        check_spec(named, preset.endpoint)
    return ""


def items(preset: Preset) -> str:
    shots, items = max(preset.synthesis.shots), preset.data.items_per_user
    if preset.data.source != "personas" or shots <= items:
        return ""
    return (
        f"synthesis.shots asks for trajectories on {shots} items, but a user has {items} history items: lower it, or "
        "raise data.items_per_user."
    )


# ---- the reflection module ----------------------------------------------------------------------------------------


def module(preset: Preset) -> str:
    check_spec(f"local:{preset.reflection.name}")
    return ""


def lora_targets(preset: Preset) -> str:
    folder = _module_folder(preset)
    modules = _module_names(folder) if folder else set()
    unknown = [
        target
        for target in preset.reflection.lora_targets
        if not any(f".{module}".endswith(f".{target}") for module in modules)
    ]
    if not unknown or not modules:
        return ""
    layers = sorted({module.rpartition(".")[2] for module in modules if module.endswith("_proj")})
    return f"reflection.lora_targets names {', '.join(unknown)}, which {preset.reflection.name} does not have" + (
        f": choose among {', '.join(layers)}." if layers else ": correct it."
    )


def rollouts(preset: Preset) -> str:
    return _room(preset, "rl.max_new_tokens", preset.rl.max_new_tokens)


def content_weight(preset: Preset) -> str:
    task = get_task(preset.data.task)
    if not preset.rl.content_weight or task.kind == "generation":
        return ""
    return f"rl.content_weight rewards content, and the answers of {task.name} are labels: set rl.content_weight=0."


def rewrites(preset: Preset) -> str:
    asked = {"untrained", "sft", "rl"} & set(preset.evaluation.systems)
    return _room(preset, "evaluation.max_new_tokens", preset.evaluation.max_new_tokens) if asked else ""


def _room(preset: Preset, key: str, tokens: int) -> str:
    folder = _module_folder(preset)
    config = (read_json(folder / "config.json") or {}) if folder else {}
    window = config.get("max_position_embeddings")
    if not isinstance(window, int) or tokens < window:
        return ""
    return f"{key}={tokens} leaves no room for a prompt in the {window} tokens of {preset.reflection.name}: lower it."


def systems(preset: Preset) -> str:
    task = get_task(preset.data.task)
    left_out = set(TRIVIAL).difference(task.baselines)
    if recorded_files(preset.base):
        left_out |= {"context", "pag"}
    if {kind_of(name) for name in preset.evaluation.systems} - left_out:
        return ""
    return f"No system is left to evaluate {task.name} with: add base to evaluation.systems."


def _module_folder(preset: Preset) -> Path | None:
    """The folder of the reflection module; None for a hub id, and for the bundled model before it was converted."""
    if preset.reflection.name == "smollm2":
        return cache_folder() if is_complete(cache_folder()) else None
    folder = Path(preset.reflection.name)
    return folder if (folder / "config.json").is_file() else None


def _module_names(folder: Path) -> set[str]:
    """The modules with weights, such as `model.layers.0.mlp.up_proj`, from the heads of the safetensors files."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with suppress(OSError, ValueError), open(path, "rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            names |= {name.removesuffix(".weight") for name in head if name.endswith(".weight")}
    return names
