"""What the demo says in words: scores so far, legend, verdict."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rpo_kit.runs import open_run, write_text
from rpo_kit.study.demo import CHAPTERS
from rpo_kit.study.verdict import final_words, legend, score_so_far, short, verdict

METRICS = pd.DataFrame(
    [
        ("base", 0.392, 0.0),
        ("echo", 0.570, 0.0),
        ("sft", 0.785, 0.01),
        ("rl", 0.776, 0.01),
        ("oracle", 0.98, None),
    ],
    columns=["system", "score", "unparsed"],
)
PAIRED = pd.DataFrame(
    [("rl", "base", 0.384, 0.322, 0.442), ("rl", "sft", -0.01, -0.038, 0.018), ("rl", "echo", 0.206, 0.164, 0.247)],
    columns=["system", "minus", "score", "low", "high"],
)


def test_the_verdict_compares_with_the_best_trivial_baseline_the_base_model_and_sft_with_intervals():
    assert verdict(METRICS, PAIRED) == [
        "reflection module after SFT + RL beats query, unchanged: +0.206 (0.164 to 0.247)",
        "reflection module after SFT + RL beats base model: +0.384 (0.322 to 0.442)",
        "reflection module after SFT + RL cannot be told apart from reflection module after SFT: -0.010 (-0.038 to "
        "0.018)",
    ]


def test_a_loss_is_called_a_loss():
    worse = PAIRED.assign(score=-0.2, low=-0.3, high=-0.1)
    assert all("falls behind" in line for line in verdict(METRICS, worse))


def test_one_user_has_no_interval():
    alone = PAIRED.assign(low=np.nan, high=np.nan)
    assert verdict(METRICS, alone)[0].endswith("query, unchanged: +0.206 (no interval: one user)")


def test_a_module_that_has_learned_nothing_is_warned_of():
    broken = METRICS.assign(unparsed=[0, 0, 1.0, 0.95, None])
    last = final_words(broken, PAIRED).splitlines()[-1]
    assert last.startswith("Warning: 95% of the completions after SFT and SFT + RL are no valid trajectory")
    assert "these rows repeat the base model's" in last
    assert "too short" in last
    assert "Warning" not in final_words(METRICS, PAIRED)


def test_tables_without_the_module_or_of_an_older_form_have_no_verdict():
    assert verdict(METRICS[:2].drop(columns="unparsed"), PAIRED[:0]) == []
    assert "these systems are not compared" in final_words(METRICS[:2], PAIRED[:0])


def test_the_legend_explains_the_columns_and_references_that_the_table_has():
    text = legend(METRICS)
    for word in ("score", "unparsed", "oracle"):
        assert f"\n  {word} " in text
    for word in ("words", "copied", "best guess"):
        assert f"\n  {word} " not in text


@pytest.mark.parametrize(("value", "text"), [(0.785, ".785"), (1.0, "1.000"), (-0.01, "-.010"), (0.0, ".000")])
def test_scores_are_short(value, text):
    assert short(value) == text


# ---- after each notebook --------------------------------------------------------------------------------------------


def test_the_score_so_far_is_read_from_the_results(tmp_path, prepared):
    run = prepared()
    write_text(run.stage("sft") / "log.csv", "step,loss\n1,2.26\n2,0.05\n")
    write_text(run.stage("rl") / "log.csv", "step,reward,shots\n1,0.6284,2.0\n2,0.8389,6.0\n")
    write_text(run.stage("synthesize") / "trajectories.jsonl", '{"id": "1"}\n')
    write_text(run.stage("evaluate") / "metrics.csv", METRICS.to_csv(index=False))
    rows = "SFT only,2,0.8,1\nSFT only,6,0.825,1\nprogressive,6,0.829,1\noracle,6,1.0,0\n"
    write_text(run.stage("sweep") / "bars.csv", f"arm,shots,score,seeds\n{rows}")
    write_text(
        run.stage("components") / "components.csv", "system,score,seeds\nfull,0.83,1\nno-sft,0.41,1\nbase,0.4,0\n"
    )
    told = [score_so_far(run, chapter) for chapter in CHAPTERS]
    assert told[0] == ""
    assert told[1].startswith("score: generic .")
    assert told[2:8] == [
        "1 accepted, 0 rejected",
        "loss 2.26 to 0.05",
        "reward first .628 at k = 2, last .839 at k = 6",
        "score: generic .392, SFT .785, SFT + RL .776",
        "score: SFT only .825, progressive .829",
        "score: full .830, no-sft .410",
    ]


def test_without_results_there_is_no_score(tmp_path):
    run = open_run("r", "tiny", root=tmp_path)
    assert [score_so_far(run, chapter) for chapter in CHAPTERS if chapter != CHAPTERS[2]] == [""] * (len(CHAPTERS) - 1)
