"""Responses in OpenAI's format: a chat completion for a rewrite, a list of models, an error.

Under `rpo`, a completion says how it was made. The generic answer, the items, the observations and the plan are there
only if the request asks for them (`"rpo": {"explain": true}`): they quote the user's history, and an application may
hand on what it receives.

    as_completion("rpo", rewrite)["choices"][0]["message"]["content"]       # '1'
    as_error(RequestError(404, "There is no model 'x'."))                   # {"error": {"message": …, "type": …, …}}
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict

from rpo_kit.rewriting.personalizer import Rewrite
from rpo_kit.rewriting.trajectory import Trajectory
from rpo_kit.serving.messages import RequestError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}  # OpenAI's words


class Choice(TypedDict):
    index: int
    message: dict[str, str]
    finish_reason: str


class Explanation(TypedDict):
    """How the rewrite was made; the first five only if the request asks for them."""

    generic: NotRequired[str]
    items: NotRequired[list[str]]  # ids of those that the module saw, in its order
    observations: NotRequired[list[str]]
    cited: NotRequired[list[list[str]]]  # ids of the items that each observation cites
    plan: NotRequired[str]
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


def as_completion(name: str, rewrite: Rewrite, ignored: Sequence[str] = (), explain: bool = False) -> ChatCompletion:
    """The rewrite as an answer of the model `name`; `usage` is the sum over base model and reflection module."""
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
        "rpo": explanation_of(rewrite, ignored, explain),
    }


def explanation_of(rewrite: Rewrite, ignored: Sequence[str], explain: bool) -> Explanation:
    """How the rewrite was made; without `explain`, only what does not quote the user."""
    explanation: Explanation = {
        "complaint": rewrite.parse_error,
        "kept_generic": rewrite.kept_generic,
        "shortened": rewrite.shortened,
        "seconds": {stage: round(seconds, 4) for stage, seconds in rewrite.timings.items()},
        "tokens": {model: {"prompt": p, "new": n} for model, (p, n) in rewrite.tokens.items()},
    }
    if explain:
        shown = [item["id"] for item in rewrite.items]
        lines = rewrite.observations
        explanation |= {
            "generic": rewrite.generic,
            "items": shown,
            "observations": lines,
            "cited": [[shown[n - 1] for n in _cited(line) if 0 < n <= len(shown)] for line in lines],
            "plan": rewrite.plan,
        }
    if ignored:
        explanation["ignored"] = list(ignored)
    return explanation


def _cited(observation: str) -> tuple[int, ...]:
    return Trajectory(observation, "", "").cited


def as_model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "rpo_kit"}


def as_models(names: Iterable[str], created: int) -> dict[str, object]:
    return {"object": "list", "data": [as_model(name, created) for name in names]}


def as_error(error: RequestError) -> dict[str, object]:
    """OpenAI's form of an error, whose `type` its clients show."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
