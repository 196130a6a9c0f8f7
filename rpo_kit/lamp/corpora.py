"""What every retriever searches: the texts of each profile, and the query to search them with.

next(corpora(task, dataset))     # ([texts of profile 0, texts of profile 1, …], [query 0, query 1, …])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import Formatter
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from rpo_kit.lamp.example import Row
from rpo_kit.lamp.tasks import Task
from rpo_kit.text import replace_surrogates

Examples: TypeAlias = Dataset | Sequence[Row]  # with "input" and "profile"

_CHUNK = 128  # examples per batch of texts taken out of Arrow; 20 MB for LaMP-3


def corpora(task: Task, dataset: Examples) -> Iterator[tuple[list[pa.Array], list[str]]]:
    """What LaMP indexes and what it searches for, batch by batch: one array of texts per profile, and the queries."""
    for start in range(0, len(dataset), _CHUNK):
        if isinstance(dataset, Dataset):
            columns = dataset.with_format("arrow")[start : start + _CHUNK]
            texts, inputs = _texts_in_arrow(task, columns["profile"].combine_chunks()), columns["input"].to_pylist()
        else:
            rows = dataset[start : start + _CHUNK]
            profiles = [[replace_surrogates(task.corpus_text(item)) for item in row["profile"]] for row in rows]
            texts = [pa.array(profile, pa.string()) for profile in profiles]
            inputs = [replace_surrogates(row["input"]) for row in rows]
        yield texts, [task.retrieval_query(input) for input in inputs]


def _texts_in_arrow(task: Task, profiles: pa.ListArray) -> list[pa.Array]:
    """`Task.corpus_text` of every item, without making Python objects of gigabytes of text."""
    bounds, items = profiles.offsets.to_numpy(), profiles.values
    pieces = []
    for literal, field, _, _ in Formatter().parse(task.corpus):
        if literal:
            pieces.append(literal)
        if field:
            # The kit writes plain strings; a dataset from elsewhere may have large strings and nulls.
            pieces.append(pc.fill_null(items.field(field).cast(pa.string()), ""))
    texts = pieces[0] if len(pieces) == 1 else pc.binary_join_element_wise(*pieces, "")
    return [texts[first:last] for first, last in pairwise(bounds.tolist())]
