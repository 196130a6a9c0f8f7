"""Numbers on LaMP that others have published, with setup and source, to see where a run's numbers lie. No ranking.

`published_lamp.csv` holds one number per row, named as in `Task.metrics` (`published_as` keeps the source's own words).
`read_as` says how it was read: in a repository's text, in a note about the paper (not in the paper itself), or measured
for this kit. An empty field is not stated in the source; `n` counts examples.

    published("LaMP-7", k=4)[["metric", "value", "system", "split"]]      # a data frame
    published_report("LaMP-7")                                            # "What others have published on LaMP-7. …"
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rpo_kit.lamp.tasks import get_task

NO_RANKING = "no ranking: other models, other splits and users, other prompts"
OURS = "measured here"
READ_AS = {
    "repository text": "read in the repository",
    "paper note": "read in a note about the paper",
    OURS: "not published",
}
_FILE = Path(__file__).with_name("published_lamp.csv")


def published(task: str, split: str | None = None, k: int | None = None) -> pd.DataFrame:
    """The rows of a task; with `split`, those whose split contains this text; with `k`, those with k items.

    Raises:
        KitError: there is no such task.
    """
    rows = _read()
    rows = rows[rows["task"] == (task if task in set(rows["task"]) else get_task(task).name)]
    if split is not None:
        rows = rows[rows["split"].str.contains(split, case=False, regex=False)]
    if k is not None:
        rows = rows[(rows["k"] == k).fillna(False)]
    return rows.reset_index(drop=True)


def _read() -> pd.DataFrame:
    return pd.read_csv(_FILE, dtype={"n": "Int64", "k": "Int64"}, keep_default_na=False, na_values=[""])


def published_table(task: str) -> pd.DataFrame:
    """The rows of the task's own metrics for reading: in the metrics' order, an interval as text, no missing values."""
    rows, metrics = published(task), get_task(task).metrics
    rows = pd.concat([rows[rows["metric"] == metric] for metric in metrics], ignore_index=True)
    bounds = zip(rows["low"], rows["high"], strict=True)
    rows["interval"] = ["" if pd.isna(low) else f"{low:.3f} – {high:.3f}" for low, high in bounds]
    rows[["n", "k"]] = rows[["n", "k"]].astype(object).fillna("")
    return rows[["metric", "value", "interval", "system", "base_model", "split", "n", "k", "source", "read_as"]]


def published_report(task: str) -> str:
    """Range and rows of each of the task's metrics, and the sources by number."""
    table, name = published_table(task), get_task(task).name
    if table.empty:
        return f"No published number on {name} is known to the kit."
    sources = list(dict.fromkeys(zip(table["source"], table["read_as"], strict=True)))
    numbers = {source: f"[{number}]" for number, (source, _) in enumerate(sources, 1)}
    lines = [f"What others have published on {name}. This is {NO_RANKING}."]
    for metric, rows in table.groupby("metric", sort=False):
        values = rows.loc[rows["read_as"] != OURS, "value"]
        spread = f"{len(values)} published, from {values.min():.3f} to {values.max():.3f}" if len(values) else "none"
        shown = rows.drop(columns=["metric", "read_as"]).assign(source=rows["source"].map(numbers))
        lines += ["", f"{metric}: {spread}", shown.to_string(index=False, float_format="{:.3f}".format)]
    listed = [f"{numbers[source]} {source} ({READ_AS[read_as]})" for source, read_as in sources]
    return "\n".join([*lines, "", "Sources:", *listed])
