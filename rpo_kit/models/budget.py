"""The budget of a run: what its endpoints may cost, reported before and after, never exceeded.

Every attempt at a request is entered into the run's account before it is sent, with an upper bound on its tokens (no
tokenizer makes more tokens than bytes), and corrected when the answer arrives. So neither requests in flight, nor a
second process, nor a killed one can exceed a limit. An answer that never arrived (a time-out, a cut connection) stays
charged at its bound, because the server may have written it. A request that reached no server costs nothing. The
account is a file in the run folder; deleting the run deletes it.

    ledger = Ledger(open_database(None), "openai:gpt-4o-mini", EndpointSettings(max_tokens=1000))
    ledger.reserve(Usage(1, 600, 300))     # True; the same again: False, it could exceed 1,000
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rpo_kit.errors import KitError
from rpo_kit.models.cache import path_of, store_error
from rpo_kit.presets import EndpointSettings

if TYPE_CHECKING:
    from rpo_kit.models.chat import Conversation

_CHARACTERS_PER_TOKEN = 4  # for the estimate only: the usual rule of thumb for English
_TEMPLATE_TOKENS = 16  # ours: the most that a chat template adds per message

_ADD = """INSERT INTO account VALUES (:model, :requests, :prompt, :new) ON CONFLICT DO UPDATE SET
    requests = requests + :requests, prompt_tokens = prompt_tokens + :prompt, new_tokens = new_tokens + :new"""


class BudgetError(KitError):
    """The next request could exceed a limit of the run."""


@dataclass(frozen=True)
class Usage:
    """Requests and tokens; negative in a correction."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
        )

    def __neg__(self) -> Usage:
        return Usage(-self.requests, -self.prompt_tokens, -self.new_tokens)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens

    def counted(self, bound: Usage) -> Usage:
        """This usage, with the bound for each count that the server left out (0: no text has 0 tokens)."""
        return Usage(self.requests, self.prompt_tokens or bound.prompt_tokens, self.new_tokens or bound.new_tokens)


def upper_bound(messages: Conversation, max_new_tokens: int) -> Usage:
    """The most that one request with these messages can use."""
    size = sum(len(message["content"].encode("utf-8", "replace")) + _TEMPLATE_TOKENS for message in messages)
    return Usage(1, size, max_new_tokens)


def estimated(messages: Conversation, max_new_tokens: int) -> Usage:
    """Roughly what one request with these messages will use, if the answer is as long as it may be."""
    characters = sum(len(message["content"]) for message in messages)
    return Usage(1, characters // _CHARACTERS_PER_TOKEN + 1, max_new_tokens)


class Ledger:
    """The account of one run, stored in `database`, for the requests to one model."""

    def __init__(self, database: sqlite3.Connection, model: str, settings: EndpointSettings) -> None:
        self.database, self.model, self.settings = database, model, settings
        self._lock = threading.RLock()  # several threads may use one ledger
        self.prices = read_prices(settings.prices)
        self.used_here = Usage()  # used through this object alone
        if settings.max_cost and model not in self.prices:
            raise KitError(
                f"endpoint.max_cost is set, but {model} has no price: add it, as in "
                f"--set 'endpoint.prices=[\"{model} 0.15 0.60\"]' (per million prompt tokens, per million new tokens)."
            )

    def reserve(self, bound: Usage) -> bool:
        """Enter a request that uses at most `bound`; if that could exceed a limit, enter nothing and return False."""
        with self._usable():
            self.database.execute("BEGIN IMMEDIATE")  # no other process may write between the check and the entry
            try:
                fits = self._fits(bound)
                if fits:
                    self._add(bound)
            finally:
                self.database.execute("COMMIT")
        return fits

    def settle(self, bound: Usage, actual: Usage) -> None:
        """Replace the bound of a reserved request by its actual use."""
        with self._usable():
            self._add(actual + -bound)
            self.used_here += actual

    def total(self) -> dict[str, Usage]:
        """What the run has used so far, by model."""
        with self._usable():
            rows = self.database.execute("SELECT model, requests, prompt_tokens, new_tokens FROM account").fetchall()
        return {model: Usage(*numbers) for model, *numbers in rows}

    def cost(self, usage: dict[str, Usage]) -> float:
        """The cost of {model: usage} in the currency of the prices; a model without a price counts as free."""
        cost = 0.0
        for model, used in usage.items():
            prompt_price, new_price = self.prices.get(model, (0.0, 0.0))
            cost += (used.prompt_tokens * prompt_price + used.new_tokens * new_price) / 1e6
        return cost

    def limits(self) -> str:
        """The limits that are set, as text."""
        limits = []
        if self.settings.max_requests:
            limits.append(f"{self.settings.max_requests:,} requests")
        if self.settings.max_tokens:
            limits.append(f"{self.settings.max_tokens:,} tokens")
        if self.settings.max_cost:
            limits.append(f"max cost {self.settings.max_cost:,}")
        return ", ".join(limits) or "none"

    def describe(self, usage: Usage) -> str:
        """One line, with the cost if this model has a price."""
        line = f"{usage.requests:,} requests, {usage.prompt_tokens:,} + {usage.new_tokens:,} tokens"
        return f"{line}, cost {self.cost({self.model: usage}):.4f}" if self.model in self.prices else line

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """One thread at a time. Any error stops the run: without its account it must not spend.

        Raises:
            KitError: the file is damaged, locked or read-only.
            sqlite3.OperationalError: the disk is full; `stages.stage` turns that into a KitError.
        """
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                if "full" in str(error):
                    raise
                raise store_error(error, path_of(self.database)) from None

    def _fits(self, more: Usage) -> bool:
        settings, usage = self.settings, self.total()
        usage[self.model] = usage.get(self.model, Usage()) + more
        total = sum(usage.values(), Usage())
        return not (
            (settings.max_requests and total.requests > settings.max_requests)
            or (settings.max_tokens and total.tokens > settings.max_tokens)
            or (settings.max_cost and self.cost(usage) > settings.max_cost)
        )

    def _add(self, usage: Usage) -> None:
        numbers = {"requests": usage.requests, "prompt": usage.prompt_tokens, "new": usage.new_tokens}
        self.database.execute(_ADD, {"model": self.model} | numbers)


def read_prices(lines: Sequence[str]) -> dict[str, tuple[float, float]]:
    """["MODEL 0.15 0.60"] as {"MODEL": (0.15, 0.60)}: per million prompt tokens, per million new tokens."""
    prices = {}
    for line in lines:
        try:
            model, prompt, new = line.split()
            prices[model] = (float(prompt), float(new))
        except ValueError:
            raise KitError(
                f"endpoint.prices: {line!r} is not a price; write the model, the price per million prompt tokens and "
                'the price per million new tokens, as in "openai:gpt-4o-mini 0.15 0.60".'
            ) from None
    return prices
