"""What to do when an endpoint does not answer: retry, give this item up, or stop asking.

408, 409, 429, 5xx, time-outs, broken connections, garbage   retry after a jittered, doubling pause or Retry-After
nothing listens at the address                               the same; no request was sent, so it costs nothing
an empty answer                                              retry once: it was paid for
other 4xx, a refusal                                         this item fails, the others continue
401, 402, 404, exhausted quota, a rejected setting           no other request can succeed: stop

>>> pause_after(3, first=0.5, retry_after=None, roll=1.0)      # seconds after the third attempt; the longest draw
2.0
>>> attempt_error(ErrorResponse(503, "", "overloaded", {})).retries == UNLIMITED
True
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from rpo_kit.errors import KitError
from rpo_kit.models.chat import Completion
from rpo_kit.models.keys import without_key
from rpo_kit.text import replace_surrogates

MAX_PAUSE = 60.0  # ours: seconds
MAX_RETRY_AFTER = 300.0  # ours: seconds that a server may ask us to wait before the item counts as failed
UNLIMITED = 10**6  # retries; `endpoint.tries` is the limit then

_RETRYABLE = {408, 409, 429}
_FATAL = {401: "the key was rejected", 402: "it asks for payment", 404: "there is no such model or address"}
_SETTING_REJECTED = {"unsupported_parameter", "unsupported_value"}  # OpenAI's codes; status 400, but for every request


class AttemptError(Exception):
    """One attempt of a request that brought no usable answer."""

    def __init__(
        self,
        reason: str,
        *,
        retries: int = 0,  # how many more attempts make sense at most
        fatal: bool = False,  # no other request can succeed either
        retry_after: float | None = None,  # seconds that the server asks for
        charged: bool = False,  # the server may have written an answer nevertheless, and charged for it
        sent: bool = True,  # the request reached a server
    ) -> None:
        super().__init__(reason)
        self.reason, self.retries, self.fatal, self.retry_after = reason, retries, fatal, retry_after
        self.charged, self.sent = charged, sent


class EndpointError(KitError):
    """Asking on makes no sense: the key, the address or the quota is at fault, or nothing at all succeeds."""


# ---- what went wrong ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorResponse:
    """An HTTP error response: its status, error code, message and headers."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]


def attempt_error(response: ErrorResponse) -> AttemptError:
    """What an error response means, by the table above."""
    reason = f"status {response.status}: {response.message}"
    if response.code == "insufficient_quota":
        return AttemptError(f"the quota is exhausted ({reason})", fatal=True)
    if response.code in _SETTING_REJECTED:
        return AttemptError(
            "it rejects a setting that every request carries: if it is `temperature`, add --set "
            "endpoint.send_temperature=false; if it wants `max_completion_tokens`, write openai:MODEL with "
            f"OPENAI_BASE_URL and OPENAI_API_KEY ({reason})",
            fatal=True,
        )
    if response.status in _FATAL:
        return AttemptError(f"{_FATAL[response.status]} ({reason})", fatal=True)
    if response.status not in _RETRYABLE and response.status < 500:
        return AttemptError(reason)
    seconds = read_retry_after(response.headers)
    if seconds is not None and seconds > MAX_RETRY_AFTER:
        return AttemptError(f"it asks to wait {seconds:.0f} s ({reason})")
    return AttemptError(reason, retries=UNLIMITED, retry_after=seconds)


_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}  # by name: openai uses httpx or httpx2


def not_sent_error(error: BaseException, address: str) -> AttemptError | None:
    """The error of a request that reached no server, or None if it may have reached one."""
    cause = error.__cause__
    if type(cause).__name__ not in _NOT_SENT:
        return None
    return AttemptError(
        f"nothing answers at {address}: is the server running? ({cause!r})", retries=UNLIMITED, sent=False
    )


# ---- how long to wait ---------------------------------------------------------------------------------------------


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: retry-after-ms, or Retry-After in seconds or as a date; None without either."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError):
            continue
    return None


def pause_after(attempts: int, first: float, retry_after: float | None, roll: float) -> float:
    """Seconds between attempt number `attempts` and the next one; `roll` is drawn from 0..1.

    first · 2^(attempts-1), between half of it and all of it, so that clients that failed together do not return
    together; never shorter than what the server asks for.
    """
    pause: float = min(MAX_PAUSE, first * 2 ** (attempts - 1)) * (0.5 + roll / 2)
    return max(pause, (retry_after or 0.0) * (1 + roll / 10))


# ---- what is an answer --------------------------------------------------------------------------------------------


def read_completion(response: object, key: str = "") -> Completion:
    """The completion in a response, whatever the server put into it.

    Nothing is assumed about the response: the OpenAI client does not check what a server sends.

    Raises:
        AttemptError: there is no answer in it.
    """
    choice = next(iter(getattr(response, "choices", None) or []), None)
    message = getattr(choice, "message", None)
    if message is None:
        raise AttemptError("the answer holds no choice", retries=1, charged=True)
    finish_reason, text = getattr(choice, "finish_reason", None), getattr(message, "content", None)
    refusal = getattr(message, "refusal", None)
    if finish_reason == "content_filter" or refusal:
        raise AttemptError(f"refused: {without_key(str(refusal or finish_reason), key)}", charged=True)
    if not isinstance(text, str) or not text.strip():
        if finish_reason == "length":
            raise AttemptError(
                "the answer is empty: its tokens were spent before it began (a model that reasons?)", charged=True
            )
        raise AttemptError("the answer is empty", retries=1, charged=True)
    usage = getattr(response, "usage", None)
    prompt_tokens = _count(getattr(usage, "prompt_tokens", 0))
    new_tokens = _count(getattr(usage, "completion_tokens", 0))
    return Completion(without_key(replace_surrogates(text), key), finish_reason != "length", prompt_tokens, new_tokens)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
