"""The protocol of a black-box model (Figure 1, left): conversations in, completions out.

`Chat` is all that the rest of the kit knows about a model. `name` and `complete` are enough; a model that can do more
implements one of the other protocols, and the functions at the end fall back if it does not. `open_chat` (in `open.py`)
turns a string such as `openai:gpt-4o-mini` into a `Chat`. Not supported: tools, images, logprobs, token streaming.

    >>> class Echo:
    ...     name = "echo"
    ...
    ...     def complete(self, conversations, *, max_new_tokens, temperature=0.0):
    ...         return [Completion(messages[-1]["content"], True, 7, 1) for messages in conversations]
    >>> list(stream_completions(Echo(), [[{"role": "user", "content": "4"}]], max_new_tokens=8))
    [[(0, Completion(text='4', finished=True, prompt_tokens=7, new_tokens=1, failure=None))]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]  # [{"role": "user", "content": "What is the score of the following review …"}]
Batch = list[tuple[int, "Completion"]]  # (index of the conversation, its completion)


@dataclass(frozen=True)
class Completion:
    """One answer. `finished` is False if it was cut off at the token limit. `failure` is the reason if there is no
    answer; `text` is then "".
    """

    text: str
    finished: bool
    prompt_tokens: int  # 0 if the model does not count
    new_tokens: int
    failure: str | None = None


class Chat(Protocol):
    """A black-box model."""

    @property
    def name(self) -> str:
        """For messages and progress bars."""
        ...

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        """One completion per conversation, in the same order; greedy at temperature 0.

        If a single conversation gets no answer, its completion has `failure` set; an exception means that the others
        cannot be answered either.
        """
        ...


@runtime_checkable
class StreamingChat(Chat, Protocol):
    """A model that hands out completions as they arrive, in any order."""

    def stream(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[Batch]: ...


@runtime_checkable
class PricedChat(Chat, Protocol):
    """A model that costs money."""

    def reporting_cost(
        self, conversations: Sequence[Conversation], max_new_tokens: int
    ) -> AbstractContextManager[None]:
        """Print the estimated cost on entry and the actual cost on exit, even if interrupted."""
        ...


@runtime_checkable
class WindowedChat(Chat, Protocol):
    """A model whose context window is known, with the tokenizer that measures prompts."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def max_seq_length(self) -> int:
        """Tokens of prompt and answer together."""
        ...


@runtime_checkable
class ConcurrentChat(Chat, Protocol):
    """A model that several threads may call at once, if `concurrent` is true."""

    @property
    def concurrent(self) -> bool: ...


def stream_completions(
    chat: Chat, conversations: Sequence[Conversation], *, max_new_tokens: int, chunk: int = 64
) -> Iterator[Batch]:
    """Yield batches of (index in `conversations`, completion) as they arrive, so that each can be stored at once.

    A model that streams gets all conversations at once; any other gets `chunk` conversations at a time.
    """
    if isinstance(chat, StreamingChat):
        yield from chat.stream(conversations, max_new_tokens=max_new_tokens)
        return
    for start in range(0, len(conversations), chunk):
        part = conversations[start : start + chunk]
        completions = chat.complete(part, max_new_tokens=max_new_tokens)
        yield list(zip(range(start, start + len(part)), completions, strict=True))  # strict: none may be missing


def reporting_cost(
    chat: Chat, conversations: Sequence[Conversation], max_new_tokens: int
) -> AbstractContextManager[None]:
    """If the model costs money, print the estimate before the requests and the actual cost after them."""
    return chat.reporting_cost(conversations, max_new_tokens) if isinstance(chat, PricedChat) else nullcontext()


def answers_at_once(chat: Chat) -> bool:
    """Whether several threads may ask the model at the same time: one at an endpoint, not one in this process."""
    return isinstance(chat, ConcurrentChat) and chat.concurrent
