"""An OpenAI-compatible endpoint as a `Chat`: many requests at once, every answer kept, every failure named.

`concurrency` workers draw from one iterator of conversations. Each looks into the cache (`cache.py`), sends a request
(`client.py`), retries where that can help (`retry.py`), and charges the run's account (`budget.py`). An item that
keeps failing comes back as a completion with `failure` set, and the others continue. Asking stops early only if no
other request could succeed either: the key is rejected, the quota or the budget is spent, or twenty items in a row
failed. Then EndpointError or BudgetError is raised, after all finished answers have been handed out.

Works with OpenAI, vLLM, llama.cpp, Ollama, OpenRouter. Left out: token streaming, tools, batch files.

    for batch in chat.stream(conversations, max_new_tokens=32):    # [(17, Completion(text='4', …)), …] as they arrive
        append_records(path, [{"id": ids[index], "text": c.text} for index, c in batch if not c.failure])
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.budget import BudgetError, Ledger, Usage, estimated, upper_bound
from rpo_kit.models.cache import AnswerCache, answer_key, open_database
from rpo_kit.models.chat import Batch, Completion, Conversation
from rpo_kit.models.client import Client, Sampling
from rpo_kit.models.keys import key_in
from rpo_kit.models.retry import AttemptError, EndpointError, pause_after
from rpo_kit.presets import EndpointSettings

_QUEUE_SIZE = 256  # finished answers that may wait to be taken
_MAX_FAILED_IN_A_ROW = 20  # ours: so many items without one that succeeded, and asking on is a waste


@dataclass
class _Stream:
    """What the workers of one call of `stream` share."""

    sampling: Sampling
    results: asyncio.Queue[tuple[int, Completion] | None]  # None: no more will come
    client: Client | None = None  # opened for the first answer that is not in the cache
    error: EndpointError | BudgetError | None = None  # why asking stopped early
    failed_in_a_row: int = 0
    in_flight: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # set when a request in flight has been settled
    times_asked: Counter[str] = field(default_factory=Counter)  # by conversation, if answers are sampled


class EndpointChat:
    """A model at an endpoint. `answers` is the database of the cache, `account` that of the run; None: in memory."""

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
        self.cache = AnswerCache(answers or open_database(None)) if self.settings.cache else None
        self.of_a_run = account is not None  # or of this object alone
        self.ledger = Ledger(account or open_database(None), self.name, self.settings)

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
        """Yield what has arrived since the last batch, in any order. `conversations` is read as requests are sent.

        Raises:
            EndpointError: no other request can succeed either, or too many items in a row failed.
            BudgetError: the next request could exceed a limit of the run.
        """
        with _event_loop() as loop:
            state = _Stream(self.sampling(max_new_tokens, temperature), asyncio.Queue(_QUEUE_SIZE))
            workers = asyncio.run_coroutine_threadsafe(self._run_workers(enumerate(conversations), state), loop)
            finished = False
            while not finished:
                results = asyncio.run_coroutine_threadsafe(_take_all(state.results), loop).result()
                finished = results[-1] is None
                yield [result for result in results if result is not None]
            workers.result()
        if state.error:
            raise state.error

    @contextmanager
    def reporting_cost(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[None]:
        """Print the estimated cost on entry and the actual cost on exit, even if interrupted."""
        print(self.estimate(conversations, max_new_tokens))
        try:
            yield
        finally:
            line = f"spent     {self.name}: {self.ledger.describe(self.ledger.here)}"
            total = sum(self.ledger.total().values(), Usage())
            print(f"{line}; the run so far: {total.requests:,} requests" if self.of_a_run else line)

    def estimate(self, conversations: Iterable[Conversation], max_new_tokens: int, temperature: float = 0.0) -> str:
        """One line on what these requests will cost; cached answers cost nothing."""
        total, hits, sampling = Usage(), 0, self.sampling(max_new_tokens, temperature)
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
        """What is sent for these arguments: room to think is added, and some models take no temperature."""
        return Sampling(
            max_new_tokens + self.settings.thinking_tokens, temperature if self.settings.send_temperature else None
        )

    def cache_key(self, messages: Conversation, sampling: Sampling, sample: int = 0) -> str:
        """The key of an answer in the cache; `sample` numbers the answers sampled for one conversation."""
        return answer_key(
            url=self.spec.url, model=self.spec.model, messages=messages, **asdict(sampling), sample=sample
        )

    # ---- the workers ----

    async def _run_workers(self, numbered: Iterator[tuple[int, Conversation]], state: _Stream) -> None:
        try:
            await asyncio.gather(*(self._worker(numbered, state) for _ in range(max(1, self.settings.concurrency))))
        finally:
            if state.client is not None:
                await state.client.close()
            task = asyncio.current_task()
            if task and not task.cancelling():  # once cancelled, nobody takes from the queue, and it may be full
                await state.results.put(None)

    async def _worker(self, numbered: Iterator[tuple[int, Conversation]], state: _Stream) -> None:
        while state.error is None and (following := next(numbered, None)) is not None:
            index, messages = following
            try:
                completion = await self._answer(messages, state)
            except (EndpointError, BudgetError) as error:  # no answer for this item; requests in flight are finished
                state.error = state.error or error
                return
            await state.results.put((index, completion))

    async def _answer(self, messages: Conversation, state: _Stream) -> Completion:
        """From the cache or from the server."""
        sample = 0  # at temperature 0 a conversation has one answer
        if state.sampling.temperature != 0:
            conversation = answer_key(messages=messages)
            sample = state.times_asked[conversation]
            state.times_asked[conversation] += 1
        key = self.cache_key(messages, state.sampling, sample)
        if self.cache and (stored := self.cache.get(key)):
            return Completion(**stored)
        state.client = state.client or Client(self.spec, self.key, self.settings.timeout)
        completion = await self._ask(state.client, messages, state)
        state.failed_in_a_row = state.failed_in_a_row + 1 if completion.failure else 0
        if state.failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            state.error = state.error or EndpointError(
                f"{_MAX_FAILED_IN_A_ROW} items in a row failed at {self.name}, the last with: {completion.failure}. "
                "Finished answers are kept; look at the server and run again."
            )
        if self.cache and completion.finished and not completion.failure:
            self.cache.put(key, asdict(completion))
        return completion

    async def _ask(self, client: Client, messages: Conversation, state: _Stream) -> Completion:
        """Attempt until there is an answer, or a failure of this item."""
        bound, attempts = upper_bound(messages, state.sampling.max_new_tokens), 0
        while True:
            attempts += 1
            await self._reserve(bound, state)
            try:
                completion = await client.send(messages, state.sampling)
            except AttemptError as error:
                self._settle(bound, bound if error.charged else Usage(int(error.sent)), state)
                if error.fatal:
                    raise EndpointError(
                        f"The model {self.name} answers nothing: {error.reason}. Finished answers are kept; correct "
                        "this and run again."
                    ) from None
                if attempts >= min(self.settings.tries, 1 + error.retries):
                    reason = f"{error.reason} ({attempts} {'try' if attempts == 1 else 'tries'})"
                    return Completion("", False, 0, 0, reason)
                await asyncio.sleep(pause_after(attempts, self.settings.backoff, error.retry_after, random.random()))
            else:
                used = Usage(1, completion.prompt_tokens, completion.new_tokens)
                self._settle(bound, used if used.tokens else bound, state)  # some servers count nothing
                return completion

    async def _reserve(self, bound: Usage, state: _Stream) -> None:
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
        if state.error:  # asking stopped while this request waited
            self.ledger.settle(bound, Usage())
            raise state.error
        state.in_flight += 1

    def _settle(self, bound: Usage, actual: Usage, state: _Stream) -> None:
        self.ledger.settle(bound, actual)
        state.in_flight -= 1
        state.settled.set()


async def _take_all(queue: asyncio.Queue[tuple[int, Completion] | None]) -> list[tuple[int, Completion] | None]:
    """Wait for one result, and take whatever else is there."""
    results = [await queue.get()]
    while not queue.empty() and results[-1] is not None:
        results.append(queue.get_nowait())
    return results


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, because a notebook has a running one; no task outlives the block."""

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
