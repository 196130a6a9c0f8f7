"""Dates in whatever form a file has them, as ISO; the form is guessed for a whole column and shown if it is unusual.

iso_dates(["3.5.2024", "14.5.2024"], "notes.csv", notes)      # ["2024-05-03T00:00:00", "2024-05-14T00:00:00"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from rpo_kit.lamp.own_texts.text import Notes

_LAST = 2200  # ours: a year after which a date is a mistake
_ENOUGH = 0.9  # ours: share of a column's dates that a form must read


def _by_form(form: str) -> Callable[[str], datetime]:
    def read(text: str) -> datetime:
        for ending in ("", " %H:%M", " %H:%M:%S", ", %H:%M", ", %H:%M:%S", " %I:%M %p"):
            with suppress(ValueError):
                return datetime.strptime(text, form + ending)
        raise ValueError(text)

    return read


def _epoch(text: str) -> datetime:
    seconds = float(text)
    return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)


_FORMS: dict[str, Callable[[str], datetime]] = {
    "ISO": datetime.fromisoformat,
    "as in mails": parsedate_to_datetime,
    "as in tweets": lambda text: datetime.strptime(text, "%a %b %d %H:%M:%S %z %Y"),
    "day.month.year": _by_form("%d.%m.%Y"),
    "month/day/year": _by_form("%m/%d/%Y"),
    "day/month/year": _by_form("%d/%m/%Y"),
    "seconds since 1970": _epoch,
}


def iso_date(text: str, read: Callable[[str], datetime] = parsedate_to_datetime) -> str:
    """The date in ISO form, in UTC where the zone is known; "" if it cannot be read. Never raises."""
    try:
        date = read(text.strip())
        if date.tzinfo is not None:
            date = date.astimezone(UTC).replace(tzinfo=None)
        return date.isoformat(timespec="seconds") if 1900 < date.year < _LAST else ""
    except (ValueError, TypeError, OverflowError, OSError, IndexError, AttributeError):
        return ""


def iso_dates(texts: Sequence[str], source: str, notes: Notes) -> list[str]:
    """All dates of a column by the form that reads most of them; "" where it does not."""
    filled = [text for text in texts if text.strip()]
    if not filled:
        return [""] * len(texts)
    read = {form: [iso_date(text, reader) for text in filled] for form, reader in _FORMS.items()}
    form = max(read, key=lambda name: sum(map(bool, read[name])))
    count = sum(map(bool, read[form]))
    if count < _ENOUGH * len(filled):
        notes.say(f"{source}: only {count} of {len(filled)} dates can be read (such as {filled[0][:30]!r} cannot)")
    elif form not in ("ISO", "as in mails"):
        notes.say(f"{source}: dates are read as {form}, such as {filled[0][:30]!r}")
    return [iso_date(text, _FORMS[form]) for text in texts]
