"""The source of a run's data: the embedded personas, LaMP's official files, or a folder that holds them.

In: the data settings. Out: each split as a `datasets.Dataset`, every profile ranked for its query.

    read_source(DataSettings(task="LaMP-3"), "dev", stage_dir)[0]["ranking"]     # [4, 0, 7, …], best first
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import overload

import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets

from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.lamp.data import read_lamp
from rpo_kit.lamp.download import fetch
from rpo_kit.lamp.example import Example, UserFacts
from rpo_kit.lamp.files import GOLDS, QUESTIONS, check_present
from rpo_kit.lamp.leave_one_out import examples_from_items, query_field
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import Item, get_task
from rpo_kit.presets import DataSettings, Preset

SPLITS = ("train", "dev")


def check_data(preset: Preset) -> str:
    """ "" if the data that the settings name exist, as for the other checks in `pipeline.py`; else raises KitError."""
    task = get_task(preset.data.task)
    if preset.data.leave_one_out:
        query_field(task)
    if preset.data.source == "personas":
        personas.persona(task.name)
    split_of_files(preset.data, "train")
    return ""


def source_files(settings: DataSettings) -> dict[str, Path]:
    """The files that may change outside the kit: LaMP's own, by the split that they are read for.

    Personas depend on their settings only. If a folder has one split, `data.dev_share` makes both from it.
    """
    if settings.source == "personas":
        return {}
    folder = lamp_folder(settings)
    files = {}
    for split in SPLITS:
        file_split = split_of_files(settings, split)
        if file_split:
            for kind, role in (("questions", QUESTIONS), ("outputs", GOLDS)):
                path = folder / f"{file_split}_{kind}.json"
                check_present(path, role)
                files[f"{split}_{kind}.json"] = path
    return files


def split_of_files(settings: DataSettings, split: str) -> str | None:
    """The split whose files hold the examples of `split`; None if the folder has no such examples.

    Raises:
        KitError: `data.dev_share` is set for a folder that has both splits, or is not for one that has train alone.
    """
    if settings.source in ("personas", "official"):
        return split
    folder = lamp_folder(settings)
    kinds = ("questions", "outputs")
    present = [name for name in SPLITS if any((folder / f"{name}_{kind}.json").exists() for kind in kinds)]
    if settings.dev_share and len(present) > 1:
        raise KitError(
            f"data.dev_share={settings.dev_share:g} makes train and dev from one split, but {folder} has the files of "
            "both: set data.dev_share=0, or move the files of one split away."
        )
    if settings.dev_share:
        return present[0] if present else "dev"
    if split == "dev" and present == ["train"]:
        raise KitError(
            f"{folder} has no dev files: set data.dev_share=0.2 to evaluate on a fifth of its train users, or add "
            "dev_questions.json and dev_outputs.json."
        )
    return None if split == "train" and present == ["dev"] else split


def lamp_folder(settings: DataSettings) -> Path:
    """The folder with LaMP's files: the one in the settings, or the download folder, with missing files fetched."""
    if settings.source == "official":
        return fetch(get_task(settings.task), settings.separation, SPLITS)
    folder = Path(settings.source)
    if folder.is_file():
        raise KitError(f"The data {folder} is a file: give the folder that contains it, --data {folder.parent}.")
    if not folder.is_dir():
        close = get_close_matches(settings.source.lower(), ("personas", "official"), n=1)
        raise KitError(
            f"The data {settings.source!r} is not an existing folder: give personas, official (downloads LaMP's "
            f"files), or a folder with them.{f' Did you mean --data {close[0]}?' if close else ''}"
        )
    return folder


def source_folder(settings: DataSettings, stage_dir: Path) -> Path:
    return stage_dir / "personas" if settings.source == "personas" else lamp_folder(settings)


def read_source(settings: DataSettings, split: str, stage_dir: Path) -> Dataset:
    """One split with its ranking: from the embedded personas, or from a folder with LaMP's official files."""
    task = get_task(settings.task)
    dataset, facts = _read_unranked(settings, split, stage_dir)
    facts_column = [json.dumps(facts.get(example_id, {})) for example_id in dataset["id"]]
    ranking = rank(task, dataset, settings.retriever, settings.seed)
    columns = {
        "ranking": List(Value("int64")),
        "facts": Value("string"),
    }  # an empty split has no types
    if not len(dataset):  # no column can be added to an empty dataset
        features = Features(dataset.features | columns)
        return Dataset.from_dict({name: [] for name in features}, features=features)
    dataset = dataset.add_column("ranking", ranking, feature=columns["ranking"])
    return dataset.add_column("facts", facts_column, feature=columns["facts"])


