"""What a sweep compares, written down before its first trial, and which differences its numbers resolve.

`sweep/plan.json` is the sweep's pre-registration: arms, seeds, k, users, metric, test and correction. It is written
before the first trial and never replaced once a trial was scored; what changes after that is recorded beside it, and
Figure 3 says so in its caption. The plan is part of the sweep's `provenance.json`. So it is with the component study
(`components/plan.json`), which compares each arm with the full method.

A sweep's comparisons form three families, and Holm's correction counts all comparisons and all k of a family:

    arms minus SFT only            does RL gain, with this curriculum?
    progressive minus each other   does a growing k beat the others?
    most items minus fewest        does the module read its items? (the same adapters, if there are several k)

Gains over the best trivial baseline stand beside them and are not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import ComponentsSettings, Preset, SweepSettings, flat
from rpo_kit.provenance import git_commit
from rpo_kit.runs import Run, read_json, write_json
from rpo_kit.setting_rules import MOVE_NO_SCORE
from rpo_kit.study.significance import LEVEL, holm
from rpo_kit.study.stored import read_table

SFT_ONLY, GROWING, FEWEST = "SFT only", "progressive", "k = "  # FEWEST begins a `minus`: the same arm with fewer items
ITEMS = "most items minus fewest"
BEST_TRIVIAL = "best trivial"  # the best baseline without a model
PLAN = "plan.json"
UNRESOLVED = "not resolved"
BY_INTERVAL = "the 95 % interval contains 0"
RULE = f"Holm-adjusted p is {LEVEL} or more or, where there is none, {BY_INTERVAL}"  # by which it is that
TEST = "two-sided: sign-flip permutation over users; with several seeds also a t-test that counts the seeds"
CORRECTION = f"Holm over all comparisons and k of a family, at {LEVEL}"
_METRICS = {
    "classification": "accuracy",
    "regression": "1 - |error| / 4",
    "generation": "mean of ROUGE-1 and ROUGE-L",
}


def trials(preset: Preset) -> list[tuple[str, int]]:
    """(arm, seed) of each trial of a sweep, seed by seed."""
    return [(arm, seed) for seed in preset.sweep.seeds for arm in preset.sweep.arms]


def trial_name(arm: str, seed: int) -> str:
    """The folder of a trial in the sweep's folder."""
    return f"{arm}-seed{seed}"


def families(arms: Sequence[str], shots: Sequence[int]) -> dict[str, list[tuple[str, str]]]:
    """The comparisons (arm, what is subtracted) of each family; `shots` are the k at which the arms are scored.

    >>> families(["fixed-2", "progressive"], [6])["progressive minus each other arm"]
    [('progressive', 'fixed-2')]
    >>> families(["progressive"], [1, 6])["most items minus fewest"]
    [('SFT only', 'k = 1'), ('progressive', 'k = 1')]
    """
    others = [arm for arm in arms if arm != GROWING] if GROWING in arms else []
    of_arms = {
        f"arms minus {SFT_ONLY}": [(arm, SFT_ONLY) for arm in arms],
        f"{GROWING} minus each other arm": [(GROWING, arm) for arm in others],
    }
    if len(set(shots)) < 2:
        return of_arms
    return of_arms | {ITEMS: [(arm, f"{FEWEST}{min(shots)}") for arm in (SFT_ONLY, *arms)]}


def family_of(minus: str) -> str:
    """The family of a comparison, by what is subtracted."""
    if minus.startswith(FEWEST):
        return ITEMS
    return f"arms minus {minus}" if minus in (SFT_ONLY, BEST_TRIVIAL) else f"{GROWING} minus each other arm"


def with_holm(differences: pd.DataFrame) -> pd.DataFrame:
    """The table of differences with a column `p_holm`: `p` adjusted within each family, NaN outside of them."""
    planned = differences[differences["minus"] != BEST_TRIVIAL]
    adjusted = planned.groupby(planned["minus"].map(family_of))["p"].transform(lambda p: holm(p.tolist()))
    return differences.assign(p_holm=adjusted)


