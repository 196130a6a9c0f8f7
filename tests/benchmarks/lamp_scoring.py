"""Scoring 2,500 predictions, by `evaluate` as LaMP does and by us: `python tests/benchmarks/lamp_scoring.py`.

Needs `pip install evaluate==0.4.6 scikit-learn==1.9.1`. The library fetches its metrics' scripts from the network; here
they are written out: `evaluate.Metric` with what accuracy, f1, mae, mse and rouge compute (scikit-learn, rouge_score
with its bootstrap of 1,000 resamples). The two take turns, three rounds each; the ratio is that of the medians. Prints
seconds, ratios and the largest differences. Not a timed test.
"""

import os
import random
import statistics
import time

import datasets
import evaluate
import numpy as np
from rouge_score import rouge_scorer, scoring
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error

from rpo_kit.lamp.metrics import _rouge, lamp_metrics
from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task

COUNT, ROUNDS = 2500, 3


class Labels(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("int32"))

    def _compute(self, predictions: list[int], references: list[int], labels: int) -> dict[str, float]:
        return {
            "accuracy": accuracy_score(references, predictions),
            "f1": f1_score(references, predictions, labels=list(range(labels)), average="macro", zero_division=0.0),
        }


class Ratings(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("float"))

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {
            "MAE": mean_absolute_error(references, predictions),
            "RMSE": root_mean_squared_error(references, predictions),
        }


class Rouge(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("string"))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=False)
        aggregator = scoring.BootstrapAggregator()
        for reference, prediction in zip(references, predictions, strict=True):
            aggregator.add_scores(scorer.score_multi([reference], prediction))
        found = aggregator.aggregate()
        return {"rouge-1": found["rouge1"].mid.fmeasure, "rouge-L": found["rougeL"].mid.fmeasure}


def _info(kind: datasets.Value) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": kind, "references": kind})
    return evaluate.MetricInfo(description="", citation="", features=features)


def lamps_way(task_name: str, golds: list[str], preds: list[str]) -> dict[str, float]:
    task = get_task(task_name)
    if task.kind == "generation":
        return Rouge().compute(predictions=[p.strip() for p in preds], references=[g.strip() for g in golds])
    if task.kind == "regression":
        return Ratings().compute(predictions=[float(p) for p in preds], references=[float(g) for g in golds])
    index = {label: n for n, label in enumerate(task.labels)}
    numbers = [[index.get(text.strip(), -1) for text in texts] for texts in (preds, golds)]
    return Labels().compute(predictions=numbers[0], references=numbers[1], labels=len(task.labels))


def texts(task_name: str) -> tuple[list[str], list[str]]:
    """Golds of the personas, and predictions which are another user's gold in half of the cases."""
    golds = [row["output"] for row in build(task_name, "dev", COUNT, items_per_user=1)]
    draw = random.Random(0)
    return golds, [draw.choice(golds) if draw.random() < 0.5 else gold for gold in golds]


def in_turn(
    task_name: str, golds: list[str], preds: list[str]
) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """The scores of both ways, and the median seconds that each took."""
    took: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        theirs = lamps_way(task_name, golds, preds)
        middle = time.perf_counter()
        ours = lamp_metrics(get_task(task_name), golds, preds)
        took.append((middle - begin, time.perf_counter() - middle))
    return theirs, ours, [statistics.median(times) for times in zip(*took, strict=True)]


def main() -> None:
    print(f"{COUNT} predictions, load average {os.getloadavg()[0]:.1f}")
    for task_name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4", "LaMP-5", "LaMP-7"):
        task, (golds, preds) = get_task(task_name), texts(task_name)
        lamp_metrics(task, golds[:2], preds[:2])  # warm
        lamps_way(task_name, golds[:2], preds[:2])
        theirs, ours, took = in_turn(task_name, golds, preds)
        apart = max(abs(theirs[name] - ours[name]) for name in ours)
        print(
            f"{task_name}: evaluate {took[0]:6.3f} s, ours {took[1]:6.3f} s, "
            f"ratio {took[0] / took[1]:5.1f}, largest difference {apart:.1e}",
            flush=True,
        )
        if task.kind == "generation":
            scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
            each = [scorer.score(gold, pred) for gold, pred in zip(golds, preds, strict=True)]
            singles = np.array([(one["rouge1"].fmeasure, one["rougeL"].fmeasure) for one in each])
            print(f"        rouge_score, example by example: equal {bool((singles == _rouge(golds, preds)).all())}")


if __name__ == "__main__":
    main()
