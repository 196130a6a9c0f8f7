"""A model-free oracle: the score of a reader who sees k history items and makes no mistake.

Measures the benchmark, not a model: each item votes for the habit it shows, and the habit with most votes is applied to
the query. If the score did not rise with k here, more shots could not help any reflection module, and Figure 3 would be
flat. The ceiling applies the user's true habit. The oracle does not read: it takes what a text says from the facts
beside the data, while a trained module has to learn to read first.

    python -m rpo_kit.lamp.personas.oracle --users 500        prints task, k, metrics, score, ceiling
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores, lamp_metrics
from rpo_kit.lamp.personas import MODULES, build, persona
from rpo_kit.lamp.tasks import Item, get_task

SHOTS = (1, 2, 4, 6, 12)


def believed_habit(task_name: str, row: Example, items: Sequence[Item]) -> str:
    """The habit that most items show; in a tie the one shown first, as the best-ranked item comes first.

    If no item shows one (an empty profile), the habit in the middle of the list: the fair rater, for example.
    """
    module = persona(task_name)
    shown = [module.shown_habit(item, row["facts"]["items"][item["id"]]) for item in items]
    votes = Counter(habit for habit in shown if habit is not None)
    if not votes:
        return module.HABITS[len(module.HABITS) // 2]
    return max(votes, key=lambda habit: votes[habit])  # max and Counter keep the order of first appearance


def predict(task_name: str, row: Example, items: Sequence[Item]) -> str:
    """The answer that the believed habit gives."""
    return persona(task_name).apply(believed_habit(task_name, row, items), row["facts"]["query"])


def best_guesses(task_name: str, rows: Sequence[Example]) -> list[str]:
    """What a reader answers who makes no mistake but does not know the user.

    Per row the answer with the best mean score over all habits: one habit's answer or, if `echo` is a baseline of the
    task, the query itself.
    """
    task, module = get_task(task_name), persona(task_name)
    golds = [[module.apply(habit, row["facts"]["query"]) for row in rows] for habit in module.HABITS]
    answers = [*golds, [task.query_text(row["input"]) for row in rows]] if task.is_paraphrase else golds
    expected = np.array([np.mean([example_scores(task, gold, texts) for gold in golds], axis=0) for texts in answers])
    return [answers[best][row] for row, best in enumerate(expected.argmax(axis=0))]


def metrics_by_k(task_name: str, rows: Sequence[Example], ks: Iterable[int]) -> dict[int, dict[str, float]]:
    """LaMP's metrics of the oracle on the first k items, and "score": the mean example score in 0..1."""
    return {k: _metrics(task_name, rows, [predict(task_name, row, row["profile"][:k]) for row in rows]) for k in ks}


def ceiling(task_name: str, rows: Sequence[Example]) -> dict[str, float]:
    """The same metrics with the user's true habit: no reader of the profile can beat them."""
    module = persona(task_name)
    return _metrics(
        task_name, rows, [module.apply(row["facts"]["habit"]["name"], row["facts"]["query"]) for row in rows]
    )


def _metrics(task_name: str, rows: Sequence[Example], preds: Sequence[str]) -> dict[str, float]:
    task = get_task(task_name)
    golds = [row["output"] for row in rows]
    return lamp_metrics(task, golds, preds) | {"score": float(example_scores(task, golds, preds).mean())}


def oracle_table(task_name: str, users: int, ks: Sequence[int] = SHOTS) -> list[dict[str, str | float]]:
    """One row per k: task, k, LaMP's metrics, score, and the ceiling of the score."""
    rows = list(build(task_name, "dev", users, items_per_user=max(ks), seed=0))
    best = ceiling(task_name, rows)["score"]
    return [
        {"task": task_name, "k": k, **metrics, "ceiling": best}
        for k, metrics in metrics_by_k(task_name, rows, ks).items()
    ]


def main() -> None:
    """Print the table of all tasks."""
    parser = argparse.ArgumentParser(description="The score of a model-free reader of k history items.")
    parser.add_argument("--users", type=int, default=500, help="dev users per task (default 500)")
    parser.add_argument("--tasks", nargs="+", default=list(MODULES), choices=list(MODULES))
    arguments = parser.parse_args()
    for task_name in arguments.tasks:
        for line in oracle_table(task_name, arguments.users):
            print(
                "  ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in line.items()
                )
            )


if __name__ == "__main__":
    main()
