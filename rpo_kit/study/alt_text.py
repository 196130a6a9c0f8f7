"""What a figure shows, in a sentence or two with its numbers, for readers who do not see it.

Each function of `figures.py` describes what it draws; `widgets.show` gives the words to the picture as its `alt`.

    >>> from matplotlib.figure import Figure
    >>> alt_text(described(Figure(), "Loss by step: 2.100 at first, 0.900 at the end."))
    'Loss by step: 2.100 at first, 0.900 at the end.'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from rpo_kit.study.comparisons import ITEMS, family_of
from rpo_kit.study.results import system_name


def described(figure: Figure, words: str) -> Figure:
    """The same figure, which now carries its description."""
    figure.set_label(" ".join(words.split()))
    return figure


def alt_text(figure: Figure) -> str:
    """The description that the figure carries, "" if it has none."""
    return str(figure.get_label() or "")


def interval(row: pd.Series, value: str = "score", low: str = "low", high: str = "high") -> str:
    """For example `0.785 (0.738 to 0.830)`."""
    if pd.isna(row[low]):
        return f"{row[value]:.3f} (no interval)"
    return f"{row[value]:.3f} ({row[low]:.3f} to {row[high]:.3f})"


def of_curves(log: pd.DataFrame, names: Mapping[str, str]) -> str:
    """First and last value of the columns of a training log: {column: what it is called}."""
    steps = log["step"] if "step" in log else log.index + 1
    ends = []
    for column, name in names.items():
        known = log[column].astype(float).dropna()
        ends.append(f"{name} {known.iloc[0]:.3g} to {known.iloc[-1]:.3g}" if len(known) else f"{name} unknown")
    return f"Curves from step {steps.min():.0f} to {steps.max():.0f}. {'; '.join(ends)}."


def of_scores(metrics: pd.DataFrame, references: Sequence[str]) -> str:
    """Score of each system of metrics.csv, with its interval unless it is one of the references."""
    scores = [
        f"{system_name(row['system'])} {row['score']:.3f}" if row["system"] in references
        else f"{system_name(row['system'])} {interval(row)}" for _, row in metrics.iterrows()
    ]  # fmt: skip
    return f"Scores with 95 % intervals. {'; '.join(scores)}."


def of_oracle(table: pd.DataFrame) -> str:
    """The oracle's score with the fewest and the most items of each task."""
    tasks = []
    for task, rows in table.groupby("task", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        tasks.append(
            f"{task}: {first['score']:.3f} with k = {first['k']}, {last['score']:.3f} with k = {last['k']}, "
            f"{first['ceiling']:.3f} if the true habit is known"
        )
    return f"Score of the oracle by the number of history items. {'; '.join(tasks)}."


def of_history(table: pd.DataFrame) -> str:
    """Score by k of each system; the table is `history.history_table`'s."""
    systems = [
        f"{system_name(str(name))}: " + ", ".join(f"{interval(row)} with k = {row['k']}" for _, row in rows.iterrows())
        for name, rows in table.groupby("system", sort=False)
    ]
    return f"Score with 95 % interval by the number of history items. {'; '.join(systems)}."


def of_curricula(curricula: Mapping[str, Sequence[int]]) -> str:
    """k at the steps of each curriculum, in runs of equal k."""
    return f"k at each RL step. {'; '.join(f'{name}: {_in_runs(shots)}' for name, shots in curricula.items())}."


def _in_runs(shots: Sequence[int]) -> str:
    """For example `2 (3 steps), 3 (1 step)`; of an order that keeps changing, only its range and length."""
    runs: list[list[int]] = []
    for k in shots:
        if runs and runs[-1][0] == k:
            runs[-1][1] += 1
        else:
            runs.append([k, 1])
    if len(runs) > 8:
        return f"from {min(shots)} to {max(shots)} in changing order over {len(shots)} steps"
    return ", ".join(f"{k} ({count} step{'s' * (count > 1)})" for k, count in runs)


def of_content(systems: pd.DataFrame) -> str:
    """Content kept and score of each system."""
    points = [
        f"{system_name(str(row['system']))} keeps {row['content_kept']:.2f}, scores {row['score']:.3f}"
        for _, row in systems.iterrows()
    ]
    return f"Content kept against score. {'; '.join(points)}."


def of_components(table: pd.DataFrame, is_resolved: Iterable[bool]) -> str:
    """Each arm's difference to the full method, and whether it is resolved; `table` without the full method."""
    arms = []
    for (_, row), told_apart in zip(table.iterrows(), is_resolved, strict=True):
        of = interval(row, "difference", "difference_low", "difference_high")
        arms.append(f"{row['name']} {of}{'' if told_apart else ', not resolved'}")
    return f"Score minus the full method's, with 95 % interval. {'; '.join(arms)}."


def _compared(row: pd.Series) -> str:
    """What minus what: two arms with the same k, or one arm with more and with fewer items."""
    if family_of(row["minus"]) == ITEMS:
        return f"{row['arm']}, k = {row['shots']} minus {row['minus']}"
    return f"{row['arm']} minus {row['minus']} at k = {row['shots']}"


def of_sweep(bars: pd.DataFrame, differences: pd.DataFrame, is_resolved: Iterable[bool]) -> str:
    """Figure 3: the score of each arm at each k, and the differences with what is not resolved."""
    arms = [
        f"{arm}: " + ", ".join(f"{interval(row)} at k = {row['shots']}" for _, row in rows.iterrows())
        for arm, rows in bars.groupby("arm", sort=False)
    ]
    words = f"Figure 3: training reward by RL step; scores with 95 % intervals by curriculum. {'; '.join(arms)}."
    pairs = [
        f"{_compared(row)} {interval(row)}{'' if apart else ', not resolved'}"
        for (_, row), apart in zip(differences.iterrows(), is_resolved, strict=True)
    ]
    return f"{words} Differences: {'; '.join(pairs)}." if pairs else words
