"""LaMP's BM25 over one user's profile, bit for bit, with the counting done by Arrow.

What LaMP asks a Python library for, once a question: BM25 "Okapi" with k1 = 1.5, b = 0.75, epsilon = 0.25 and words as
`str.split()` makes them. Scores here are equal to that library's to the last bit (its order of additions is kept), so
equal items tie here as they do there. Splitting and numbering the words, where the time goes, are Arrow's C++; the
formula is numpy's. Left out: keeping an index; a profile is asked once.

>>> okapi_scores(pa.array(["sun at last", "more rain", "hi"]), "rain again").round(4).tolist()
[0.0, 0.5108, 0.0]
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

K1, B, EPSILON = 1.5, 0.75, 0.25  # LaMP: the defaults of its BM25 library
_CELLS = 2**20  # bytes of the table documents x words that is looked at in one go: a processor's own cache


@dataclass(frozen=True)
class _Words:
    """The words of all documents and of the query, numbered in the order of their first appearance."""

    codes: np.ndarray  # (words of all documents,)
    document: np.ndarray  # (the same,), which document each stands in
    lengths: np.ndarray  # (documents,)
    query: np.ndarray  # (words of the query,), those that no document has left out
    vocabulary: int


def okapi_scores(documents: pa.Array, query: str) -> np.ndarray:
    """One score a document, shape (n,); all zero where neither side has a word.

    score(d) = sum over the query's words w, repeats included, of
               idf(w) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length(d) / mean length))
    idf(w)   = log(N - n + 1/2) - log(n + 1/2), n of N documents having w; where that is negative,
               epsilon times the mean idf of all words instead
    """
    words = _words(documents, query)
    scores = np.zeros(len(documents))
    if not len(words.query):
        return scores
    asked, places = np.unique(words.query, return_inverse=True)
    idf = _idf(_found_in(words), len(documents))[asked]
    times = _times(words, asked)
    mean_length = len(words.codes) / len(documents)
    parts = idf[:, None] * (times * (K1 + 1) / (times + K1 * (1 - B + B * words.lengths / mean_length)))
    for place in places:  # one word after the other, as LaMP adds them up: the last bit depends on it
        scores += parts[place]
    return scores


def _words(documents: pa.Array, query: str) -> _Words:
    split = _split(pa.concat_arrays([documents, pa.array([query], documents.type)]))
    encoded = split.values.dictionary_encode()
    codes, bounds = encoded.indices.to_numpy(), split.offsets.to_numpy()
    row = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    if pc.min(pc.binary_length(encoded.dictionary)).as_py() == 0:
        # Arrow makes "" of an empty text and of outer blanks; Python does not
        blank = encoded.dictionary.index("").as_py()
        row, codes = row[codes != blank], codes[codes != blank]
        codes = codes - (codes > blank)
    end = int(np.searchsorted(row, len(documents)))  # the query is the last row
    vocabulary = int(codes[:end].max()) + 1 if end else 0
    return _Words(
        codes=codes[:end],
        document=row[:end],
        lengths=np.bincount(row[:end], minlength=len(documents)),
        query=codes[end:][codes[end:] < vocabulary],
        vocabulary=vocabulary,
    )


def _split(texts: pa.Array) -> pa.Array:
    """A list of words a text, cut where `str.split()` cuts; Arrow's faster way wherever the two agree."""
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    plain = not len(data) or (data.max() < 128 and not np.any((data > 27) & (data < 32)))
    return pc.ascii_split_whitespace(texts) if plain else pc.utf8_split_whitespace(texts)


def _found_in(words: _Words) -> np.ndarray:
    """In how many documents each word stands, shape (vocabulary,)."""
    documents = len(words.lengths)
    found = np.zeros(words.vocabulary, np.int64)
    bounds = np.concatenate([[0], np.cumsum(words.lengths)])
    step = max(1, min(255, _CELLS // words.vocabulary))  # 255: the count of a block fits into a byte
    for first in range(0, documents, step):
        last = min(first + step, documents)
        inside = slice(bounds[first], bounds[last])
        seen = np.zeros((last - first, words.vocabulary), np.uint8)
        seen[words.document[inside] - first, words.codes[inside]] = 1
        found += seen.sum(0, dtype=np.uint8)
    return found


def _idf(found_in: np.ndarray, documents: int) -> np.ndarray:
    """Weight of each word. The mean is summed word after word, in the order of first appearance, as in LaMP."""
    idf = _idf_table(documents)[found_in]
    return np.where(idf < 0, EPSILON * (np.cumsum(idf)[-1] / len(idf)), idf)


@lru_cache(maxsize=1024)
def _idf_table(documents: int) -> np.ndarray:
    """The weight of a word by the number of documents which have it. By `math.log`: numpy's may differ in a bit."""
    return np.array([math.log(documents - n + 0.5) - math.log(n + 0.5) for n in range(documents + 1)])


def _times(words: _Words, asked: np.ndarray) -> np.ndarray:
    """How often each asked word stands in each document, shape (asked, documents)."""
    documents = len(words.lengths)
    place = np.full(words.vocabulary, len(asked))  # all other words are counted in one more row, which is dropped
    place[asked] = np.arange(len(asked))
    cells = (place * documents)[words.codes] + words.document
    return np.bincount(cells, minlength=(len(asked) + 1) * documents).reshape(-1, documents)[:-1]
