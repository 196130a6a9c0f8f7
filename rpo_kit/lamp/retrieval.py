"""Which history items come first: each user's profile ranked for the user's question, whole, best first.

The arrow from profile U to the retrieved items P in Figure 1; `take` then cuts off the first k ("shots"). Three
methods: `bm25` (words shared with the question), `recency` (newest first) and `random`. Dense retrieval is left out.

BM25 is LaMP's (k1 = 1.5, b = 0.75, words = `str.split()`), computed by `bm25s`, one index a distinct profile. No
variant in `bm25s` weighs words as LaMP's library does (on made-up profiles of 12-150 items the best of them agreed on
60-80 % of the first four items; measured), so its index is re-weighed: see `_okapi_idf`. Of equal scores the later item
comes first; LaMP's order of ties depends on machine and numpy version.

>>> from rpo_kit.lamp.tasks import get_task
>>> examples = [{"id": "1", "input": get_task("LaMP-7").make_input(text="rain again"), "profile":
...             [{"id": "10", "text": "sun at last"}, {"id": "11", "text": "more rain"}, {"id": "12", "text": "hi"}]}]
>>> rank(get_task("LaMP-7"), examples, "bm25")
[[1, 2, 0]]
"""

import hashlib
import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import bm25s
import numpy as np
from datasets import Dataset
from tqdm import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task

Examples: TypeAlias = Dataset | Sequence[Mapping[str, Any]]

K1, B, EPSILON = 1.5, 0.75, 0.25  # LaMP: the defaults of its BM25 library

# bm25s logs each index it builds, at the level of debugging; with one index a user that would be all one reads.
logging.getLogger("bm25s").setLevel(logging.WARNING)


def rank(task: Task, dataset: Examples, method: str, seed: int = 0) -> list[list[int]]:
    """For each example the indices of its whole profile, best first; an empty profile gives an empty list."""
    if method == "bm25":
        return _rank_bm25(task, dataset)
    if method == "recency":
        return [_rank_recency(example) for example in dataset]
    if method == "random":
        return [_rank_random(example, seed) for example in dataset]
    raise KitError(f"There is no retrieval method {method!r}; the known ones are bm25, recency and random.")


def take(example: Mapping[str, Any], order: Sequence[int], k: int) -> list[Item]:
    """The first k items of the ranking; fewer where the profile is shorter."""
    if k < 0:
        raise KitError(f"k is {k}, but one cannot take fewer than 0 items: set k to 0 or more.")
    return [example["profile"][index] for index in order[:k]]


# --- bm25 ---


def _rank_bm25(task: Task, dataset: Examples) -> list[list[int]]:
    """One index a distinct profile, asked with the questions of all examples that share it."""
    sharing: dict[bytes, list[int]] = defaultdict(list)
    for number, example in enumerate(dataset):
        sharing[_fingerprint(_corpus(task, example))].append(number)
    orders: dict[int, list[int]] = {}
    for numbers in tqdm(sharing.values(), desc="BM25", unit="profile", delay=5, leave=False):
        scores_for = _index([text.split() for text in _corpus(task, dataset[numbers[0]])])
        for number in numbers:
            query = task.retrieval_query(dataset[number]["input"])
            orders[number] = _best_first(scores_for(query.split()))
    return [orders[number] for number in range(len(orders))]


def _corpus(task: Task, example: Mapping[str, Any]) -> list[str]:
    return [task.corpus_text(item) for item in example["profile"]]


def _fingerprint(texts: list[str]) -> bytes:
    """Stands for the texts, which may be gigabytes, as a key."""
    return hashlib.sha256(json.dumps(texts).encode()).digest()


def _best_first(scores: np.ndarray) -> list[int]:
    """Indices by falling score, the later item first among equals."""
    return [int(index) for index in np.argsort(scores, kind="stable")[::-1]]


def _index(documents: list[list[str]]) -> Callable[[list[str]], np.ndarray]:
    """LaMP's BM25 over the documents: a function from the words of a query to one score a document, shape (n,)."""
    if not any(documents):  # no profile, or no word in it: bm25s cannot index that, and nothing can be found
        return lambda query: np.zeros(len(documents))
    index = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
    index.index(documents, show_progress=False)
    # Column w of the sparse matrix has idf(w) * tf / (tf + k1 * (1 - b + b * length / mean length)), a row a document.
    found_in = np.diff(index.scores["indptr"])
    lucene_idf = np.log(1 + (len(documents) - found_in + 0.5) / (found_in + 0.5))
    factor = (K1 + 1) * _okapi_idf(found_in, len(documents)) / lucene_idf
    index.scores["data"] = index.scores["data"] * np.repeat(factor, found_in)
    return lambda query: index.get_scores(query) if query else np.zeros(len(documents))


def _okapi_idf(found_in: np.ndarray, documents: int) -> np.ndarray:
    """Weight of each word, from the number of documents it is found in (LaMP's library, BM25 "Okapi").

    idf(w) = log((N - n + 1/2) / (n + 1/2)); a word in more than half of the documents would weigh less than nothing and
    gets epsilon times the mean idf instead.
    """
    idf = np.log(documents - found_in + 0.5) - np.log(found_in + 0.5)
    mean = math.fsum(idf) / len(idf)  # exact, because bm25s numbers the words differently in each process
    return np.where(idf < 0, EPSILON * mean, idf)


# --- recency and random ---


def _rank_recency(example: Mapping[str, Any]) -> list[int]:
    """Newest first by date; by position (the last items are the newest) where no item has a date."""
    days = [_day(item, str(example["id"])) for item in example["profile"]]
    oldest_first = sorted(range(len(days)), key=days.__getitem__)  # stable: position decides between equal dates
    return oldest_first[::-1]


def _day(item: Item, example_id: str) -> tuple[int, ...]:
    """ "2011-05-03" as (2011, 5, 3); a year alone is a date too. An item without date counts as older than any."""
    date = item.get("date") or ""
    try:
        return tuple(int(part) for part in date.split("-")) if date else ()
    except ValueError as error:
        raise KitError(
            f"Profile item {item.get('id')!r} of example {example_id!r} has the date {date[:40]!r}, which is not like "
            "2011-05-03 or 2011: correct it, or rank by bm25 or random."
        ) from error


def _rank_random(example: Mapping[str, Any], seed: int) -> list[int]:
    """A shuffle that depends on seed and example id only. (LaMP draws with replacement; items would repeat.)"""
    order = list(range(len(example["profile"])))
    random.Random(f"{seed}:{example['id']}").shuffle(order)
    return order
