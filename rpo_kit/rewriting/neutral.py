"""Neutral versions of a person's own passages: the queries of the examples that `mine` writes.

Here alone the base model sees what the person wrote, one passage at a time, to write it in neutral words: in training
for the pairs, and of held-out texts because a query is needed that does not give the person's words away (as LaMP-7 was
made). At use it sees what is to be rewritten and nothing of the person. A version that lost or added content, or that a
small model made a mess of, is replaced by one from rules (`lamp/own_texts/plain_words.py`); both are counted.

    write_neutral(base, passages, folder / "neutral.jsonl")     # {"mail:3/1": "I will be late tomorrow.", …}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.content import content_kept
from rpo_kit.lamp.own_texts.lamp_files import TASK
from rpo_kit.lamp.own_texts.languages import main_language
from rpo_kit.lamp.own_texts.passages import Passage
from rpo_kit.lamp.own_texts.plain_words import plain_words
from rpo_kit.lamp.reading import read
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.chat import Chat, Completion, reporting_cost, stream_completions
from rpo_kit.rewriting.base import base_conversations
from rpo_kit.rewriting.prompts import escape_tags, fill
from rpo_kit.runs import append_records, read_records

TOKENS = 120  # ours: twice a passage of 40 words
WRITERS = ("auto", "base", "rules")
KEPT = 0.75  # ours: share of a passage's content that a neutral version keeps, and of its own that it may not invent
_CHUNK = 32  # ours: versions stored at a time


def writer_for(wanted: str, base: str) -> str:
    """Who writes: for `auto` the base model, but rules in place of the bundled one.

    Measured: 14 of 64 versions of the bundled model kept the content, and most of these kept the spellings too.
    """
    if wanted not in WRITERS:
        raise KitError(f"--neutral {wanted}: there are {', '.join(WRITERS)}.")
    return ("rules" if base == "local:smollm2" else "base") if wanted == "auto" else wanted


def write_neutral(base: Chat | None, passages: Sequence[Passage], path: Path) -> dict[str, str]:
    """{passage id: neutral version}, stored line by line; `base` None: all by rules. Resumes what was interrupted.

    Raises:
        KitError: the base model did not answer.
    """
    language = main_language(passage.text for passage in passages)
    done = {record["id"] for record in read_records(path)}
    missing = [passage for passage in passages if passage.id not in done]
    if base is None:
        append_records(path, [_by_rules(passage, "", language) for passage in missing])
    elif missing:
        prompts = [fill("neutral", text=escape_tags(passage.text)) for passage in missing]
        conversations = base_conversations(base, prompts)
        bar = tqdm(total=len(missing), desc=f"{base.name} writes neutral versions", unit="passage")
        with bar, reporting_cost(base, conversations, TOKENS):
            for batch in stream_completions(base, conversations, max_new_tokens=TOKENS, chunk=_CHUNK):
                answered = [(missing[index], answer) for index, answer in batch if not answer.failure]
                append_records(path, [_record(passage, answer, language) for passage, answer in answered])
                bar.update(len(batch))
    records = {record["id"]: record for record in read_records(path)}
    lacking = [passage.id for passage in passages if passage.id not in records]
    if lacking:
        raise KitError(
            f"The base model wrote no neutral version of {len(lacking)} of {len(passages)} passages: run the same "
            "command again, which asks for those alone."
        )
    return {passage.id: records[passage.id]["text"] for passage in passages}


def describe_neutral(path: Path) -> str:
    """One line: who wrote how many versions, and why rules took the base model's place."""
    records = read_records(path)
    by = Counter(record["by"] for record in records)
    why = Counter(record["why"] for record in records if record["why"])
    same = sum(record["text"] == record["own"] for record in records)
    line = f"neutral versions: {by['base']} by the base model, {by['rules']} by rules"
    line += "".join(f"; {count} of the base model's {reason}" for reason, count in why.most_common())
    return line + (f"; {same} are the person's own words, in which rules found nothing to change" if same else "")


def _record(passage: Passage, answer: Completion, language: str) -> dict[str, str]:
    reading = read(get_task(TASK), answer.text)
    text = " ".join(reading.text.split())
    why = "are refusals" if reading.refusal else "were cut off" if not answer.finished else _why_not(passage.text, text)
    return _by_rules(passage, why, language) if why else _kept(passage, text, "base", "")


def _why_not(own: str, neutral: str) -> str:
    """Why a version cannot be used; "" if it can."""
    if not neutral:
        return "are empty"
    if content_kept(own, neutral).share < KEPT:
        return "lost content"
    if content_kept(neutral, own).share < KEPT:
        return "added content"
    return ""


def _by_rules(passage: Passage, why: str, language: str) -> dict[str, str]:
    return _kept(passage, plain_words(passage.text, language) or passage.text, "rules", why)


def _kept(passage: Passage, text: str, by: str, why: str) -> dict[str, str]:
    return {"id": passage.id, "text": text, "own": passage.text, "by": by, "why": why}
