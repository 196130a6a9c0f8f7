"""The whole of Figure 1 in one object: base model, retrieval and reflection module, (input, profile) → `Rewrite`.

The base model sees LaMP's input and nothing else. If the module's completion does not parse, the generic answer is used
instead, and `Rewrite.parse_error` says why. If it parses, but the rewrite lost the content or the profile is empty, the
generic answer is used too, and `Rewrite.kept_generic` says why (`keep_generic.py`). Invalid inputs and profiles are
rejected before any model runs. `serving/` puts the personalizer behind an HTTP endpoint.

    personalize = Personalizer.of(existing_run("demo"))                # the run's base model, module and settings
    personalize("What is the score … review: The lid leaks.", profile).text                              # '1'
    for rewrite in personalize.each(pairs, batch_size=16): ...         # any number of pairs, in batches
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.models.chat import Chat, answers_at_once
from rpo_kit.models.local import LoadedModel, prompt_tokens
from rpo_kit.models.open import open_chat_for
from rpo_kit.rewriting.base import base_answers, read_answer
from rpo_kit.rewriting.keep_generic import reason_to_keep
from rpo_kit.rewriting.reflection import fitting_messages, load_reflection, module_inputs, reflect
from rpo_kit.rewriting.trajectory import FULL, Form, Trajectory, rewrite_or_generic
from rpo_kit.runs import Run
from rpo_kit.stages import require
from rpo_kit.text import replace_surrogates

Pair = tuple[str, Sequence[Item]]  # LaMP's input and the user's profile


@dataclass(frozen=True)
class Rewrite:
    """What the personalizer did for one input."""

    text: str  # the rewrite, or the generic answer if there is none or it is not used
    generic: str
    items: list[Item]
    trajectory: Trajectory | None
    parse_error: str | None  # why there is no trajectory
    timings: dict[str, float]  # seconds for retrieval, base, reflection: the batch's time divided by its size
    tokens: dict[str, tuple[int, int]]  # (prompt, new) of base and reflection; 0 if a model's server does not count
    shortened: bool = False  # whether the module's prompt had to be shortened to fit
    kept_generic: str | None = None  # why the generic answer is used although there is a trajectory
    completion: str = ""  # all that the module wrote

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


class InputError(KitError):
    """The input or the profile is at fault, not a model."""


class Personalizer:
    """Base model, retrieval and reflection module together.

    Thread-safe: the module answers one call at a time; a base model at an endpoint answers several at once.
    """

    def __init__(
        self,
        base: Chat,
        reflection: LoadedModel,
        task: Task,
        shots: int = 6,
        retriever: str = "bm25",
        new_tokens: int = 80,
        base_tokens: int = 32,
        keep_content: float = 0.35,
        *,
        form: Form = FULL,
        temperature: float = 0.0,
    ) -> None:
        self.base, self.reflection, self.task = base, reflection, task
        self.shots, self.retriever = shots, retriever
        self.new_tokens, self.base_tokens = new_tokens, base_tokens
        self.keep_content = keep_content  # 0: every rewrite is used
        self.form = form
        self.temperature = temperature  # of the module; the base model answers greedily
        self.lock = threading.Lock()  # held while the module or its tokenizer works

    @classmethod
    def of(cls, run: Run, stage: str = "rl", base: str | None = None) -> Personalizer:
        """The module that `stage` trained, or `untrained`, with all of the run's settings; API cost is charged to the
        run.

        `base` names another base model than the run's, which recorded answers (`file:…`) need: they are not a model.

        For an example of the run's data, generic answer and rewrite are those of `prepare` and `evaluate` (but the
        retriever `random` draws other items, and `evaluate` uses every rewrite: see `Rewrite.kept_generic`).
        """
        adapter = None if stage == "untrained" else trained_adapter(run, stage)
        chat = open_chat_for(run, base or run.preset.base)
        return cls.with_models(run, chat, load_reflection(run.preset.reflection, adapter))

    @classmethod
    def with_models(cls, run: Run, base: Chat, reflection: LoadedModel) -> Personalizer:
        """Models that are loaded already, with all of the run's settings."""
        preset = run.preset
        return cls(
            base,
            reflection,
            get_task(preset.data.task),
            preset.evaluation.shots,
            preset.data.retriever,
            preset.evaluation.max_new_tokens,
            preset.base_max_new_tokens,
            preset.evaluation.keep_content,
            form=Form.of(preset.reflection),
        )

    def __call__(self, input: str, profile: Sequence[Item]) -> Rewrite:
        """The rewrite for LaMP's `input` and the user's profile.

        Raises:
            InputError: `input` is not one of the task's, or too long for the module, or an item lacks a field.
            KitError: the base model did not answer.
        """
        return self.batch([(input, profile)])[0]

    def each(self, pairs: Iterable[Pair], batch_size: int = 16) -> Iterator[Rewrite]:
        """One rewrite per pair, in order; `pairs` is read one batch at a time, so it may be endless."""
        rest = iter(pairs)
        while chunk := list(islice(rest, batch_size)):
            yield from self.batch(chunk)

    def batch(self, pairs: Sequence[Pair]) -> list[Rewrite]:
        """One rewrite per pair, in order; each model is called once. Raises as `__call__`."""
        if not pairs:
            return []
        started = time.perf_counter()
        examples = [self._example(*pair) for pair in pairs]
        with self.lock:
            self._check_inputs(examples)
            rankings = rank(self.task, examples, self.retriever)
            items = [top_k(example, ranking, self.shots) for example, ranking in zip(examples, rankings, strict=True)]
            self._check_items_fit(examples, items)
        return self._rewrites(examples, items, started)

    def from_items(self, input: str, items: Sequence[Item]) -> Rewrite:
        """The rewrite from exactly these items, in this order: nothing is retrieved. Raises as `__call__`."""
        started = time.perf_counter()
        example = self._example(input, items)
        shown = list(example["profile"])
        with self.lock:
            self._check_inputs([example])
            self._check_items_fit([example], [shown])
        return self._rewrites([example], [shown], started)[0]

    def _rewrites(self, examples: list[Example], items: list[list[Item]], started: float) -> list[Rewrite]:
        """Generic answers and rewrites from the items of each example, and the time since `started`."""
        retrieved = time.perf_counter()
        with nullcontext() if answers_at_once(self.base) else self.lock:
            answers = base_answers(self.base, self.task, [e["input"] for e in examples], self.base_tokens)
        for example, answer in zip(examples, answers, strict=True):
            example["generic"] = read_answer(self.task, answer.text)

        answered = time.perf_counter()
        with self.lock:
            try:
                completions, shortened = reflect(
                    self.reflection,
                    self.task,
                    examples,
                    items,
                    self.new_tokens,
                    form=self.form,
                    temperature=self.temperature,
                )
            except KitError as error:  # it would have fitted with a shorter generic answer
                raise InputError(str(error)) from None

        reflected = time.perf_counter()
        seconds = {"retrieval": retrieved - started, "base": answered - retrieved, "reflection": reflected - answered}
        timings = {name: total / len(examples) for name, total in seconds.items()}
        rewrites = []
        rows = zip(examples, items, answers, completions, shortened, strict=True)
        for example, shown, answer, completion, cut in rows:
            generic = example["generic"]
            text, parsed = rewrite_or_generic(completion.text, generic, self.form.sections)
            kept = self._reason_to_keep(example, text) if parsed.trajectory else None
            tokens = {"base": (answer.prompt_tokens, answer.new_tokens)}
            tokens["reflection"] = (completion.prompt_tokens, completion.new_tokens)
            text = generic if kept else text
            done = (text, generic, shown, parsed.trajectory, parsed.error, dict(timings), tokens, cut, kept)
            rewrites.append(Rewrite(*done, completion=completion.text))
        return rewrites

    def _example(self, input: str, profile: Sequence[Item]) -> Example:
        items = checked_items(self.task, profile, "the profile")
        return {"id": "query", "user_id": "", "input": replace_surrogates(input), "output": "", "profile": items}

    def _reason_to_keep(self, example: Example, rewrite: str) -> str | None:
        query = self.task.query_text(example["input"])
        return reason_to_keep(self.task, query, example["generic"], rewrite, example["profile"], self.keep_content)

    @property
    def _limit(self) -> int:
        """Tokens of the module's prompt."""
        return self.reflection.max_seq_length - self.new_tokens

    def _check_inputs(self, examples: Sequence[Example]) -> None:
        """Raises InputError: an input is not one of the task's, or too long whatever items are shown."""
        for input in (example["input"] for example in examples):
            if not self.task.is_official(input):
                raise InputError(
                    f"This is not an input of {self.task.name}: {input[:60]!r}… Make inputs with Task.make_input."
                )
            alone = [{"role": "user", "content": input}]
            if prompt_tokens(self.reflection.tokenizer, alone) > self._limit:  # ranking would take long
                raise _too_long(input, self._limit)

    def _check_items_fit(self, examples: Sequence[Example], items: Sequence[Sequence[Item]]) -> None:
        """Raises InputError: an input is too long whatever its generic answer will be."""
        for example, own_items in zip(examples, items, strict=True):
            try:
                unanswered = example | {"generic": ""}
                tokenizer = self.reflection.tokenizer
                fitting_messages(tokenizer, self._limit, self.task, unanswered, own_items, form=self.form)
            except KitError:
                raise _too_long(example["input"], self._limit) from None


