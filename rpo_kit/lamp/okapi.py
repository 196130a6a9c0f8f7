"""LaMP's BM25 over one user's profile, bit for bit, with the counting done by Arrow.

BM25 (Robertson & Zaragoza, 2009) in the "Okapi" variant of the Python package rank_bm25, which LaMP calls once per
query: k1 = 1.5, b = 0.75, epsilon = 0.25, and words as `str.split()` makes them. Scores equal that package's to the
last bit (additions are in its order), so items that tie there tie here. Numbering the words, which takes most of the
time, is done by Arrow in C++; the rest is numpy. No index is kept, because a profile is searched once.

>>> import pyarrow as pa
>>> okapi_scores(pa.array(["sun at last", "more rain", "hi"]), "rain again").round(4).tolist()
[0.0, 0.5108, 0.0]
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

K1, B, EPSILON = 1.5, 0.75, 0.25  # LaMP: the defaults of rank_bm25
_BLANK = ord(" ")
_ASCII_SPACES = np.array([chr(byte).isspace() for byte in range(128)])
_WIDE_SPACES = [int.from_bytes(chr(n).encode()) for n in range(128, 2**16) if chr(n).isspace()]  # 2 or 3 bytes
_WIDE_STARTS = np.zeros(2**16, bool)  # by the first two bytes
_WIDE_STARTS[[number >> 8 if number >= 2**16 else number for number in _WIDE_SPACES]] = True
_CELLS = 2**20  # bytes of the table documents x words that is filled at a time: fits a processor's own cache


@dataclass(frozen=True)
class _Words:
    """The words of all documents and of the query, numbered in the order of their first appearance."""

    codes: np.ndarray  # (words of all documents,)
    document: np.ndarray  # (words of all documents,), the document that each belongs to
    lengths: np.ndarray  # (documents,)
    query: np.ndarray  # (words of the query,), without those that no document has
    vocabulary: int


def okapi_scores(documents: pa.Array, query: str) -> np.ndarray:
    """One score per document, shape (n,); all zero if the query or the documents have no words.

    score(d) = sum over the query's words w, repeats included, of
               idf(w) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length(d) / mean length))
    idf(w)   = log(N - n + 1/2) - log(n + 1/2), n of N documents having w; if that is negative,
               epsilon times the mean idf of all words instead
    """
    words = _words(documents, query)
    if not len(words.query):
        return np.zeros(len(documents))
    terms, positions = np.unique(words.query, return_inverse=True)  # the query's distinct words
    idf = _idf(_document_frequency(words), len(documents))[terms]
    tf = _term_frequency(words, terms)
    mean_length = len(words.codes) / len(documents)
    parts = idf[:, None] * (tf * (K1 + 1) / (tf + K1 * (1 - B + B * words.lengths / mean_length)))
    # Added word by word, starting from 0, as in LaMP: the last bit and the sign of 0 depend on it.
    scores: np.ndarray = np.cumsum(parts[positions], 0)[-1] + 0.0
    return scores


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
    """The words of all texts but the last, cut where `str.split()` cuts, and the text each belongs to; (words,) both.

    Each word keeps the blank that follows it, so that words stay in the texts' own memory and none is copied.
    """
    ends = np.cumsum(pc.binary_length(texts).to_numpy()) + np.arange(len(texts))  # positions of the joining blanks
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), " ")
    data = _with_plain_blanks(np.frombuffer(joined.buffers()[2], np.uint8))
    blanks = np.flatnonzero(data == _BLANK)
    row = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(blanks, ends, "right"), prepend=0))
    bounds = np.append(0, blanks + 1).astype(np.int32)
    words = pa.StringArray.from_buffers(len(blanks), pa.py_buffer(bounds), pa.py_buffer(data))
    empty = np.diff(blanks, prepend=-1) == 1
    return (words.filter(pa.array(~empty)), row[~empty]) if empty.any() else (words, row)


def _with_plain_blanks(data: np.ndarray) -> np.ndarray:
    """The same bytes (UTF-8), with a blank in place of each byte of any other white space."""
    low = np.flatnonzero(data < _BLANK)
    spaces = [low[_ASCII_SPACES[data[low]]]]
    if data.max() >= 128:
        wide = np.flatnonzero(data >= 0xC2)  # the first byte of every longer character
        padded = np.append(data, np.zeros(2, np.uint8)).astype(np.int32)
        wide = wide[_WIDE_STARTS[padded[wide] << 8 | padded[wide + 1]]]
        first, second, third = (padded[wide + n] for n in range(3))
        two = wide[np.isin(first << 8 | second, _WIDE_SPACES)]
        three = wide[np.isin(first << 16 | second << 8 | third, _WIDE_SPACES)]
        spaces += [two, two + 1, three, three + 1, three + 2]
    positions = np.concatenate(spaces)
    if len(positions):
        data = data.copy()
        data[positions] = _BLANK
    return data


def _document_frequency(words: _Words) -> np.ndarray:
    """How many documents have each word, shape (vocabulary,)."""
    documents = len(words.lengths)
    frequency = np.zeros(words.vocabulary, np.int64)
    bounds = np.concatenate([[0], np.cumsum(words.lengths)])
    step = max(1, min(255, _CELLS // words.vocabulary))  # 255: the count of a block fits into a byte
    for first in range(0, documents, step):
        last = min(first + step, documents)
        inside = slice(bounds[first], bounds[last])
        has = np.zeros((last - first, words.vocabulary), np.uint8)
        has[words.document[inside] - first, words.codes[inside]] = 1
        frequency += has.sum(0, dtype=np.uint8)
    return frequency


def _idf(document_frequency: np.ndarray, documents: int) -> np.ndarray:
    """The idf of each word. The mean is summed word by word, in the order of first appearance, as in LaMP."""
    idf = _idf_table(documents)[document_frequency]
    weights: np.ndarray = np.where(idf < 0, EPSILON * (np.cumsum(idf)[-1] / len(idf)), idf)
    return weights


@lru_cache(maxsize=1024)
def _idf_table(documents: int) -> np.ndarray:
    """The idf of a word by the number of documents that have it. `math.log`: numpy's may differ in a bit."""
    return np.array([math.log(documents - n + 0.5) - math.log(n + 0.5) for n in range(documents + 1)])


def _term_frequency(words: _Words, terms: np.ndarray) -> np.ndarray:
    """How often each document has each of the terms, shape (terms, documents)."""
    documents = len(words.lengths)
    row = np.full(words.vocabulary, len(terms))  # all other words are counted in one more row, which is dropped
    row[terms] = np.arange(len(terms))
    cells = (row * documents)[words.codes] + words.document
    return np.bincount(cells, minlength=(len(terms) + 1) * documents).reshape(-1, documents)[:-1]
