"""Dense retrieval: history items ranked by meaning, with any sentence encoder from the hub or a folder.

As LaMP uses facebook/contriever (Izacard et al., 2021): the mean of the last hidden states over a text's tokens, texts
cut at the encoder's maximum length, and the dot product with the query's vector. Indexed texts and queries are those of
BM25. Vectors are computed in batches of similar length and kept in
`$RPO_CACHE/dense/<encoder>.sqlite` (or ~/.cache/rpo_kit), one per distinct text, so an interrupted call resumes and a
second ranking runs no model. Out of scope: prefixes that some encoders were trained with ("query: "), other
poolings, and approximate search; a profile is small.

    rank(task, dataset, "dense:facebook/contriever")      # or dense:FOLDER, or dense:smollm2
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError
from rpo_kit.lamp.corpora import Examples, corpora
from rpo_kit.lamp.tasks import Task
from rpo_kit.machine import cache_root
from rpo_kit.provenance import fingerprint

if TYPE_CHECKING:  # loading transformers takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 512  # per text, or fewer if the encoder reads fewer
BATCH = 64  # texts encoded at a time
_KEYS_PER_SELECT = 500  # SQLite limits the variables of one statement


@dataclass(frozen=True)
class Encoder:
    """A model that returns one vector per token, its tokenizer, and a version that changes when its weights do."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    version: str


def rank_dense(task: Task, dataset: Examples, name: str, folder: Path | None = None) -> list[list[int]]:
    """For each example the indices of its profile by descending dot product; of equal ones the earlier comes first."""
    encoder = load_encoder(name)
    rankings: list[list[int]] = []
    with (
        _cache(encoder, folder) as cache,
        tqdm(total=len(dataset), desc="dense", unit="profile", delay=5, leave=False) as bar,
    ):
        for profiles, queries in corpora(task, dataset):
            for texts, query in zip(profiles, queries, strict=True):
                vectors = encode(encoder, [*texts.to_pylist(), query], cache)
                scores = vectors[:-1] @ vectors[-1]
                rankings.append(np.argsort(-scores, kind="stable").tolist())
                bar.update()
    return rankings


@lru_cache(maxsize=1)  # a server needs it for every request
def load_encoder(name: str) -> Encoder:
    """The encoder from a folder or the hub. Reads safetensors only, and runs none of the encoder's own code.

    "smollm2" is the bundled model: a weak encoder, but one that needs no network.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    name = str(bundled_model()) if name == "smollm2" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _load_error(name, str(error)) from error
    version = fingerprint(Path(name)) if Path(name).is_dir() else f"{name}@{model.config._commit_hash}"
    return Encoder(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, version)


def _load_error(name: str, reason: str) -> KitError:
    """The reason, and how to convert an encoder that, like older ones, comes only as pytorch_model.bin (a pickle)."""
    if "file named model.safetensors" in reason:  # transformers' wording, for a folder and for the hub
        kinds = ("AutoModel", "AutoTokenizer")
        parts = (f"{kind}.from_pretrained({name!r}).save_pretrained('encoder')" for kind in kinds)
        return KitError(
            f"The sentence encoder {name!r} has no model.safetensors, and pickles (pytorch_model.bin) are not read "
            "here. Convert it once, online, and use dense:encoder: "
            f'python -c "from transformers import {", ".join(kinds)}; {"; ".join(parts)}"'
        )
    return KitError(
        f"The sentence encoder {name!r} cannot be loaded ({reason.splitlines()[0][:200]}): name a model on the hub or "
        "a folder with config.json, a tokenizer and model.safetensors."
    )


def encode(encoder: Encoder, texts: Sequence[str], cache: sqlite3.Connection | None = None) -> np.ndarray:
    """One vector per text, shape (n, hidden size), float32; equal texts are computed once."""
    keys = {text: hashlib.sha256(text.encode()).digest() for text in texts}
    vectors = _cached_vectors(cache, list(keys.values())) if cache else {}
    missing = sorted((text for text, key in keys.items() if key not in vectors), key=len)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        new = {keys[text]: vector for text, vector in zip(batch, _mean_pooled(encoder, batch), strict=True)}
        vectors |= new
        if cache:
            with cache:  # one transaction: all of a batch, or none of it
                rows = [(key, vector.tobytes()) for key, vector in new.items()]
                cache.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
    return np.stack([vectors[keys[text]] for text in texts])


def _mean_pooled(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """The mean of the last hidden states over each text's own tokens, without padding; (texts, hidden size)."""
    import torch

    limit = min(MAX_TOKENS, encoder.tokenizer.model_max_length)
    batch = encoder.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    if not batch["input_ids"].shape[1]:  # not one token in the whole batch
        return np.zeros((len(texts), encoder.model.config.hidden_size), np.float32)
    batch = batch.to(encoder.model.device)
    with torch.no_grad():
        states = encoder.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][:, :, None].to(states.dtype)
    means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # a text without tokens becomes zero
    pooled: np.ndarray = means.float().cpu().numpy()
    return pooled


@contextlib.contextmanager
def _cache(encoder: Encoder, folder: Path | None) -> Iterator[sqlite3.Connection]:
    folder = folder or cache_root() / "dense"
    path = folder / f"{hashlib.sha256(encoder.version.encode()).hexdigest()[:16]}.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            yield connection
    except (OSError, sqlite3.Error) as error:
        raise KitError(
            f"The cache of vectors {path} cannot be used ({error}): delete it, or set RPO_CACHE to a folder you may "
            "write to."
        ) from error


def _cached_vectors(cache: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, np.ndarray]:
    vectors: dict[bytes, np.ndarray] = {}
    for start in range(0, len(keys), _KEYS_PER_SELECT):
        chunk = keys[start : start + _KEYS_PER_SELECT]
        marks = ",".join("?" * len(chunk))
        for key, vector in cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", chunk):
            vectors[key] = np.frombuffer(vector, np.float32)
    return vectors
