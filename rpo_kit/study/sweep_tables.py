"""The numbers behind Figure 3.

bars.csv          arm, shots, score, low, high, users, seeds, unparsed  (intervals over users and seeds)
differences.csv   arm, minus, shots, score, low, high, users, seeds, mde, p, p_holm  (paired on users;
                  gains over the best trivial baseline are not among the comparisons and have no p_holm)
curves.csv        arm, seed, step, reward, shots
scores.csv        id, user, shots, then a column per adapter, trivial baseline and reference: for tests of your own
provenance.json   settings, machine, packages, commits, plan
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import as_dict
from rpo_kit.provenance import common_provenance, without_folders
from rpo_kit.rewriting.prepare import dev_examples, load_golds
from rpo_kit.runs import Run, read_json, write_json, write_text
from rpo_kit.study.baselines import trivial_answers
from rpo_kit.study.comparisons import (
    BEST_TRIVIAL,
    ITEMS,
    PLAN,
    SFT_ONLY,
    families,
    trial_name,
    with_holm,
)
from rpo_kit.study.significance import ONE_SEED, SeedVariance, compare, seed_variance
from rpo_kit.study.statistics import references
from rpo_kit.study.stored import SCORES, read_record, read_table

CSV_FILES = ("bars.csv", "differences.csv", "curves.csv", "scores.csv", "provenance.json")
Trials = list[tuple[str, int]]  # (arm, seed)
_INDEX = ["id", "user", "shots"]


def write_tables(run: Run, trials: Trials) -> None:
    """Write the numbers behind Figure 3 from the scores and logs of all trials."""
    scores, folder = Scores.of(run, trials), run.stage("sweep")
    untrained = untrained_scores(run, scores.shots)
    scores = dataclasses.replace(scores, table=scores.table.join(untrained, on=["id", "shots"]))
    bootstrap = (run.preset.evaluation.bootstrap, run.preset.evaluation.seed)
    write_text(folder / "bars.csv", bars(scores, *bootstrap).to_csv(index=False))
    write_text(folder / "differences.csv", differences(scores, *bootstrap).to_csv(index=False))
    write_text(folder / "curves.csv", curves(run, trials).to_csv(index=False))
    write_text(folder / "scores.csv", scores.table.to_csv(float_format="%.4g"))
    write_json(folder / "provenance.json", provenance(run, trials))


# ---- the scores of all adapters -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of all arms, of the same examples in the same order."""

    table: pd.DataFrame  # a row per id, user and shots; SFT only, the trials, best trivial and the references
    trials: dict[str, list[str]]  # arm: its columns, one per seed; first SFT only
    unparsed: dict[str, dict[int, float]]  # arm: {k: share}; NaN in scores of earlier versions

    @classmethod
    def of(cls, run: Run, trials: Trials) -> Scores:
        """Raises KitError if the trials were scored on different users."""
        folders = {SFT_ONLY: "sft"} | {trial_name(*trial): trial_name(*trial) for trial in trials}
        tables = {name: read_scores(run, folder) for name, folder in folders.items()}
        users = tables[SFT_ONLY]["user"]
        if not all(table["user"].equals(users) for table in tables.values()):
            raise KitError(
                f"The sweep of run {run.name!r} was scored on different users or numbers of items, as after an "
                f"interrupted change of settings: run `python -m rpo_kit sweep --run {run.name}` again."
            )
        scores = pd.DataFrame({"user": users} | {name: table["score"] for name, table in tables.items()})
        arms: dict[str, list[str]] = {SFT_ONLY: [SFT_ONLY]}
        for arm, seed in trials:
            arms.setdefault(arm, []).append(trial_name(arm, seed))
        unparsed = {
            arm: pd.concat([tables[name] for name in names]).reindex(columns=["unparsed"])["unparsed"]
            for arm, names in arms.items()
        }
        shares = {arm: values.groupby(level="shots").mean().to_dict() for arm, values in unparsed.items()}
        return cls(scores.set_index("user", append=True).reorder_levels(_INDEX), arms, shares)

    @property
    def arms(self) -> list[str]:
        return list(self.trials)

    @property
    def shots(self) -> list[int]:
        return [int(k) for k in self.table.index.unique("shots")]

    @property
    def users(self) -> list[str]:
        """The user of each example."""
        of_k = self.table.xs(self.shots[0], level="shots")
        return [str(user) for user in of_k.index.get_level_values("user")]

    def of_arm(self, arm: str, shots: int, fewer: int | None = None) -> np.ndarray:
        """Scores (seeds, examples) with k = `shots`; minus those of the same adapters with `fewer` items, if given."""
        columns = self.table[self.trials.get(arm, [arm])]
        scores_SE: np.ndarray = columns.xs(shots, level="shots").to_numpy().T
        return scores_SE if fewer is None else scores_SE - columns.xs(fewer, level="shots").to_numpy().T

    def seeds(self, shots: int, fewer: int | None = None) -> SeedVariance:
        """The variance of `of_arm` between seeds, pooled over the arms that were trained."""
        return seed_variance([self.of_arm(arm, shots, fewer) for arm in self.arms if arm != SFT_ONLY], self.users)

    @property
    def without_model(self) -> list[str]:
        """The best trivial baseline, if there is one, and the references."""
        trained = {name for names in self.trials.values() for name in names}
        return [name for name in self.table.columns if name not in trained]


