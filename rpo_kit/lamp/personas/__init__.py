"""The embedded benchmark: seeded users with known habits, in LaMP's own format, for LaMP-1, 2, 3, 4, 5 and 7.

Replaces the downloaded LaMP files, at the very beginning of Figure 1, so that every loader, prompt, reward and metric
runs without a network. A user has one habit (how harsh a rater, which kind of tag, which research field, how a headline
is built); each profile item shows it with probability `SHOWS` and another habit otherwise, so one item is not enough.
Real people are more varied: they have hundreds of habits, these users one each.

    for row in build("LaMP-3", "dev", users=100):
        row["input"]    # 'What is the score of the following review on a scale of 1 to 5? just answer with … review: …'
        row["output"]   # '2'
        row["facts"]    # {"habit": {"name": "harsh"}, "query": {"reads": 3, …}, "items": {"2200": {"reads": 4, …}, …}}

One row per user. "facts" holds the true habit and what can be read in each text; it is stored beside LaMP's files,
never in them.
"""

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example, Facts
from rpo_kit.lamp.files import write_json, write_outputs
from rpo_kit.lamp.personas.grammar import Persona
from rpo_kit.lamp.tasks import Item, get_task

MODULES = {
    "LaMP-1": "citations",
    "LaMP-2": "movies",
    "LaMP-3": "ratings",
    "LaMP-4": "headlines",
    "LaMP-5": "titles",
    "LaMP-7": "tweets",
}
_QUESTION_KEYS: tuple[Literal["id", "user_id", "input", "profile"], ...] = ("id", "user_id", "input", "profile")
SPLITS = ("train", "dev", "test")  # LaMP's; the index is the second character of an example's id


def persona(task_name: str) -> Persona:
    """The persona module of a task."""
    if task_name not in MODULES:
        raise KitError(
            f"The embedded benchmark has no personas for the task {task_name!r}: set --task to one of "
            f"{', '.join(MODULES)}, or give the folder of LaMP's own files with --data FOLDER."
        )
    return cast(Persona, importlib.import_module(f"{__name__}.{MODULES[task_name]}"))


def build(task_name: str, split: str, users: int, *, items_per_user: int = 12, seed: int = 0) -> Iterator[Example]:
    """One row per user, streamed: id, user_id, input, output, profile, facts. The same seed gives the same bytes.

    A user depends on (seed, task, split, user index) only, so more users extend a split without changing the first
    ones, and train and dev share neither users nor random numbers.
    """
    module = persona(task_name)
    if split not in SPLITS:
        raise KitError(f"The embedded benchmark has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return (_user_row(module, task_name, split, index, items_per_user, seed) for index in range(users))


def _user_row(module: Persona, task_name: str, split: str, index: int, items_per_user: int, seed: int) -> Example:
    # A string seed goes through SHA-512 inside `random`: equal on every machine, unlike hash().
    rng = random.Random(f"{seed}/{task_name}/{split}/{index}")
    habit = _habit(module.HABITS, f"{seed}/{task_name}/{split}", index)
    example_id = f"{int(task_name[-1]) - 1}{SPLITS.index(split)}{index}"  # in LaMP's scheme
    profile: list[Item] = []
    item_facts: dict[str, Facts] = {}
    for number in range(items_per_user):
        shows = habit if rng.random() < module.SHOWS else rng.choice([h for h in module.HABITS if h != habit])
        item, facts = module.make_item(rng, shows)
        profile.append({"id": f"{example_id}{number}", **item})
        item_facts[profile[-1]["id"]] = facts
    input, gold, query_facts = module.make_query(rng, habit)
    return {
        "id": example_id,
        "user_id": f"{split}-{index}",
        "input": input,
        "output": gold,
        "profile": profile,
        "facts": {"habit": {"name": habit}, "query": query_facts, "items": item_facts},
    }


def _habit(habits: tuple[str, ...], stream: str, index: int) -> str:
    """Habits dealt like cards, in freshly shuffled rounds: any first n users hold all habits about equally often."""
    deal = list(habits)
    random.Random(f"{stream}/habits/{index // len(habits)}").shuffle(deal)
    return deal[index % len(habits)]


def write(folder: Path, task_name: str, users: dict[str, int], *, items_per_user: int = 12, seed: int = 0) -> None:
    """LaMP's official files of each split in `users` ({"train": 200, "dev": 50}), and {split}_facts.json."""
    task = get_task(task_name)
    for split, count in users.items():
        rows = list(build(task_name, split, count, items_per_user=items_per_user, seed=seed))
        questions = [{key: row[key] for key in _QUESTION_KEYS} for row in rows]
        write_outputs(folder / f"{split}_outputs.json", task.official_name, {row["id"]: row["output"] for row in rows})
        write_json(folder / f"{split}_facts.json", {row["id"]: row["facts"] for row in rows})
        write_json(folder / f"{split}_questions.json", questions)  # last: with it, the split is complete
