"""LaMP's BM25 over one user's profile, bit for bit, with the counting done by Arrow.

What LaMP asks a Python library for, once a question: BM25 "Okapi" with k1 = 1.5, b = 0.75, epsilon = 0.25 and words as
`str.split()` makes them. Scores here are equal to that library's to the last bit (its order of additions is kept), so
equal items tie here as they do there. Numbering the words, where the time goes, is Arrow's C++; the rest is numpy's.
Left out: keeping an index; a profile is asked once.

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
_BLANK = ord(" ")
_ASCII_SPACES = np.array([chr(byte).isspace() for byte in range(128)])
_WIDE_SPACES = [int.from_bytes(chr(n).encode()) for n in range(128, 2**16) if chr(n).isspace()]  # 2 or 3 bytes
_WIDE_STARTS = np.zeros(2**16, bool)  # by the first two bytes
_WIDE_STARTS[[number >> 8 if number >= 2**16 else number for number in _WIDE_SPACES]] = True
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
    if not len(words.query):
        return np.zeros(len(documents))
    asked, places = np.unique(words.query, return_inverse=True)
    idf = _idf(_found_in(words), len(documents))[asked]
    times = _times(words, asked)
    mean_length = len(words.codes) / len(documents)
    parts = idf[:, None] * (times * (K1 + 1) / (times + K1 * (1 - B + B * words.lengths / mean_length)))
    # One word after the other and from 0 on, as LaMP adds them up: the last bit and the sign of 0 depend on it.
    return np.cumsum(parts[places], 0)[-1] + 0.0


def _words(documents: pa.Array, query: str) -> _Words:
    words, row = _split(pa.concat_arrays([documents, pa.array([query, ""], documents.type)]))
    codes = words.dictionary_encode().indices.to_numpy()
    end = int(np.searchsorted(row, len(documents)))  # the query is the last row
    vocabulary = int(codes[:end].max()) + 1 if end else 0
    return _Words(
        codes=codes[:end],
        document=row[:end],
        lengths=np.bincount(row[:end], minlength=len(documents)),
        query=codes[end:][codes[end:] < vocabulary],
        vocabulary=vocabulary,
    )


def _split(texts: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """The words of all texts but the last, cut where `str.split()` cuts, and in which text each stands; (words,) both.

    Each word keeps the blank behind it. So the words lie in memory as they lay in the texts, and none is copied.
    """
    ends = np.cumsum(pc.binary_length(texts).to_numpy()) + np.arange(len(texts))  # where the blanks that join them are
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), " ")
    data = _with_plain_blanks(np.frombuffer(joined.buffers()[2], np.uint8))
    blanks = np.flatnonzero(data == _BLANK)
    row = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(blanks, ends, "right"), prepend=0))
    bounds = np.append(0, blanks + 1).astype(np.int32)
    words = pa.StringArray.from_buffers(len(blanks), pa.py_buffer(bounds), pa.py_buffer(data))
    empty = np.diff(blanks, prepend=-1) == 1
    return (words.filter(pa.array(~empty)), row[~empty]) if empty.any() else (words, row)


def _with_plain_blanks(data: np.ndarray) -> np.ndarray:
    """The same bytes (UTF-8), with a blank for each byte of any other white space."""
    low = np.flatnonzero(data < _BLANK)
    at = [low[_ASCII_SPACES[data[low]]]]
    if data.max() >= 128:
        wide = np.flatnonzero(data >= 0xC2)  # the first bytes of all longer characters
        padded = np.append(data, np.zeros(2, np.uint8)).astype(np.int32)
        wide = wide[_WIDE_STARTS[padded[wide] << 8 | padded[wide + 1]]]
        first, second, third = (padded[wide + n] for n in range(3))
        two = wide[np.isin(first << 8 | second, _WIDE_SPACES)]
        three = wide[np.isin(first << 16 | second << 8 | third, _WIDE_SPACES)]
        at += [two, two + 1, three, three + 1, three + 2]
    found = np.concatenate(at)
    if len(found):
        data = data.copy()
        data[found] = _BLANK
    return data


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
