"""The examples as LaMP's two files per split: a neutral text as the query, the person's own words as the gold.

Training examples come from the history by leaving one out (`lamp/leave_one_out.py`): each passage is the gold of one
example, with passages of other texts as its profile. Held-out examples have the newest passages of the history as their
profile. Their `user_id` is the text that they are part of, so that intervals are over texts: there is only one user.

    write_examples(folder, history, held_out, {"3/1": "I will be late."}, seed=0)      # {train,dev}_questions.json, …
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import write_lamp
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.leaks import gold_positions
from rpo_kit.lamp.leave_one_out import examples_from_items
from rpo_kit.lamp.own_texts.passages import Passage
from rpo_kit.lamp.tasks import Item, get_task
from rpo_kit.runs import write_text

TASK = "own-texts"
PROFILE = 200  # ours: items of a profile, the newest ones
ME = "me"  # the user
PROFILES = "profiles"  # folder with the profile as `serve --profiles` reads it


def write_examples(
    folder: Path, history: Sequence[Passage], held_out: Sequence[Passage], neutral: Mapping[str, str], seed: int = 0
) -> dict[str, int]:
    """Write both splits and the profile; {split: examples}. A passage whose neutral version is empty is no example.

    Raises:
        KitError: an example's gold is in its own profile, which the removal of duplicates should have prevented.
    """
    task = get_task(TASK)
    splits = {"train": list(_train(history, neutral, seed)), "dev": list(_held_out(history, held_out, neutral))}
    for split, rows in splits.items():
        leaking = [row["id"] for row in rows if gold_positions(task, row)]
        if leaking:
            raise KitError(f"{len(leaking)} {split} examples have their gold in the profile, such as {leaking[0]}.")
        write_lamp(folder, task, split, rows)
    lines = json.dumps(profile_of(history), ensure_ascii=False, indent=1)
    write_text(folder / PROFILES / f"{ME}.json", lines + "\n")
    return {split: len(rows) for split, rows in splits.items()}


def profile_of(history: Sequence[Passage]) -> list[Item]:
    """The newest passages of the history as profile items."""
    return [_item(passage) for passage in history[-PROFILE:]]


def _item(passage: Passage) -> Item:
    dated = {"date": passage.date[:10]} if passage.date else {}
    return {"id": passage.id, "text": passage.text} | dated


def _train(history: Sequence[Passage], neutral: Mapping[str, str], seed: int) -> Iterator[Example]:
    """One example per passage of the history, in a random order.

    `examples_from_items` takes the query from an item, so here an item also has the neutral version, which is dropped
    again: at use a profile holds the person's own words only.
    """
    task = get_task(TASK)
    pairs = replace(task, fields=("text", "neutral"), text_field="neutral", no_leave_one_out="")
    text_of = {passage.id: passage.text_id for passage in history}
    items = [_item(passage) | {"neutral": neutral.get(passage.id, "")} for passage in history]
    row = Example(id=ME, user_id=ME, input="", output="", profile=items)
    for example, _ in examples_from_items(pairs, [row], {}, len(items), seed):
        own = example["id"].removeprefix(f"{ME}-")
        if not task.query_text(example["input"]).strip():
            continue
        others = [item for item in example["profile"] if text_of[item["id"]] != text_of[own]][-PROFILE:]
        example["profile"] = [{k: v for k, v in item.items() if k != "neutral"} for item in others]
        yield example


def _held_out(history: Sequence[Passage], held_out: Sequence[Passage], neutral: Mapping[str, str]) -> Iterator[Example]:
    task, profile = get_task(TASK), profile_of(history)
    for passage in held_out:
        if neutral.get(passage.id, "").strip():
            query = task.make_input(text=neutral[passage.id])
            yield Example(id=passage.id, user_id=passage.text_id, input=query, output=passage.text, profile=profile)