# ---- what a table resolves ----------------------------------------------------------------------------------------


def resolved(differences: pd.DataFrame) -> pd.Series:
    """Whether each difference is told apart from 0: by the adjusted p if there is one, else by its 95 % interval."""
    by_interval = (differences["low"] > 0) | (differences["high"] < 0)
    if "p_holm" not in differences:
        return by_interval
    return (differences["p_holm"] < LEVEL).where(differences["p_holm"].notna(), by_interval)


def mde_range(differences: pd.DataFrame) -> str:
    """The smallest and the largest MDE, as "0.008 to 0.026"; "" if none is known."""
    known = differences["mde"][differences["mde"] > 0]  # 0: two arms with the same answers, which say nothing of others
    ends = [] if known.empty else [f"{known.min():.3f}", f"{known.max():.3f}"]
    return " to ".join(dict.fromkeys(ends))


def with_verdict(differences: pd.DataFrame) -> pd.DataFrame:
    """The table with `score` called `difference`, and a last column that says which differences are not resolved."""
    verdict = ["" if is_resolved else UNRESOLVED for is_resolved in resolved(differences)]
    return differences.rename(columns={"score": "difference"}).assign(verdict=verdict)


def differences_text(differences: pd.DataFrame) -> str:
    """The differences as text; "" if there are none. Those that the data cannot tell from 0 carry the words."""
    if differences.empty:
        return ""
    by = RULE if "p_holm" in differences else BY_INTERVAL
    missed = "; a difference below mde may be missed" if "mde" in differences else ""
    heading = f"Differences, paired on the same users ({UNRESOLVED}: {by}{missed}):"
    return f"{heading}\n{with_verdict(differences).round(3).to_string(index=False, na_rep='')}"


def stored_differences(prefix: str) -> str:
    """`differences_text` of `<prefix>differences.csv`; "" if there is no such file."""
    file = Path(f"{prefix}differences.csv")
    return differences_text(read_table(file, ("score", "low", "high"), ("arm", "minus"))) if file.exists() else ""


# ---- the plan -----------------------------------------------------------------------------------------------------


def planned_comparisons(preset: Preset, users: int | None = None) -> dict[str, Any]:
    """The comparisons that a sweep with these settings makes, and what moves their scores, as plain JSON values.

    `users`: how many dev users are scored, if the run has fewer than the setting asks for.
    """
    settings = preset.sweep
    arms, shots = list(settings.arms), list(settings.eval_shots)
    return _planned(preset, settings, arms, shots, families(arms, shots), users) | {
        "correction": CORRECTION,
        "difference": settings.difference or None,
    }


def planned_components(preset: Preset, arms: Sequence[str], users: int | None = None) -> dict[str, Any]:
    """The same for a component study with these arms, of which the first is the full method."""
    full, *others = arms
    of_study = {f"arms minus {full}": [(arm, full) for arm in others]}
    planned = _planned(preset, preset.components, list(arms), [preset.evaluation.shots], of_study, users)
    return planned | {"correction": f"Holm over all arms, at {LEVEL}"}


def _planned(
    preset: Preset,
    settings: SweepSettings | ComponentsSettings,
    arms: list[str],
    shots: list[int],
    comparisons: Mapping[str, Sequence[tuple[str, str]]],
    users: int | None,
) -> dict[str, Any]:
    task = get_task(preset.data.task)
    return {
        "task": task.name,
        "metric": _METRICS[task.kind],
        "users": settings.dev_users if users is None else users,
        "arms": arms,
        "seeds": list(settings.seeds),
        "steps": settings.steps,
        "prompts_per_step": settings.prompts_per_step,
        "shots": shots,
        "comparisons": {name: [list(pair) for pair in pairs] for name, pairs in comparisons.items()},
        "test": TEST,
        "settings": {key: value for key, value in flat(preset).items() if _moves_scores(key)},
    }


