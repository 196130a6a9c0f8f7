"""What an OpenAI client sends and gets: a query and a profile out of a request, a completion out of a rewrite.

The form alone, without a server (see `serve`) or a model. What cannot be understood is Refused, with the status and the
sentence which the client gets.

    query_of(task, [{"role": "user", "content": "It leaks."}])       # 'What is the score … review: It leaks.'
    as_completion("rpo", rewrite)["choices"][0]["message"]["content"]       # '1'
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.personalizer import Rewrite
from rpo_kit.text import replace_surrogates

MOST_ITEMS = 2_000  # of a profile, ours; LaMP's largest has about a thousand


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def query_of(task: Task, messages: Any) -> str:
    """The last user message as an input of the task."""
    wrong = "`messages` must be a list of {role, content} with texts, the last one from the user."
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise Refused(400, wrong)
    text = text_of(messages[-1].get("content"))
    if messages[-1].get("role") != "user" or not text.strip():
        raise Refused(400, wrong)
    if task.is_official(text):
        return text
    if task.parts != ("text",):
        raise Refused(400, "A query of LaMP-1 must be a whole LaMP input, with the title and both references.")
    return task.make_input(text=text)


def text_of(content: Any) -> str:
    """A message's text, also where it comes in parts, as OpenAI allows; "" where it is none."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return ""
    texts = [part.get("text") for part in parts]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else ""


def checked_profile(task: Task, content: Any, what: str) -> list[Item]:
    """Items with the task's fields as texts; ids are made up where they are missing."""
    if not isinstance(content, list) or len(content) > MOST_ITEMS:
        raise Refused(400, f"{what} must be a JSON list of at most {MOST_ITEMS:,} items.")
    items: list[Item] = []
    for number, item in enumerate(content):
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str | int) for name in task.fields):
            raise Refused(
                400, f"Item {number} of {what} must have {' and '.join(task.fields)}, each a text or a number."
            )
        texts = {
            name: replace_surrogates(str(item[name])) for name in (*task.fields, "date") if item.get(name) is not None
        }
        given = item.get("id")
        items.append({"id": str(given if isinstance(given, str | int) else number), **texts})
    return items


def as_completion(name: str, rewrite: Rewrite) -> dict[str, Any]:
    """The rewrite in OpenAI's form, and under `rpo` how it came about; `usage` is the sum over both models."""
    message = {"role": "assistant", "content": rewrite.text}
    prompt, new = (sum(counts) for counts in zip(*rewrite.tokens.values(), strict=True))
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
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


def as_events(completion: dict[str, Any]) -> str:
    """The same for a client that asked for a stream: one chunk, for a rewrite is there at once or not at all."""
    choice = completion["choices"][0]
    chunk = completion | {"object": "chat.completion.chunk"}
    chunk["choices"] = [{"index": 0, "delta": choice["message"], "finish_reason": "stop"}]
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
