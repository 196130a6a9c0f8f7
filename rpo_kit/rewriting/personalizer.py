"""The whole of Figure 1 in one object: base model, retrieval and reflection module, (query, profile) → `Rewrite`.

The base model sees the query and nothing else. If the module's completion is not a trajectory, the generic answer
stands, and `Rewrite.parse_error` says why. Left out: training, and a server around it (`serving/`).

    personalize = Personalizer.of(existing_run("demo"))                # the run's base model, module and settings
    personalize("What is the score … review: The lid leaks.", profile).text                              # '1'
    for rewrite in personalize.each(pairs, batch_size=16): ...         # any number of pairs, as they are ready
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.models.chat import Chat
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.rewriting.base import base_answers, read_answer
from rpo_kit.rewriting.reflection import load_reflection, module_inputs, reflect
from rpo_kit.rewriting.trajectory import Trajectory, rewrite_or_generic
from rpo_kit.runs import Run, require

Pair = tuple[str, Sequence[Item]]  # a query (LaMP's whole input) and the user's profile


@dataclass(frozen=True)
class Rewrite:
    """What the personalizer did for one query."""

    text: str  # the rewrite, or the generic answer if there is none
    generic: str
    items: list[Item]
    trajectory: Trajectory | None
    parse_error: str | None  # why there is no trajectory
    timings: dict[str, float]  # seconds for retrieval, base, reflection: the batch's time divided by its size
    tokens: dict[str, tuple[int, int]]  # (prompt, new) of base and reflection, as each counts; 0 if it does not
    shortened: bool = False  # whether the history items had to be shortened to fit into the module's prompt

    @property
    def observations(self) -> list[str]:
        """One line per observation; none without a trajectory."""
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
        """The module that `stage` trained, with all of the run's settings; API cost is charged to the run.

        For a query of the run's data it gives what `prepare` and `evaluate` gave (only the retriever `random` draws
        other items).
        """
        preset = run.preset
        data = replace(preset.data, dev_users=0)  # as in `train_inputs`: dev users train nothing
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

    def __call__(self, query: str, profile: Sequence[Item]) -> Rewrite:
        """The rewrite for one query (LaMP's whole input) of the user with this profile."""
        return self.batch([(query, profile)])[0]

    def each(self, pairs: Iterable[Pair], batch_size: int = 16) -> Iterator[Rewrite]:
        """One rewrite per pair, in order; `pairs` may be endless, and is read one batch at a time."""
        rest = iter(pairs)
        while chunk := list(islice(rest, batch_size)):
            yield from self.batch(chunk)

    def batch(self, pairs: Sequence[Pair]) -> list[Rewrite]:
        """One rewrite per pair, in order; each model is called once."""
        if not pairs:
            return []
        started = time.perf_counter()
        examples: list[Example] = [
            {"id": "query", "user_id": "", "input": query, "output": "", "profile": profile} for query, profile in pairs
        ]
        rankings = rank(self.task, examples, self.retriever)
        items = [top_k(example, ranking, self.shots) for example, ranking in zip(examples, rankings, strict=True)]

        retrieved = time.perf_counter()
        answers = base_answers(self.base, self.task, [query for query, _ in pairs], self.base_tokens)
        for example, answer in zip(examples, answers, strict=True):
            example["generic"] = read_answer(self.task, answer.text)

        answered = time.perf_counter()
        completions, shortened = reflect(self.reflection, self.task, examples, items, self.new_tokens)

        reflected = time.perf_counter()
        seconds = {"retrieval": retrieved - started, "base": answered - retrieved, "reflection": reflected - answered}
        timings = {name: total / len(pairs) for name, total in seconds.items()}
        rewrites = []
        for n, (example, answer, completion) in enumerate(zip(examples, answers, completions, strict=True)):
            generic = example["generic"]
            text, parsed = rewrite_or_generic(completion.text, generic)
            tokens = {"base": (answer.prompt_tokens, answer.new_tokens)}
            tokens["reflection"] = (completion.prompt_tokens, completion.new_tokens)
            trajectory, error = parsed.trajectory, parsed.error
            rewrites.append(Rewrite(text, generic, items[n], trajectory, error, dict(timings), tokens, shortened[n]))
        return rewrites
