"""What to do when an endpoint does not answer: try again, give this item up, or stop asking.

408, 409, 429, 5xx, time-outs, broken connections, garbage   again, after a jittered, doubling pause or Retry-After
nobody listens at the address                                the same; nothing was sent, so it costs nothing
an empty answer                                              again, once: it was paid for
other 4xx, a refusal                                         this item fails, the others go on
401, 402, 404, exhausted quota, a setting refused            nothing else can work either: stop

>>> wait_before(3, first=0.5, asked=None, roll=1.0)      # the pause after the third try, unlucky in the draw
2.0
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.models.chat import Completion
from rpo_kit.models.keys import without_key
from rpo_kit.text import replace_surrogates

LONGEST_PAUSE = 60.0  # seconds, ours
LONGEST_ASKED = 300.0  # seconds that a server may ask us to wait before the item counts as failed, ours
_AGAIN = {408, 409, 429}
_HOPELESS = {401: "the key was refused", 402: "it asks for payment", 404: "there is no such model or address"}

_SETTING_REFUSED = {"unsupported_parameter", "unsupported_value"}  # OpenAI's codes; a 400, but every request is alike


class Fault(Exception):
    """A request without a usable answer. `again` is how many more tries of it make sense at most."""

    def __init__(self, reason: str, *, again: int = 0, hopeless: bool = False, asked: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.hopeless, self.asked = reason, again, hopeless, asked
        self.charged = False  # whether the server may have written (and charged) an answer nevertheless
        self.sent = True  # whether the request reached a server at all


class NoAnswers(KitError):
    """Asking on makes no sense: the key, the address or the quota is at fault, or nothing at all succeeds."""


@dataclass(frozen=True)
class Status:
    """A response that is no answer: its status, error code, words and headers."""

    code: int
    error: str
    words: str
    headers: Mapping[str, str]


ALWAYS = 10**6


def fault_of(status: Status) -> Fault:
    """The table above."""
    reason = f"status {status.code}: {status.words}"
    if status.error == "insufficient_quota":
        return Fault(f"the quota is exhausted ({reason})", hopeless=True)
    if status.error in _SETTING_REFUSED:
        return Fault(
            "it refuses a setting that every request carries: where it is `temperature`, add --set "
            "endpoint.send_temperature=false; where it wants `max_completion_tokens`, write openai:MODEL with "
            f"OPENAI_BASE_URL and OPENAI_API_KEY ({reason})",
            hopeless=True,
        )
    if status.code in _HOPELESS:
        return Fault(f"{_HOPELESS[status.code]} ({reason})", hopeless=True)
    if status.code not in _AGAIN and status.code < 500:
        return Fault(reason)
    asked = asked_pause(status.headers)
    if asked is not None and asked > LONGEST_ASKED:
        return Fault(f"it asks to wait {asked:.0f} s ({reason})")
    return Fault(reason, again=ALWAYS, asked=asked)


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: Retry-After as seconds or as a date, or retry-after-ms; else None."""
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


def wait_before(tries: int, first: float, asked: float | None, roll: float) -> float:
    """Seconds between try number `tries` and the next one; `roll` is a draw from 0..1.

    first · 2^(tries-1), between half of it and the whole, so that clients that failed together do not come back
    together; never shorter than what the server asks for.
    """
    pause: float = min(LONGEST_PAUSE, first * 2 ** (tries - 1)) * (0.5 + roll / 2)
    return max(pause, (asked or 0.0) * (1 + roll / 10))


# ---- what is an answer ----


def read_completion(answer: Any, key: str = "") -> Completion:
    """The completion in a response, whatever the server put into it; Fault where there is none."""
    choice = next(iter(getattr(answer, "choices", None) or []), None)
    message = getattr(choice, "message", None)
    if message is None:
        raise charged("the answer holds no choice", again=1)
    reason, text = getattr(choice, "finish_reason", None), getattr(message, "content", None)
    if reason == "content_filter" or getattr(message, "refusal", None):
        raise charged(f"refused: {without_key(str(getattr(message, 'refusal', None) or reason), key)}", again=0)
    if not isinstance(text, str) or not text.strip():
        if reason == "length":
            raise charged("the answer is empty: its tokens were spent before it began (a model that reasons?)", again=0)
        raise charged("the answer is empty", again=1)
    usage = getattr(answer, "usage", None)
    prompt, new = (_count(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens"))
    return Completion(without_key(replace_surrogates(text), key), reason != "length", prompt, new)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}  # by name: openai brings httpx or httpx2, as it likes


def unsent(error: BaseException, address: str) -> Fault | None:
    """The fault of a request that found no server, or None where it may have reached one."""
    cause = error.__cause__
    if type(cause).__name__ not in _NOT_SENT:
        return None
    fault = Fault(f"nothing answers at {address}: is the server running? ({cause!r})", again=ALWAYS)
    fault.sent = False
    return fault


def charged(reason: str, again: int = ALWAYS) -> Fault:
    fault = Fault(reason, again=again)
    fault.charged = True
    return fault
