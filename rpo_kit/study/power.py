"""`plan`: how many users, queries per user, seeds and hours it takes to detect a difference, from a pilot run.

The pilot's paired differences give their spread on each level. A mean over n users, q queries per user and m seeds has

    SE^2 = seed / m  +  (user + interaction / m + query / q) / n        (variances; Snijders and Bosker 2012)

and a difference d is detected with the target power in a two-sided test at 5 % if d = (z_0.975 + z_power) SE (Cohen
1988): 2.8 SE at 80 %. The variances are those of one-way (users, queries) and two-way (users, seeds) ANOVA, by the
method of moments. Few seeds need somewhat more than that, because their variance must be estimated (`significance`).

    python -m rpo_kit plan --run demo --difference 0.02 --seed-spread 0.05
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.study.pilot import Pilot
from rpo_kit.study.significance import by_user, seed_variance
from rpo_kit.study.stored import read_table

SEEDS = (1, 2, 3, 5, 10)  # ours: the choices in the table, and the fewest seeds that suffice
FEWEST = 6  # users: with five, a sign-flip test cannot reach 0.05
MANY_SEEDS = 20  # ours: no sweep of more is proposed
QUERIES = (1, 2, 4)  # ours, if the pilot has several queries per user


@dataclass(frozen=True)
class Spread:
    """Variances of a paired difference. `query` and `seed` are None if the pilot cannot tell them apart."""

    user: float
    query: float | None = None  # between the queries of a user
    seed: float | None = None  # between seeds, of all users together
    interaction: float = 0.0  # of user and seed

    def variance(self, users: float, queries: int, seeds: int) -> float:
        """SE^2 of the mean difference over so many users, queries per user and seeds."""
        of_user = self.user + self.interaction / seeds + (self.query or 0.0) / queries
        return (self.seed or 0.0) / seeds + of_user / users

    def users(self, difference: float, power: float, queries: int, seeds: int, comparisons: int = 1) -> int | None:
        """The fewest users that suffice; None if no number does, because the seeds alone vary too much."""
        room = (difference / standard_errors(power, comparisons)) ** 2 - (self.seed or 0.0) / seeds
        if room <= 0:
            return None
        of_user = self.user + self.interaction / seeds + (self.query or 0.0) / queries
        return max(FEWEST, math.ceil(of_user / room - 1e-9))


def standard_errors(power: float, comparisons: int = 1) -> float:
    """How many standard errors away from 0 a difference is found with this power, two-sided at 5 %; as one of several
    comparisons also if it is the only one there is to be found (the first step of Holm's correction).

    >>> round(standard_errors(0.8), 2), round(standard_errors(0.8, 20), 2)
    (2.8, 3.86)
    """
    return NormalDist().inv_cdf(1 - 0.025 / comparisons) + NormalDist().inv_cdf(power)


def spread_of(pilot: Pilot) -> Spread:
    """The variances on each level of the pilot's differences (seeds, examples).

    Raises:
        KitError: there is one user only, or all differences are equal.
    """
    values_SE, users = pilot.differences_SE, pilot.users
    sums_SU, sizes_U = by_user(values_SE, users)
    count, seeds = len(sizes_U), len(values_SE)
    if count < 2:
        raise KitError(f"{pilot.about} has one user, who does not show how users differ: take a pilot with several.")
    means_SU = sums_SU / sizes_U
    of_user = float(means_SU.mean(0).var(ddof=1))  # user + interaction / seeds + query / (queries per user)
    query = _within_users(values_SE.mean(0), users)
    if not of_user and not query:
        raise KitError(
            f"{pilot.about}: every user has the same difference, so its spread is 0 and says nothing about more users. "
            "Take a pilot with more users, or whose systems differ."
        )
    interaction = 0.0
    if seeds > 1:
        residual_SU = means_SU - means_SU.mean(0) - means_SU.mean(1, keepdims=True) + means_SU.mean()
        interaction = float((residual_SU**2).sum() / ((seeds - 1) * (count - 1)))
    user = of_user - interaction / seeds - (query or 0.0) * float((1 / sizes_U).mean())
    seed = pilot.adapters * seed_variance(pilot.arms_SE, users).variance if seeds > 1 else None
    return Spread(max(0.0, user), query, seed, interaction)


def _within_users(values_E: np.ndarray, users: Sequence[str]) -> float | None:
    """The pooled variance between the queries of a user; None if every user has one."""
    groups = pd.Series(values_E).groupby(list(users))
    degrees = len(values_E) - groups.ngroups
    return float(((values_E - groups.transform("mean")) ** 2).sum() / degrees) if degrees else None


def seed_spread_of(text: str, folder: Path) -> float:
    """The standard deviation between seeds: a number, or the name of numbers stored by `gain_over_seeds.py`.

    Of stored runs it is sqrt(variance of the runs' differences - mean squared standard error), at least 0.

    Raises:
        KitError: neither a number of at least 0 nor stored numbers of several runs.
    """
    try:
        value = float(text)
    except ValueError:
        return _stored_seed_spread(text, folder)
    if not 0 <= value < math.inf:
        raise KitError(f"--seed-spread {text} must be a standard deviation of at least 0, as in 0.05.")
    return value


def _stored_seed_spread(name: str, folder: Path) -> float:
    path = folder / f"{Path(name).name.removesuffix('.csv')}.csv"
    table = read_table(path, ()) if path.exists() else pd.DataFrame()
    if not {"run", "difference", "mde"} <= set(table) or (table["run"] != "all").sum() < 2:
        stored = ", ".join(sorted(file.stem for file in folder.glob("gain_*.csv")))
        raise KitError(f"--seed-spread takes a number, as in 0.05, or stored numbers of several runs ({stored}).")
    runs = table[table["run"] != "all"]
    noise = float(((runs["mde"] / standard_errors(0.8)) ** 2).mean())
    return math.sqrt(max(0.0, float(runs["difference"].var(ddof=1)) - noise))


# ---- the table ----------------------------------------------------------------------------------------------------


def plan_report(pilot: Pilot, difference: float, power: float, seed_spread: float | None = None) -> str:
    """The pilot's spread, and one row per choice of seeds and queries: users and hours.

    Raises:
        KitError: the difference or the power cannot be meant, or the pilot has no spread.
    """
    if not 0 < difference < 1:
        raise KitError(f"--difference {difference:g} must be above 0 and below 1, as in 0.02: scores are from 0 to 1.")
    if not 0.05 < power < 1:
        raise KitError(f"--power {power:g} must be a share above 0.05 and below 1, as in 0.8.")
    found = spread_of(pilot)
    stated = seed_spread is not None
    seed = found.seed if seed_spread is None else pilot.adapters * seed_spread**2
    used = Spread(found.user, found.query, seed, found.interaction)
    table = choices(pilot, used, difference, power)
    could = standard_errors(power) * math.sqrt(used.variance(pilot.user_count, pilot.queries, pilot.seeds))
    lines = [
        f"Pilot: {pilot.about}: {pilot.differences_SE.mean():+.3f} on {pilot.user_count} users; it detects a true "
        f"difference of {could:.3f} with {100 * power:.0f} % power.",
        "Spread of the difference (standard deviations):",
        *(f"  {level}" for level in _levels(found, used, stated, pilot.adapters)),
        f"To show a difference of {difference:g} with {100 * power:.0f} % power (two-sided, 5 %, one comparison):",
        table.to_string(index=False, na_rep="not recorded"),
        pilot.costs.sentence(),
        *_advice(pilot, used, table, difference, power),
    ]
    return "\n".join(lines)


def choices(pilot: Pilot, spread: Spread, difference: float, power: float) -> pd.DataFrame:
    """Users and hours by seeds and queries per user; "too few seeds" where no number of users suffices."""
    fewest = math.floor((spread.seed or 0.0) / (difference / standard_errors(power)) ** 2) + 1
    rows = []
    for seeds in sorted({*SEEDS, fewest, 2 * fewest}):
        for queries in QUERIES if spread.query is not None else (1,):
            users = spread.users(difference, power, queries, seeds)
            row: dict[str, object] = {"seeds": seeds, "queries per user": queries}
            row["users"] = "too few seeds" if users is None else users
            training, scoring = pilot.costs.hours(seeds, (users or 0) * queries)
            total = None if training is None or scoring is None else training + scoring
            hours = {"hours of RL": training, "hours of scoring": scoring, "hours in all": total}
            rows.append(
                row | ({name: _hours(value) for name, value in hours.items()} if users else dict.fromkeys(hours, "–"))
            )
    return pd.DataFrame(rows)


def _hours(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.1f}"


def _levels(found: Spread, used: Spread, stated: bool, adapters: int) -> list[str]:
    parts = [f"between users {math.sqrt(found.user):.3f}"]
    parts.append(
        "between the queries of a user unknown, as each has one (it counts as spread between users)"
        if found.query is None
        else f"between the queries of a user {math.sqrt(found.query):.3f}"
    )
    if found.interaction:
        parts.append(f"of a user between seeds {math.sqrt(found.interaction):.3f}")
    if stated:
        how = "as stated" if adapters == 1 else "as stated for each of two adapters"
        parts.append(f"between seeds {math.sqrt(used.seed or 0.0):.3f}, {how}")
    elif found.seed is None:
        parts.append(
            "between seeds unknown, as the pilot has one: taken as 0, so the numbers hold for these adapters only; "
            "--seed-spread states another (0.05, or gain_LaMP-7_24x16 for stored runs)"
        )
    else:
        parts.append(f"between seeds {math.sqrt(found.seed):.3f}")
    return parts


def _advice(pilot: Pilot, spread: Spread, table: pd.DataFrame, difference: float, power: float) -> list[str]:
    """The command of a sweep, and how many users it takes if the difference is to pass Holm's correction too."""
    possible = table[table["users"] != "too few seeds"]
    several = possible[possible["seeds"] >= 3]
    rows = (several if len(several) else possible).to_dict("records")
    row = min(rows, key=lambda row: _cost(pilot, row))
    if row["seeds"] > MANY_SEEDS:
        return [f"Even the cheapest of these takes {row['seeds']} seeds: plan for a larger difference."]
    seeds = "[" + ", ".join(map(str, range(int(row["seeds"])))) + "]"
    return [
        "For example, in a run with that many dev users (data.dev_users):",
        f"  python -m rpo_kit sweep --run NAME --set sweep.dev_users={row['users']} --set 'sweep.seeds={seeds}' "
        f"--set sweep.steps={pilot.costs.steps} --set sweep.prompts_per_step={pilot.prompts} "
        f"--set sweep.difference={difference:g}",
        *_with_holm(pilot, spread, int(row["seeds"]), int(row.get("queries per user", 1)), difference, power),
    ]


def _cost(pilot: Pilot, row: Mapping[str, Any]) -> float:
    """Hours of a row of the table; where the pilot has not recorded them all, the number of answers of one arm."""
    answers = row["users"] * row.get("queries per user", 1)
    training, scoring = pilot.costs.hours(row["seeds"], answers)
    return float(row["seeds"] * answers) if training is None or scoring is None else training + scoring


def _with_holm(pilot: Pilot, spread: Spread, seeds: int, queries: int, difference: float, power: float) -> list[str]:
    comparisons = pilot.costs.arms * pilot.costs.shots
    if comparisons < 2:
        return []
    users = spread.users(difference, power, queries, seeds, comparisons)
    needed = "more seeds" if users is None else f"{users} users"
    return [f"With Holm's correction over {comparisons} comparisons (arms times k), the same power takes {needed}."]
