"""One system minus another over runs that differ in their seed alone: `python scripts/gain_over_seeds.py NAME RUN…`

Writes figures/data/NAME.csv: a row per run (paired difference on its users, 95 % bootstrap interval), and one for all,
whose interval resamples runs first and then the users of each (two levels: users of one run share adapters). `mde` is
the smallest difference that such data would show in 80 of 100 repetitions: 2.8 standard errors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.runs import existing_run
from rpo_kit.study.over_seeds import scores
from rpo_kit.study.statistics import POWER, bootstrap_runs

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"


def table(by_run: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row per run and one for all: run, examples, difference, low, high, mde."""
    rows = []
    for name, means, values in [
        *((name, bootstrap_runs([values]), values) for name, values in by_run.items()),
        ("all", bootstrap_runs(list(by_run.values())), np.concatenate(list(by_run.values()))),
    ]:
        low, high = np.percentile(means, [2.5, 97.5])
        rows.append((name, len(values), values.mean(), low, high, POWER * means.std()))
    return pd.DataFrame(rows, columns=["run", "examples", "difference", "low", "high", "mde"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="figures/data/NAME.csv")
    parser.add_argument("runs", nargs="+", help="runs that hold an evaluation")
    parser.add_argument("--system", default="rl")
    parser.add_argument("--minus", default="sft")
    options = parser.parse_args()
    try:
        runs = {name: existing_run(name) for name in options.runs}
        by_run = {name: scores(run, options.system) - scores(run, options.minus) for name, run in runs.items()}
    except KitError as error:
        raise SystemExit(str(error)) from None
    result = table(by_run)
    result.to_csv(DATA / f"{options.name}.csv", index=False)
    print(result.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
