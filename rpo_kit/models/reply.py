"""Parse the body of a reply: an answer in one of several formats, or the reason why there is none.

Nothing is assumed about the body. Servers send errors with status 200, web pages, texts in parts, incomplete usage;
gateways break off in the middle of an answer. In any case, the result is a completion or an AttemptError that quotes
what the server sent.

>>> read_reply(b'{"choices": [{"message": {"content": [{"type": "text", "text": "4"}]}, "finish_reason": "stop"}]}')
Reply(completion=Completion(text='4', finished=True, prompt_tokens=0, new_tokens=0, failure=None), model='')
>>> error_response(200, b'{"error": {"message": "Upstream is overloaded", "code": 502}}', {}).status
502
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rpo_kit.models.chat import Completion
from rpo_kit.models.retry import UNLIMITED, AttemptError, ErrorResponse, attempt_error
from rpo_kit.text import replace_surrogates

MAX_COUNT = 10**9  # ours: tokens; more cannot be a count
_EXCERPT = 300  # ours: characters of a body that are shown
_DEPTH = 5  # ours: how deep an error is searched for its message

_FINISHED = {"stop", "end", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token", "finished", "complete"}
_FINISHED |= {"completed", "tool_calls", "function_call", ""}
_CUT = {"length", "max_tokens", "max_length", "max_output_tokens", "model_length"}
_REFUSED = {"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii", "refusal", "sensitive"}
_BROKEN = re.compile(r"error|abort|cancel|fail|insufficient|interrupt|overload|time.?out|unavailable")

_WORDS = {  # the status of an error that has none: the first expression that matches its text
    429: r"rate.?limit|too many requests|throttl|resource.?exhausted",
    503: r"overload|busy|unavailable|capacity|try again|temporar|time.?out|timed out|loading|bad gateway|internal"
    r"|server.?error|api_error|upstream|connection|crash",
    400: r"invalid|not.?found|no such|not exist|unknown (?!error)|un(?:supported|expected|authori[sz]ed)"
    r"|not (?:supported|allowed)|too (?:long|large|many)|context.(?:length|window|size)|bad.request|must be|required"
    r"|missing|forbidden|denied|permission|authentic|api.?key|credential|polic[yi]|moderat|credits?\b|balance|billing",
}
_MESSAGES: tuple[str, ...] = ("message", "msg", "detail", "error", "errors", "error_msg", "error_message")
_MESSAGES += ("description", "title", "reason")
_KNOWN_CODES = ("insufficient_quota", "unsupported_parameter", "unsupported_value")


class _Unreadable(Exception):
    """The body is not JSON; the message says what it is."""


@dataclass(frozen=True)
class Reply:
    """An answer, and the model that gave it, as the server names it ("" if it does not)."""

    completion: Completion
    model: str


def read_reply(body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """The answer in the body of a reply with status 200.

    Raises:
        AttemptError: there is no answer in it.
    """
    try:
        content = _parsed(body)
    except _Unreadable as error:
        raise AttemptError(f"no readable answer: {error}", "lost", retries=UNLIMITED, charged=True) from None
    choice = _first_choice(content)
    if choice is None or _error_in(content):
        raise attempt_error(error_response(200, body, headers or {}))
    message = _object(choice.get("message")) or _object(choice.get("delta"))
    refusal = message.get("refusal") or _text(message.get("content"), "refusal")
    finish_reason = str(choice.get("finish_reason") or "").lower().replace("-", "_")
    if finish_reason in _REFUSED or refusal:
        raise AttemptError(f"refused: {refusal or finish_reason}", charged=True)
    if _BROKEN.search(finish_reason):
        raise AttemptError(f"the answer was broken off ({finish_reason})", retries=UNLIMITED, charged=True)
    text = _text(message.get("content") if message else choice.get("text"))
    if not text.strip():
        raise _empty_error(message, finish_reason)
    finished = finish_reason in _FINISHED  # an answer with an unknown reason counts as cut off: it is not cached
    model = _object(content).get("model")
    return Reply(
        Completion(replace_surrogates(text), finished, *_usage(content)), model if isinstance(model, str) else ""
    )


def error_response(status: int, body: bytes, headers: Mapping[str, str]) -> ErrorResponse:
    """The error in the body of a reply. A status below 300 is replaced by that in the error or implied by its text."""
    try:
        content = _parsed(body)
    except _Unreadable:
        words = _web_page(body) or _excerpt(body) or "the server sent nothing"
        return ErrorResponse(status, "", words + _redirected(headers), headers)
    if isinstance(content, list):
        content = _first(content)  # Google sends a list of one
    error = _error_in(content)
    message = _message(error) or _message(content) or (_excerpt(body) if error or status >= 300 else "")
    sources = [_object(error), _object(_first(error)), _object(content)]
    codes = [str(source[name]) for source in sources for name in ("code", "type", "status") if source.get(name)]
    code = next((code for code in codes if code in _KNOWN_CODES), "")
    if status >= 300:
        return ErrorResponse(status, code, message + _redirected(headers), headers)
    if not message:
        return ErrorResponse(0, "", f"the answer holds no choice: {_excerpt(body)}", headers)
    numbers = [int(code) for code in codes if re.fullmatch(r"[45][0-9][0-9]", code)]
    for words in (" ".join(codes), message):
        numbers += [number for number, sign in _WORDS.items() if re.search(sign, words, re.IGNORECASE)]
    if not numbers:
        return ErrorResponse(0, code, f"the server reports an error: {message}", headers)
    return ErrorResponse(numbers[0], code, message, headers)


# ---- parts of a body ----------------------------------------------------------------------------------------------


def _parsed(body: bytes) -> object:
    """The JSON in the body.

    Raises:
        _Unreadable: the body is not JSON.
    """
    if not body.strip():
        raise _Unreadable("the server sent nothing")
    try:
        content: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        page = _web_page(body)
        if page:
            raise _Unreadable(f"the server sent {page}; is the address right? Most end in /v1") from None
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:_EXCERPT]
        raise _Unreadable(f"what the server sent is not JSON ({why}): {_excerpt(body)}") from None
    return content


def _web_page(body: bytes) -> str:
    """ "a web page (its title)" if the body is one, else ""."""
    start = body[:20_000].decode("utf-8", "replace").strip()
    if not start.startswith("<"):
        return ""
    title = re.search(r"<title[^>]*>([^<]*)", start, re.IGNORECASE)
    return f"a web page ({' '.join(title[1].split())[:_EXCERPT]})" if title else "a web page"


def _excerpt(body: bytes) -> str:
    """The beginning of a body, in one line."""
    text = " ".join(body[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


def _redirected(headers: Mapping[str, str]) -> str:
    target = headers.get("location")
    return f"; it redirects to {target}: if that is the right server, use its address" if target else ""


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _error_in(content: object) -> object:
    """The error beside the choices, or in the first of them."""
    sources = (_object(content), _first_choice(content) or {})
    return next(filter(None, (source.get(name) for source in sources for name in ("error", "errors"))), None)


def _first_choice(content: object) -> dict[str, object] | None:
    choice = _first(_object(content).get("choices"))
    return choice if isinstance(choice, dict) else None


def _text(content: object, kind: str = "text") -> str:
    """The text of a message, which may come in parts; other kinds of parts, such as reasoning, are ignored."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict):
            if part.get("type", kind) not in (kind, f"output_{kind}"):
                continue
            part = part.get(kind)
            part = part.get("value") if isinstance(part, dict) else part
        elif kind != "text":
            continue
        texts.append(part if isinstance(part, str) else "")
    return "".join(texts)


