"""Requests that arrive while the models are at work are answered together, in one batch.

A model in this process answers one call at a time, and a batch of eight takes little longer than one alone, because
each step reads the same weights. Nobody waits for a batch to fill: whoever finds the models free takes all who wait.
Requests to another model, or with another *k*, wait for the next batch. Base models at an endpoint answer several
requests at once by themselves, and do without this.

    together = Together(most=8)
    together(personalizer, input, profile)           # called by many threads; as personalizer(input, profile)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from rpo_kit.lamp.tasks import Item
from rpo_kit.rewriting.personalizer import Pair, Rewrite

MAX_BATCH = 8  # ours: requests in one batch


class Batching(Protocol):
    """What can answer several requests at once."""

    def batch(self, pairs: Sequence[Pair]) -> list[Rewrite]: ...


@dataclass(frozen=True, eq=False)  # each request is itself alone
class _Waiting:
    model: Batching
    pair: Pair
    answer: Future[Rewrite] = field(default_factory=Future)


class Together:
    """Batches of at most `most` requests to one model, oldest first."""

    def __init__(self, most: int = MAX_BATCH) -> None:
        self.most = most
        self.at_work = threading.Lock()
        self.waiting: list[_Waiting] = []
        self.changing = threading.Lock()

    def __call__(self, model: Batching, input: str, profile: Sequence[Item]) -> Rewrite:
        """The model's answer. Raises what the model raises for this request, whatever it raises for others."""
        mine = _Waiting(model, (input, profile))
        with self.changing:
            self.waiting.append(mine)
        while not mine.answer.done():
            with self.at_work:
                if not mine.answer.done():
                    _answer(self._next())
        return mine.answer.result()

    def _next(self) -> list[_Waiting]:
        with self.changing:
            model = self.waiting[0].model
            batch = [request for request in self.waiting if request.model is model][: self.most]
            for request in batch:
                self.waiting.remove(request)
        return batch


def _answer(batch: list[_Waiting]) -> None:
    try:
        rewrites = batch[0].model.batch([request.pair for request in batch])
        for request, rewrite in zip(batch, rewrites, strict=True):
            request.answer.set_result(rewrite)
    except BaseException as error:  # even a panic in Rust: those who wait must hear of it
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
            return
        for request in batch:  # one of them is at fault; the others get their answer
            _answer([request])
