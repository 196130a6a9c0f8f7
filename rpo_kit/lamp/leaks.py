"""Where LaMP's own files let an answer slip through, and what else is odd in them.

Four traps of the left edge of Figure 1. (1) The gold may stand in the question's own profile. (2) In the user split of
LaMP-2 and LaMP-4 several questions come from one user, each with the answers to the others in its profile, but no file
says so: users are found by their histories, so that no split cuts through one. (3) LaMP-6 as distributed holds names of
files instead of e-mails. (4) A train and a dev file of different releases may hold the same questions, or users that
LaMP keeps apart. HTML entities are counted and left, because LaMP scores them as they are.

    gold_positions(task, example)      # [3]: item 3 of the profile gives the answer away
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task

SEPARATES = ("user_id", "date")  # LaMP's time split has both, its user split neither
SHARED = 0.5  # ours: two questions are one user's where they share more than this part of the smaller history
_NEIGHBOURS = 8
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|nbsp|#\d{1,7});")
_AVOCADO = re.compile(r"\d+-\d+-EM(\.txt)?")


def gold_positions(task: Task, example: Mapping[str, Any]) -> list[int]:
    """Places in the profile which hold the answer: the output itself, or for labels and ratings the question itself.

    LaMP-1: the reference that is the right answer. Empty outputs (LaMP's test split) are in no profile.
    """
    profile: list[Item] = example["profile"]
    wanted = leaking_text(task, example["input"], example["output"])
    field = task.gold_field if task.kind == "generation" else task.text_field
    return [n for n, item in enumerate(profile) if item[field].strip() == wanted] if wanted else []


def leaking_text(task: Task, input: str, output: str) -> str:
    """What in an item of the profile gives the answer away; "" where nothing can."""
    if task.kind == "generation":
        return output.strip()
    if not task.is_official(input):
        return ""
    if task.name == "LaMP-1":
        return dict(zip(task.labels, task.references(input), strict=True)).get(output.strip(), "").strip()
    return task.query_text(input)


def has_entity(text: str) -> bool:
    """Whether "&amp;", "&quot;" and the like stand in the text."""
    return "&" in text and _ENTITY.search(text) is not None


def check_is_text(task: Task, text: str, where: str) -> None:
    """KitError where an e-mail of LaMP-6 is the name of a file of the collection that LaMP may not pass on."""
    if task.name == "LaMP-6" and _AVOCADO.fullmatch(text.removeprefix(task.prefix).strip()):
        raise mails_missing(f"{where} is {text[-40:]!r}")


def mails_missing(what: str) -> KitError:
    return KitError(
        f"{what}: LaMP-6 is distributed with names of files in place of the e-mails. They are in the Avocado Research "
        "Email Collection (LDC2015T03) of the Linguistic Data Consortium, under licence; with it, LaMP's "
        "create_avocado_dataset.py fills in the texts. Give the folder which that wrote (--data FOLDER)."
    )


def check_belong_together(train: Dataset, dev: Dataset, folder: Path) -> None:
    """KitError where two questions have one id, or one split is of LaMP's user split and one of its time split."""
    shared = sorted(set(train["id"]) & set(dev["id"]))
    if shared:
        raise KitError(
            f"Train and dev share question ids in {folder}: {len(shared)} of the {len(dev)} of dev, such as "
            f"{', '.join(shared[:3])}. Take train_questions.json and dev_questions.json from the same LaMP download."
        )
    twice = [key for key, count in Counter(train["id"]).items() if count > 1]
    if twice:  # a file's own ids are unique; those of questions made from items follow the items'
        raise KitError(
            f"{len(twice)} questions made from items of {folder} have an id twice, such as {twice[0]}: two items of "
            "that profile have one id. Give them different ones, or set data.leave_one_out=0."
        )
    notes = [json.loads(split.info.description or "{}") for split in (train, dev)]
    for name in SEPARATES:
        has = [note.get(name) for note in notes]
        if None not in has and has[0] != has[1]:
            one, other = ("train", "dev") if has[0] else ("dev", "train")
            raise KitError(
                f"{one}_questions.json in {folder} has a {name} and {other}_questions.json has none: one is of LaMP's "
                "time split (which has user_id and date), the other of its user split. Take both from the same split."
            )


def history_key(item: Item) -> int:
    """Equal for items of equal content, whatever their ids; good within one process."""
    return hash(tuple(value for field, value in item.items() if field not in ("id", "date")))


def users_by_history(ids: Sequence[str], histories: Sequence[np.ndarray]) -> list[str]:
    """A user for each question: the id of the first one with the same history. `histories`: item keys, int64.

    LaMP leaves the question's own item out of each profile, so one user's histories differ by two items at most.
    """
    found = list(range(len(ids)))

    def root(n: int) -> int:
        while found[n] != n:
            found[n] = found[found[n]]
            n = found[n]
        return n

    distinct = [np.unique(history) for history in histories]
    for first, second, shared in _shared_items(distinct):
        if shared > SHARED * min(len(distinct[first]), len(distinct[second])):
            low, high = sorted((root(first), root(second)))
            found[high] = low
    return [ids[root(n)] for n in range(len(ids))]


def _shared_items(histories: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """(question, later question, number of items which both have). Of many who have one item, the next eight count."""
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
    found, counts = np.unique(np.concatenate(pairs), return_counts=True)
    firsts, seconds = np.divmod(found, len(histories))
    return list(zip(firsts.tolist(), seconds.tolist(), counts.tolist(), strict=True))
