"""One evaluation out of several runs that differ in their seeds alone, with intervals that count users and seeds.

    metrics, paired = tables_over_seeds([existing_run("tweets"), existing_run("tweets-1"), existing_run("tweets-2")])

All runs must have been evaluated on the same users, with settings that differ in `sft.seed`, `rl.seed` and the systems
alone. A trained module is compared if every run evaluated it. The base model and the baselines have no seed: the first
run's answers count. So do those of SFT if all runs have the same `sft.seed`; how SFT varies is then not counted. Each
score and difference has its own variance between seeds: SFT and RL vary differently, and not independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import as_dict, flat, flattened
from rpo_kit.provenance import without_folders
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, read_json, read_records, write_json, write_text
from rpo_kit.setting_rules import MOVE_NO_SCORE, kind_of
from rpo_kit.stages import require
from rpo_kit.study.completions import contents
from rpo_kit.study.results import PAIRED_COLUMNS, read_tables
from rpo_kit.study.significance import compare, seed_variance
from rpo_kit.study.statistics import compared
from rpo_kit.study.stored import read_table

_SEEDS = ("sft.seed", "rl.seed")
_TRAINED = ("sft", "rl")  # and the same with another k
_NO_MATTER = (  # settings that move no score of a system
    *MOVE_NO_SCORE,
    *("evaluation.systems", "sweep.", "components.", "endpoint."),
)


@dataclass(frozen=True)
class SeedScores:
    """The scores (seeds, examples) of each system on the same examples; one row where there is no seed."""

    by_system: dict[str, np.ndarray]
    users: list[str]  # of the examples
    resamples: int
    seed: int  # of the bootstrap

    @classmethod
    def of(cls, runs: Sequence[Run]) -> SeedScores:
        """Raises KitError if the runs have not been evaluated, or differ in more than their seeds."""
        check_alike(runs)
        for run in runs:
            check_current(run)
        settings, examples = runs[0].preset.evaluation, load_prepared(runs[0], "dev")
        systems = {run.name: _systems(run) for run in runs}
        first = systems[runs[0].name]
        common = [name for name in first if all(name in systems[run.name] for run in runs_of(name, runs))]
        by_system = {name: np.stack([scores(run, name) for run in runs_of(name, runs)]) for name in common}
        return cls(by_system, [example["user_id"] for example in examples], settings.bootstrap, settings.seed)

    def row(self, values_SE: np.ndarray) -> dict[str, float]:
        """`significance.compare` of values (seeds, examples), with their own variance between seeds."""
        return compare(values_SE, self.users, seed_variance([values_SE], self.users), 1, self.resamples, self.seed)

    def score(self, values_SE: np.ndarray) -> tuple[float, float, float]:
        """Mean and interval of values (seeds, examples) from 0 to 1; Student's t knows no such bounds."""
        row = self.row(values_SE)
        low, high = np.clip([row["low"], row["high"]], 0.0, 1.0)
        return row["score"], float(low), float(high)

    def difference(self, system: str, minus: str) -> dict[str, float]:
        """`row` of one system minus another, paired on users and seeds."""
        return self.row(self.by_system[system] - self.by_system[minus])


