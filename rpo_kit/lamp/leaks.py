"""Where LaMP's own files leak a gold, and what else is wrong with them.

Four pitfalls at the left edge of Figure 1. (1) The gold may be in the example's own profile. (2) In the user split of
LaMP-2 and LaMP-4 several examples come from one user, each with the golds of the others in its profile, but no file
says so: users are identified by their histories, so that no split divides one. (3) LaMP-6 as distributed holds file
names instead of e-mails. (4) A train and a dev file of different releases may hold the same examples, or users that
LaMP keeps apart. HTML entities are counted and kept, because LaMP scores them as they are.

    gold_positions(task, example)      # [3]: item 3 of the profile gives the gold away
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Row
from rpo_kit.lamp.table import notes_of
from rpo_kit.lamp.tasks import Item, Task

SEPARATES: tuple[Literal["user_id", "date"], ...] = (
    "user_id",
    "date",
)  # LaMP's time split has both, its user split neither
SHARED = 0.5  # ours: two examples are of one user if they share more than this share of the smaller history
_NEIGHBOURS = 8
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|nbsp|#\d{1,7});")


def gold_positions(task: Task, example: Row) -> list[int]:
    """Indices of the profile items that give the gold away: those whose text is `leaking_text`.

    An empty gold (LaMP's test split) is in no profile.
    """
    leak = leaking_text(task, example["input"], example["output"])
    field = task.gold_field if task.kind == "generation" else task.text_field
    return [n for n, item in enumerate(example["profile"]) if item[field].strip() == leak] if leak else []


def leaking_text(task: Task, input: str, output: str) -> str:
    """The text that gives the gold away if it is an item's; "" if none does.

    In generation tasks the gold itself, for labels and ratings the query, in LaMP-1 the reference that is the gold.
    """
    if task.kind == "generation":
        return output.strip()
    if not task.is_official(input):
        return ""
    if task.label_parts:
        return dict(zip(task.labels, task.references(input), strict=True)).get(output.strip(), "").strip()
    return task.query_text(input)


def has_entity(text: str) -> bool:
    """Whether the text has HTML entities such as "&amp;" or "&quot;"."""
    return "&" in text and _ENTITY.search(text) is not None


def check_no_placeholder(task: Task, text: str, where: str) -> None:
    """Raises KitError if an e-mail of LaMP-6 is only a file name in the collection that LaMP may not distribute."""
    if task.placeholder and re.fullmatch(task.placeholder, text.removeprefix(task.prefix).strip()):
        raise KitError(f"{where} is {text[-40:]!r}: {task.placeholder_help}")


def check_belong_together(train: Dataset, dev: Dataset, folder: Path) -> None:
    """Check that two splits come from one release.

    Raises: KitError if two examples have one id, or if one file is of LaMP's user split and the other of its time
        split.
    """
    shared = sorted(set(train["id"]) & set(dev["id"]))
    if shared:
        raise KitError(
            f"Train and dev share example ids in {folder}: {len(shared)} of the {len(dev)} of dev, such as "
            f"{', '.join(shared[:3])}. Take train_questions.json and dev_questions.json from the same LaMP download."
        )
    repeated = [key for key, count in Counter(train["id"]).items() if count > 1]
    if repeated:  # a file's own ids are unique; those of examples made from items depend on the items'
        raise KitError(
            f"{len(repeated)} ids of examples made from items of {folder} occur twice, such as {repeated[0]}, which "
            "joins an example's id and an item's. Give the items other ids, or set data.leave_one_out=0."
        )
    for name in SEPARATES:
        has = [notes_of(split).get(name) for split in (train, dev)]
        if None not in has and has[0] != has[1]:
            one, other = ("train", "dev") if has[0] else ("dev", "train")
            raise KitError(
                f"{one}_questions.json in {folder} has a {name} and {other}_questions.json has none: one is of LaMP's "
                "time split (which has user_id and date), the other of its user split. Take both from the same split."
            )


def history_key(item: Item) -> int:
    """A hash of the item's content, without its id; valid within one process."""
    return hash(tuple(value for field, value in item.items() if field not in ("id", "date")))


def users_by_history(ids: Sequence[str], histories: Sequence[np.ndarray]) -> list[str]:
    """One user per example: the id of the first example with the same history. `histories`: item keys, int64.

    LaMP leaves the example's own item out of each profile, so one user's histories differ by two items at most.
    """
    parents = list(range(len(ids)))  # a union-find forest

    def root(n: int) -> int:
        while parents[n] != n:
            parents[n] = parents[parents[n]]
            n = parents[n]
        return n

    distinct = [np.unique(history) for history in histories]
    for first, second, shared in _shared_items(distinct):
        if shared > SHARED * min(len(distinct[first]), len(distinct[second])):
            low, high = sorted((root(first), root(second)))
            parents[high] = low
    return [ids[root(n)] for n in range(len(ids))]


def _shared_items(histories: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """(example, later example, number of items that both have).

    Of the examples that share an item, each is paired with the next eight only: all pairs could be too many.
    """
    if not histories:
        return []
    keys = np.concatenate(histories)
    owners = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    pairs = [np.empty(0, np.int64)]
    for step in range(1, _NEIGHBOURS + 1):
        same = keys[step:] == keys[:-step]
        pairs.append(owners[:-step][same] * len(histories) + owners[step:][same])
    distinct, counts = np.unique(np.concatenate(pairs), return_counts=True)
    firsts, seconds = np.divmod(distinct, len(histories))
    return list(zip(firsts.tolist(), seconds.tolist(), counts.tolist(), strict=True))
