"""What completions do beside scoring: the content they keep, the items they cite, and whether they tell the truth.

Columns of `metrics.csv` and the curve along RL's rollouts. What each number means stands in `lamp.content`,
`rewriting.faithfulness` and `rewriting.keep_generic`; here they are averaged.

    completion_columns(task, examples, answers, 6, 0.35)     # {"kept_generic": 0.02, "cites_many": 0.1, "faithful": …}
    rollout_curve(task, load_prepared(run, "train"), read_records(run.stage("rl") / "rollouts.jsonl"))
    #    step  k  cites_many  faithful  habit_named  majority  content_kept
    # 0     1  2        0.00      0.64         0.88      0.66          0.58
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rpo_kit.lamp.content import ContentKept, rewrite_content
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.faithfulness import Truth, check, shares_of, truth_of
from rpo_kit.rewriting.keep_generic import reason_to_keep
from rpo_kit.setting_rules import SECTIONS
from rpo_kit.study.baselines import Record

if TYPE_CHECKING:  # its module imports torch
    from rpo_kit.training.rollouts import Rollout


def contents(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> list[ContentKept]:
    """What each text keeps of generic answer or query; [] for tasks whose answers are labels."""
    if task.kind != "generation":
        return []
    queries = [task.query_text(example["input"]) for example in examples]
    triples = zip(examples, queries, texts, strict=True)
    return [rewrite_content(example["generic"], query, text) for example, query, text in triples]


def completion_columns(
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Record],
    shots: int,
    keep_content: float,
    sections: tuple[str, ...] = SECTIONS,
) -> dict[str, float]:
    """How the module's completions use the `shots` items shown; {} for systems without completions.

    `kept_generic` is the share of rewrites in place of which the personalizer would use the generic answer, with the
    setting `keep_content`.
    """
    if not all("raw" in answer and "complaint" in answer for answer in answers):  # as `evaluation.rewrite` writes them
        return {}
    checked, kept = [], []
    for example, answer in zip(examples, answers, strict=True):
        items = top_k(example, example["ranking"], shots)
        checked.append(check(answer["raw"], truth_of(task, example, items), len(items), sections))
        text, query = answer["prediction"], task.query_text(example["input"])
        unused = reason_to_keep(task, query, example["generic"], text, example["profile"], keep_content)
        kept.append(bool(unused) and not answer.get("complaint"))
    return {"kept_generic": float(np.mean(kept)), **shares_of(checked)}


def rollout_curve(
    task: Task, examples: Sequence[Example], rollouts: Sequence[Rollout], sections: tuple[str, ...] = SECTIONS
) -> pd.DataFrame:
    """One row per RL step: k and the shares of its completions that read the items truly, as far as they are known."""
    by_id, truths = {example["id"]: example for example in examples}, dict[tuple[str, int], Truth | None]()
    rows = []
    for rollout in rollouts:
        example, k = by_id[rollout["example"]], rollout["k"]
        if (example["id"], k) not in truths:
            truths[example["id"], k] = truth_of(task, example, top_k(example, example["ranking"], k))
        row: dict[str, float] = {"step": rollout["step"], "k": k}
        row |= shares_of([check(rollout["text"], truths[example["id"], k], k, sections)])
        if task.kind == "generation":
            text = rollout["rewrite"]
            query = task.query_text(example["input"])
            row["content_kept"] = rewrite_content(example["generic"], query, text).share if text else 0.0
        rows.append(row)
    return pd.DataFrame(rows).groupby("step", as_index=False).mean() if rows else pd.DataFrame()
