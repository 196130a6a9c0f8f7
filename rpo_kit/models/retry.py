"""What to do if an endpoint does not answer: retry, give this item up, or stop altogether.

408, 409, 429, 5xx, time-outs, broken connections, garbage   retry after a jittered, doubling pause or Retry-After
nothing listens at the address                               the same; no request was sent, so it costs nothing
an empty answer, an error without a known cause              retry once: it was paid for
other 4xx, a refusal                                         this item fails, the others continue
401, 402, 404, 407, exhausted quota, a rejected setting,     no other request can succeed: stop
a certificate that is not trusted

An error sent with status 200 gets the status named in it, or the one that its text means (`reply.py`). Each kind of
fault has its own number of retries: an empty answer after a 503 is still retried once.

>>> pause_after(3, first=0.5, retry_after=None, roll=1.0)      # seconds after the third attempt; the largest roll
2.0
>>> attempt_error(ErrorResponse(503, "", "overloaded", {})).retries == UNLIMITED
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from rpo_kit.errors import KitError

MAX_PAUSE = 60.0  # ours: seconds
MAX_RETRY_AFTER = 300.0  # ours: seconds that a server may ask us to wait before the item counts as failed
UNLIMITED = 10**6  # retries; `endpoint.tries` is the limit then

_RETRYABLE = {408, 409, 425, 429}
_FATAL = {
    401: "the key was rejected",
    402: "the server asks for payment",
    404: "there is no such model or address (most addresses end in /v1)",
    407: "a proxy on the way asks for a password: check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY",
}
_SETTING_REJECTED = {"unsupported_parameter", "unsupported_value"}  # OpenAI's codes; status 400, but for every request


Kind = Literal["busy", "lost", "not sent", "empty", "unknown"]  # each is retried separately


class AttemptError(Exception):
    """One attempt at a request that brought no usable answer."""

    def __init__(
        self,
        reason: str,
        kind: Kind = "busy",
        *,
        retries: int = 0,  # how many more attempts can make sense
        fatal: bool = False,  # no other request can succeed either
        retry_after: float | None = None,  # seconds that the server asks for
        charged: bool = False,  # the server may have written and charged an answer all the same
        sent: bool = True,  # the request reached a server
    ) -> None:
        super().__init__(reason)
        self.reason, self.kind, self.retries, self.fatal = reason, kind, retries, fatal
        self.retry_after, self.charged, self.sent = retry_after, charged, sent


class EndpointError(KitError):
    """No further request makes sense: the key, the address or the quota is at fault, or all requests fail."""


# ---- what went wrong ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorResponse:
    """An error response: its status (0: unknown), code, message and headers."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]


def attempt_error(response: ErrorResponse) -> AttemptError:
    """Classify an error response by the table above."""
    reason = f"status {response.status}: {response.message}" if response.status else response.message
    if response.code == "insufficient_quota":
        return AttemptError(f"the quota is exhausted ({reason})", fatal=True)
    if response.code in _SETTING_REJECTED:
        return AttemptError(
            "the server rejects a setting that every request carries: if it is `temperature`, add --set "
            "endpoint.send_temperature=false; if it wants `max_completion_tokens`, write openai:MODEL with "
            f"OPENAI_BASE_URL and OPENAI_API_KEY ({reason})",
            fatal=True,
        )
    if response.status == 0:
        return AttemptError(reason, "unknown", retries=1, charged=True)
    if response.status in _FATAL:
        return AttemptError(f"{_FATAL[response.status]} ({reason})", fatal=True)
    if response.status not in _RETRYABLE and response.status < 500:
        return AttemptError(reason)
    seconds = read_retry_after(response.headers)
    if seconds is not None and seconds > MAX_RETRY_AFTER:
        return AttemptError(f"the server asks to wait {seconds:.0f} s ({reason})")
    return AttemptError(reason, retries=UNLIMITED, retry_after=seconds)


_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}  # by name: openai uses httpx or httpx2


def not_sent_error(error: BaseException, address: str, proxies: str = "") -> AttemptError | None:
    """The error of a request that reached no server, or None if it may have reached one.

    `proxies` names the proxy variables that apply, if any.
    """
    cause = error.__cause__
    if type(cause).__name__ not in _NOT_SENT:
        return None
    if "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return AttemptError(
            f"the certificate of {address} is not trusted ({cause}): if it is your own server's, set SSL_CERT_FILE to "
            "the certificate file of its authority",
            fatal=True,
            sent=False,
        )
    if "WRONG_VERSION_NUMBER" in str(cause):
        return AttemptError(f"{address} does not speak https: write http:// ({cause})", fatal=True, sent=False)
    if "407" in str(cause):
        return AttemptError(f"{_FATAL[407]} ({cause})", fatal=True, sent=False)
    way = f"the proxy in {proxies} does not reach {address}" if proxies else f"nothing answers at {address}"
    return AttemptError(f"{way}: is the server running? ({cause!r})", "not sent", retries=UNLIMITED, sent=False)


# ---- how long to wait ---------------------------------------------------------------------------------------------


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: retry-after-ms, or Retry-After in seconds or as a date; None without either."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = max(0.0, float(value) * unit)
            if math.isfinite(seconds):
                return seconds
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def pause_after(attempts: int, first: float, retry_after: float | None, roll: float) -> float:
    """Seconds between attempt number `attempts` and the next one; `roll` is drawn from 0..1.

    Between half of first · 2^(attempts-1) and all of it, so that clients that failed together do not retry together;
    never shorter than the server asks for.
    """
    pause: float = min(MAX_PAUSE, first * 2 ** (attempts - 1)) * (0.5 + roll / 2)
    return max(pause, (retry_after or 0.0) * (1 + roll / 10))
