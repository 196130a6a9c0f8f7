"""The arms of the component study: in each, one part of the method is switched off or replaced.

An arm is a set of settings that differ from the run's. The named ones are in `ARMS`; any other single setting is an arm
too, written KEY=VALUE. "full" is the run as it is, and what every arm is compared with.

    arm_of("no-plan").overrides        # {"reflection.sections": ["observe", "rewrite"]}
    arm_of("rl.beta=0").overrides      # {"rl.beta": "0"}
    arm_preset(preset, arm_of("grpo")) # the settings of the arm's RL: `components.steps` of them, with GRPO's advantage
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.pipeline import refused_settings
from rpo_kit.presets import Preset, flat, override
from rpo_kit.setting_rules import ARM_NAMES, MOVE_NO_SCORE

FULL_METHOD = "full"
_OF_THE_USERS = frozenset(  # settings that make other dev users, or other texts of theirs
    f"data.{name}" for name in ("source", "separation", "task", "dev_users", "dev_share", "items_per_user", "seed")
)
_OF_AN_ARM = ("prepare", "synthesize", "sft", "rl")  # stages
_MOVE_NOTHING = (  # what the study does not read, or what changes memory, time or files alone
    *MOVE_NO_SCORE,
    *("sweep.", "components.", "evaluation.systems", "evaluation.keep_content", "evaluation.bootstrap"),
    *("evaluation.seed", "evaluation.batch_size", "endpoint.cache", "endpoint.concurrency", "endpoint.tries"),
)
_OF_THE_STUDY = ("components.", "sweep.", "rl.seed")  # settings that every arm has in common


@dataclass(frozen=True)
class Arm:
    """One arm: its settings, and what the tables and the figure call it."""

    name: str
    about: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    stage: str = "rl"  # whose adapter is scored

    @property
    def folder(self) -> str:
        """In `components/`; a setting's value may hold what a folder's name may not."""
        return re.sub(r"[^\w.=+-]+", "-", self.name)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(FULL_METHOD, "full method"),
        Arm("no-sft", "without SFT", {"rl.start": "untrained"}),
        Arm("no-rl", "without RL", stage="sft"),
        Arm("no-observe", "without observations", {"reflection.sections": ["plan", "rewrite"]}),
        Arm("no-plan", "without a plan", {"reflection.sections": ["observe", "rewrite"]}),
        Arm("rewrite-only", "without observations and plan", {"reflection.sections": ["rewrite"]}),
        Arm("no-generic", "without the generic answer", {"reflection.sees_generic": False}),
        Arm("sft-1-item", "SFT on one item", {"synthesis.shots": [1]}),
        Arm("sft-6-items", "SFT on six items", {"synthesis.shots": [6]}),
        Arm("recency", "most recent items", {"data.retriever": "recency"}),
        Arm("random", "random items", {"data.retriever": "random"}),
        Arm("reinforce++", "REINFORCE++, no baseline", {"rl.algorithm": "reinforce++"}),
        Arm("grpo", "GRPO", {"rl.algorithm": "grpo"}),
        Arm("rloo", "RLOO", {"rl.algorithm": "rloo"}),
        Arm("no-format", "reward: the score alone", {"rl.format_weight": 0.0}),
        Arm("half-format", "reward: half for the form", {"rl.format_weight": 0.5}),
    )
}
assert tuple(ARMS) == ARM_NAMES, "setting_rules.py, which imports nothing from here, checks the names"


def arm_of(name: str) -> Arm:
    """The named arm, or that of one setting as KEY=VALUE."""
    key, equals, value = name.partition("=")
    return Arm(name, name, {key: value}) if equals else ARMS[name]


def chosen_arms(preset: Preset) -> list[Arm]:
    """The full method, then the arms of `components.arms`; "all" stands for every named one.

    Named arms that change nothing in this run are left out: "grpo", where rl.algorithm is grpo.
    """
    listed = preset.components.arms
    names = (FULL_METHOD, *(ARM_NAMES if "all" in listed else ()), *(name for name in listed if name != "all"))
    arms = [arm_of(name) for name in dict.fromkeys(names)]
    return [arm for arm in arms if arm.name not in ARMS or arm.name == FULL_METHOD or _changes_something(preset, arm)]


def _changes_something(preset: Preset, arm: Arm) -> bool:
    try:
        return what_moves(preset, arm) != what_moves(preset, arm_of(FULL_METHOD))
    except KitError:  # invalid, and `check_arms` says so
        return True


def what_moves(preset: Preset, arm: Arm) -> dict[str, object]:
    """The stage whose adapter is scored, and the arm's settings without those that cannot move its score."""
    settings = flat(arm_preset(preset, arm))
    return {"stage": arm.stage} | {key: value for key, value in settings.items() if not key.startswith(_MOVE_NOTHING)}


def arm_preset(preset: Preset, arm: Arm) -> Preset:
    """The arm's settings. Raises KitError if they are invalid."""
    settings = preset.components
    same = {"rl.steps": settings.steps, "rl.prompts_per_step": settings.prompts_per_step}
    return override(preset, same | dict(arm.overrides))


def check_arms(preset: Preset) -> str:
    """Why an arm would refuse its settings, seen before the first one is trained; "" if none would."""
    folders: dict[str, str] = {}
    seen: dict[str, dict[str, object]] = {}
    of_run = refused_settings(preset, *_OF_AN_ARM)
    for arm in chosen_arms(preset):
        if (other := folders.setdefault(arm.folder, arm.name)) != arm.name:
            return f"The arms {other!r} and {arm.name!r} of components.arms would share a folder: leave one out."
        shared = [key for key in arm.overrides if key in _OF_THE_USERS or key.startswith(_OF_THE_STUDY)]
        if shared:
            return (
                f"The arm {arm.name!r} of components.arms cannot run, because all arms have the same users and seeds: "
                f"change {', '.join(shared)} in a run of its own."
            )
        try:
            changed = arm_preset(preset, arm)
        except KitError as error:
            return f"The arm {arm.name!r} of components.arms cannot run: {error}"
        moved = what_moves(preset, arm)
        if same := next((name for name, moves in seen.items() if moves == moved), ""):
            return (
                f"The arm {arm.name!r} of components.arms would score the same as {same!r}, because no setting that "
                "moves a score here differs: leave it out."
            )
        seen[arm.name] = moved
        asks_again = {
            "prepare": changed.base != preset.base,
            "synthesize": (changed.data, changed.synthesis) != (preset.data, preset.synthesis),
        }
        for name, reason in refused_settings(changed, *_OF_AN_ARM).items():
            if reason != of_run.get(name) or asks_again.get(name):  # otherwise that stage says it, unless finished
                return f"The arm {arm.name!r} of components.arms cannot run: {reason}"
    return ""