def read_scores(run: Run, name: str) -> pd.DataFrame:
    """The scores of one adapter: columns `user` and `score`, indexed by `id` and `shots` in sorted order."""
    file = run.stage(f"sweep/{name}") / "scores/scores.csv"
    return read_table(file, ("shots", "score"), ("id", "user"), SCORES).set_index(["id", "shots"]).sort_index()


def untrained_scores(run: Run, shots: Sequence[int]) -> pd.DataFrame:
    """The scores of the best trivial baseline and of the references, indexed by `id` and `shots`."""
    task, examples = get_task(run.preset.data.task), dev_examples(run, run.preset.sweep.dev_users)
    best = best_trivial(run)
    trivial = {BEST_TRIVIAL: best[1]} if best else {}
    of_k = {k: pd.DataFrame(trivial | references(task, examples, k)) for k in shots}
    ids = [example["id"] for example in examples]
    return pd.concat([table.assign(id=ids, shots=k) for k, table in of_k.items()]).set_index(["id", "shots"])


def best_trivial(run: Run) -> tuple[str, np.ndarray] | None:
    """The trivial baseline with the best mean score on the dev users, and its scores; None without a baseline."""
    task, examples = get_task(run.preset.data.task), dev_examples(run, run.preset.sweep.dev_users)
    answers = trivial_answers(task, examples, list(load_golds(run, "train").values()))
    golds = [example["output"] for example in examples]
    scores = [(name, np.asarray(example_scores(task, golds, texts))) for name, texts in answers.items()]
    return max(scores, key=lambda named: named[1].mean(), default=None)


# ---- the tables ---------------------------------------------------------------------------------------------------


