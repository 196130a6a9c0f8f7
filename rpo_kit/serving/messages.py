"""OpenAI's format: from a request to LaMP's input and a profile, from a rewrite to a chat completion.

No HTTP (`server.py`) and no model here. A request that cannot be understood, or asks for what a rewrite cannot be
(tools, several choices, JSON), raises RequestError with the status and the message that the client gets. Fields without
effect (a temperature, earlier messages) are listed in the response, under `rpo.ignored`.

    input_of(task, [{"role": "user", "content": "It leaks."}])       # 'What is the score … review: It leaks.'
    ignored_fields("rpo", {"messages": […], "user": "ann", "temperature": 0.7})                # ['temperature']
    as_completion("rpo", rewrite)["choices"][0]["message"]["content"]       # '1'
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NotRequired, TypedDict

from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.personalizer import InputError, Rewrite, checked_items

MAX_ITEMS = 2_000  # ours: per profile; LaMP's largest has about a thousand
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
_READ = {"messages", "user", "profile", "metadata", "extra", "extra_body", "stream", "stream_options", *_HARMLESS}


class RequestError(Exception):
    """A request that gets an error status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


# ---- requests -----------------------------------------------------------------------------------------------------


def check_supported(body: Mapping[str, object]) -> None:
    """Reject what a rewrite cannot be, rather than ignore it silently."""
    if body.get("n") is not None and not _HARMLESS["n"](body["n"]):
        raise RequestError(400, "`n` must be 1: a request gets one choice.")
    for name, harmless in _HARMLESS.items():
        if body.get(name) is not None and not harmless(body[name]):
            raise RequestError(400, f"`{name}` is not supported: a rewrite is one plain text. Leave it out.")


def ignored_fields(name: str, body: Mapping[str, object]) -> list[str]:
    """The fields of a request that have no effect, sorted; `name` is the model's."""
    ignored = {field for field, value in body.items() if value is not None and field not in {*_READ, "model"}}
    if body.get("model") not in (None, name):
        ignored.add("model")
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > 1:
        ignored.add("messages before the last one")
    return sorted(ignored)


def user_of(body: Mapping[str, object], header: str | None) -> str | None:
    """The user: `user`, or, from clients that cannot send it, `metadata.user_id` or the header; None if not named."""
    names = [body.get("user"), header or None]
    for field in ("metadata", "extra", "extra_body"):
        source = body.get(field)
        if isinstance(source, dict):
            names += [source.get("user_id"), source.get("user")]
    users = set()
    for name in names:
        text = str(name) if isinstance(name, int) and not isinstance(name, bool) else name  # LaMP's users are numbers
        if isinstance(text, str) and _USER.fullmatch(text):
            users.add(text)
        elif text is not None:
            raise RequestError(
                400, "`user` must consist of letters, digits and _ . @ -, and begin with a letter or digit."
            )
    if len(users) > 1:
        raise RequestError(400, f"`user`, `metadata` and {USER_HEADER} name different users: send one name.")
    return next(iter(users), None)


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


# ---- responses ----------------------------------------------------------------------------------------------------


class Choice(TypedDict):
    index: int
    message: dict[str, str]
    finish_reason: str


class Explanation(TypedDict):
    """How the rewrite was made."""

    generic: str
    items: list[str]
    observations: list[str]
    plan: str
    complaint: str | None  # why there is no trajectory
    kept_generic: str | None  # why the generic answer is used although there is one
    shortened: bool
    seconds: dict[str, float]
    tokens: dict[str, dict[str, int]]
    ignored: NotRequired[list[str]]  # fields of the request without effect


class ChatCompletion(TypedDict):
    """OpenAI's format, and under `rpo` how the rewrite was made."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, int]
    rpo: Explanation


def as_completion(name: str, rewrite: Rewrite, ignored: Sequence[str] = ()) -> ChatCompletion:
    """The rewrite as an answer of the model `name`; `usage` is the sum over base model and reflection module."""
    prompt, new = (sum(counts) for counts in zip(*rewrite.tokens.values(), strict=True))
    explanation: Explanation = {
        "generic": rewrite.generic,
        "items": [item["id"] for item in rewrite.items],
        "observations": rewrite.observations,
        "plan": rewrite.plan,
        "complaint": rewrite.parse_error,
        "kept_generic": rewrite.kept_generic,
        "shortened": rewrite.shortened,
        "seconds": {stage: round(seconds, 4) for stage, seconds in rewrite.timings.items()},
        "tokens": {model: {"prompt": p, "new": n} for model, (p, n) in rewrite.tokens.items()},
    }
    if ignored:
        explanation["ignored"] = list(ignored)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": rewrite.text}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new},
        "rpo": explanation,
    }


def as_events(completion: ChatCompletion) -> str:
    """The same for a client that asked for a stream: one chunk, because a rewrite is complete at once."""
    choice = completion["choices"][0]
    delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunk = {**completion, "object": "chat.completion.chunk", "choices": [delta]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