def _moves_scores(key: str) -> bool:
    """Whether a setting changes the scores of a sweep, apart from those that the plan holds under its own names."""
    if key.startswith(MOVE_NO_SCORE) or key in ("rl.curriculum", "rl.seed", "rl.steps", "rl.prompts_per_step"):
        return False
    scored = ("base", "base_max_new_tokens", "evaluation.max_new_tokens", "evaluation.bootstrap", "evaluation.seed")
    return key in scored or key.startswith(("data.", "reflection.", "synthesis.", "sft.", "rl."))


def write_plan(run: Run, users: int | None = None) -> None:
    """Write `sweep/plan.json` if no trial was scored; after that, only add to it what has changed."""
    change = _keep_plan(run.stage("sweep") / PLAN, planned_comparisons(run.preset, users), trial_was_scored(run))
    if change:
        print(f"sweep: {change} Figure 3 will say so.")


def write_components_plan(run: Run, arms: Sequence[str], users: int | None = None) -> None:
    """The same for `components/plan.json` and the arms of the component study."""
    folder = run.stage("components")
    scored = any(folder.glob("*/scores-seed*/manifest.json"))
    change = _keep_plan(folder / PLAN, planned_components(run.preset, arms, users), scored)
    if change:
        print(f"components: {change} `results --components` will say so.")


def _keep_plan(path: Path, now: dict[str, Any], scored: bool) -> str:
    """Write the plan, or add to the one that was written what has changed; a sentence if something has."""
    stored = read_json(path)
    stamp = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "commit": git_commit()}
    if not isinstance(stored, dict) or (not scored and latest(stored) != now):
        write_json(path, {"plan": now, "changes": [], "before_first_trial": not scored} | stamp)
    elif latest(stored) != {key: value for key, value in now.items() if key in latest(stored)}:
        changed = {key: value for key, value in now.items() if latest(stored).get(key, value) != value}
        write_json(path, stored | {"changes": [*stored["changes"], {"changed": changed} | stamp]})
        return change_sentence(read_json(path))
    return ""


def check_settings(run: Run) -> None:
    """Raise KitError if the run's settings are no longer those that its sweep was computed with."""
    stored = read_json(run.stage("sweep") / PLAN)
    before, now = latest(stored) if isinstance(stored, dict) else {}, planned_comparisons(run.preset)
    earlier = {"data.task": before.get("task", now["task"])} | before.get("settings", {})
    changed = [key for key, value in now["settings"].items() if earlier.get(key, value) != value]
    if changed:
        raise KitError(
            f"The sweep of run {run.name!r} was computed with other settings ({', '.join(changed)}): run "
            f"`python -m rpo_kit sweep --run {run.name}` again."
        )


def latest(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with all later changes."""
    plan: dict[str, Any] = dict(stored["plan"])
    for change in stored["changes"]:
        plan |= change["changed"]
    return plan


def trial_was_scored(run: Run) -> bool:
    """Whether a trial of the sweep has scores, of these settings or of earlier ones. SFT's own scores do not count."""
    scored = run.stage("sweep").glob("*/scores*/manifest.json")
    return any(not path.parent.parent.name.startswith("sft") for path in scored)


def change_sentence(stored: Mapping[str, Any] | None) -> str:
    """What Figure 3 says of a plan that was changed or written too late; "" if there is nothing to say."""
    if not stored:
        return ""
    late = "" if stored["before_first_trial"] else "Comparisons were written down after the first trial. "
    if not stored["changes"]:
        return late.strip()
    before, after = (_named(plan) for plan in (stored["plan"], latest(stored)))
    named = [key for key in after if key != "comparisons" and before.get(key) != after[key]]
    changes = [f"{key} {_short(before.get(key))} → {_short(after[key])}" for key in named]
    planned = before.get("comparisons", {})
    changes += [f"added {name}" for name in after.get("comparisons", {}) if planned and name not in planned]
    what = f": {'; '.join(changes)}" if changes else ", and changed back"
    return f"{late}Comparisons changed after the first trial{what}."


def _named(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with its settings under their own names."""
    settings: dict[str, Any] = plan.get("settings", {})
    return {key: value for key, value in plan.items() if key != "settings"} | settings


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
