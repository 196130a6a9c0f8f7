"""An invented mailbox with a recognizable voice, and with all that makes real ones hard to read.

One author ("Mo Tern") writes most mails, in lower case, with words of their own; a few of them in German. Others write
formally. Among the mails are replies with quoted mail in several forms, signatures, attachments, HTML, forwarded mails,
odd charsets, repeated, empty and huge mails. Names, addresses and events are made up.

    python tests/own_mailbox.py sent.mbox 300
"""

from __future__ import annotations

import mailbox
import random
import sys
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

ME = "mo@example.org"


def _options(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


_SLOTS = {
    "who": _options("ada|ben|carla|dev|ella|finn|gina|hugo|iris|jonas|kim|lea|max|nora|otto|pia"),
    "day": _options("monday|tuesday|wednesday|thursday|friday"),
    "time": _options("9|10|11|half past two|3pm|4|noon|quarter to five"),
    "thing": _options(
        "the draft|the invoice|the floor plan|the budget sheet|the survey|the slides|the contract|the spare keys|"
        "the seating plan|the bus tickets|the old printer|the photo album|the water samples|the tent|the ladder"
    ),
    "place": _options(
        "the library|the depot|room 4|the harbour|the town hall|the bakery|the gym|the workshop|the roof"
    ),
    "number": _options("3|5|7|12|14|20|25|40|60"),
    "trouble": _options(
        "the train is down again|the heating died overnight|the van has a flat tyre|my laptop wont boot|the kids are "
        "ill|the lift is stuck|the printer ate the form|the rain got into the shed|the bank lost our transfer"
    ),
    "task": _options(
        "call the plumber|order more chairs|water the tomatoes|check the fuse box|paint the back wall|book the ferry|"
        "count the tickets|fix the projector|sort the post|measure the windows|clean the filters|ring the landlord"
    ),
}
_SENTENCES = (
    "gonna be late on {day} cos {trouble}",
    "had a look at {thing} last night, reckon page {number} is off",
    "can u send me {thing} by {time} on {day} pls",
    "thx for {thing}, made my week",
    "left {thing} at {place}, its under the desk",
    "reckon we need {number} more people if {trouble}",
    "gonna {task} first thing tmrw, dont wait for me",
    "pls {task} before {day}, i keep forgetting",
    "{who} says {trouble} so we gotta move it to {day}",
    "booked {place} for {time}, {number} of us",
    "dunno if {who} got {thing} yet, will ask",
    "ive got {number} left over from {day}, shout if u want some",
    "cant find {thing} anywhere, did {who} take it to {place}",
    "lets meet at {place} around {time}, ill bring {thing}",
    "{who} wants to {task} but i reckon its a job for {number} people",
    "no rush on {thing}, {day} is fine",
    "will {task} once {thing} is back from {place}",
    "cos {trouble} we gotta {task} ourselves",
    "spent {number} quid on it, gonna put it on the list for {day}",
    "pls tell {who} that {place} is shut til {time}",
    "just walked past {place}, looks like somebody forgot to {task}",
    "u were right about {thing}, sorry for the fuss",
    "does anyone mind if i swap {day} with {who}",
    "the new rota has me down for {place} at {time}, thats a mistake innit",
    "found {number} boxes of leaflets behind {thing}, no idea whose",
    "{who} and me can carry {thing} over to {place} after lunch",
    "quick one, is it {time} or later on {day}",
    "my sister knows a bloke who could {task} for {number} quid",
    "not fussed about {thing} tbh, whatever {who} thinks",
    "tried to ring {who} but {trouble}",
    "weather looks grim for {day}, gonna bring wellies",
    "somebody needs to {task} or we lose {place}",
    "put {thing} in the blue folder, cos {who} asked",
    "finally got round to it, {task} is off the list",
    "ppl keep asking me about {thing}, can we just say {day}",
    "heading to {place} now, back by {time} i reckon",
)
_OPENINGS = ("hey {who},", "hey all,", "right then,")
_CLOSINGS = ("cheers, mo", "ta, mo", "shout if not. mo")
_GERMAN = (
    "hallo {who}, ich komme am {day} etwas später, weil der zug nicht fährt. bitte fangt ohne mich an, ich lese das "
    "protokoll {number} dann nach",
    "danke für die unterlagen, ich habe sie gestern gelesen und finde seite {number} noch nicht gut. wir sehen uns am "
    "{day} bei {who}",
)
_FORMAL = (
    "Dear Mo,\n\nplease find attached the minutes of our meeting on {day}. Kindly confirm by {time} that {number} "
    "copies are sufficient.\n\nYours sincerely,\n{who}"
)
_QUOTED = "> Could you let me know about {thing}?\n> We would need it by {day}.\n"
_REPLIES = (  # what mail programs write above the mail that is answered
    "\n\nOn Tue, 3 May 2022 at 10:15, {who} <{who}@example.com> wrote:\n" + _QUOTED,
    "\n\nOn Tuesday the 3rd of May, {who} from the office\n<{who}@example.com> wrote:\n\n" + _QUOTED,
    "\n\nAm 03.05.22 um 10:15 schrieb {who}:\n" + _QUOTED,
    "\n\nLe 3 mai 2022 à 10:15, {who} a écrit :\n" + _QUOTED,
    "\n\n-----Original Message-----\nFrom: {who}\nSent: Tuesday\nTo: Mo\nSubject: Re\n\nCould you send {thing}?\n",
    "\n\nVon: {who}\nGesendet: Dienstag\nAn: Mo\nBetreff: AW\n\nKönnten Sie {thing} schicken?\n",
)
_SIGNATURE = "\n\n-- \nMo Tern\nTern & Tern, 12 Imaginary Lane\nhttps://example.org\n"


def voice(rng: random.Random, sentences: int | None = None) -> str:
    """A mail in the author's voice."""
    chosen = rng.sample(_SENTENCES, sentences or rng.choice((2, 2, 3, 3, 4)))
    body = ".. ".join(_filled(rng, sentence) for sentence in chosen)
    return f"{_filled(rng, rng.choice(_OPENINGS))}\n\n{body}\n\n{rng.choice(_CLOSINGS)}"


def _filled(rng: random.Random, template: str) -> str:
    return template.format_map({name: rng.choice(values) for name, values in _SLOTS.items()})


def write_mailbox(path: Path, mails: int = 300, seed: int = 0) -> Path:
    """`mails` mails; about 8 in 10 are the author's."""
    rng, box = random.Random(seed), mailbox.mbox(path)
    for number in range(mails):
        message = _mail(rng, number)
        message["Date"] = format_datetime(datetime(2022, 1, 3, 9, tzinfo=UTC) + timedelta(days=2 * number))
        box.add(message)
    box.flush()
    box.close()
    return path


def _mail(rng: random.Random, number: int) -> EmailMessage:
    kind = number % 50
    sender, text = f"Mo Tern <{ME}>", voice(rng)
    if kind in (3, 13, 23, 33, 43):
        sender, text = f"{rng.choice(_SLOTS['who']).title()} <office{number % 3}@example.com>", _filled(rng, _FORMAL)
    elif kind in (7, 27):
        text = _filled(rng, rng.choice(_GERMAN))
    elif kind == 11:
        text = ""
    elif kind == 12:
        text = "ok"
    elif kind == 17:
        text = "fyi\n\n---------- Forwarded message ----------\nFrom: ada\nSubject: timetable\n\nThe timetable is out."
    elif kind == 18:
        text = "weekly digest " * 2500
    elif kind == 19:
        text = "hey all,\n\nthe usual place and the usual time this week, bring cake and mugs pls.\n\ncheers, mo"
    elif number % 3 == 0:
        text += _filled(rng, _REPLIES[number // 3 % len(_REPLIES)])
    elif number % 3 == 1:
        text += _SIGNATURE
    return _message(sender, text, number, kind)


def _message(sender: str, text: str, number: int, kind: int) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "list@example.org", f"note {number}"
    if kind == 29:
        paragraphs = "".join(
            f"<p>{part}</p>" for part in text.replace("\n", "<br>").replace("<br><br>", "\n\n").split("\n\n")
        )
        message.set_content(f"<style>p {{color: red}}</style>{paragraphs}", "html")
        return message
    charset = {31: "iso-8859-1", 37: "utf-16"}.get(kind, "utf-8")
    message.set_content(text, charset=charset)
    if kind in (5, 25):
        message.add_attachment(b"\x00\x01" * 500, maintype="image", subtype="png", filename="photo.png")
    if kind == 41:  # a charset that does not exist
        message.replace_header("Content-Type", 'text/plain; charset="x-unknown-9"')
    return message


if __name__ == "__main__":
    write_mailbox(Path(sys.argv[1]), *(int(number) for number in sys.argv[2:]))
