"""The protocol of a black-box model: conversations in, completions out, whoever answers.

`Chat` is all that the rest of the kit knows about a model. A model needs only `name` and `complete`; what else it can
do it says by implementing more of the protocol, and the functions below fall back where it does not. `open_chat` (in
`open.py`) turns a string such as `openai:gpt-4o-mini` into a `Chat`.

    chat.complete([[{"role": "user", "content": "What is the score of the following review …"}]], max_new_tokens=8)
    # [Completion(text='4', finished=True, prompt_tokens=61, new_tokens=2, failure=None)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]
Batch = list[tuple[int, "Completion"]]  # (index of the conversation, its completion)


@dataclass(frozen=True)
class Completion:
    """One answer. `finished` is False if it was cut off at the token limit. `failure` is the reason if there is no
    answer; `text` is then "".
    """

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int
    failure: str | None = None


class Chat(Protocol):
    """A black-box model."""

    name: str

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        """One completion per conversation, in the same order; greedy at temperature 0."""
        ...


@runtime_checkable
class StreamingChat(Chat, Protocol):
    """A model that hands out completions as they arrive."""

    def stream(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[Batch]: ...


@runtime_checkable
class PricedChat(Chat, Protocol):
    """A model that costs money."""

    def reporting_cost(
        self, conversations: Sequence[Conversation], max_new_tokens: int
    ) -> AbstractContextManager[None]:
        """Print the estimated cost on entry and the actual cost on exit."""
        ...


@runtime_checkable
class WindowedChat(Chat, Protocol):
    """A model whose context window is known here, with the Hugging Face tokenizer that measures prompts."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def max_seq_length(self) -> int: ...


def stream_completions(
    chat: Chat, conversations: Sequence[Conversation], *, max_new_tokens: int, chunk: int = 64
) -> Iterator[Batch]:
    """Batches of (index in `conversations`, completion), each as soon as it is there, so that it can be stored.

    A model that streams is sent all conversations at once; any other is asked `chunk` conversations at a time.
    """
    if isinstance(chat, StreamingChat):
        yield from chat.stream(conversations, max_new_tokens=max_new_tokens)
        return
    for start in range(0, len(conversations), chunk):
        completions = chat.complete(conversations[start : start + chunk], max_new_tokens=max_new_tokens)
        yield list(enumerate(completions, start))


def reporting_cost(
    chat: Chat, conversations: Sequence[Conversation], max_new_tokens: int
) -> AbstractContextManager[None]:
    """Report what the requests cost, if the model has a price: the estimate before them, the actual cost after."""
    return chat.reporting_cost(conversations, max_new_tokens) if isinstance(chat, PricedChat) else nullcontext()
