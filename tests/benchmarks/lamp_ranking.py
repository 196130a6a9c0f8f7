"""Ranking a split shaped like LaMP-3 dev, LaMP's way and ours in turn: `python tests/benchmarks/lamp_ranking.py`.

2,500 queries, each with a profile of 190 items of about 150 words, one of eight of them a copy of another, so that
scores tie. LaMP's way is one `rank_bm25.BM25Okapi` a query (pip install rank_bm25==0.2.2). Prints seconds, the ratio,
and on how many queries the first ten are the same. Not a timed test.
"""

import argparse
import os
import random
import time

import numpy as np
from datasets import Dataset
from rank_bm25 import BM25Okapi

from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import get_task

TASK = get_task("LaMP-3")
CHUNK = 100  # queries ranked in turn by both, so that whatever else the machine does hits both


def make(queries: int, items: int, seed: int) -> Dataset:
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(30_000)]
    weights = np.cumsum([1 / (n + 1) for n in range(30_000)]).tolist()

    def text() -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=max(5, round(draw.gauss(150, 60)))))

    rows = []
    for n in range(queries):
        texts = [text() for _ in range(items)]
        texts = [draw.choice(texts) if draw.random() < 1 / 8 else one for one in texts]
        profile = [{"id": f"{n}-{i}", "text": one, "score": "3"} for i, one in enumerate(texts)]
        rows.append({"id": str(n), "input": TASK.make_input(text=text()), "profile": profile})
    return Dataset.from_list(rows)


def lamps_way(rows: list[dict]) -> list[list[int]]:
    found = []
    for row in rows:
        index = BM25Okapi([TASK.corpus_text(item).split() for item in row["profile"]])
        scores = index.get_scores(TASK.retrieval_query(row["input"]).split())
        found.append(np.argsort(scores)[::-1][:10].tolist())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("--items", type=int, default=190)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, {vars(options)}", flush=True)
    seconds = {"rank_bm25": 0.0, "ours": 0.0}
    same = ties = 0
    for start in range(0, options.queries, CHUNK):
        dataset = make(min(CHUNK, options.queries - start), options.items, seed=start)
        rows = dataset.to_list()
        begin = time.perf_counter()
        theirs = lamps_way(rows)
        middle = time.perf_counter()
        ours = [order[:10] for order in rank(TASK, dataset, "bm25-lamp")]
        seconds["rank_bm25"] += middle - begin
        seconds["ours"] += time.perf_counter() - middle
        same += sum(a == b for a, b in zip(theirs, ours, strict=True))
        stable = [order[:10] for order in rank(TASK, dataset, "bm25")]
        ties += sum(a != b for a, b in zip(ours, stable, strict=True))
    for name, total in seconds.items():
        print(f"{name:10} {total:7.2f} s, {1000 * total / options.queries:6.2f} ms a query")
    print(f"rank_bm25 / ours = {seconds['rank_bm25'] / seconds['ours']:.1f}")
    print(f"the same first ten on {same} of {options.queries} queries; in {ties} of them ties reach the first ten")


if __name__ == "__main__":
    main()