def _empty_error(message: dict[str, object], finish_reason: str) -> AttemptError:
    if finish_reason in _CUT:
        return AttemptError(
            "the answer is empty: its tokens were used up before it began (for a reasoning model, set "
            "endpoint.thinking_tokens)",
            charged=True,
        )
    reasoning = any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    more = ": the server sent only its reasoning" if reasoning else ""
    return AttemptError(f"the answer is empty{more}", "empty", retries=1, charged=True)


def _usage(content: object) -> tuple[int, int]:
    """(prompt, new) tokens; a count that the server leaves out is derived from the total, or is 0."""
    usage = _object(_object(content).get("usage"))
    prompt, new, total = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if total > prompt + new:  # some leave reasoning out of the new tokens
        return (total - new, new) if new and not prompt else (prompt, total - prompt)
    return prompt, new


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return 0
    return int(value)


def _message(error: object, depth: int = _DEPTH) -> str:
    """The message of an error, wherever it is in there."""
    if isinstance(error, str):
        return " ".join(error.split())
    if depth == 0:
        return ""
    if isinstance(error, list):
        return "; ".join(filter(None, (_message(each, depth - 1) for each in error[:3])))
    source = _object(error)
    message = next(filter(None, (_message(source.get(name), depth - 1) for name in _MESSAGES)), "")
    raw = _object(source.get("metadata")).get("raw")  # OpenRouter: what the provider said
    return f"{message}: {' '.join(raw.split())}" if message and isinstance(raw, str) and raw.strip() else message
