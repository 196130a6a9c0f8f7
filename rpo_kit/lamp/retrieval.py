"""Which history items come first: each user's whole profile ranked for the user's query, best first.

The arrow from profile U to the retrieved items P in Figure 1; `top_k` then takes the first k ("shots"). The retrievers:

    bm25        LaMP's BM25 (see `okapi`); of equal scores the later item comes first, on every machine
    bm25-lamp   the same scores; equal ones in the order in which LaMP's own call sorts them on this machine
    dense:NAME  a sentence encoder from the hub or a folder (see `dense`), as LaMP uses facebook/contriever
    recency     newest first
    random      a shuffle with a seed

LaMP sorts by `numpy.argsort`, which does not keep the order of ties: it differs between processors and numpy versions.
`bm25-lamp` makes the same call; use it to compare with files that LaMP's scripts ranked on this machine.

>>> from rpo_kit.lamp.tasks import get_task
>>> examples = [{"id": "1", "input": get_task("LaMP-7").make_input(text="rain again"), "profile":
...             [{"id": "10", "text": "sun at last"}, {"id": "11", "text": "more rain"}, {"id": "12", "text": "hi"}]}]
>>> rank(get_task("LaMP-7"), examples, "bm25")
[[1, 2, 0]]
"""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.corpora import Examples, corpora
from rpo_kit.lamp.example import Row
from rpo_kit.lamp.okapi import okapi_scores
from rpo_kit.lamp.tasks import Item, Task

RETRIEVERS = ("bm25", "bm25-lamp", "dense:NAME", "recency", "random")


def rank(task: Task, dataset: Examples, retriever: str, seed: int = 0) -> list[list[int]]:
    """For each example the indices of its whole profile, best first; an empty profile gives an empty list."""
    if retriever in ("bm25", "bm25-lamp"):
        return _rank_bm25(task, dataset, stable=retriever == "bm25")
    if retriever.startswith("dense:"):
        from rpo_kit.lamp.dense import rank_dense  # loading torch takes seconds

        return rank_dense(task, dataset, retriever.removeprefix("dense:"))
    if retriever == "recency":
        return [_rank_recency(example) for example in dataset]
    if retriever == "random":
        return [_rank_random(example, seed) for example in dataset]
    raise KitError(f"There is no retriever {retriever!r}: set data.retriever to one of {', '.join(RETRIEVERS)}.")


def top_k(example: Row, order: Sequence[int], k: int) -> list[Item]:
    """The first k items of the ranking; fewer if the profile is shorter."""
    if k < 0:
        raise KitError(f"k is {k}, but a number of items cannot be negative: set k to 0 or more.")
    return [example["profile"][index] for index in order[:k]]


# --- bm25 ---


def _rank_bm25(task: Task, dataset: Examples, stable: bool) -> list[list[int]]:
    """Each profile is searched once. Arrow releases Python's global lock, so threads help if there are free cores."""

    def order(documents: pa.Array, query: str) -> list[int]:
        scores = okapi_scores(documents, query)
        ascending = np.argsort(scores, kind="stable") if stable else np.argsort(scores)
        ranking: list[int] = ascending[::-1].tolist()
        return ranking

    rankings: list[list[int]] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(dataset), desc="BM25", unit="profile", delay=5, leave=False) as bar,
    ):
        for profiles, queries in corpora(task, dataset):
            rankings += pool.map(order, profiles, queries)
            bar.update(len(queries))
    return rankings


# --- recency and random ---


def _rank_recency(example: Row) -> list[int]:
    """Newest first by date; by position (the last items are the newest) if no item has a date."""
    days = [_day(item, str(example["id"])) for item in example["profile"]]
    oldest_first = sorted(range(len(days)), key=days.__getitem__)  # stable: position decides between equal dates
    return oldest_first[::-1]


def _day(item: Item, example_id: str) -> tuple[int, ...]:
    """ "2011-05-03" as (2011, 5, 3); a year alone is a date too. An item without a date counts as the oldest."""
    if not isinstance(item, dict):
        raise KitError(
            f"A profile item of example {example_id!r} is {str(item)[:40]!r}: make it a JSON object with texts."
        )
    date = item.get("date") or ""
    try:
        return tuple(int(part) for part in date.split("-")) if date else ()
    except ValueError as error:
        raise KitError(
            f"Profile item {item.get('id')!r} of example {example_id!r} has the date {date[:40]!r}, which does not "
            "look like 2011-05-03 or 2011: correct it, or rank by bm25 or random."
        ) from error


def _rank_random(example: Row, seed: int) -> list[int]:
    """A shuffle that depends on seed and example id only. (LaMP draws with replacement; items would repeat.)"""
    order = list(range(len(example["profile"])))
    random.Random(f"{seed}:{example['id']}").shuffle(order)
    return order
