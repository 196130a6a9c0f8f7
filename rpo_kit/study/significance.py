"""Intervals and tests for adapters trained with several seeds and scored on the same users.

A mean score depends on two samples: the users, and the seeds with which the adapters were trained. They are *crossed*
(every adapter answers for every user), so users are resampled once for all seeds. An adapter's seed moves the scores of
all users together, so it adds a variance that more users cannot reduce. With one seed that variance is unknown: every
function then counts users alone, and its result holds for these adapters only.

    bootstrap    Two levels: users, and the effects of the seeds. The seeds' effects are shrunk to their estimated
                 variance, because the spread of their means contains the users' noise, which would count twice
                 (Davison and Hinkley 1997, section 3.8; Carpenter, Goldstein and Rasbash 2003).
    variance     Of seeds: ANOVA (method of moments), pooled over the arms of a figure, because two or three seeds of
                 one arm say little. Degrees of freedom: Satterthwaite 1946.
    p-value      The larger of two: a sign-flip permutation test over users, and with several seeds a t-test that counts
                 both levels. Both must reject.
    correction   Holm 1979.

Arrays: `values_SE` has one row per seed and one column per example; `users` names the user of each example.

>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

POWER = 1.96 + 0.84  # standard errors: 5 % two-sided, 80 % power
LEVEL = 0.05  # two-sided
FLIPS = 10_000  # ours: sign flips per test, so that p can fall to 0.0001
_FEW = 4  # measured: below, two or three seeds of one arm reject a true null hypothesis in 10 of 100 cases
_Z = 1.959964  # of the normal distribution, at LEVEL


@dataclass(frozen=True)
class SeedVariance:
    """Spread of the mean score between adapters that differ in their seed, pooled over arms."""

    variance: float = 0.0  # between seeds, without the users' noise
    observed: float = 0.0  # of the seeds' means, which contain that noise
    degrees: int = 0  # of freedom: arms x (seeds - 1); 0 if there is one seed
    effects: tuple[float, ...] = ()  # one per adapter, with the above variance


ONE_SEED = SeedVariance()


def by_user(values_SE: np.ndarray, users: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of each user's values (seeds, users), and the number of examples of each user (users,)."""
    _, user_of = np.unique(np.asarray(users), return_inverse=True)
    count = int(user_of.max()) + 1
    sums_SU = np.stack([np.bincount(user_of, values, count) for values in values_SE])
    return sums_SU, np.bincount(user_of, minlength=count)


def seed_variance(arms: Sequence[np.ndarray], users: Sequence[str]) -> SeedVariance:
    """Variance between seeds, from the scores (seeds, examples) of several arms on the same examples.

    For each arm: observed = variance of the seeds' means; noise = what users alone add to it, from the interaction of
    user and seed; variance = max(0, observed - noise), each averaged over the arms. With few degrees of freedom the
    noise is not subtracted: the difference would be 0 too often.
    """
    seeds = len(arms[0])
    if seeds < 2:
        return ONE_SEED
    observed, noise, effects = [], [], []
    for values_SE in arms:
        sums_SU, sizes_U = by_user(values_SE, users)
        means_S, count = sums_SU.sum(1) / sizes_U.sum(), len(sizes_U)
        # what each user adds to the mean of each seed; without what the user adds to all of them
        parts_SU = (sums_SU - sizes_U * means_S[:, None]) / sizes_U.sum()
        interaction_SU = parts_SU - parts_SU.mean(0)
        observed.append(means_S.var(ddof=1))
        noise.append((interaction_SU**2).sum() * count / max(1, count - 1) / (seeds - 1))
        effects.append(means_S - means_S.mean())
    degrees, total = len(arms) * (seeds - 1), float(np.mean(np.square(effects)))
    variance = float(np.mean(observed)) - (float(np.mean(noise)) if degrees >= _FEW else 0.0)
    scale = math.sqrt(max(0.0, variance) / total) if total else 0.0
    shrunk = tuple(float(effect) for effect in np.ravel(effects) * scale)
    return SeedVariance(max(0.0, variance), float(np.mean(observed)), degrees, shrunk)


def crossed_bootstrap(
    values_SE: np.ndarray, users: Sequence[str], seeds: SeedVariance, adapters: int, resamples: int, seed: int
) -> np.ndarray:
    """Means (resamples,) of values of the same users under several seeds; with one seed the bootstrap over users.

    `adapters` is how many independently trained adapters are in each value: 1 for an arm, or for an arm minus a fixed
    adapter; 2 for an arm minus another.
    """
    sums_SU, sizes_U = by_user(values_SE, users)
    generator, totals_U = np.random.default_rng(seed), sums_SU.mean(0)
    count, mean = len(sizes_U), totals_U.sum() / sizes_U.sum()
    drawn = generator.integers(count, size=(resamples, count))
    means: np.ndarray = totals_U[drawn].sum(1) / sizes_U[drawn].sum(1)
    means = mean + (means - mean) * math.sqrt(count / max(1, count - 1))  # a resample varies less than new users would
    if seeds.variance:
        effects = generator.choice(seeds.effects, size=(resamples, adapters, len(values_SE))).mean(2)
        means = means + effects[:, 0] - (effects[:, 1] if adapters == 2 else 0.0)
    return means


