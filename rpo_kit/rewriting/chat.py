"""The black-box models: conversations in, completions out, whoever answers.

One small protocol, `Chat`, and two implementations: a model in this process, and any OpenAI-compatible endpoint. Which
one is chosen by one string: `local:smollm2`, `openai:gpt-4o-mini`, `http://localhost:8000/v1#my-model`. Caching,
budgets and retry policies are left out here (issue 5); the `openai` client's own retries apply. Keys come from the
environment only.

    >>> chat.complete([[{"role": "user", "content": "What is the score of the following review …"}]], max_new_tokens=8)
    [Completion(text='4', finished=True, prompt_tokens=61, new_tokens=2)]
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rpo_kit.errors import KitError

if TYPE_CHECKING:
    from rpo_kit.rewriting.reflection import LoadedModel

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Completion:
    """What came back. `finished` is False where the answer was cut off at the token limit."""

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int


class Chat(Protocol):
    """A black-box model. Greedy where temperature is 0; one completion a conversation, in the same order."""

    name: str

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]: ...


def open_chat(spec: str, max_seq_length: int = 1024) -> Chat:
    """The model that `spec` names; KitError explains the three forms."""
    kind, _, rest = spec.partition(":")
    if kind == "local" and rest:
        from rpo_kit.rewriting.reflection import load_base  # loading torch takes seconds; endpoints need none of it

        return LocalChat(load_base(rest, max_seq_length), spec)
    if kind == "openai" and rest:
        return EndpointChat(os.environ.get("OPENAI_BASE_URL", ""), rest)
    if spec.startswith(("http://", "https://")) and "#" in spec:
        url, _, model = spec.rpartition("#")
        return EndpointChat(url, model)
    raise KitError(f"{spec!r} names no model: write local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL.")


class LocalChat:
    """A model in this process."""

    def __init__(self, model: LoadedModel, name: str = "local") -> None:
        self.model, self.name = model, name

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        from rpo_kit.rewriting.reflection import generate

        return generate(self.model, conversations, max_new_tokens=max_new_tokens, temperature=temperature)


class EndpointChat:
    """An OpenAI-compatible endpoint, asked with bounded concurrency."""

    def __init__(self, base_url: str, model: str, concurrency: int = 8) -> None:
        self.base_url, self.model, self.concurrency = base_url or None, model, concurrency
        self.name = f"{base_url or 'openai'}#{model}"
        if self.base_url is None and not os.environ.get("OPENAI_API_KEY"):
            raise KitError(
                "Set the environment variable OPENAI_API_KEY, or point to a server with http://HOST:PORT/v1#MODEL."
            )

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        work = self._complete(conversations, max_new_tokens=max_new_tokens, temperature=temperature)
        return _run(work)

    async def _complete(self, conversations: Sequence[Conversation], **sampling: Any) -> list[Completion]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        key = os.environ.get("OPENAI_API_KEY") or "not-needed"
        async with AsyncOpenAI(base_url=self.base_url, api_key=key) as client:
            return await asyncio.gather(*(self._one(client, gate, messages, **sampling) for messages in conversations))

    async def _one(
        self, client: Any, gate: asyncio.Semaphore, messages: Conversation, max_new_tokens: int, temperature: float
    ) -> Completion:
        from openai import OpenAIError

        try:
            async with gate:
                answer = await client.chat.completions.create(
                    model=self.model, messages=messages, max_tokens=max_new_tokens, temperature=temperature
                )
        except OpenAIError as error:
            raise KitError(
                f"The model {self.name} did not answer ({_without_key(str(error))}). "
                "What is finished is kept; run again."
            ) from None  # a notebook shows causes too, and with them what the server said about the key
        if not answer.choices or not answer.choices[0].message.content:
            raise KitError(f"The model {self.name} sent an empty answer. What is finished is kept; run again.")
        choice, usage = answer.choices[0], answer.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Completion(choice.message.content, choice.finish_reason != "length", *counts)


def _without_key(text: str) -> str:
    """Some servers repeat the key which they refuse."""
    key = os.environ.get("OPENAI_API_KEY")
    return text.replace(key, "…") if key else text


def _run(work: Any) -> list[Completion]:
    """Run a coroutine to its end, also inside a notebook, whose own event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return list(asyncio.run(work))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return list(pool.submit(asyncio.run, work).result())
