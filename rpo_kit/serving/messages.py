"""What an OpenAI client sends and gets: a query and a profile out of a request, a chat completion out of a rewrite.

The form alone, without HTTP (`server.py`) and without a model. A request that cannot be understood raises RequestError,
with the status and the sentence that the client gets.

    query_of(task, [{"role": "user", "content": "It leaks."}])       # 'What is the score … review: It leaks.'
    as_completion("rpo", rewrite)["choices"][0]["message"]["content"]       # '1'
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TypedDict

from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.personalizer import Rewrite
from rpo_kit.text import replace_surrogates

MAX_ITEMS = 2_000  # ours: of a profile; LaMP's largest has about a thousand


class RequestError(Exception):
    """A request that is answered with an error status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


# ---- requests -----------------------------------------------------------------------------------------------------


def query_of(task: Task, messages: object) -> str:
    """LaMP's whole input for the last message, which may be one already, or the bare text of the query."""
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
            400, f"A query of {task.name} must be a whole LaMP input, with the title and both references."
        )
    return task.make_input(text=text)


def text_of(content: object) -> str:
    """A message's text, which OpenAI allows in parts as well; "" if it is not a text."""
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
    items: list[Item] = []
    for number, item in enumerate(content):
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str | int) for name in task.fields):
            fields = " and ".join(task.fields)
            raise RequestError(400, f"Item {number} of {source} must have {fields}, each a text or a number.")
        id_ = item.get("id")
        checked = {"id": str(id_ if isinstance(id_, str | int) else number)}
        for name in (*task.fields, "date"):
            if item.get(name) is not None:
                checked[name] = replace_surrogates(str(item[name]))
        items.append(checked)
    return items


# ---- responses ----------------------------------------------------------------------------------------------------


class Choice(TypedDict):
    index: int
    message: dict[str, str]
    finish_reason: str


class ChatCompletion(TypedDict):
    """OpenAI's form, and under `rpo` how the rewrite was made."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, int]
    rpo: dict[str, object]


def as_completion(name: str, rewrite: Rewrite) -> ChatCompletion:
    """The rewrite as the answer of the model `name`; `usage` is the sum over base model and reflection module."""
    prompt, new = (sum(counts) for counts in zip(*rewrite.tokens.values(), strict=True))
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": rewrite.text}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new},
        "rpo": {
            "generic": rewrite.generic,
            "items": [item["id"] for item in rewrite.items],
            "observations": rewrite.observations,
            "plan": rewrite.plan,
            "complaint": rewrite.parse_error,
            "shortened": rewrite.shortened,
            "seconds": {stage: round(seconds, 4) for stage, seconds in rewrite.timings.items()},
            "tokens": {model: {"prompt": p, "new": n} for model, (p, n) in rewrite.tokens.items()},
        },
    }


def as_events(completion: ChatCompletion) -> str:
    """The same for a client that asked for a stream: a single chunk, because a rewrite is ready all at once."""
    choice = completion["choices"][0]
    delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunk = {**completion, "object": "chat.completion.chunk", "choices": [delta]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