def compare(
    values_SE: np.ndarray, users: Sequence[str], seeds: SeedVariance, adapters: int, resamples: int, seed: int
) -> dict[str, float]:
    """`score` (the mean), `low` and `high` (95 % interval), `mde` and `p` of differences paired on the same users.

    The interval is the bootstrap's percentile interval, widened by Student's t over the normal quantile (Hesterberg
    2015), since users or seeds may be few. `mde` is 2.8 standard errors, widened likewise.
    """
    mean = float(by_user(values_SE, users)[0].sum() / values_SE.size)
    means = crossed_bootstrap(values_SE, users, seeds, adapters, resamples, seed)
    over_users = crossed_bootstrap(values_SE, users, ONE_SEED, adapters, resamples, seed)
    error = math.sqrt(float(over_users.var()) + adapters * seeds.variance / len(values_SE))
    freedom = degrees_of_freedom(float(over_users.var()), len(set(users)), seeds, adapters, len(values_SE))
    wider = widening(freedom)
    low, high = mean + (np.percentile(means, [2.5, 97.5]) - mean) * wider
    p = sign_flip_test(values_SE, users, seed)
    if seeds.degrees:
        p = max(p, t_test(mean, error, freedom))
    row = {"score": mean, "low": float(low), "high": float(high), "mde": POWER * error * wider, "p": p}
    one_user = len(set(users)) == 1  # who cannot say how others would differ
    return row | dict.fromkeys(("low", "high", "mde"), float("nan")) if one_user else row


def widening(freedom: float) -> float:
    """Student's t over the normal quantile."""
    return t_quantile(freedom) / _Z


def over_runs(means: Sequence[float]) -> dict[str, float]:
    """`score` (the mean), `low`, `high` and `mde` of a value measured in several independent runs, by Student's t.

    For runs with users and adapters of their own (seeds of the data): their means vary with both, so their spread
    counts both. NaN for a single run.
    """
    if len(means) < 2:
        return {"score": float(np.mean(means))} | dict.fromkeys(("low", "high", "mde"), float("nan"))
    mean, error = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(len(means))
    wider = widening(len(means) - 1)
    half = _Z * error * wider
    return {"score": mean, "low": mean - half, "high": mean + half, "mde": POWER * error * wider}


def degrees_of_freedom(user_variance: float, users: int, seeds: SeedVariance, adapters: int, per_arm: int) -> float:
    """Of the standard error: (sum of variances)^2 / sum(variance^2 / its degrees), Satterthwaite 1946.

    With one seed the number of users less 1.
    """
    total = user_variance + adapters * seeds.variance / per_arm
    parts = user_variance**2 / max(1, users - 1)
    if seeds.degrees:
        parts += (adapters * seeds.observed / per_arm) ** 2 / seeds.degrees
    return max(1.0, total**2 / parts) if parts else math.inf


def sign_flip_test(values_SE: np.ndarray, users: Sequence[str], seed: int) -> float:
    """Two-sided p that the mean is 0: each user's mean over seeds changes its sign at random (Fisher 1935).

    p = (1 + number of flips whose mean is at least as far from 0) / (1 + flips).
    """
    totals_U = by_user(values_SE, users)[0].mean(0)
    generator, extreme = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):  # in parts, to save memory
        signs = generator.integers(2, size=(min(1000, FLIPS - start), len(totals_U))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ totals_U) >= abs(totals_U.sum()) - 1e-9).sum())
    return (1 + extreme) / (1 + FLIPS)


def t_test(mean: float, error: float, freedom: float) -> float:
    """Two-sided p of Student's t = mean / error."""
    if not error:
        return 1.0 if not mean else 0.0
    return t_tails(abs(mean) / error, freedom)


def t_tails(t: float, freedom: float) -> float:
    """P(|T| >= t) of Student's t. With T = tan(a) sqrt(freedom), the density of a is that of cos(a)^(freedom-1).

    >>> [round(t_tails(t, f), 3) for t, f in ((12.706, 1), (4.303, 2), (2.228, 10), (1.96, float("inf")))]
    [0.05, 0.05, 0.05, 0.05]
    """
    if freedom > 1e6:
        return math.erfc(t / math.sqrt(2))
    angle = math.atan(t / math.sqrt(freedom))
    body, tail = (_cosine_integral(low, high, freedom - 1) for low, high in ((0.0, angle), (angle, math.pi / 2)))
    return tail / (body + tail)


def _cosine_integral(low: float, high: float, power: float) -> float:
    """Of cos^power, by Gauss-Legendre quadrature on the part where it is not negligible."""
    high = min(high, low + 40 / math.sqrt(power + 1))
    nodes, weights = _gauss_legendre()
    at = (high - low) / 2 * nodes + (high + low) / 2
    return float((high - low) / 2 * (weights * np.cos(at) ** power).sum())


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights


def t_quantile(freedom: float) -> float:
    """The t beyond which lies LEVEL in both tails together, by bisection.

    >>> round(t_quantile(4), 3)
    2.776
    """
    if freedom > 1e6:
        return _Z
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > LEVEL else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: with p sorted upwards, max over j <= i of (n - j + 1) p_j, at most 1 (Holm 1979).

    Rejecting where they are below 0.05 keeps the chance of any false rejection among the n below 0.05.
    """
    order, adjusted, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = round(highest, 12)
    return adjusted
