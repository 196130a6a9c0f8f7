"""A blind test: the base model's text against the rewrite, in hidden and shuffled order; what a person preferred.

Pairs are held-out examples whose two texts differ. Which text is A is drawn with a seed and the example's id, so that a
restarted kernel shows the same; each answer is appended to `blind/answers.jsonl` of the run at once. The win rate is
over the answers that preferred one, with Wilson's interval (Wilson 1927); "no difference" is counted apart.

    test = BlindTest(existing_run("mine"))
    test.answer("A")
    print(test.result())        # rewrite preferred in 14 of 18 (0.78, 0.55 to 0.91), 2 times no difference …
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.lamp_files import TASK
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.own_voice import last_trained
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, append_records, read_records
from rpo_kit.stages import require

GENERIC, REWRITE, TIE = "generic", "rewrite", "no difference"
CHOICES = ("A", "B", TIE)
_Z = 1.959964  # 95 %, two-sided
_POWER = 0.8
_SHOWN = 3  # ours: items of a person whom one does not know


@dataclass(frozen=True)
class Pair:
    """One question: `texts` are A and B, `kinds` which is which. `history` are items of a person whom one does not
    know; there are none for own texts.
    """

    id: str
    query: str
    texts: tuple[str, str]
    kinds: tuple[str, str]
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tally:
    """Answers so far: how often the rewrite and the generic text were preferred, and neither."""

    wins: int
    losses: int
    ties: int

    @property
    def decided(self) -> int:
        return self.wins + self.losses


class BlindTest:
    """The pairs of a run and the answers to them. `stage` is that of the rewrites, by default the last one trained."""

    def __init__(self, run: Run, stage: str = "", seed: int = 0) -> None:
        self.run, self.stage, self.seed = run, stage or last_trained(run), seed
        self.file: Path = run.folder / "blind" / "answers.jsonl"
        self.pairs = self._pairs()
        if not self.pairs:
            raise KitError(
                f"No rewrite of run {run.name!r} differs from the base model's text, so nothing can be compared: train "
                "longer, or choose another stage."
            )

    def _pairs(self) -> list[Pair]:
        """All pairs in an order that depends on the seed alone."""
        path = require(self.run, "evaluate") / "records" / f"{self.stage}.jsonl"
        if not path.exists():
            raise KitError(
                f"The stage {self.stage!r} of run {self.run.name!r} was not evaluated: first run `python -m rpo_kit "
                f"evaluate --run {self.run.name}`."
            )
        rewrites = {record["id"]: str(record["prediction"]) for record in read_records(path)}
        task, pairs = get_task(self.run.preset.data.task), []
        for example in load_prepared(self.run, "dev"):
            texts = {GENERIC: str(example["generic"]), REWRITE: rewrites.get(example["id"], "")}
            if texts[REWRITE].strip() and texts[GENERIC].split() != texts[REWRITE].split():
                first = random.Random(f"{self.seed}/{self.stage}/{example['id']}/blind").random() < 0.5
                kinds = (GENERIC, REWRITE) if first else (REWRITE, GENERIC)
                items = [] if task.name == TASK else top_k(example, example["ranking"], _SHOWN)
                history = tuple(task.item_line(item) for item in items)
                shown = (texts[kinds[0]], texts[kinds[1]])
                pairs.append(Pair(example["id"], task.query_text(example["input"]), shown, kinds, history))
        random.Random(f"{self.seed}/blind").shuffle(pairs)
        return pairs

    def answers(self) -> dict[str, str]:
        """{pair: what was preferred: generic, rewrite or no difference}, of this stage's present texts."""
        texts = {pair.id: set(pair.texts) for pair in self.pairs}
        return {
            record["id"]: record["preferred"]
            for record in read_records(self.file)
            if record.get("stage") == self.stage and {record.get("a"), record.get("b")} == texts.get(record["id"])
        }

    def current(self) -> Pair | None:
        """The first pair without an answer; None if there is none."""
        done = self.answers()
        return next((pair for pair in self.pairs if pair.id not in done), None)

    def answer(self, choice: str) -> None:
        """Store the answer to the current pair: "A", "B" or "no difference".

        Raises:
            KitError: it is none of these, or there is no pair left.
        """
        pair = self.current()
        if choice not in CHOICES or pair is None:
            raise KitError(
                f"{choice!r} is not an answer: take {', '.join(CHOICES)}." if pair else "All pairs are done."
            )
        preferred = TIE if choice == TIE else pair.kinds[CHOICES.index(choice)]
        record = {"id": pair.id, "stage": self.stage, "choice": choice, "preferred": preferred}
        record |= {"a": pair.texts[0], "b": pair.texts[1], "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        append_records(self.file, [record])

    def tally(self) -> Tally:
        given = list(self.answers().values())
        return Tally(given.count(REWRITE), given.count(GENERIC), given.count(TIE))

    def result(self) -> str:
        return result_text(self.tally(), len(self.pairs))


def result_text(tally: Tally, pairs: int) -> str:
    """The win rate with its interval, the ties, and what so many answers could have shown.

    >>> print(result_text(Tally(14, 4, 2), 35))
    20 of 35 pairs answered. The rewrite was preferred in 14 of 18 (0.78, 95 % interval 0.55 to 0.91); no difference 2 times.
    The interval does not hold 0.50: the rewrite is preferred.
    18 decided answers show a preference with 80 % power if the true win rate is at least 0.82.
    """  # noqa: E501
    said = tally.decided + tally.ties
    if not tally.decided:
        return f"{said} of {pairs} pairs answered, none with a preference: no win rate yet."
    low, high = wilson(tally.wins, tally.decided)
    rate = tally.wins / tally.decided
    verdict = "holds 0.50: not resolved"
    if low > 0.5 or high < 0.5:
        verdict = f"does not hold 0.50: the {REWRITE if low > 0.5 else GENERIC + ' text'} is preferred"
    smallest = smallest_rate(tally.decided)
    could = (
        f"{tally.decided} decided answers show a preference with 80 % power if the true win rate is at least "
        f"{smallest:.2f}."
        if smallest
        else f"{tally.decided} decided answers are too few to show any preference: the fewest are {_fewest()}."
    )
    return (
        f"{said} of {pairs} pairs answered. The rewrite was preferred in {tally.wins} of {tally.decided} ({rate:.2f}, "
        f"95 % interval {low:.2f} to {high:.2f}); no difference {tally.ties} times.\n"
        f"The interval {verdict}.\n{could}"
    )


def _fewest() -> int:
    return next(count for count in range(1, 100) if smallest_rate(count))


def wilson(wins: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    share, z2 = wins / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


@lru_cache(maxsize=64)
def smallest_rate(count: int) -> float | None:
    """The smallest win rate above 0.5 whose Wilson interval excludes 0.5 in 80 of 100 tests of `count` answers; None if
    no rate below 1 does.
    """
    needed = next((wins for wins in range(count // 2, count + 1) if wilson(wins, count)[0] > 0.5), None)
    if needed is None:
        return None
    for step in range(501, 1000):
        rate = step / 1000
        if sum(_binomial(count, n, rate) for n in range(needed, count + 1)) >= _POWER:
            return rate
    return None


def _binomial(count: int, n: int, rate: float) -> float:
    """The probability of `n` wins; by logarithms, because of 1,000 answers the binomial coefficient is no float."""
    orders = math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1)
    return math.exp(orders + n * math.log(rate) + (count - n) * math.log(1 - rate))
