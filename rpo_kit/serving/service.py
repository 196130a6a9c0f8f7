"""From a request to the answer of the model that it names; no HTTP here (`server.py`).

service = Service(personalizer, profiles=None, models={"rpo-sft": other})
answer(service, {"model": "rpo-sft", "profile": […], "messages": […], "rpo": {"k": 2, "explain": True}})
# {"choices": [{"message": {"content": "1"}, …}], "rpo": {"generic": "3", "observations": …}, …}
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.personalizer import InputError, Personalizer, Rewrite
from rpo_kit.serving.access import check_speaks_for
from rpo_kit.serving.messages import (
    USER_HEADER,
    Options,
    RequestError,
    check_supported,
    ignored_fields,
    input_of,
    options_of,
    rpo_of,
    user_of,
)
from rpo_kit.serving.profiles import Profiles, items_in
from rpo_kit.serving.responses import ChatCompletion, as_completion
from rpo_kit.serving.stages import BaseAlone
from rpo_kit.serving.together import Together

MAX_WAITING = 64  # ours: requests waiting for a model

Model = Personalizer | BaseAlone


@dataclass
class Service:
    """What all requests share; several threads use it at once."""

    personalizer: Personalizer  # the model `name`, which answers requests that name no model
    profiles: Path | None  # a folder; None: in memory
    key: str = ""
    name: str = "rpo"
    local_only: bool = True
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_WAITING))
    models: Mapping[str, Model] = field(default_factory=dict)  # others by name
    together: Together | None = None  # batches the requests, if the models are in this process
    store: Profiles = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    changed: dict[tuple[str, int | None, str | None], Model] = field(default_factory=dict)  # by name, k, retriever

    def __post_init__(self) -> None:
        self.store = Profiles(self.task, self.profiles)

    @property
    def task(self) -> Task:
        return self.personalizer.task

    @property
    def names(self) -> list[str]:
        return [self.name, *self.models]


def answer(
    service: Service, body: Mapping[str, object], user_header: str | None = None, sender: str | None = None
) -> ChatCompletion:
    """The response to the body of a request; `sender` is the user whose token came with it, if any.

    Raises:
        RequestError: the request is at fault.
        KitError: the base model did not answer.
    """
    check_supported(body)
    name, options = name_of(service, body), options_of(body)
    model = model_of(service, name, options)
    input = input_of(service.task, body.get("messages"))
    profile = [] if isinstance(model, BaseAlone) else profile_of(service, body, user_header, sender)
    try:
        rewrite = rewrite_of(service, model, input, profile)
    except InputError as error:
        raise RequestError(400, str(error)) from None
    return as_completion(name, rewrite, ignored_fields(body), options.explain)


def name_of(service: Service, body: Mapping[str, object]) -> str:
    """The model that a request names. Raises RequestError: 404 if there is none of this name."""
    name = service.name if body.get("model") is None else body["model"]
    if name not in service.names:
        known = ", ".join(service.names)
        raise RequestError(404, f"There is no model {str(name)[:80]!r}: this server has {known}.", "model_not_found")
    return str(name)


def model_of(service: Service, name: str, options: Options) -> Model:
    """The model with the request's *k* and retriever: the same object for all requests that want the same."""
    model = service.models.get(name, service.personalizer)
    settings = {"shots": options.k, "retriever": options.retriever}
    wanted = {name: value for name, value in settings.items() if value is not None}
    if not wanted or isinstance(model, BaseAlone):
        return model
    other = copy(model)  # with the same models and lock
    vars(other).update(wanted)
    return service.changed.setdefault((name, options.k, options.retriever), other)


def profile_of(
    service: Service, body: Mapping[str, object], user_header: str | None = None, sender: str | None = None
) -> list[Item]:
    """The history in the request, or the stored one of its user, or of the user whose token was sent."""
    user = user_of(body, user_header)
    if user is not None:
        check_speaks_for(sender, user)
    given = {"`rpo.items`": rpo_of(body).get("items"), "`profile`": body.get("profile")}
    found = [items_in(service.task, content, source) for source, content in given.items() if content is not None]
    if len(found) > 1:
        raise RequestError(400, "The request has `rpo.items` and `profile`: send the history in one of them.")
    if found:
        return found[0]
    user = user or sender
    if user is None:
        raise RequestError(
            400,
            "The request names no user: name the user of a stored profile in `user` (or in metadata.user_id, or in the "
            f"header {USER_HEADER}), or send the history in `profile`.",
        )
    return service.store.read(user)


def rewrite_of(service: Service, model: Model, input: str, profile: list[Item]) -> Rewrite:
    """The model's answer, in one batch with others that wait for it. Raises InputError, KitError as the model does."""
    if isinstance(model, Personalizer) and model.retriever == "recency":
        try:
            rank(service.task, [{"id": "query", "input": input, "profile": profile}], "recency")
        except KitError as error:  # a date that is none
            raise InputError(str(error)) from None
    return service.together(model, input, profile) if service.together else model(input, profile)


def explained(error: BaseException) -> RequestError:
    """The error that the client gets. One that is neither its fault nor the base model's goes to the log: its type and
    where it was raised, but not its message, which may quote a user's text.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, KitError):  # the base model
        return RequestError(502, str(error))
    name = type(error).__name__
    places = "".join(traceback.format_tb(error.__traceback__))
    print(f"rpo_kit serve: the personalizer failed with {name}:\n{places}", file=sys.stderr, flush=True)
    return RequestError(500, f"The personalizer failed ({name}); the server's log says more.")
