"""The result of an evaluation as text: the gain over the best trivial baseline, then the table with systems by name.

Read from the CSVs of an evaluation.

    print(result_text(*read_tables("figures/data/demo_LaMP-7_")))       # reads …metrics.csv and …paired.csv
    # Gain over the best trivial baseline: +0.438 (0.398 to 0.476), reflection module after SFT + RL minus …

*Trivial* are the baselines that use no model (`baselines`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rpo_kit.setting_rules import TRIVIAL, kind_of
from rpo_kit.study.significance import POWER
from rpo_kit.study.stored import read_table

SYSTEM_NAMES = {  # as in README.md and docs/results.md
    "full": "full method",
    "base": "base model",
    "context": "context injection",
    "pag": "profile summary (PAG)",
    "echo": "query, unchanged",
    "lead": "first words of the query",
    "constant": "one label for everybody",
    "majority": "majority label of the user",
    "copy-nearest": "best-ranked item, copied",
    "untrained": "reflection module, untrained",
    "sft": "reflection module after SFT",
    "rl": "reflection module after SFT + RL",
}
CONTENT_COLUMNS = {  # what the columns of `completions` are called in tables
    "content_kept": "content kept",
    "content_low": "low",
    "content_high": "high",
    "words_changed": "words changed",
    "kept_generic": "would keep the generic answer",
    "cites_many": "cites several items",
    "faithful": "true observations",
    "habit_named": "habit named right",
    "majority": "follows the majority",
}
PAIRED_COLUMNS = ("system", "minus", "score", "low", "high", "mde")
_MDE = POWER / (2 * 1.96)  # minimum detectable effect, as a share of the width of a 95 % interval
MODULE = ("untrained", "sft", "rl")  # the reflection module


def reads_other_k(system: str) -> bool:
    """Whether it is the reflection module, or the oracle, with another number of items than the others: "rl-1"."""
    return kind_of(system) in (*MODULE, "oracle") and kind_of(system) != system


def shots_in(system: str) -> int:
    """The K in the name of a system: 1 for "rl-1"."""
    return int(system.rpartition("-")[2])


def shots_of(system: str, shots: int) -> int:
    """How many items a system reads: the K in its name, `shots` without one.

    >>> shots_of("context-1", 6), shots_of("rl", 6)
    (1, 6)
    """
    return shots if kind_of(system) == system else shots_in(system)


def read_tables(prefix: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables in `<prefix>metrics.csv` and `<prefix>paired.csv`.

    Earlier versions stored no `mde` in the latter: it is then 2.8 standard errors, of which the interval is 3.9 wide.

    Raises:
        KitError: a file is missing or damaged.
    """
    scores, of_pairs = ("score", "low", "high"), Path(f"{prefix}paired.csv")
    metrics = read_table(f"{prefix}metrics.csv", scores, ("system",))
    if of_pairs.exists() and of_pairs.read_bytes() == b"\n":  # an evaluation of a single system, by an earlier version
        return metrics, pd.DataFrame(columns=PAIRED_COLUMNS)
    paired = read_table(of_pairs, scores, ("system", "minus"))
    return metrics, paired if "mde" in paired else paired.assign(mde=_MDE * (paired["high"] - paired["low"]))


def system_name(name: str) -> str:
    """The system's name in tables and figures: "context injection, k = 4" for "context-4"."""
    kind = kind_of(name)
    if kind == name:
        return SYSTEM_NAMES.get(name, name)
    number = name.removeprefix(f"{kind}-")
    return f"first {number} words of the query" if kind == "lead" else f"{SYSTEM_NAMES.get(kind, kind)}, k = {number}"


def named(table: pd.DataFrame) -> pd.DataFrame:
    """A table of systems or of their differences, with the systems' names in place of the settings' words."""
    return table.assign(**{column: table[column].map(system_name) for column in ("system", "minus") if column in table})


def scores_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The systems by name with their scores: all that is not in `content_table` or in the table's heading."""
    return named(metrics).drop(columns=["task", "shots", "examples", *CONTENT_COLUMNS], errors="ignore")


