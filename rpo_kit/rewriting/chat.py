"""The black-box models: conversations in, completions out, whoever answers.

One small protocol, `Chat`, and two implementations: a model in this process, and any OpenAI-compatible endpoint (in
`endpoint.py`). Which one is chosen by one string:

    local:smollm2, local:HUB-ID-OR-FOLDER          in this process
    openai:gpt-4o-mini                             OpenAI, or the server in OPENAI_BASE_URL; key from OPENAI_API_KEY
    http://localhost:8000/v1#my-model              any other server; no key is sent
    https://openrouter.ai/api/v1#org/model@MY_KEY  the same with the key that the variable MY_KEY holds

The length of an answer is limited by `max_completion_tokens` in the form openai:MODEL and by `max_tokens` in the other
ones: OpenAI's newer models refuse the second, and some servers ignore the first (so name them by their URL).

    >>> chat.complete([[{"role": "user", "content": "What is the score of the following review …"}]], max_new_tokens=8)
    [Completion(text='4', finished=True, prompt_tokens=61, new_tokens=2, failure=None)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rpo_kit.errors import KitError
from rpo_kit.places import place_of
from rpo_kit.presets import EndpointSettings
from rpo_kit.runs import Run, runs_root

if TYPE_CHECKING:
    from rpo_kit.rewriting.reflection import LoadedModel

Conversation = list[dict[str, str]]
ANSWERS = "answers.sqlite"  # beside the runs: what endpoints have answered, to whichever run
ACCOUNT = "spent.sqlite"  # in the run's folder: what it has spent


@dataclass(frozen=True)
class Completion:
    """What came back. `finished` is False where the answer was cut off at the token limit; `failure` says in words why
    there is none (the text is "" then).
    """

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int
    failure: str | None = None


class Chat(Protocol):
    """A black-box model. Greedy where temperature is 0; one completion a conversation, in the same order."""

    name: str

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]: ...


def open_chat(
    spec: str, max_seq_length: int = 1024, settings: EndpointSettings | None = None, run: Run | None = None
) -> Chat:
    """The model that `spec` names; KitError explains the forms.

    What an endpoint costs goes to the account of `run`; without a run, the limits are those of this object.
    """
    kind, _, rest = spec.partition(":")
    if kind == "local" and rest:
        from rpo_kit.rewriting.reflection import load_base  # loading torch takes seconds; endpoints need none of it

        return LocalChat(load_base(rest, max_seq_length), spec)
    place = place_of(spec)
    if place is None:
        raise KitError(
            f"{spec!r} names no model: write local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL (with @VARIABLE "
            "behind it where the server wants a key)."
        )
    from rpo_kit.rewriting.cache import open_database
    from rpo_kit.rewriting.endpoint import EndpointChat

    folder: Path = run.folder.parent if run else runs_root()
    account = open_database(run.folder / ACCOUNT) if run else None
    return EndpointChat(place, settings, open_database(folder / ANSWERS), account)


def open_chat_of(run: Run, spec: str) -> Chat:
    """The model for a stage of `run`, with the run's settings and on its account."""
    return open_chat(spec, run.preset.reflection.max_seq_length, run.preset.endpoint, run)


class LocalChat:
    """A model in this process."""

    def __init__(self, model: LoadedModel, name: str = "local") -> None:
        self.model, self.name = model, name

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        from rpo_kit.rewriting.reflection import generate

        return generate(self.model, conversations, max_new_tokens=max_new_tokens, temperature=temperature)


def as_they_come(
    chat: Chat, conversations: Sequence[Conversation], *, max_new_tokens: int, chunk: int = 64
) -> Iterator[list[tuple[int, Completion]]]:
    """Lists of (place in `conversations`, completion), each list as soon as it is there, so that it can be stored.

    An endpoint is asked for all of them at once and never waits for a chunk to end; any other model answers in chunks.
    """
    from rpo_kit.rewriting.endpoint import EndpointChat

    if isinstance(chat, EndpointChat):
        yield from chat.stream(conversations, max_new_tokens=max_new_tokens)
        return
    for start in range(0, len(conversations), chunk):
        answers = chat.complete(conversations[start : start + chunk], max_new_tokens=max_new_tokens)
        yield list(enumerate(answers, start))


@contextmanager
def told_cost(chat: Chat, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[None]:
    """Print the estimate before asking an endpoint, and what it came to after, also where asking was cut short."""
    from rpo_kit.rewriting.endpoint import EndpointChat

    if not isinstance(chat, EndpointChat):
        yield
        return
    print(chat.estimate(conversations, max_new_tokens))
    try:
        yield
    finally:
        print(chat.actual())