def bars(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    """Mean score of each arm at each k, with intervals over users and seeds; then of the best trivial baseline and of
    the references. `unparsed`: share of the completions in whose place the generic answer was scored.
    """
    rows = []
    for arm, k in product(scores.arms, scores.shots):
        values_SE = scores.of_arm(arm, k)
        seeds = ONE_SEED if arm == SFT_ONLY else scores.seeds(k)
        row = _interval(scores, values_SE, seeds, 1, resamples, seed) | {"seeds": len(values_SE)}
        rows.append({"arm": arm, "shots": k} | row | {"unparsed": scores.unparsed[arm][k]})
    for k, name in product(scores.shots, scores.without_model):
        row = _interval(scores, scores.of_arm(name, k), ONE_SEED, 1, resamples, seed)
        rows.append({"arm": name, "shots": k} | row | {"seeds": 0})
    columns = ["arm", "shots", "score", "low", "high", "users", "seeds", "unparsed"]
    return pd.DataFrame(rows)[columns]


def differences(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    """First what each arm gains over the best trivial baseline; then the comparisons of all families at each k, with
    Holm-adjusted p-values. All are paired on the same users and seeds.
    """
    rows = []

    def add(arm: str, minus: str, k: int, values_SE: np.ndarray, seeds: SeedVariance, adapters: int = 1) -> None:
        row = _interval(scores, values_SE, ONE_SEED if arm == SFT_ONLY else seeds, adapters, resamples, seed)
        rows.append({"arm": arm, "minus": minus, "shots": k} | row | {"seeds": len(values_SE)})

    if BEST_TRIVIAL in scores.without_model:
        for arm, k in product(scores.arms, scores.shots):
            add(arm, BEST_TRIVIAL, k, scores.of_arm(arm, k) - scores.of_arm(BEST_TRIVIAL, k), scores.seeds(k))
    by_family = families([arm for arm in scores.arms if arm != SFT_ONLY], scores.shots)
    of_items = by_family.pop(ITEMS, [])
    for arm, other in [pair for pairs in by_family.values() for pair in pairs]:
        for k in scores.shots:
            values_SE, adapters = scores.of_arm(arm, k) - scores.of_arm(other, k), 1 if other == SFT_ONLY else 2
            add(arm, other, k, values_SE, scores.seeds(k), adapters)
    most, fewest = max(scores.shots), min(scores.shots)
    for arm, other in of_items:
        add(arm, other, most, scores.of_arm(arm, most, fewest), scores.seeds(most, fewest))
    columns = ["arm", "minus", "shots", "score", "low", "high", "users", "seeds", "mde", "p"]
    return with_holm(pd.DataFrame(rows)[columns])


def _interval(
    scores: Scores, values_SE: np.ndarray, seeds: SeedVariance, adapters: int, resamples: int, seed: int
) -> dict[str, float]:
    row = compare(values_SE, scores.users, seeds, adapters, resamples, seed)
    return row | {"users": len(set(scores.users))}


def curves(run: Run, trials: Trials) -> pd.DataFrame:
    """Reward and k at each step of each trial, from the training logs."""
    logs = []
    for arm, seed in trials:
        log = read_table(run.stage(f"sweep/{trial_name(arm, seed)}") / "log.csv", ("step", "reward", "shots"))
        logs.append(log[["step", "reward", "shots"]].assign(arm=arm, seed=seed))
    return pd.concat(logs)[["arm", "seed", "step", "reward", "shots"]]


def provenance(run: Run, trials: Trials) -> dict[str, Any]:
    """Settings, machine, packages and plan behind the numbers, with every commit that scored a trial."""
    names = ["sft", *(trial_name(*trial) for trial in trials)]
    files = [run.stage(f"sweep/{name}/scores") / "manifest.json" for name in names]
    best, plan = best_trivial(run), read_json(run.stage("sweep") / PLAN)
    named = {"preset": as_dict(run.preset), "plan": plan, "best_trivial": best[0] if best else None}
    return named | common_provenance(files)


# ---- stored sweeps ------------------------------------------------------------------------------------------------


def finished_sweep(run: Run) -> Path:
    """The folder of the run's sweep. Raises KitError if it is not finished."""
    folder = run.stage("sweep")
    if not all((folder / file).exists() for file in CSV_FILES):
        raise KitError(f"Run {run.name!r} has no finished sweep: run `python -m rpo_kit sweep --run {run.name}` first.")
    return folder


def export_figure_data(run: Run, folder: Path, name: str) -> list[Path]:
    """Copy the numbers of a sweep to `folder/<name>_*` (CSV_FILES), to be committed with the code.

    Raises:
        KitError: the sweep is not finished.
    """
    sweep, provenance_file = finished_sweep(run), folder / f"{name}_{CSV_FILES[-1]}"
    folder.mkdir(parents=True, exist_ok=True)
    copied = [Path(shutil.copyfile(sweep / file, folder / f"{name}_{file}")) for file in CSV_FILES]
    write_json(provenance_file, without_folders(read_record(provenance_file)))
    return copied
