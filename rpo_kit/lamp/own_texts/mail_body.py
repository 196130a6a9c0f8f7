"""What the sender of a mail wrote: the text without quoted mail, signature and forwarded mail, in four languages.

own_part("see you there\\n\\nOn 3 May, Ann wrote:\\n> Are you coming?\\n-- \\nMia", notes)       # "see you there"
"""

from __future__ import annotations

import re

from rpo_kit.lamp.own_texts.text import Notes

QUOTED = "mails with quoted mail (removed)"
SIGNED = "mails with a signature (removed)"
FORWARDED = "forwarded mails (what was forwarded is removed)"
EMPTY = "mails without words of their own (left out)"

_FORWARD = re.compile(
    r"(?:-{2,}\s*(?:forwarded message|weitergeleitete nachricht|message transf[ée]r[ée]|mensaje reenviado)\s*-{2,}"
    r"|begin forwarded message:|anfang der weitergeleiteten (?:nachricht|e-mail):|d[ée]but du message"
    r" (?:transf[ée]r[ée]|r[ée]exp[ée]di[ée])\s*:)\s*",
    re.IGNORECASE,
)
_ORIGINAL = re.compile(
    r"(?:-{2,}\s*(?:original message|urspr[üu]ngliche nachricht|original-nachricht|message d'origine|message original"
    r"|mensaje original)\s*-{2,}|_{20,})\s*",
    re.IGNORECASE,
)
_ATTRIBUTION = re.compile(  # On 3 May 2024, Ann wrote:
    r"(?:on\b.{4,200}\bwrote|am\b.{4,200}\bschrieb\b.{0,120}|.{0,120}\bschrieb am\b.{4,120}"
    r"|le\b.{4,200}\ba [ée]crit|el\b.{4,200}\bescribi[óo])\s*[:：]\s*",
    re.IGNORECASE | re.DOTALL,
)
_BEGINS = re.compile(r"(?:on|am|le|el)\s+\S|.{1,60}\bschrieb am\b", re.IGNORECASE)
_HEAD = re.compile(  # From: … Sent: … as Outlook writes above what it quotes
    r"\s*\*?(?:from|sent|date|to|cc|subject|von|gesendet|datum|an|betreff|de|envoy[ée]|[àa]|objet|enviado|para|asunto)"
    r"\s*(?:\*\s*)?:\*?\s+\S.*",
    re.IGNORECASE,
)
_SENT_FROM = re.compile(
    r"\s*(?:sent from my\b.{2,40}|sent from outlook.*|get outlook for\b.*|von meinem .{2,40} gesendet.?"
    r"|gesendet von .{2,40}|envoy[ée] de (?:mon|ma)\b.{2,40}|enviado desde mi\b.{2,40})\s*",
    re.IGNORECASE,
)
_HEADS = 3  # ours: so many lines of a mail's head in a row are one
_LOOK = 3  # ours: an attribution is broken over so many lines at most


def own_part(body: str, notes: Notes) -> str:
    """The sender's own words; "" if there are none. What was removed is counted."""
    lines = [line.rstrip() if line != "-- " else line for line in body.replace("\xa0", " ").split("\n")]
    lines, signed = _without_signature(lines)
    lines, forwarded = _before(lines, _FORWARD)
    lines, quoted = _without_quotes(lines)
    text = "\n".join(lines).strip()
    notes.counts[SIGNED] += signed
    notes.counts[FORWARDED] += forwarded
    notes.counts[QUOTED] += quoted
    notes.counts[EMPTY] += not text
    return text


def _without_signature(lines: list[str]) -> tuple[list[str], bool]:
    """Without what follows the last line "-- ", above which the text ends, and without "Sent from my phone"."""
    cut = next((n for n, line in enumerate(lines) if line in ("-- ", "--")), None)
    own = lines if cut is None else lines[:cut] + _quoted_after(lines[cut:])
    kept = [line for line in own if not _SENT_FROM.fullmatch(line)]
    return kept, cut is not None or len(kept) < len(own)


def _quoted_after(lines: list[str]) -> list[str]:
    """What is quoted below a signature, for it is counted as a quote."""
    start = next((n for n, line in enumerate(lines) if _starts_quote(lines, n) or line.startswith(">")), len(lines))
    return lines[start:]


def _before(lines: list[str], pattern: re.Pattern[str]) -> tuple[list[str], bool]:
    cut = next((n for n, line in enumerate(lines) if pattern.fullmatch(line.strip())), None)
    return (lines, False) if cut is None else (lines[:cut], True)


def _without_quotes(lines: list[str]) -> tuple[list[str], bool]:
    """Without lines that begin with ">" and the line above them that says who wrote it. Where nothing marks the quoted
    lines, all that follows such a line, or a mail's head, is quoted.
    """
    kept: list[str] = []
    quoted, number = False, 0
    while number < len(lines):
        if lines[number].lstrip().startswith(">"):
            quoted, number = True, number + 1
        elif length := _starts_quote(lines, number):
            quoted, number = True, number + length
            following = next((line for line in lines[number:] if line.strip()), "")
            if not following.lstrip().startswith(">"):
                break
        else:
            kept.append(lines[number])
            number += 1
    return kept, quoted


def _starts_quote(lines: list[str], number: int) -> int:
    """How many lines from this one on say who wrote what follows; 0 if they do not."""
    line = lines[number].strip()
    if _ORIGINAL.fullmatch(line):
        return 1
    heads = 0
    while number + heads < len(lines) and _HEAD.fullmatch(lines[number + heads]):
        heads += 1
    if heads >= _HEADS:
        return heads
    if not _BEGINS.match(line):
        return 0
    for length in range(1, _LOOK + 1):
        if _ATTRIBUTION.fullmatch(" ".join(part.strip() for part in lines[number : number + length])):
            return length
    return 0
