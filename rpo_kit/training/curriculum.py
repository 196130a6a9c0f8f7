"""How many history items (k, the shots) the reflection module reads at which RL step.

The paper grows k from 2 to 6. The plan is made before training, as one k per step and one example per prompt, in
training order; so a resumed run sees the same prompts with the same k.

    >>> shots_plan("progressive", 10)
    [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.setting_rules import CURRICULA


def shots_plan(plan: str, steps: int, first: int = 2, last: int = 6, seed: int = 0) -> list[int]:
    """k for each of `steps` steps. Progressive: k(t) = first + floor(t (last - first + 1) / steps)."""
    if not 1 <= first <= last:
        raise KitError(
            f"rl.shots_from={first} and rl.shots_to={last}: the first must be at least 1 and at most the second."
        )
    growing = [first + t * (last - first + 1) // steps for t in range(steps)]
    if plan == "progressive":
        return growing
    if plan == "reversed":
        return growing[::-1]
    if plan == "random":
        return random.Random(f"shots/{seed}").choices(range(first, last + 1), k=steps)
    stages = [int(part) for part in plan.split(",") if part.strip().isdecimal() and int(part) > 0]
    if "," in plan and len(stages) == plan.count(",") + 1:
        if len(stages) > steps:
            raise KitError(
                f"The curriculum {plan!r} has {len(stages)} values for {steps} steps: raise the steps, or shorten it."
            )
        return [stages[t * len(stages) // steps] for t in range(steps)]
    if plan.startswith("fixed-") and plan[6:].isdecimal() and int(plan[6:]) > 0:
        return [int(plan[6:])] * steps
    raise KitError(f"There is no curriculum {plan!r}: choose {CURRICULA}.")


def prompt_order(examples: Sequence[Example], count: int, seed: int = 0) -> list[Example]:
    """`count` examples in training order; the pool is reshuffled for each pass over it."""
    if not examples:
        raise KitError("There are no training examples: raise data.train_users, or check data.source.")
    rng = random.Random(f"prompts/{seed}")
    order: list[Example] = []
    while len(order) < count:
        order += rng.sample(list(examples), len(examples))
    return order[:count]
