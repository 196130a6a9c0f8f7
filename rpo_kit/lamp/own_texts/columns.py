"""Rows with named columns: which column is the text, the author and the date, given or guessed and then shown.

row_texts(rows, Columns(), "notes.csv", notes)
# notes.lines: ["notes.csv: text column: body (guessed; --text COLUMN to change)", …]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.dates import iso_dates
from rpo_kit.lamp.own_texts.text import Notes, OwnText, readable

Row = dict[str, str]
_NAMES = {  # in lower case, the likeliest first (ours)
    "text": "text full_text body content message tweet post comment review note answer "
    "nachricht inhalt texte contenu texto",
    "author": "author from sender user user_id username screen_name name autor absender von auteur expediteur autor_id",
    "date": "date datetime timestamp created_at created sent sent_at time datum zeit gesendet horodatage fecha",
}
_OPTIONS = {"text": "--text", "author": "--author-column", "date": "--date"}


@dataclass(frozen=True)
class Columns:
    """The columns named on the command line; "" is guessed, "none" is without."""

    text: str = ""
    author: str = ""
    date: str = ""


def row_texts(rows: Sequence[Row], wanted: Columns, source: str, notes: Notes) -> list[OwnText]:
    """One text per row, in the order of the rows.

    Raises:
        KitError: a named column is not there, or no column holds texts.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    chosen = {kind: _chosen(kind, getattr(wanted, kind), names, rows, source, notes) for kind in _NAMES}
    dates = iso_dates([row.get(chosen["date"], "") for row in rows], source, notes)
    return [
        OwnText(
            f"{source}:{number}",
            readable(row.get(chosen["text"], "")),
            date,
            row.get(chosen["author"], "").strip().casefold(),
            source,
        )
        for number, (row, date) in enumerate(zip(rows, dates, strict=True), 1)
    ]


def _chosen(kind: str, wanted: str, names: list[str], rows: Sequence[Row], source: str, notes: Notes) -> str:
    """The column of this kind; "" if there is none."""
    option = _OPTIONS[kind]
    if wanted and wanted not in names and not (wanted == "none" and kind != "text"):
        raise KitError(
            f"{source} has no column {wanted!r}: {option} takes one of {', '.join(map(repr, names)) or 'no columns'}."
        )
    if wanted:
        return "" if wanted == "none" else wanted
    known = _NAMES[kind].split()
    guess = next((name for word in known for name in names if name.strip().casefold() == word), "")
    guess = guess or next((name for word in known for name in names if name.casefold().endswith(f".{word}")), "")
    if kind == "text" and not guess:
        guess = max(names, key=lambda name: sum(len(row.get(name, "")) for row in rows), default="")
    if guess:
        notes.say(f"{source}: {kind} column: {guess} (guessed; {option} COLUMN to change)")
    elif kind == "text":
        raise KitError(f"{source} has no column with texts: name one with --text COLUMN.")
    return guess
