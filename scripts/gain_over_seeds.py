"""One system minus another over runs that differ in their data's seed: `python scripts/gain_over_seeds.py NAME RUN…`

Writes figures/data/NAME.csv: a row per run (paired difference, 95 % bootstrap interval over its users), and one for
all, whose interval is that of the runs' means by Student's t: each run has users and adapters of its own. `mde` is the
minimum detectable effect: the smallest difference that such data show in 80 of 100 repetitions. For runs on the same
users: `python -m rpo_kit results --run RUN…`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, existing_run
from rpo_kit.study.over_seeds import check_current, check_settings_alike, scores
from rpo_kit.study.significance import ONE_SEED, compare, over_runs

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"
_SEEDS = ("data.seed", "sft.seed", "rl.seed")


def table(by_run: dict[str, tuple[np.ndarray, list[str]]]) -> pd.DataFrame:
    """A row per run, of its values (n,) and their users, and one for all: run, examples, difference, low, high, mde."""
    found = {name: compare(values[None], users, ONE_SEED, 1, 2000, 0) for name, (values, users) in by_run.items()}
    found["all"] = over_runs([row["score"] for row in found.values()])
    sizes = [len(values) for values, _ in by_run.values()]
    columns = {"run": list(found), "examples": [*sizes, sum(sizes)]}
    names = {"difference": "score", "low": "low", "high": "high", "mde": "mde"}
    return pd.DataFrame(columns | {column: [row[key] for row in found.values()] for column, key in names.items()})


def check_runs(runs: Sequence[Run]) -> None:
    """Raises KitError if two runs have the same users, or differ in other settings than their seeds."""
    check_settings_alike(runs, _SEEDS)
    if len({run.preset.data.seed for run in runs}) < len(runs):
        raise KitError(
            "Two of the runs have the same data.seed, so the same users: compare those with "
            "`python -m rpo_kit results --run RUN…`."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="figures/data/NAME.csv")
    parser.add_argument("runs", nargs="+", help="runs that hold an evaluation")
    parser.add_argument("--system", default="rl")
    parser.add_argument("--minus", default="sft")
    options = parser.parse_args()
    try:
        runs = [existing_run(name) for name in options.runs]
        check_runs(runs)
        for run in runs:
            check_current(run)
        by_run = {
            run.name: (
                scores(run, options.system) - scores(run, options.minus),
                [example["user_id"] for example in load_prepared(run, "dev")],
            )
            for run in runs
        }
    except KitError as error:
        raise SystemExit(str(error)) from None
    result = table(by_run)
    result.to_csv(DATA / f"{options.name}.csv", index=False)
    print(result.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