def unranked_ids(settings: DataSettings, split: str) -> list[str]:
    """The ids of a split's examples, as `prepare` will read them; ranking, which takes longest, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        return list(_read_unranked(settings, split, Path(folder))[0]["id"])


def _read_unranked(settings: DataSettings, split: str, stage_dir: Path) -> tuple[Dataset, dict[str, UserFacts]]:
    """One split, and what is known about its users, by example."""
    task = get_task(settings.task)
    users = settings.train_users if split == "train" else settings.dev_users
    facts: dict[str, UserFacts] = {}
    folder = source_folder(settings, stage_dir)
    if settings.source == "personas":
        personas.write(folder, task.name, {split: users}, items_per_user=settings.items_per_user, seed=settings.seed)
        facts = json.loads((folder / f"{split}_facts.json").read_text(encoding="utf-8"))
    dataset = first_users(_read_split(settings, folder, split), users)
    if settings.leave_one_out and split == "train":
        own = list(examples_from_items(task, dataset, facts, settings.leave_one_out, settings.seed))
        dataset = concatenate_datasets([dataset, Dataset.from_list([row for row, _ in own], dataset.features)])
        facts |= {row["id"]: row_facts for row, row_facts in own}
    return dataset, facts


def _read_split(settings: DataSettings, folder: Path, split: str) -> Dataset:
    """The examples of a split: from its own files, from those of a share of the other split's users, or none."""
    task, files = get_task(settings.task), split_of_files(settings, split)
    dataset = read_lamp(folder, task, files or "dev", drop_gold=settings.drop_gold)
    if files is None:
        print(
            f"{folder} has no train files, so nothing can be trained; the baselines can be evaluated. To split these "
            "users into train and dev, set data.dev_share=0.2."
        )
        return dataset.select([])
    if not settings.dev_share:
        return dataset
    dev = dev_users(dataset["user_id"], settings.dev_share, settings.seed)
    return dataset.select([i for i, user in enumerate(dataset["user_id"]) if (user in dev) == (split == "dev")])


def dev_users(users: Iterable[str], share: float, seed: int) -> set[str]:
    """The users that become dev: `share` of them, drawn with the seed; at least one, and one stays for train.

    Raises:
        KitError: there is only one user.
    """
    distinct = list(dict.fromkeys(users))
    if len(distinct) < 2:
        raise KitError(
            f"data.dev_share={share:g} divides users into train and dev, but the data has only {len(distinct)}: set "
            "data.dev_share=0 and evaluate baselines."
        )
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    return set(random.Random(f"{seed}/dev-share").sample(distinct, count))


def save_split(dataset: Dataset, folder: Path) -> None:
    """Write a split atomically; `datasets` alone writes its files one after the other.

    `num_shards` is for a split without examples, of which `datasets` otherwise writes nothing that it can load again.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    dataset.save_to_disk(str(part), num_shards=None if len(dataset) else 1)
    part.rename(folder)


def first_examples(settings: DataSettings, split: str, users: int) -> list[Example]:
    """The examples of the first users of a split, read and ranked as by `prepare`, without running a model."""
    few = replace(settings, train_users=users, dev_users=users, leave_one_out=0)
    with tempfile.TemporaryDirectory() as folder:
        rows = read_source(few, split, Path(folder)).to_list()
    return [row | {"facts": json.loads(row["facts"])} for row in rows]


def first_users(dataset: Dataset, users: int) -> Dataset:
    """All examples of the first `users` users (in LaMP-2 and LaMP-4 a user has several)."""
    first = set(list(dict.fromkeys(dataset["user_id"]))[:users])
    return dataset.select([i for i, user in enumerate(dataset["user_id"]) if user in first])


class Profile(Sequence[Item]):
    """A user's items, read from the memory-mapped Arrow file at each access.

    As Python objects, a split like LaMP-3 dev takes 2.4 times the file's size (measured), more than a gigabyte.
    """

    def __init__(self, items: pa.StructArray) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        items: Item | list[Item]
        items = self.items[index].to_pylist() if isinstance(index, slice) else self.items[index].as_py()
        return items

    def __iter__(self) -> Iterator[Item]:
        return iter(self[:])

    def __repr__(self) -> str:
        return repr(self[:])
