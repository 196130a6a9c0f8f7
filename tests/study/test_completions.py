"""Columns about content and observations: of an evaluation, of RL's log, and step by step along the rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.pipeline import refusals
from rpo_kit.rewriting.faithfulness import truth_of
from rpo_kit.study.completion_figures import content_figure, faithful_figure
from rpo_kit.study.completions import completion_columns, contents, rollout_curve
from rpo_kit.study.results import CONTENT_COLUMNS, content_table, read_tables, result_text, scores_table
from rpo_kit.study.statistics import metrics_table
from rpo_kit.training.rewards import judge
from rpo_kit.training.rollouts import Prompt, records, summary
from rpo_kit.training.teachers import Request, persona_teacher

TWEETS = get_task("LaMP-7")
DATA = Path(__file__).parents[2] / "figures" / "data"


def examples(count: int = 4) -> list[dict[str, Any]]:
    """Users whose black box repeats the query; their three items are ranked as they come."""
    rows = list(build("LaMP-7", "dev", count, items_per_user=3))
    return [row | {"ranking": [0, 1, 2], "generic": TWEETS.query_text(row["input"])} for row in rows]


def oracle(rows: list[dict[str, Any]], shots: int = 3) -> list[str]:
    return persona_teacher(TWEETS, [Request("r", row, row["profile"][:shots]) for row in rows])


def written(rewrite: str) -> str:
    return f"<observe>[1] opens hi: nobody</observe><plan>b</plan><rewrite>{rewrite}</rewrite>"


def record(prediction: str, raw: str | None = None, complaint: str | None = None) -> dict[str, Any]:
    return {"id": "?", "prediction": prediction} | ({"raw": raw, "complaint": complaint} if raw is not None else {})


def test_the_table_has_content_for_all_systems_and_observations_for_the_module_alone(new_run):
    run, rows = new_run({"data.task": "LaMP-7", "evaluation.shots": 3}), examples()
    found = {
        "base": [record(row["generic"]) for row in rows],
        "sft": [record(text.split("<rewrite>")[1].split("<")[0], text) for text in oracle(rows)],
        "rl": [
            record("joker", written("joker")),
            record(rows[1]["generic"], "joker", "no tags"),
            *(record(row["generic"], written(row["generic"])) for row in rows[2:]),
        ],
    }
    table = metrics_table(run, TWEETS, rows, found).set_index("system")
    assert table.loc["base", ["content_kept", "content_low", "content_high"]].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["rl", "content_kept"] == 0.75, "all of three texts, none of the first"
    assert table.loc[["base", "rl"], "words_changed"].tolist() == [0.0, 0.25], "of the first text all"
    assert table.loc["sft", ["cites_many", "faithful", "habit_named", "majority"]].tolist() == [1.0] * 4
    assert table.loc["rl", ["cites_many", "faithful", "majority"]].tolist() == [0.0] * 3
    assert table.loc["rl", "kept_generic"] == 0.25, "the first; the second did not parse anyway"
    assert table.loc["sft", "kept_generic"] == 0.0
    assert table.loc[["base", "oracle"], ["kept_generic", "faithful"]].isna().all(axis=None)
    assert table.loc[["best guess", "oracle"], "content_kept"].isna().all()


def test_labels_have_no_content_and_real_users_no_truth():
    assert contents(get_task("LaMP-3"), examples(1), ["4"]) == []
    rows = [row | {"facts": {}} for row in examples(2)]
    answers = [record("a", text) for text in oracle(examples(2))]
    columns = completion_columns(TWEETS, rows, answers, 3, 0.35)
    assert columns == {"kept_generic": 1.0, "cites_many": 1.0}
    assert completion_columns(TWEETS, rows, [record("a"), record("b")], 3, 0.35) == {}


def test_tables_of_earlier_versions_have_no_such_columns_and_are_shown_as_before():
    metrics, paired = read_tables(f"{DATA}/gain1_LaMP-7_")
    assert content_table(metrics).empty
    assert "Content and observations" not in result_text(metrics, paired)
    assert list(scores_table(metrics)) == [c for c in metrics if c not in ("task", "shots", "examples")]
    with pytest.raises(KitError, match="no content_kept"):
        content_figure(metrics)


def with_content() -> pd.DataFrame:
    table = pd.DataFrame({"system": ["base", "rl", "oracle"], "score": [0.4, 0.7, 0.9], "low": 0.3, "high": 0.95})
    table = table.assign(content_kept=[1.0, 0.6, np.nan], content_low=[1.0, 0.5, np.nan], content_high=[1, 0.7, np.nan])
    return table.assign(faithful=[np.nan, 0.5, np.nan], task="LaMP-7", shots=6, examples=40)


def test_content_and_observations_stand_in_a_table_of_their_own():
    table = content_table(with_content())
    assert list(table) == ["system", "content kept", "low", "high", "true observations"]
    assert table["system"].tolist() == ["base model", "reflection module after SFT + RL"], "references have none"
    text = result_text(with_content(), pd.DataFrame(columns=["system", "minus", "score", "low", "high"]))
    scores, content = text.split("Content and observations")
    assert "true observations" in content
    assert not set(CONTENT_COLUMNS) & set(scores.split())


def test_the_picture_has_one_point_with_two_intervals_per_system():
    figure = content_figure(with_content())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "base model", "reflection module after SFT + RL",
    ]  # fmt: skip
    points = [container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers]
    assert points == [[[1.0, 0.4]], [[0.6, 0.7]]]
    assert all(len(container.lines[2]) == 2 for container in figure.axes[0].containers)


def test_the_curve_has_one_row_per_step_with_the_items_that_were_shown_there():
    rows = examples(2)
    rollouts = [
        {"step": step, "k": k, "example": row["id"], "text": text, "rewrite": text and row["output"]}
        for step, k in ((1, 1), (2, 3))
        for row, text in zip(rows, (oracle(rows, k)[0], ""), strict=True)
    ]
    curve = rollout_curve(TWEETS, rows, rollouts)
    assert curve[["step", "k"]].values.tolist() == [[1, 1], [2, 3]]
    assert curve["cites_many"].tolist() == [0.0, 0.5], "one of two completions, once three items are shown"
    for column in ("faithful", "habit_named", "majority"):
        assert curve[column].tolist() == [0.5, 0.5], "the second completion is empty"
    assert curve["content_kept"].tolist() == pytest.approx(
        [contents(TWEETS, rows, [rows[0]["output"], ""])[0].share / 2] * 2
    )
    axes = faithful_figure(curve).axes
    assert [line.get_label() for line in axes[0].lines] == [
        "true observations", "habit named right", "follows the majority", "cites several items", "content kept",
    ]  # fmt: skip
    assert axes[1].lines[0].get_ydata().tolist() == [1, 3]


def test_without_rollouts_or_facts_the_curve_says_what_is_known():
    assert rollout_curve(TWEETS, [], []).empty
    with pytest.raises(KitError, match=r"no rollouts to draw: raise rl\.rollouts_mb"):
        faithful_figure(rollout_curve(TWEETS, [], []))
    rows = [row | {"facts": {}} for row in examples(1)]
    rollout = {"step": 1, "k": 3, "example": rows[0]["id"], "text": oracle(examples(1))[0], "rewrite": "x"}
    assert list(rollout_curve(TWEETS, rows, [rollout])) == ["step", "k", "cites_many", "content_kept"]


@pytest.mark.parametrize("known", [True, False])
def test_rls_log_has_the_same_shares_of_each_step(known):
    rows = examples(2)
    prompts = []
    for row in rows:
        truth = truth_of(TWEETS, row, row["profile"]) if known else None
        query, history = row["generic"], ["x"] * 3
        prompts.append(Prompt(row["id"], [], [1], row["output"], row["generic"], history, query, truth))
    texts = [[text, "torn"] for text in oracle(rows)]
    judged = [
        judge(TWEETS, text, prompt.gold, 3, 0.1, 0.0, prompt.generic, prompt.query)
        for prompt, own in zip(prompts, texts, strict=True)
        for text in own
    ]
    rollouts = records(1, prompts, [([1], [[2], [2]])] * 2, texts, judged, [0.0] * 4, [2])
    row = summary(rollouts, prompts, TWEETS)
    kept = contents(TWEETS, rows, [text.split("<rewrite>")[1].split("<")[0] for text, _ in texts])
    assert row["content_kept"] == pytest.approx(sum(text.share for text in kept) / 4)
    assert [rollout["content"] for rollout in rollouts][1::2] == [None, None]
    assert row["cites_many"] == 0.5
    shares = [row.get(name) for name in ("faithful", "habit_named", "majority")]
    assert shares == ([0.5] * 3 if known else [None] * 3)


def test_rl_refuses_a_reward_for_the_content_of_labels(new_run):
    told = "rl.content_weight rewards content, and the answers of LaMP-3 are labels: set rl.content_weight=0."
    assert refusals(new_run({"rl.content_weight": 0.1}), "rl") == {"rl": told}
    assert refusals(new_run({"rl.content_weight": 0.1, "data.task": "LaMP-7"}, "texts"), "rl") == {}
