"""What both harnesses share: the questions, how an answer is read, and LaMP's metrics over all answers.

A question is what a model is asked for one example: LaMP's input (k = 0, the base without personalization), or LaMP's
prompt with the k best-ranked items before it. That prompt is not cut to a length, as for any model at an endpoint. An
answer is read as the kit reads its base model's (`reading`), then scored as `python -m rpo_kit score` scores it. Each
harness counts the examples that it asked; those that `read_lamp` excludes are in neither.

    questions("LaMP-3", users=1)[0]["prompt"]     # 'What is the score of the following review … review: …'
    row = answered("LaMP-3", "2", "I would give it a 4.")     # {"lamp": "LaMP-3", "gold": "2", "prediction": "4"}
    corpus_metric("MAE", [row])                               # 2.0
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from rpo_kit.errors import KitError
from rpo_kit.lamp.context import lamp_prompt
from rpo_kit.lamp.metrics import example_score as score_of_one
from rpo_kit.lamp.metrics import is_parseable, lamp_metrics, scorable
from rpo_kit.lamp.personas import MODULES
from rpo_kit.lamp.reading import read
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.source import SPLITS, read_source
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.presets import DataSettings
from rpo_kit.setting_rules import ALL_USERS

METRICS = ("accuracy", "f1", "MAE", "RMSE", "rouge-1", "rouge-L")  # LaMP's; a task has two of them


class Question(TypedDict):
    """What a model is asked for one example."""

    lamp: str  # the task's name: "LaMP-3"
    id: str
    user_id: str
    prompt: str
    gold: str
    profile: list[Item]  # the whole profile if asked for, else []


class Answered(TypedDict):
    """What the metrics need to know of one answer."""

    lamp: str
    gold: str
    prediction: str


def questions(
    lamp: str,
    data: str = "personas",
    split: str = "dev",
    k: int = 0,
    retriever: str = "bm25",
    users: int | None = None,
    profile: bool = False,
) -> list[Question]:
    """The questions of a split, in the order of its file.

    `data` is personas, official (downloads LaMP's files) or a folder with them. `users` limits the number of users;
    by default all of a file, and as many personas as in a run.

    Raises: KitError for a parameter that cannot be meant, or data that `read_lamp` rejects.
    """
    task = get_task(lamp)
    _check(task, data, split, k, users)
    limit = users or (DataSettings().dev_users if data == "personas" else ALL_USERS)
    settings = DataSettings(source=data, task=task.name, train_users=limit, dev_users=limit, retriever=retriever)
    with tempfile.TemporaryDirectory() as folder:
        rows = [_question(task, row, k, profile) for row in read_source(settings, split, Path(folder))]
    if not rows:
        raise KitError(f"The data {data} have no examples in the split {split}: give another split or folder.")
    return rows


def _check(task: Task, data: str, split: str, k: int, users: int | None) -> None:
    if split not in SPLITS:
        raise KitError(f"There is no split {split!r} with golds: give split as one of {', '.join(SPLITS)}.")
    if data == "personas" and task.name not in MODULES:
        raise KitError(f"There are no personas for {task.name}: give data as a folder with LaMP's own files.")
    for name, value, lowest in (("k", k, 0), ("users", 1 if users is None else users, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise KitError(f"{name} is {value!r}: give a whole number, {lowest} or more.")


def _question(task: Task, row: dict[str, Any], k: int, profile: bool) -> Question:
    return {
        "lamp": task.name,
        "id": row["id"],
        "user_id": row["user_id"],
        "prompt": lamp_prompt(task, row["input"], top_k(row, row["ranking"], k)),
        "gold": row["output"],
        "profile": row["profile"] if profile else [],
    }


def answered(lamp: str, gold: str, reply: str) -> Answered:
    """The reply as it is scored: the answer inside it, and "" in place of a rating such as "nan"."""
    task = get_task(lamp)
    return {"lamp": task.name, "gold": gold, "prediction": scorable(task, read(task, reply).text)}


def example_score(answer: Answered) -> float:
    """The kit's score of one answer, 0..1 (see `metrics.example_scores`)."""
    return score_of_one(get_task(answer["lamp"]), answer["gold"], answer["prediction"])


def is_unreadable(answer: Answered) -> bool:
    """Whether LaMP's evaluator cannot read the prediction: not a label, not a number, or an empty text."""
    return not is_parseable(get_task(answer["lamp"]), answer["prediction"])


def corpus_metric(name: str, answers: Sequence[Answered]) -> float:
    """One of LaMP's metrics over all answers, or "unreadable", the share that LaMP's evaluator cannot read.

    nan if there is no answer.
    """
    if not answers:
        return math.nan
    if name == "unreadable":
        return sum(map(is_unreadable, answers)) / len(answers)
    golds, predictions = ([answer[key] for answer in answers] for key in ("gold", "prediction"))
    return lamp_metrics(get_task(answers[0]["lamp"]), golds, predictions)[name]
