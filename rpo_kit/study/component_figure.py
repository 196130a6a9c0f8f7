"""The component study from its stored numbers: its table, its figure, and the copy that is kept with the code.

components_figure(read_table("figures/data/components_LaMP-7"))      # reads ….csv
"""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rpo_kit.errors import KitError
from rpo_kit.provenance import without_folders
from rpo_kit.runs import Run, write_json
from rpo_kit.study import alt_text, comparisons, results, stored
from rpo_kit.study.arms import FULL_METHOD
from rpo_kit.study.drawing import BLUE, GREY, INK, RED
from rpo_kit.study.significance import LEVEL
from rpo_kit.study.style import SMALL, STYLE, UNRESOLVED_COLOR

FILES = ("components.csv", "provenance.json")


def components_figure(table: pd.DataFrame) -> Figure:
    """One row per arm: its difference to the full method with the 95 % interval, grey and hollow if it is not resolved,
    and its score at the right; below a line, as squares, the base model and the trivial baselines.
    """
    full = table[table["system"] == FULL_METHOD].iloc[0]
    rows = table[table["system"] != FULL_METHOD].reset_index(drop=True)
    arms = int((rows["seeds"] > 0).sum())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.3 + 0.34 * len(rows)), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        ax.axvline(0, color=INK, lw=1.2)
        for row, is_resolved in zip(rows.itertuples(), resolved(rows), strict=True):
            color = (RED if row.difference < 0 else BLUE) if is_resolved else UNRESOLVED_COLOR
            error = [[max(0.0, row.difference - row.difference_low)], [max(0.0, row.difference_high - row.difference)]]
            ax.errorbar(row.difference, row.Index, xerr=error, fmt="o" if row.Index < arms else "s", color=color,
                        mfc=color if is_resolved else "white", ms=6.5, elinewidth=1.8)  # fmt: skip
            ax.annotate(f"{row.score:.3f}", (1.01, row.Index), xycoords=("axes fraction", "data"), va="center",
                        fontsize=SMALL, color=INK)  # fmt: skip
        if arms < len(rows):
            ax.axhline(arms - 0.5, color=GREY, lw=0.8, ls=(0, (4, 3)))
        ax.annotate("score", (1.01, -0.8), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
        ax.set_yticks(range(len(rows)), list(rows["name"]))
        ax.set_ylim(len(rows) - 0.5, -0.6)
        ax.grid(axis="y", visible=False)
        seeds = f"{full['seeds']:.0f} seed" + ("s" if full["seeds"] > 1 else "")
        ax.set_xlabel(
            f"score minus the full method's, {full['score']:.3f}, with 95 % interval; squares: no module\n"
            f"{full['users']:.0f} users, {seeds}; MDE {comparisons.mde_range(rows[:arms]) or 'unknown'}\n"
            f"grey, hollow: not resolved (Holm-adjusted p of {LEVEL} or more;\nsquares: the interval contains 0)"
        )
    return alt_text.described(figure, alt_text.of_components(rows, resolved(rows)))


def resolved(table: pd.DataFrame) -> list[bool]:
    """Whether each row's difference to the full method is told apart from 0: of arms by the p that is adjusted for
    their number; of what needs no training, and is not among the comparisons, by the interval. True for "full".
    """
    of_difference = {"difference_low": "low", "difference_high": "high"}
    differences = table[[*of_difference, "p_holm"]].rename(columns=of_difference)
    told_apart: list[bool] = (comparisons.resolved(differences) | table["difference"].isna()).tolist()
    return told_apart


def gain_over_trivial(table: pd.DataFrame) -> str:
    """A sentence: the full method minus the best trivial baseline; "" if the task has none."""
    full_minus = pd.DataFrame({
        "system": FULL_METHOD, "minus": table["system"], "score": -table["difference"],
        "low": -table["difference_high"], "high": -table["difference_low"], "mde": table["mde"],
    })  # fmt: skip
    return results.gain_over_trivial(table, full_minus, (FULL_METHOD,))


def read_table(prefix: str) -> pd.DataFrame:
    """The table in `<prefix>.csv`. Raises KitError if it is missing or damaged."""
    file = Path(f"{prefix}.csv")
    if not file.exists():
        raise KitError(f"The file {file} is missing: run `python -m rpo_kit sweep --grid components --run NAME` first.")
    return stored.read_table(file, ("score", "low", "high", "difference", "seeds"), ("system", "name"))


def export(run: Run, folder: Path, name: str) -> list[Path]:
    """Copy table and provenance to `folder/components_<name>.csv` and `.json`, to be committed with the code.

    Raises:
        KitError: the study is not finished, or a file of it is damaged.
    """
    read_table(str(run.stage("components") / "components"))
    record = stored.read_record(run.stage("components") / FILES[1])
    folder.mkdir(parents=True, exist_ok=True)
    table, provenance = (folder / f"components_{name}{Path(file).suffix}" for file in FILES)
    shutil.copyfile(run.stage("components") / FILES[0], table)
    write_json(provenance, without_folders(record))
    return [table, provenance]
