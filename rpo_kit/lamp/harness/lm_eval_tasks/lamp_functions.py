"""The functions that the YAML files of this folder name; lm-eval loads this file by its path.

`--metadata` gives the parameters of `questions`: `--metadata k=4 data=FOLDER`. lm-eval adds the model's arguments to
them, which are ignored.
"""

from typing import Any

from datasets import Dataset

from rpo_kit.lamp.harness.questions import (
    Answered,
    answered,
    corpus_metric,
    example_score,
    is_unreadable,
    questions,
)
from rpo_kit.lamp.tasks import get_task


def dataset(
    lamp: str,
    data: str = "personas",
    split: str = "dev",
    k: int = 0,
    retriever: str = "bm25",
    users: int | None = None,
    **others: Any,
) -> dict[str, Dataset]:
    """The questions as a dataset with one split."""
    rows = questions(lamp, data, split, k, retriever, users)
    shown = f"{k} items by {retriever}" if k else "no items"
    print(f"{lamp}: {len(rows)} examples of {len({row['user_id'] for row in rows})} users, {split}, {data}; {shown}")
    return {"questions": Dataset.from_list([dict(row) for row in rows]).remove_columns("profile")}


def results(doc: dict[str, str], replies: list[str]) -> dict[str, Any]:
    """The kit's score of one answer, and the answer itself for each of LaMP's metrics."""
    answer = answered(doc["lamp"], doc["gold"], replies[0])
    over_all = dict.fromkeys(get_task(doc["lamp"]).metrics, answer)
    return {"score": example_score(answer), **over_all, "unreadable": float(is_unreadable(answer))}


def accuracy(answers: list[Answered]) -> float:
    return corpus_metric("accuracy", answers)


def f1(answers: list[Answered]) -> float:
    return corpus_metric("f1", answers)


def mae(answers: list[Answered]) -> float:
    return corpus_metric("MAE", answers)


def rmse(answers: list[Answered]) -> float:
    return corpus_metric("RMSE", answers)


def rouge_1(answers: list[Answered]) -> float:
    return corpus_metric("rouge-1", answers)


def rouge_l(answers: list[Answered]) -> float:
    return corpus_metric("rouge-L", answers)
