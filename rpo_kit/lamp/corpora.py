"""What every retriever searches: the texts of each profile, and the query it is searched with.

next(corpora(task, dataset))     # ([texts of profile 0, texts of profile 1, …], [query 0, query 1, …])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from string import Formatter
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from rpo_kit.lamp.tasks import Task
from rpo_kit.text import replace_surrogates

Examples: TypeAlias = Dataset | Sequence[Mapping[str, Any]]

_CHUNK = 128  # examples whose texts are taken out of Arrow at a time; 20 MB for LaMP-3


def corpora(task: Task, dataset: Examples) -> Iterator[tuple[list[pa.Array], list[str]]]:
    """What LaMP indexes and what it asks with, a chunk of examples at a time: one array of texts a profile, queries."""
    for start in range(0, len(dataset), _CHUNK):
        if isinstance(dataset, Dataset):
            rows = dataset.with_format("arrow")[start : start + _CHUNK]
            yield _texts_in_arrow(task, rows["profile"].combine_chunks()), _queries(task, rows["input"].to_pylist())
        else:
            rows = dataset[start : start + _CHUNK]
            found = [[replace_surrogates(task.corpus_text(item)) for item in row["profile"]] for row in rows]
            texts = [pa.array(profile, pa.string()) for profile in found]
            yield texts, _queries(task, [replace_surrogates(row["input"]) for row in rows])


def _queries(task: Task, inputs: Sequence[str]) -> list[str]:
    return [task.retrieval_query(input) for input in inputs]


def _texts_in_arrow(task: Task, profiles: pa.ListArray) -> list[pa.Array]:
    """`Task.corpus_text` of every item, without making Python objects of gigabytes of text."""
    bounds, items = profiles.offsets.to_numpy(), profiles.values
    pieces = [
        part
        for literal, field, _, _ in Formatter().parse(task.corpus)
        for part in ((literal,) if literal else ()) + ((_plain(items.field(field)),) if field else ())
    ]
    texts = pieces[0] if len(pieces) == 1 else pc.binary_join_element_wise(*pieces, "")
    return [texts[first:last] for first, last in pairwise(bounds.tolist())]


def _plain(texts: pa.Array) -> pa.Array:
    """As a dataset of the kit has them; one that came another way may have large strings, and places without a text."""
    return pc.fill_null(texts.cast(pa.string()), "")
