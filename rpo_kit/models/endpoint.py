"""An OpenAI-compatible endpoint as a `Chat`: many requests at once, every answer stored, every failure reported.

`concurrency` workers draw from one iterator of conversations. Each looks in the cache (`cache.py`), sends a request
(`client.py`), retries if that can help (`retry.py`), and charges the run's account (`budget.py`). An item that keeps
failing comes back as a completion with `failure` set, and the others continue. A stream stops early only if no other
request could succeed either: the key is rejected, the quota or the budget is spent, or twenty requests in a row failed.
Then EndpointError or BudgetError is raised, after all finished answers have been yielded.

If another worker, thread or process has the same request in flight, it is not sent again: the second caller waits for
the answer. An `EndpointChat` is thread-safe.

Works with OpenAI, vLLM, llama.cpp, Ollama, OpenRouter. Not supported: token streaming, tools, batch files.

    for batch in chat.stream(conversations, max_new_tokens=32):    # [(17, Completion(text='4', …)), …] as they arrive
        append_records(path, [{"id": ids[index], "text": c.text} for index, c in batch if not c.failure])
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict

from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.budget import BudgetError, Ledger, Usage, estimated, upper_bound
from rpo_kit.models.cache import AnswerCache, answer_key, open_database
from rpo_kit.models.chat import Batch, Completion, Conversation
from rpo_kit.models.client import Client, Sampling
from rpo_kit.models.keys import key_in
from rpo_kit.models.retry import MAX_RETRY_AFTER, AttemptError, EndpointError, pause_after
from rpo_kit.models.stream import Stream, event_loop, take_all
from rpo_kit.presets import EndpointSettings

_MAX_FAILED_IN_A_ROW = 20  # ours: failed requests in a row after which the stream stops
_CLAIM_POLL = 0.05  # ours: seconds between two checks whether another process has the answer
_CLAIM_MARGIN = 60.0  # ours: seconds by which a claim outlasts the longest attempt with its pause


class EndpointChat:
    """A model at an endpoint. `answers` is the database of the cache, `account` the run's; None: in memory.

    Raises:
        KitError: the key is not set, or address, proxy or certificates cannot be used.
    """

    concurrent = True  # thread-safe

    def __init__(
        self,
        spec: EndpointSpec,
        settings: EndpointSettings | None = None,
        answers: sqlite3.Connection | None = None,
        account: sqlite3.Connection | None = None,
    ) -> None:
        self.spec, self.settings = spec, settings or EndpointSettings()
        self.name = f"{spec.url}#{spec.model}" if spec.url else f"openai:{spec.model}"
        self.key = key_in(spec.variable)
        Client(spec, self.key, self.settings.timeout)  # reject bad settings now, not at the first request
        self.cache = AnswerCache(answers or open_database(None)) if self.settings.cache else None
        self.of_a_run = account is not None  # otherwise the budget is that of this object
        self.ledger = Ledger(account or open_database(None), self.name, self.settings)
        self._pending: dict[str, Future[Completion | None]] = {}  # answers in flight by cache key; None: no answer
        self._lock = threading.Lock()
        self._named, self._reported = {spec.model}, {spec.model}  # models, as the server names them

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        """One completion per conversation, in the same order."""
        completions: dict[int, Completion] = {}
        for batch in self.stream(conversations, max_new_tokens=max_new_tokens, temperature=temperature):
            completions |= dict(batch)
        return [completions[index] for index in range(len(completions))]

    def stream(
        self, conversations: Iterable[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[Batch]:
        """Yield the completions since the last batch, in any order. `conversations` is read as requests are sent.

        Raises:
            EndpointError: no other request can succeed either, or too many requests in a row failed.
            BudgetError: the next request could exceed a limit of the run.
        """
        with event_loop() as loop:
            state = Stream(self.sampling(max_new_tokens, temperature), loop)
            workers = asyncio.run_coroutine_threadsafe(self._answer_all(enumerate(conversations), state), loop)
            finished = False
            while not finished:
                results = asyncio.run_coroutine_threadsafe(take_all(state.results), loop).result()
                finished = results[-1] is None
                yield [result for result in results if result is not None]
            workers.result()
        self._report_models()
        if state.error:
            raise state.error

    @contextmanager
    def reporting_cost(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[None]:
        """Print the estimated cost on entry and the actual cost on exit, even if interrupted."""
        print(self.estimate(conversations, max_new_tokens))
        try:
            yield
        finally:
            line = f"spent     {self.name}: {self.ledger.describe(self.ledger.used_here)}"
            total = sum(self.ledger.total().values(), Usage())
            print(f"{line}; the run so far: {total.requests:,} requests" if self.of_a_run else line)

    def estimate(self, conversations: Iterable[Conversation], max_new_tokens: int) -> str:
        """One line on what these requests will cost; cached answers cost nothing."""
        total, hits, sampling = Usage(), 0, self.sampling(max_new_tokens, 0.0)
        for messages in conversations:
            if self.cache and self.cache.get(self.cache_key(messages, sampling)):
                hits += 1
            else:
                total += estimated(messages, sampling.max_new_tokens)
        line = (
            f"estimate  {self.name}: {self.ledger.describe(total)} at most, plus retries; {hits:,} answers are cached"
        )
        return f"{line}; limits of the run: {self.ledger.limits()}"

    def sampling(self, max_new_tokens: int, temperature: float) -> Sampling:
        """The sampling that is sent: with `endpoint.thinking_tokens` added, and no temperature if models reject it."""
        return Sampling(
            max_new_tokens + self.settings.thinking_tokens, temperature if self.settings.send_temperature else None
        )

    def cache_key(self, messages: Conversation, sampling: Sampling, sample: int = 0) -> str:
        """The key of an answer in the cache; `sample` numbers the answers to one conversation."""
        return answer_key(
            url=self.spec.url, model=self.spec.model, messages=messages, **asdict(sampling), sample=sample
        )

    # ---- the workers ----

    async def _answer_all(self, numbered: Iterator[tuple[int, Conversation]], state: Stream) -> None:
        async def work() -> None:
            while state.error is None and (following := next(numbered, None)) is not None:
                index, messages = following
                try:
                    completion = await self._answer(messages, state)
                except (EndpointError, BudgetError) as error:  # no answer for this item; those in flight are finished
                    state.stop(error)
                    return
                await state.results.put((index, completion))

        try:
            await asyncio.gather(*(work() for _ in range(max(1, self.settings.concurrency))))
        finally:
            if state.client is not None:
                await state.client.close()
            task = asyncio.current_task()
            if task and not task.cancelling():  # once cancelled, the queue has no reader and may be full
                await state.results.put(None)

    async def _answer(self, messages: Conversation, state: Stream) -> Completion:
        """The answer from the cache, from the same request in flight, or from the server."""
        sample = 0  # at temperature 0 a conversation has one answer
        if state.sampling.temperature != 0:
            conversation = answer_key(messages=messages)
            sample = state.times_asked[conversation]
            state.times_asked[conversation] += 1
        key = self.cache_key(messages, state.sampling, sample)
        if self.cache is None:
            return await self._ask(messages, state, None)
        while True:
            if stored := self.cache.get(key):
                return Completion(**stored)
            own: Future[Completion | None] = Future()
            own.set_running_or_notify_cancel()  # so that no waiting caller can cancel it
            with self._lock:
                first = self._pending.setdefault(key, own)
            if first is own:
                return await self._claimed(self.cache, key, own, messages, state)
            await state.pause(until=first)
            if (completion := first.result()) is not None:
                return completion

    async def _claimed(
        self,
        cache: AnswerCache,
        key: str,
        own: Future[Completion | None],
        messages: Conversation,
        state: Stream,
    ) -> Completion:
        """The answer from the server, or from another process that has claimed it; `own` gets it as well."""
        completion = None
        try:
            while not cache.claim(key, self._claim_seconds):
                await state.pause(_CLAIM_POLL)
            stored = cache.get(key)  # the other process may have stored it just now
            completion = Completion(**stored) if stored else await self._ask(messages, state, key)
            if not stored and completion.finished and not completion.failure:
                cache.put(key, asdict(completion))
            return completion
        finally:
            cache.release(key)
            with self._lock:
                del self._pending[key]
            own.set_result(completion)

    @property
    def _claim_seconds(self) -> float:
        """The longest that an attempt and the pause after it can take."""
        return 2 * self.settings.timeout + 1.1 * MAX_RETRY_AFTER + _CLAIM_MARGIN

    async def _ask(self, messages: Conversation, state: Stream, key: str | None) -> Completion:
        """The answer from the server; too many failures in a row stop the stream."""
        completion = await self._attempts(messages, state, key)
        state.failed_in_a_row = state.failed_in_a_row + 1 if completion.failure else 0
        if state.failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            state.stop(
                EndpointError(
                    f"{_MAX_FAILED_IN_A_ROW} requests in a row failed at {self.name}, the last with: "
                    f"{completion.failure}. Finished answers are kept; check the server and run again."
                )
            )
        return completion

    async def _attempts(self, messages: Conversation, state: Stream, key: str | None) -> Completion:
        """Retry until there is an answer, or this item has failed for good."""
        bound, failures = upper_bound(messages, state.sampling.max_new_tokens), Counter[str]()
        client = state.client = state.client or Client(self.spec, self.key, self.settings.timeout)
        while True:
            await self._reserve(bound, state)
            try:
                reply = await client.send(messages, state.sampling)
            except AttemptError as error:
                self._settle(bound, bound if error.charged else Usage(int(error.sent)), state)
                if error.fatal:
                    raise EndpointError(
                        f"No request to the model {self.name} can succeed: {error.reason}. Finished answers are kept; "
                        "correct this and run again."
                    ) from None
                failures[error.kind] += 1
                attempts = failures.total()
                if failures[error.kind] >= min(self.settings.tries, 1 + error.retries):
                    reason = f"{error.reason} ({attempts} {'try' if attempts == 1 else 'tries'})"
                    return Completion("", False, 0, 0, reason)
                await state.pause(pause_after(attempts, self.settings.backoff, error.retry_after, random.random()))
                if self.cache and key:
                    self.cache.claim(key, self._claim_seconds)  # for the next attempt
            else:
                used = Usage(1, reply.completion.prompt_tokens, reply.completion.new_tokens)
                self._settle(bound, used.counted(bound), state)
                if reply.model:
                    self._named.add(reply.model)
                return reply.completion

    async def _reserve(self, bound: Usage, state: Stream) -> None:
        """Enter the request into the account; wait while requests in flight may still turn out to use less."""
        while not self.ledger.reserve(bound):
            if state.in_flight == 0:
                raise BudgetError(
                    f"The budget of this run ({self.ledger.limits()}) leaves no room for the next request to "
                    f"{self.name}. Finished answers are kept; raise endpoint.max_requests, max_tokens or max_cost and "
                    "run again."
                )
            state.settled.clear()
            await state.settled.wait()
        if state.error:  # the stream stopped while this request waited
            self.ledger.settle(bound, Usage())
            raise state.error
        state.in_flight += 1

    def _settle(self, bound: Usage, actual: Usage, state: Stream) -> None:
        self.ledger.settle(bound, actual)
        state.in_flight -= 1
        state.settled.set()

    def _report_models(self) -> None:
        """Print once if the server names another model than the one requested: some servers hold one model only."""
        for model in sorted(self._named - self._reported):
            if _plain(model) != _plain(self.spec.model):
                print(
                    f"{self.name}: the server reports that its model is {model[:100]!r}. Its answers are used and "
                    f"stored as those of {self.spec.model!r}; if that is wrong, correct the setting."
                )
        self._reported |= self._named


def _plain(model: str) -> str:
    """A model's name without folder, file type, tag and date: "gpt-4o" for "openai/gpt-4o-2024-08-06"."""
    name = re.sub(r"\.gguf$|:[\w.-]*$", "", re.split(r"[/\\]", model.lower())[-1])
    name = re.sub(r"[-@](?:\d{4}-\d\d-\d\d|\d{8}|\d{4}|latest)$", "", name)
    return re.sub(r"[^a-z0-9]", "", name)
