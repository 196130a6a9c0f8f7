"""The state that the workers of one `EndpointChat.stream` share, and the event loop in which they run.

with event_loop() as loop:
    state = Stream(Sampling(8, 0.0), loop)     # workers put (index, completion) into state.results, and None last
    results = asyncio.run_coroutine_threadsafe(take_all(state.results), loop).result()
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from rpo_kit.models.budget import BudgetError
from rpo_kit.models.chat import Completion
from rpo_kit.models.client import Client, Sampling
from rpo_kit.models.retry import EndpointError

_QUEUE_SIZE = 256  # finished answers that may wait to be taken


class Stream:
    """The state that the workers of one stream share."""

    def __init__(self, sampling: Sampling, loop: asyncio.AbstractEventLoop) -> None:
        self.sampling = sampling
        self.results: asyncio.Queue[tuple[int, Completion] | None] = asyncio.Queue(_QUEUE_SIZE)  # None: the end
        self.client: Client | None = None  # opened for the first answer that is not in the cache
        self.error: EndpointError | BudgetError | None = None  # why the stream stopped early
        self.stopped = loop.create_future()  # done when `error` is set
        self.failed_in_a_row = 0
        self.in_flight = 0
        self.settled = asyncio.Event()  # set when a request in flight has been settled
        self.times_asked: Counter[str] = Counter()  # by conversation, if answers are sampled

    def stop(self, error: EndpointError | BudgetError) -> None:
        if self.error is None:
            self.error = error
            self.stopped.set_result(None)

    async def pause(self, seconds: float | None = None, until: Future[Completion | None] | None = None) -> None:
        """Wait for `seconds` or `until`, but no longer than the stream runs.

        Raises:
            EndpointError, BudgetError: the stream has stopped.
        """
        other = asyncio.wrap_future(until) if until else None
        try:
            waiting = {self.stopped, other} if other else {self.stopped}
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if other:
                other.cancel()  # ends this wait alone: others may wait for `until` too
        if self.error:
            raise self.error


async def take_all(queue: asyncio.Queue[tuple[int, Completion] | None]) -> list[tuple[int, Completion] | None]:
    """Wait for one result, and take all others that are ready."""
    results = [await queue.get()]
    while not queue.empty() and results[-1] is not None:
        results.append(queue.get_nowait())
    return results


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in its own thread, because a notebook already runs one; no task outlives the block."""

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