def tables_over_seeds(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`metrics` and `paired` like those of one evaluation (`statistics`): means over the runs, and `seeds`, how many.

    Raises:
        KitError: a run has not been evaluated, or the runs differ in more than their seeds.
    """
    found = SeedScores.of(runs)
    tables = [read_tables(f"{require(run, 'evaluate')}/")[0].set_index("system") for run in runs]
    untrained = [name for name in tables[0].index if kind_of(name) not in _TRAINED]
    metrics = tables[0].loc[[name for name in tables[0].index if name in (*untrained, *found.by_system)]].copy()
    numbers = metrics.select_dtypes("float").columns
    metrics["seeds"] = 1
    for name, values_SE in found.by_system.items():
        if name not in untrained:
            own = [table.reindex(columns=numbers).loc[name] for table in tables[: len(values_SE)]]
            metrics.loc[name, numbers] = np.mean(own, axis=0)  # of a number that an earlier version lacks: none
        metrics.loc[name, ["score", "low", "high"]] = found.score(values_SE)
        metrics.loc[name, "seeds"] = len(values_SE)
        kept_SE = _content_kept(name, runs)
        if len(kept_SE):
            metrics.loc[name, ["content_kept", "content_low", "content_high"]] = found.score(kept_SE)
    metrics = metrics.reset_index()
    pairs = compared(list(found.by_system))
    paired = [{"system": one, "minus": other} | found.difference(one, other) for one, other in pairs]
    return metrics, pd.DataFrame(paired, columns=PAIRED_COLUMNS)


def _content_kept(system: str, runs: Sequence[Run]) -> np.ndarray:
    """The share of content that each rewrite keeps, (seeds, examples); (0,) for tasks whose answers are labels."""
    shares = []
    for run in runs_of(system, runs):
        answers = {r["id"]: r["prediction"] for r in read_records(_records(run, system))}
        examples = load_prepared(run, "dev")
        kept = contents(get_task(run.preset.data.task), examples, [answers[example["id"]] for example in examples])
        shares.append([text.share for text in kept])
    return np.array(shares) if shares[0] else np.zeros(0)


def check_alike(runs: Sequence[Run]) -> None:
    """Raises KitError if the runs differ in other settings than their seeds, or in users, or not in their seeds."""
    check_settings_alike(runs)
    seen = [_seeds_of(runs[0])]
    ids = [example["id"] for example in load_prepared(runs[0], "dev")]
    for run in runs[1:]:
        if [example["id"] for example in load_prepared(run, "dev")] != ids:
            raise KitError(
                f"Runs {runs[0].name!r} and {run.name!r} have different dev examples: prepare both from the same data."
            )
        if _seeds_of(run) in seen:
            raise KitError(
                f"Run {run.name!r} has the seeds of another one: give it an sft.seed and rl.seed of its own."
            )
        seen.append(_seeds_of(run))
    if 1 < len(_sft_seeds(runs)) < len(runs):
        raise KitError("Some of the runs share an SFT adapter: give all an sft.seed of their own, or all the same one.")


def check_settings_alike(runs: Sequence[Run], seeds: Sequence[str] = _SEEDS) -> None:
    """Raises KitError if the runs differ in settings that move a score, other than these seeds."""
    first = flat(runs[0].preset)
    for run in runs[1:]:
        differ = _differing(first, flat(run.preset), seeds)
        if differ:
            raise KitError(
                f"Runs {runs[0].name!r} and {run.name!r} differ in {', '.join(differ)}, not in their seeds alone: give "
                "both the same values, or leave one of them out."
            )


def check_current(run: Run) -> None:
    """Raises KitError if a setting that moves a score was changed after the run's evaluation."""
    manifest = read_json(require(run, "evaluate") / "manifest.json")
    then, now = flattened(manifest.get("preset", {})), flat(run.preset)
    changed = _differing({key: value for key, value in then.items() if key in now}, now)
    if changed:
        raise KitError(
            f"Run {run.name!r} was evaluated before {', '.join(changed)} changed: run evaluate again, or set back what "
            "changed."
        )


def _differing(one: Mapping[str, object], other: Mapping[str, object], but: Sequence[str] = ()) -> list[str]:
    return [key for key in one if one[key] != other[key] and not key.startswith((*but, *_NO_MATTER))]


def scores(run: Run, system: str) -> np.ndarray:
    """Scores (examples,) of a system of the run's evaluation on its dev examples.

    Raises:
        KitError: the evaluation is not finished, or an answer is missing.
    """
    return record_scores(run, _records(run, system))


def _records(run: Run, system: str) -> Path:
    return require(run, "evaluate") / "records" / f"{system}.jsonl"


def record_scores(run: Run, path: Path) -> np.ndarray:
    """Scores (examples,) of the answers in a file of records on the run's dev examples."""
    golds = {example["id"]: example["output"] for example in load_prepared(run, "dev")}
    answers = {record["id"]: record["prediction"] for record in read_records(path)}
    missing = len(golds.keys() - answers)
    if missing:
        raise KitError(f"Run {run.name!r} has no answer of {path.stem} for {missing} examples: run evaluate again.")
    predictions = [answers[example_id] for example_id in golds]
    return np.asarray(example_scores(get_task(run.preset.data.task), list(golds.values()), predictions))


def export_results(
    runs: Sequence[Run], metrics: pd.DataFrame, paired: pd.DataFrame, folder: Path, name: str
) -> list[Path]:
    """Write an evaluation, or the tables over several, and the training logs as `folder/<name>_*.csv`.

    `<name>_run.json` records the settings, packages and commit of the (first) evaluation, and the seeds of all. Logs of
    several runs stand one below the other, told apart by a column `run`.

    Raises:
        KitError: an evaluation is not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_json(require(runs[0], "evaluate") / "manifest.json")
    stored = {key: manifest[key] for key in ("preset", "packages", "commit", "machine") if key in manifest}
    stored = {"name": runs[0].name, "preset": as_dict(runs[0].preset)} | stored
    if len(runs) > 1:
        stored["seeds"] = {run.name: dict(zip(_SEEDS, _seeds_of(run), strict=True)) for run in runs}
    write_json(folder / f"{name}_run.json", without_folders(stored))
    tables = {"metrics": metrics, "paired": paired} | {f"{kind}_log": _logs(runs, kind) for kind in ("sft", "rl")}
    paths = {folder / f"{name}_{kind}.csv": table for kind, table in tables.items() if len(table.columns)}
    for path, table in paths.items():
        write_text(path, table.to_csv(index=False))
    return list(paths)


def _logs(runs: Sequence[Run], stage: str) -> pd.DataFrame:
    """The logs of a training stage; without columns if there are none."""
    logs = {run.name: run.stage(stage) / "log.csv" for run in runs}
    tables = {name: read_table(path, ("step",)) for name, path in logs.items() if path.exists()}
    if len(runs) == 1 or not tables:
        return next(iter(tables.values()), pd.DataFrame())
    return pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True)


def _seeds_of(run: Run) -> list[object]:
    settings = flat(run.preset)
    return [settings[key] for key in _SEEDS]


def _systems(run: Run) -> list[str]:
    """What the run evaluated, in the order of its table; without references, which have no answers."""
    folder = require(run, "evaluate")
    names = read_tables(f"{folder}/")[0]["system"]
    return [name for name in names if (folder / "records" / f"{name}.jsonl").exists()]


def runs_of(system: str, runs: Sequence[Run]) -> Sequence[Run]:
    """The runs whose seeds the system depends on: all for a trained module with an adapter in each, else the first."""
    kind = kind_of(system)
    varies = kind == "rl" or (kind == "sft" and len(_sft_seeds(runs)) > 1)
    return runs if varies else runs[:1]


def _sft_seeds(runs: Sequence[Run]) -> set[int]:
    return {run.preset.sft.seed for run in runs}