def content_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The systems by name with the content that they keep and, for the module, how it uses the items.

    Without rows if the table has none of these columns, as those of earlier versions.
    """
    columns = [column for column in CONTENT_COLUMNS if column in metrics and metrics[column].notna().any()]
    rows = named(metrics)[metrics[columns].notna().any(axis=1)] if columns else named(metrics)[:0]
    return rows[["system", *columns]].rename(columns=CONTENT_COLUMNS)


def best_trivial(metrics: pd.DataFrame) -> str | None:
    """The baseline without a model that scores best on the dev users, in a tie the first; None if there is none."""
    rows = metrics[[kind_of(name) in TRIVIAL for name in metrics["system"]]]
    return None if rows.empty else str(rows["system"][rows["score"].idxmax()])


def gain_over_trivial(metrics: pd.DataFrame, paired: pd.DataFrame, systems: Sequence[str] = MODULE) -> str:
    """A sentence: the last of `systems` in the tables minus the best trivial baseline; "" if there is no such pair.

    The baseline is chosen on the same dev users, which favors it.
    """
    best = best_trivial(metrics)
    rows = paired[paired["system"].isin(systems) & (paired["minus"] == best)]
    if best is None or rows.empty:
        return ""
    row = max((row for _, row in rows.iterrows()), key=lambda row: systems.index(row["system"]))
    text = (
        f"Gain over the best trivial baseline: {_with_interval(row)}, {system_name(row['system'])} minus "
        f"{system_name(best)} (the best by its score on these dev users)."
    )
    if not row.get("mde", 0.0) > 0:
        return text
    return f"{text} Smallest true difference found in 80 of 100 such evaluations: {row['mde']:.3f} (MDE)."


def gain_by_history(metrics: pd.DataFrame, paired: pd.DataFrame) -> list[str]:
    """A sentence per K: the module's last step on all k items minus the same on K of them; [] if not evaluated."""
    fewer = [row for _, row in paired.iterrows() if row["system"] == kind_of(row["minus"]) != row["minus"]]
    rows = sorted((row for row in fewer if row["system"] in MODULE), key=lambda row: MODULE.index(row["system"]))
    return [
        f"Gain by history: {_with_interval(row)}, {system_name(row['system'])} with {metrics['shots'][0]} items minus "
        f"the same with {shots_in(row['minus'])}" + (f". MDE: {row['mde']:.3f}." if row.get("mde", 0.0) > 0 else ".")
        for row in rows
        if row["system"] == rows[-1]["system"]
    ]


def _with_interval(row: pd.Series) -> str:
    """The difference of a row of `paired`, with its interval and a remark if 0 is inside."""
    if pd.isna(row["low"]):
        return f"{row['score']:+.3f} (no interval: one user)"
    verdict = "" if row["low"] > 0 or row["high"] < 0 else "; not resolved"
    return f"{row['score']:+.3f} ({row['low']:.3f} to {row['high']:.3f}{verdict})"


def result_text(metrics: pd.DataFrame, paired: pd.DataFrame) -> str:
    """The gains over the best trivial baseline and by history, and the tables of systems and of their content."""
    table, content = scores_table(metrics).round(3), content_table(metrics).round(3)
    about = f"{metrics['task'][0]}, {metrics['examples'][0]} dev examples, {metrics['shots'][0]} history items"
    heading = f"Result ({about}; score from 0 to 1, higher is better, with 95 % interval):"
    untold = ""
    if set(metrics["system"]) & set(MODULE) and not best_trivial(metrics):
        untold = (
            "No trivial baseline was evaluated, so it is unknown whether the module beats one: see evaluation.systems."
        )
    lines = [
        gain_over_trivial(metrics, paired) or untold,
        *gain_by_history(metrics, paired),
        heading,
        table.to_string(index=False, na_rep=""),
    ]
    if len(content):
        lines += ["Content and observations (shares, not scores):", content.to_string(index=False, na_rep="")]
    return "\n".join(filter(None, lines))