def trained_adapter(run: Run, stage: str) -> Path:
    """The adapter that `stage` trained. Raises KitError if the stage is not finished, or was made from other data."""
    data = replace(run.preset.data, dev_users=0)  # as in `train_inputs`: dev users train nothing
    return require(run, stage, data=data, **module_inputs(run)) / "adapter"


def _too_long(input: str, limit: int) -> InputError:
    return InputError(
        f"The input ({len(input):,} characters) is too long: the reflection module reads at most {limit:,} tokens, "
        "history items included. Shorten it, or train a module with a larger reflection.max_seq_length."
    )


def checked_items(task: Task, profile: object, source: str) -> list[Item]:
    """The items with the task's fields as texts; numbers become texts, and a missing id becomes the item's position.

    `source` names the profile in the error.

    Raises:
        InputError: `profile` is not a list of items, or an item lacks a field; the message shows a correct item.
    """
    sample = json.dumps({"id": "7"} | dict.fromkeys(task.fields, "…"), ensure_ascii=False)
    if isinstance(profile, str | bytes) or not isinstance(profile, Sequence):
        raise InputError(f"{source} must be a list of items such as {sample}.")
    items = []
    for number, item in enumerate(profile):
        values = item if isinstance(item, Mapping) else {}
        texts = {name: _as_text(values.get(name)) for name in ("id", *task.fields, "date")}
        if any(texts[name] is None for name in task.fields):
            is_text = " is a plain text: it" if isinstance(item, str) else ""
            fields = " and ".join(task.fields)
            raise InputError(
                f"Item {number} of {source}{is_text} must have {fields}, each a text or a number, as in {sample}."
            )
        if values.get("date") is not None and texts["date"] is None:
            raise InputError(f'Item {number} of {source} has a date that is not a text such as "2011-05-03".')
        known = {name: text for name, text in texts.items() if text is not None}
        items.append({**values, "id": str(number), **known})
    return items


def _as_text(value: object) -> str | None:
    """A text, or a number as one (4.0 as "4"); None for anything else."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer) or not -1e15 < value < 1e15:
        return None  # NaN and infinity too
    return str(int(value)) if value == int(value) else str(float(value))
