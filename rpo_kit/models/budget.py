"""What endpoints may cost: counted for a whole run, told before and after, and stopped before a limit is passed.

Every try of a request is entered into the run's account before it is sent, with an upper bound of its tokens (no
tokenizer makes more tokens than bytes), and corrected when the answer is there. So neither requests in flight, nor a
second process, nor a killed one can carry the account past a limit. Tokens of an answer that never came in (a time-out,
a cut connection) stay charged at their bound: the server may have written it. A request that found no server costs
nothing. The account lies in the run's folder: who deletes the run and makes it anew begins with an empty one.

    ledger = Ledger(open_database(None), "openai:gpt-4o-mini", EndpointSettings(max_tokens=1000))
    ledger.admit(Spending(1, 600, 300))     # True; the same again: False, it would pass 1,000
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rpo_kit.errors import KitError
from rpo_kit.presets import EndpointSettings

if TYPE_CHECKING:
    from rpo_kit.models.chat import Conversation

_CHARACTERS = 4  # a token, for the estimate only: the usual rule of thumb for English
_FRAME = 16  # tokens a message that a chat template adds at most, ours

_ADD = """INSERT INTO account VALUES (:model, :requests, :prompt, :new) ON CONFLICT DO UPDATE SET
    requests = requests + :requests, prompt_tokens = prompt_tokens + :prompt, new_tokens = new_tokens + :new"""


class BudgetReached(KitError):
    """The next request could pass a limit."""


@dataclass(frozen=True)
class Spending:
    """Requests and tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def __add__(self, other: Spending) -> Spending:
        sums = (self.requests + other.requests, self.prompt_tokens + other.prompt_tokens)
        return Spending(*sums, self.new_tokens + other.new_tokens)

    def __neg__(self) -> Spending:
        return Spending(-self.requests, -self.prompt_tokens, -self.new_tokens)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


def bound(messages: Conversation, max_new_tokens: int) -> Spending:
    """No request of these messages can cost more."""
    size = sum(len(part["content"].encode("utf-8", "replace")) + _FRAME for part in messages)
    return Spending(1, size, max_new_tokens)


def expected(messages: Conversation, max_new_tokens: int) -> Spending:
    """What it will cost about; the new tokens at most."""
    return Spending(1, sum(len(part["content"]) for part in messages) // _CHARACTERS + 1, max_new_tokens)


class Ledger:
    """The account of one run, which lies in `base`, for the requests of one model."""

    def __init__(self, base: sqlite3.Connection, model: str, settings: EndpointSettings) -> None:
        self.base, self.model, self.settings = base, model, settings
        self.prices = read_prices(settings.prices)
        self.here = Spending()  # by this object alone
        if settings.max_cost and model not in self.prices:
            raise KitError(
                f"endpoint.max_cost is set, but {model} has no price: add it, as in "
                f"--set 'endpoint.prices=[\"{model} 0.15 0.60\"]' (for a million prompt tokens, a million new ones)."
            )

    def admit(self, most: Spending) -> bool:
        """Enter a request that costs at most `most`, if no limit is passed even then."""
        self.base.execute("BEGIN IMMEDIATE")  # nobody writes between the look and the entry
        try:
            fits = self._fits(most)
            if fits:
                self._add(most)
        finally:
            self.base.execute("COMMIT")
        return fits

    def settle(self, most: Spending, actual: Spending) -> None:
        """Replace the bound of an admitted request by what it did cost."""
        self._add(actual + -most)
        self.here += actual

    def total(self) -> dict[str, Spending]:
        """What the run has spent so far, by model."""
        rows = self.base.execute("SELECT model, requests, prompt_tokens, new_tokens FROM account")
        return {model: Spending(*numbers) for model, *numbers in rows}

    def cost(self, spent: dict[str, Spending]) -> float:
        """In the currency of the prices; models without a price cost nothing here."""
        each = ((amount, self.prices.get(model, (0.0, 0.0))) for model, amount in spent.items())
        return sum((s.prompt_tokens * p[0] + s.new_tokens * p[1]) / 1e6 for s, p in each)

    def limits(self) -> str:
        """The limits that are set, in words."""
        s = self.settings
        named = ((s.max_requests, "requests"), (s.max_tokens, "tokens"), (s.max_cost, "for the tokens"))
        return ", ".join(f"{limit:,} {what}" for limit, what in named if limit) or "none"

    def describe(self, amount: Spending) -> str:
        """In one line, with its price where that is known."""
        told = f"{amount.requests:,} requests, {amount.prompt_tokens:,} + {amount.new_tokens:,} tokens"
        return told + (f", {self.cost({self.model: amount}):.4f} in money" if self.model in self.prices else "")

    def _fits(self, more: Spending) -> bool:
        s, spent = self.settings, self.total()
        spent[self.model] = spent.get(self.model, Spending()) + more
        everything = sum(spent.values(), Spending())
        return not (
            (s.max_requests and everything.requests > s.max_requests)
            or (s.max_tokens and everything.tokens > s.max_tokens)
            or (s.max_cost and self.cost(spent) > s.max_cost)
        )

    def _add(self, amount: Spending) -> None:
        numbers = {"requests": amount.requests, "prompt": amount.prompt_tokens, "new": amount.new_tokens}
        self.base.execute(_ADD, {"model": self.model} | numbers)


def read_prices(lines: Sequence[str]) -> dict[str, tuple[float, float]]:
    """ "MODEL 0.15 0.60" as {"MODEL": (0.15, 0.60)}."""
    found = {}
    for line in lines:
        try:
            model, prompt, new = line.split()
            found[model] = (float(prompt), float(new))
        except ValueError:
            raise KitError(
                f"endpoint.prices: {line!r} is no price; write the model, the price of a million prompt tokens and "
                'of a million new ones, as in "openai:gpt-4o-mini 0.15 0.60".'
            ) from None
    return found
