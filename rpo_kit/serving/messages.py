"""Requests in OpenAI's format: LaMP's input, the user, the profile, and the options under `rpo`.

No HTTP (`server.py`) and no model here. A request that cannot be understood, or asks for what a rewrite cannot be
(tools, several choices, JSON), raises RequestError with the status and the message that the client gets. Fields without
effect (a temperature, earlier messages) are listed in the response, under `rpo.ignored`.

    input_of(task, [{"role": "user", "content": "It leaks."}])       # 'What is the score … review: It leaks.'
    ignored_fields({"messages": […], "user": "ann", "temperature": 0.7})                       # ['temperature']
    options_of({"rpo": {"k": 2, "explain": True}})                   # Options(k=2, retriever=None, explain=True)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rpo_kit.lamp.retrieval import RETRIEVERS
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.personalizer import InputError, checked_items

MAX_ITEMS = 2_000  # ours: per profile; LaMP's largest has about a thousand
MAX_K = 20  # ours: items that one request may show to the module, which was trained with 6
USER_HEADER = "X-RPO-User"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")  # cannot name another folder

# ours: fields that ask for something other than a rewrite, and the values that do not
_HARMLESS: dict[str, Callable[[object], bool]] = {
    "n": lambda value: value == 1 and not isinstance(value, bool),
    "best_of": lambda value: value == 1,
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "modalities": lambda value: value == ["text"],
    "audio": lambda value: False,
    "web_search_options": lambda value: False,
}
_READ = {
    *("model", "messages", "user", "profile", "rpo", "metadata", "extra", "extra_body", "stream", "stream_options"),
    *_HARMLESS,
}


class RequestError(Exception):
    """A request that gets an error status and a message; `code` is OpenAI's word for some errors."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Options:
    """What a request may choose under `rpo`, besides the user and the history; None: the run's setting."""

    k: int | None = None
    retriever: str | None = None
    explain: bool = False


_OPTIONS = ("k", "user", "items", "retriever", "explain")


def options_of(body: Mapping[str, object]) -> Options:
    """The options of a request. Raises RequestError for an unknown one, or an impossible value."""
    options = rpo_of(body)
    k, retriever, explain = options.get("k"), options.get("retriever"), options.get("explain")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or not 0 <= k <= MAX_K):
        raise RequestError(400, f"`rpo.k` must be a whole number from 0 to {MAX_K}.")
    known = [name for name in RETRIEVERS if ":" not in name]  # an encoder would have to be loaded first
    if retriever is not None and retriever not in known:
        raise RequestError(400, f"`rpo.retriever` must be one of {', '.join(known)}.")
    if explain is not None and not isinstance(explain, bool):
        raise RequestError(400, "`rpo.explain` must be true or false.")
    return Options(k, retriever if isinstance(retriever, str) else None, bool(explain))


def rpo_of(body: Mapping[str, object]) -> Mapping[str, object]:
    """The field `rpo` of a request, which OpenAI's client sends from its `extra_body`."""
    options = body.get("rpo")
    if options is None:
        return {}
    if not isinstance(options, dict) or not options.keys() <= set(_OPTIONS):
        unknown = sorted(map(str, options.keys() - set(_OPTIONS))) if isinstance(options, dict) else []
        what = f"there is no {', '.join(unknown)} in it" if unknown else "it is something else"
        raise RequestError(400, f"`rpo` must be an object with some of {', '.join(_OPTIONS)}; {what}.")
    return options


def check_supported(body: Mapping[str, object]) -> None:
    """Reject what a rewrite cannot be, rather than ignore it silently."""
    if body.get("n") is not None and not _HARMLESS["n"](body["n"]):
        raise RequestError(400, "`n` must be 1: a request gets one choice.")
    for name, harmless in _HARMLESS.items():
        if body.get(name) is not None and not harmless(body[name]):
            raise RequestError(400, f"`{name}` is not supported: a rewrite is one plain text. Leave it out.")


def ignored_fields(body: Mapping[str, object]) -> list[str]:
    """The fields of a request that have no effect, sorted."""
    ignored = {field for field, value in body.items() if value is not None and field not in _READ}
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > 1:
        ignored.add("messages before the last one")
    return sorted(ignored)


def user_of(body: Mapping[str, object], header: str | None) -> str | None:
    """The user: `user` or `rpo.user`, or, from clients that cannot send them, `metadata.user_id` or the header; None if
    not named.
    """
    names = [body.get("user"), rpo_of(body).get("user"), header or None]
    for field in ("metadata", "extra", "extra_body"):
        source = body.get(field)
        if isinstance(source, dict):
            names += [source.get("user_id"), source.get("user")]
    users = {checked_user(name) for name in names if name is not None}
    if len(users) > 1:
        raise RequestError(400, f"`user`, `metadata` and {USER_HEADER} name different users: send one name.")
    return next(iter(users), None)


def checked_user(name: object) -> str:
    """The name of a user as a text that cannot name another file; LaMP's users are numbers."""
    text = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(text, str) or not _USER.fullmatch(text):
        raise RequestError(400, "`user` must consist of letters, digits and _ . @ -, and begin with a letter or digit.")
    return text


def input_of(task: Task, messages: object) -> str:
    """LaMP's input from the last message, which holds either that or the bare query."""
    error = RequestError(400, "`messages` must be a list of {role, content} with texts, the last one from the user.")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise error
    text = text_of(messages[-1].get("content"))
    if messages[-1].get("role") != "user" or not text.strip():
        raise error
    if task.is_official(text):
        return text
    if task.parts != ("text",):
        raise RequestError(
            400, f"The last message must be a whole input of {task.name}, with the title and both references."
        )
    return task.make_input(text=text)


def text_of(content: object) -> str:
    """A message's text, which may come in parts, as OpenAI allows; "" if it is not a text."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return ""
    texts = [part.get("text") for part in parts]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else ""


def checked_profile(task: Task, content: object, source: str) -> list[Item]:
    """The items in `content`, each with the task's fields as texts; a missing id becomes the item's position.

    `source` names the content in the error: "`profile`", "the file".
    """
    if not isinstance(content, list) or len(content) > MAX_ITEMS:
        raise RequestError(400, f"{source} must be a JSON list of at most {MAX_ITEMS:,} items.")
    try:
        return checked_items(task, content, source)
    except InputError as error:
        raise RequestError(400, str(error)) from None
