"""An OpenAI-compatible endpoint: many questions at once, every finished answer kept, every failure named.

`concurrency` workers share one lazily read row of conversations; each asks, tries again where that can help (`retry`),
looks into the cache first and fills it (`cache`), and keeps the run's account (`budget`). An item that keeps failing
comes back as a completion with `failure` set, and the others go on. Only where nothing else could succeed either (the
key is refused, the quota or the budget is spent, twenty items in a row failed) the rest is left unasked: KitError, when
all that is finished has been handed out. Works with OpenAI, vLLM, llama.cpp, Ollama, OpenRouter.

    for batch in chat.stream(conversations, max_new_tokens=32):       # lists of (place, Completion), as they come
        append_records(path, [{"id": ids[place], "text": c.text} for place, c in batch if not c.failure])
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rpo_kit.model_spec import OPENAI, EndpointSpec
from rpo_kit.models.budget import BudgetReached, Ledger, Spending, bound, expected
from rpo_kit.models.cache import AnswerCache, answer_key, open_database
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.models.keys import key_in, without_key
from rpo_kit.models.retry import Fault, NoAnswers, Status, charged, fault_of, read_completion, unsent, wait_before
from rpo_kit.presets import EndpointSettings
from rpo_kit.text import replace_surrogates

_WAITING = 256  # finished answers that may wait to be taken
for _library in ("httpcore", "httpcore2"):  # as "debug" they log headers, and a server may repeat the key
    logging.getLogger(_library).setLevel(logging.INFO)
_IN_A_ROW = 20  # ours: after so many failed items without one that succeeded, asking on is a waste


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float | None  # None: not sent


@dataclass
class Round:
    """What the workers of one `stream` share."""

    client: Any
    sampling: Sampling
    done: asyncio.Queue[tuple[int, Completion] | None]
    stop: Exception | None = None
    failed_in_a_row: int = 0
    in_flight: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    asked: Counter[str] = field(default_factory=Counter)  # how often each question, where answers are drawn


class EndpointChat:
    """A model at an endpoint. `answers` holds the cache, `account` what a run has spent; in memory where it is None."""

    def __init__(
        self, place: EndpointSpec, settings: EndpointSettings | None = None, answers: Any = None, account: Any = None
    ) -> None:
        self.place, self.settings = place, settings or EndpointSettings()
        self.name = f"{place.url}#{place.model}" if place.url else f"openai:{place.model}"
        self.key = key_in(place.variable)
        self.address = place.url or "OpenAI's address"
        self.cache = AnswerCache(answers or open_database(None)) if self.settings.cache else None
        self.of_a_run = account is not None
        self.ledger = Ledger(account or open_database(None), self.name, self.settings)

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        found: dict[int, Completion] = {}
        for batch in self.stream(conversations, max_new_tokens=max_new_tokens, temperature=temperature):
            found |= dict(batch)
        return [found[place] for place in range(len(found))]

    def stream(
        self, conversations: Iterable[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[list[tuple[int, Completion]]]:
        """What has come in since the last look, as (place in `conversations`, completion); works in notebooks too."""
        with _loop_in_a_thread() as loop:
            round_ = Round(None, self.sampling(max_new_tokens, temperature), asyncio.Queue(_WAITING))
            work = asyncio.run_coroutine_threadsafe(self._work(enumerate(conversations), round_), loop)
            more = True
            while more:
                came = asyncio.run_coroutine_threadsafe(_all_of(round_.done), loop).result()
                more = came[-1] is not None
                yield [pair for pair in came if pair is not None]
            work.result()
        if round_.stop:
            raise round_.stop

    @contextmanager
    def reporting_cost(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[None]:
        """Print the estimated cost on entry and the actual cost on exit, even if interrupted."""
        print(self.estimate(conversations, max_new_tokens))
        try:
            yield
        finally:
            print(self.actual())

    def estimate(self, conversations: Iterable[Conversation], max_new_tokens: int, temperature: float = 0.0) -> str:
        """What asking will cost, in a line; what the cache holds costs nothing."""
        total, hits, sampling = Spending(), 0, self.sampling(max_new_tokens, temperature)
        for messages in conversations:
            known = self.cache and self.cache.get(self.key_of(messages, sampling))
            hits += bool(known)
            total += Spending() if known else expected(messages, sampling.max_new_tokens)
        told = f"estimate  {self.name}: {self.ledger.describe(total)} at most, and retries; {hits:,} answers are cached"
        return f"{told}; limits of the run: {self.ledger.limits()}"

    def actual(self) -> str:
        """What this object has spent, and its run with it."""
        whole = self.ledger.total()
        run = f"; the run so far: {sum(whole.values(), Spending()).requests:,} requests" if self.of_a_run else ""
        return f"spent     {self.name}: {self.ledger.describe(self.ledger.here)}{run}"

    # ---- the workers ----

    async def _work(self, numbered: Iterator[tuple[int, Conversation]], round_: Round) -> None:
        try:
            workers = (self._worker(numbered, round_) for _ in range(max(1, self.settings.concurrency)))
            await asyncio.gather(*workers)
        finally:
            if round_.client is not None:
                await round_.client.close()
            if not _is_cancelled():  # nobody takes anything any more then, and the queue may be full
                await round_.done.put(None)

    async def _worker(self, numbered: Iterator[tuple[int, Conversation]], round_: Round) -> None:
        while round_.stop is None and (following := next(numbered, None)) is not None:
            try:
                completion = await self._answer(following[1], round_)
            except (NoAnswers, BudgetReached) as error:  # this item stays unanswered; what others have in flight ends
                round_.stop = round_.stop or error
                return
            await round_.done.put((following[0], completion))

    async def _answer(self, messages: Conversation, round_: Round) -> Completion:
        key = self.key_of(messages, round_.sampling, self._sample(messages, round_))
        if self.cache and (known := self.cache.get(key)):
            return Completion(**known)
        round_.client = round_.client or self._client()
        completion = await self._ask(messages, round_)
        round_.failed_in_a_row = round_.failed_in_a_row + 1 if completion.failure else 0
        if round_.failed_in_a_row >= _IN_A_ROW:
            round_.stop = round_.stop or NoAnswers(
                f"{_IN_A_ROW} items in a row failed at {self.name}, the last with: {completion.failure}. "
                "What is finished is kept; look at the server and run again."
            )
        if self.cache and completion.finished and not completion.failure:
            self.cache.put(key, asdict(completion))
        return completion

    async def _ask(self, messages: Conversation, round_: Round) -> Completion:
        """Try until there is an answer or no more hope for this item."""
        most, tries = bound(messages, round_.sampling.max_new_tokens), 0
        while True:
            tries += 1
            await self._admit(most, round_)
            try:
                completion = await self._once(messages, round_)
            except Fault as fault:
                self._settle(round_, most, most if fault.charged else Spending(int(fault.sent)))
                if fault.hopeless:
                    raise NoAnswers(
                        f"The model {self.name} answers nothing: {fault.reason}. What is finished is kept; put it "
                        "right and run again."
                    ) from None
                if tries >= min(self.settings.tries, 1 + fault.again):
                    return Completion("", False, 0, 0, f"{fault.reason} ({tries} {'try' if tries == 1 else 'tries'})")
                await asyncio.sleep(wait_before(tries, self.settings.backoff, fault.asked, random.random()))
            else:
                counted = Spending(1, completion.prompt_tokens, completion.new_tokens)
                self._settle(round_, most, counted if counted.tokens else most)
                return completion

    async def _admit(self, most: Spending, round_: Round) -> None:
        """Wait while requests in flight may still turn out cheaper than their bound."""
        while not self.ledger.admit(most):
            if round_.in_flight == 0:
                raise BudgetReached(
                    f"The budget of this run ({self.ledger.limits()}) leaves no room for the next request to "
                    f"{self.name}. What is finished is kept; raise endpoint.max_requests, max_tokens or max_cost and "
                    "run again."
                )
            round_.settled.clear()
            await round_.settled.wait()
        if round_.stop:
            self.ledger.settle(most, Spending())
            raise round_.stop
        round_.in_flight += 1

    def _settle(self, round_: Round, most: Spending, actual: Spending) -> None:
        self.ledger.settle(most, actual)
        round_.in_flight -= 1
        round_.settled.set()

    async def _once(self, messages: Conversation, round_: Round) -> Completion:
        """One request; Fault where it brings no answer. Nothing that the server says can carry the key out of here."""
        import openai

        try:
            async with asyncio.timeout(self.settings.timeout):  # a server that drips a byte a minute is late too
                answer = await round_.client.chat.completions.create(
                    model=self.place.model,
                    messages=[{"role": m["role"], "content": replace_surrogates(m["content"])} for m in messages],
                    **self._sent(round_.sampling),
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            late = charged(f"no answer within {self.settings.timeout:g} s")
            raise unsent(error, self.address) or late from None
        except openai.APIStatusError as error:
            code, words = error.code or "", without_key(str(error.message), self.key)
            raise fault_of(Status(error.status_code, code, words, error.response.headers)) from None
        except (openai.OpenAIError, ValueError) as error:
            cause = f"{error} ({error.__cause__!r})" if error.__cause__ else repr(error)
            unread = charged(f"no readable answer: {without_key(cause, self.key)}")
            raise unsent(error, self.address) or unread from None
        return read_completion(answer, self.key)

    # ---- small parts ----

    def _client(self) -> Any:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        client = AsyncOpenAI(
            base_url=self.place.url or None,
            api_key=self.key or "not-needed",
            max_retries=0,  # ours count, and are counted
            timeout=Timeout(self.settings.timeout, connect=self.settings.timeout / 2),  # a host that is off is told so
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),  # a question goes to the named server only
        )
        if self.place.variable != OPENAI:
            client.organization = client.project = client.admin_api_key = None  # read from the environment otherwise
        return client

    def sampling(self, max_new_tokens: int, temperature: float) -> Sampling:
        """As asked for, with room to think before the answer, and without a temperature where the model takes none."""
        own = self.settings
        return Sampling(max_new_tokens + own.thinking_tokens, temperature if own.send_temperature else None)

    def _sent(self, sampling: Sampling) -> dict[str, float]:
        """OpenAI's newer models refuse the old name of the limit, and some other servers ignore the new one."""
        limit = "max_completion_tokens" if self.place.variable == OPENAI else "max_tokens"
        sent: dict[str, float] = {limit: sampling.max_new_tokens}
        return sent if sampling.temperature is None else sent | {"temperature": sampling.temperature}

    def key_of(self, messages: Conversation, sampling: Sampling, sample: int = 0) -> str:
        """Under what the cache keeps the answer; `sample` counts answers drawn to the same question."""
        where = {"url": self.place.url, "model": self.place.model, "messages": messages}
        return answer_key(**where, **asdict(sampling), sample=sample)

    def _sample(self, messages: Conversation, round_: Round) -> int:
        """Which answer to this question it is; always the first where answers are not drawn."""
        if round_.sampling.temperature == 0:
            return 0
        question = answer_key(messages=messages)
        round_.asked[question] += 1
        return round_.asked[question] - 1


async def _all_of(queue: asyncio.Queue[tuple[int, Completion] | None]) -> list[tuple[int, Completion] | None]:
    """At least one, and whatever else is waiting."""
    found = [await queue.get()]
    while not queue.empty() and found[-1] is not None:
        found.append(queue.get_nowait())
    return found


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def _loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop beside the caller, who may be a notebook with a loop of its own; no task outlives the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
