"""`transfer`: does a module that was trained on one black box's answers also serve another black box?

The module of one run rewrites the generic answers of another run's dev users, and is compared with the module that was
trained there:

    ratio = (score of the other run's module - base) / (score of the own module - base)

where base is the score of the generic answers that both rewrite. 1: it gains as much as the own module; 0: nothing.

    transfer/bundled-rl/records/rl.jsonl       in the run whose answers are rewritten, by the RL module of run "bundled"

With several pairs of runs, which differ in their seeds alone, the intervals count users and seeds (`over_seeds`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.pipeline import WEIGHTS, current, inputs_of
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import module_inputs
from rpo_kit.runs import Run
from rpo_kit.stages import stage
from rpo_kit.study.evaluation import predict, report_cuts
from rpo_kit.study.over_seeds import SeedScores, check_alike, record_scores, runs_of
from rpo_kit.study.results import system_name
from rpo_kit.study.significance import (
    ONE_SEED,
    crossed_bootstrap,
    degrees_of_freedom,
    seed_variance,
    widening,
)

COLUMNS = (
    *("system", "base", "own", "transferred", "difference", "low", "high", "mde"),
    *("ratio", "ratio_low", "ratio_high", "users", "seeds"),
)


def transfer(sources: Sequence[Run], targets: Sequence[Run], modules: Sequence[str] = ()) -> pd.DataFrame:
    """Let each source's module rewrite the generic answers of its target; a row (`COLUMNS`) per module.

    `modules` are "sft" and "rl", by default the last of them that the targets evaluated. `difference` is transferred
    minus own, with its 95 % interval and mde.

    Raises:
        KitError: not as many sources as targets, different tasks or modules, a target that is not evaluated, or dev
            users that a source was trained on.
    """
    if len(sources) != len(targets):
        raise KitError(f"Give as many runs after --from as after --to, not {len(sources)} and {len(targets)}.")
    for runs in (sources, targets):
        check_alike(runs)
    own = SeedScores.of(targets)
    known = [name for name in ("sft", "rl") if name in own.by_system]
    modules = modules or known[-1:]
    if "base" not in own.by_system or not modules or not {*modules} <= {*known}:
        wanted = " and ".join(modules) or "sft or rl"
        raise KitError(f"Run {targets[0].name!r} must have evaluated base and {wanted}: see evaluation.systems.")
    pairs = {}
    for name in modules:
        seeds = max(len(runs_of(name, runs)) for runs in (sources, targets))
        pairs[name] = list(zip(sources, targets, strict=True))[:seeds]
        for source, target in pairs[name]:
            _check_pair(source, target, name)
    moved = {name: np.stack([_rewritten(*pair, name) for pair in of_module]) for name, of_module in pairs.items()}
    return table(own, moved)


def _check_pair(source: Run, target: Run, module: str) -> None:
    """Raise KitError if the source's module cannot rewrite the target's answers, or knows its dev users."""
    if source.folder == target.folder:
        raise KitError(f"Run {source.name!r} is its own target: name another run after --to.")
    for what, ours, theirs in (
        ("tasks", source.preset.data.task, target.preset.data.task),
        ("settings of the module (reflection.*)", source.preset.reflection, target.preset.reflection),
    ):
        if ours != theirs:
            raise KitError(f"Runs {source.name!r} and {target.name!r} have different {what}: choose two that agree.")
    trained_on, asked = ({e["user_id"] for e in load_prepared(*of)} for of in ((source, "train"), (target, "dev")))
    if trained_on & asked and target.preset.data.separation == "user":  # split by time, they are the same users
        raise KitError(
            f"{len(trained_on & asked)} dev users of run {target.name!r} are among the train users of run "
            f"{source.name!r}: prepare both with the same split of users (data.seed, data.dev_share)."
        )
    current(source, module)


def _rewritten(source: Run, target: Run, module: str) -> np.ndarray:
    """Scores (examples,) of the source's module on the target's generic answers; a call that was cut off goes on."""
    folder = target.stage(f"transfer/{source.name}-{module}")
    weights, inputs = current(source, module) / WEIGHTS, inputs_of(target, "evaluate") | module_inputs(target)
    with stage(target, f"transfer/{folder.name}", **inputs, weights=weights) as work:
        if work is not None:
            print(f"transfer: the module of {source.name} rewrites the answers of {target.name}")
            answers = predict(target, module, load_prepared(target, "dev"), work, weights.parent)
            report_cuts({module: answers}, "transfer")
            if unparsed := sum(bool(answer.get("complaint")) for answer in answers):
                print(
                    f"transfer: {unparsed} of {len(answers)} completions do not parse; the generic answer is scored "
                    "instead"
                )
    return record_scores(target, folder / "records" / f"{module}.jsonl")


def table(own: SeedScores, moved: dict[str, np.ndarray]) -> pd.DataFrame:
    """The comparison of the own modules with those of other runs, whose scores (seeds, examples) are `moved`."""
    base_E, rows = own.by_system["base"][0], []
    for name, moved_SE in moved.items():
        own_SE = own.by_system[name]
        row = own.row(moved_SE - own_SE)
        means = {"base": base_E.mean(), "own": own_SE.mean(), "transferred": moved_SE.mean()}
        ratio = _ratio(own, own_SE - base_E, moved_SE - base_E)
        counts = {"users": len(set(own.users)), "seeds": len(moved_SE)}
        rows.append({"system": name} | means | {"difference": row.pop("score")} | row | ratio | counts)
    return pd.DataFrame(rows, columns=COLUMNS)


def _ratio(found: SeedScores, own_SE: np.ndarray, moved_SE: np.ndarray) -> dict[str, float]:
    """Gain of the other module over the own one's, with a bootstrap over users, the same in both, and over seeds.

    NaN if the own module's gain is not told apart from 0: nothing is there to be transferred. With several seeds both
    gains are widened as their own intervals are (`significance.compare`).
    """
    if not found.row(own_SE)["low"] > 0:
        return dict.fromkeys(("ratio", "ratio_low", "ratio_high"), float("nan"))
    generator = np.random.default_rng(found.seed)  # one for both: their seeds are drawn apart
    own, moved = (_resampled(found, gain_SE, generator) for gain_SE in (own_SE, moved_SE))
    low, high = np.percentile(moved / own, [2.5, 97.5])
    return {"ratio": float(moved_SE.mean() / own_SE.mean()), "ratio_low": float(low), "ratio_high": float(high)}


def _resampled(found: SeedScores, gain_SE: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means (resamples,) over users, the same of every gain, with effects of seeds added."""
    seeds, effects = seed_variance([gain_SE], found.users), np.zeros(found.resamples)
    if seeds.variance:
        effects = generator.choice(seeds.effects, size=(found.resamples, len(gain_SE))).mean(1)
    means = crossed_bootstrap(gain_SE, found.users, ONE_SEED, 1, found.resamples, found.seed)
    freedom = degrees_of_freedom(float(means.var()), len(set(found.users)), seeds, 1, len(gain_SE))
    mean = gain_SE.mean()
    resampled: np.ndarray = mean + (means + effects - mean) * widening(freedom)
    return resampled


def report(found: pd.DataFrame) -> str:
    """The table as text, with what its columns mean."""
    shown = found.assign(system=found["system"].map(system_name)).round(3)
    return "\n".join(
        (
            "transferred: score of the other run's module on these generic answers; own: of the one trained on them.",
            "difference: transferred minus own, paired, with its 95 % interval; one below mde may be missed.",
            "ratio: (transferred - base) / (own - base); empty if the own module has no resolved gain.",
            shown.to_string(index=False, na_rep=""),
        )
    )
