"""What a practitioner takes home: base model, retrieval and reflection module together, (query, profile) → `Rewrite`.

The base model sees the query and nothing else (Figure 1). A completion that does not parse gives no rewrite: the
generic answer stays, and the caller sees why (`Rewrite.parse_error`).

    >>> personalize = Personalizer.of(existing_run("demo"))       # its base model and all its settings
    >>> personalize("… review: The lid leaks.", profile).text
    '1'
    >>> for rewrite in personalize.each(pairs, batch_size=16): ...       # any number of pairs, as they are ready
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.models.chat import Chat, Completion
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.rewriting.base import base_answers, read_answer
from rpo_kit.rewriting.reflection import load_reflection, module_inputs, reflect
from rpo_kit.rewriting.trajectory import Trajectory, parse
from rpo_kit.runs import Run
from rpo_kit.stages import require

Pair = tuple[str, list[Item]]  # a query (a LaMP input) and the user's profile


@dataclass(frozen=True)
class Rewrite:
    """What the personalizer did for one query."""

    text: str  # the rewrite, or the generic answer where there is none
    generic: str
    items: list[Item]
    trajectory: Trajectory | None
    parse_error: str | None  # why there is no trajectory
    timings: dict[str, float]  # seconds for retrieval, base, reflection; a batch's time is shared out evenly
    tokens: dict[str, tuple[int, int]]  # (prompt, new) of base and reflection, as each counts; 0 where one does not
    shortened: bool = False  # whether the history items had to be shortened to fit into the module's prompt

    @property
    def observations(self) -> list[str]:
        """One line an observation; none where there is no trajectory."""
        return self.trajectory.observe.splitlines() if self.trajectory else []

    @property
    def plan(self) -> str:
        return self.trajectory.plan if self.trajectory else ""

    @property
    def seconds(self) -> float:
        return sum(self.timings.values())


class Personalizer:
    """Base model, retrieval and reflection module together."""

    def __init__(
        self,
        base: Chat,
        reflection: LoadedModel,
        task: Task,
        shots: int = 6,
        retriever: str = "bm25",
        new_tokens: int = 80,
        base_tokens: int = 32,
    ) -> None:
        self.base, self.reflection, self.task = base, reflection, task
        self.shots, self.retriever = shots, retriever
        self.new_tokens, self.base_tokens = new_tokens, base_tokens

    @classmethod
    def of(cls, run: Run, stage: str = "rl") -> Personalizer:
        """With the module that `stage` trained and every setting of the run, on its account: for a question of its
        data it gives what `prepare` and `evaluate` gave (the retriever `random` alone draws other items).
        """
        preset = run.preset
        data = replace(preset.data, dev_users=0)  # as training has it: dev users train nothing
        adapter = require(run, stage, data=data, **module_inputs(run)) / "adapter"
        return cls(
            open_chat_for(run, preset.base),
            load_reflection(preset.reflection, adapter),
            get_task(preset.data.task),
            preset.evaluation.shots,
            preset.data.retriever,
            preset.evaluation.max_new_tokens,
            preset.base_max_new_tokens,
        )

    def __call__(self, query: str, profile: list[Item]) -> Rewrite:
        """`query` is a LaMP input; the base model sees it and nothing else."""
        return self.batch([(query, profile)])[0]

    def each(self, pairs: Iterable[Pair], batch_size: int = 16) -> Iterator[Rewrite]:
        """A rewrite for each pair, in order; `pairs` may be endless, and is read a batch at a time."""
        rest = iter(pairs)
        while chunk := list(islice(rest, batch_size)):
            yield from self.batch(chunk)

    def batch(self, pairs: list[Pair]) -> list[Rewrite]:
        """The same for several users at once."""
        if not pairs:
            return []
        clock = _Clock(len(pairs))
        examples: list[dict[str, Any]] = [{"id": "query", "input": query, "profile": p} for query, p in pairs]
        rankings = rank(self.task, examples, self.retriever)
        shown = [top_k(example, ranking, self.shots) for example, ranking in zip(examples, rankings, strict=True)]
        clock.lap("retrieval")
        answers = base_answers(self.base, self.task, [query for query, _ in pairs], self.base_tokens)
        generics = [read_answer(self.task, answer.text) for answer in answers]
        clock.lap("base")
        examples = [example | {"generic": generic} for example, generic in zip(examples, generics, strict=True)]
        written, shortened = reflect(self.reflection, self.task, examples, shown, self.new_tokens)
        clock.lap("reflection")
        tokens = [{"base": _tokens(a), "reflection": _tokens(w)} for a, w in zip(answers, written, strict=True)]
        texts = [completion.text for completion in written]
        return [_rewrite(*found, clock.laps) for found in zip(texts, generics, shown, tokens, shortened, strict=True)]


def _rewrite(
    text: str,
    generic: str,
    items: list[Item],
    tokens: dict[str, tuple[int, int]],
    shortened: bool,
    timings: dict[str, float],
) -> Rewrite:
    parsed = parse(text)
    chosen = parsed.trajectory.rewrite if parsed.trajectory else generic
    return Rewrite(chosen, generic, items, parsed.trajectory, parsed.error, dict(timings), tokens, shortened)


def _tokens(completion: Completion) -> tuple[int, int]:
    return completion.prompt_tokens, completion.new_tokens


class _Clock:
    """Seconds since the last lap, shared out among `count` queries."""

    def __init__(self, count: int) -> None:
        self.count, self.last = count, time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = (now - self.last) / self.count, now
