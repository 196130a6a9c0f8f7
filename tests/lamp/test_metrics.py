"""The metrics print what LaMP's evaluation script prints, even where that is odd."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import (
    example_scores,
    is_parseable,
    lamp_metrics,
    metrics_of_files,
    task_of_golds,
    write_predictions,
)
from rpo_kit.lamp.tasks import get_task

EDGES = json.loads((Path(__file__).parents[1] / "data" / "lamp_metric_edges.json").read_text(encoding="utf-8"))
CITATIONS, MOVIES, RATINGS, HEADLINES = (get_task(name) for name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4"))


def write(path: Path, task: str, outputs: list[tuple[str, object]]) -> Path:
    path.write_text(json.dumps({"task": task, "golds": [{"id": key, "output": text} for key, text in outputs]}))
    return path


@pytest.mark.parametrize("case", EDGES)
def test_files_score_as_the_official_script_scored_them(case: str, tmp_path: Path) -> None:
    edge = EDGES[case]
    for name in ("golds", "preds"):
        (tmp_path / name).write_text(json.dumps(edge[name]))
    result = metrics_of_files(tmp_path / "golds", tmp_path / "preds")
    assert list(result) == list(edge["official"])
    assert result == pytest.approx(edge["official"], abs=1e-15, rel=1e-14)


# --- classification ---


def test_macro_f1_averages_over_labels_that_nobody_used() -> None:
    # comedy: right twice -> 1; action: never right -> 0; the other 13 tags: 0. Mean 1/15.
    golds, preds = ["comedy", "comedy", "action"], ["comedy", " comedy\n", "Action"]
    assert lamp_metrics(MOVIES, golds, preds) == pytest.approx({"accuracy": 2 / 3, "f1": 1 / 15})


def test_f1_counts_misses_and_false_alarms_by_hand() -> None:
    # [1]: 1 hit, 2 golds, 1 prediction -> 2/3. [2]: 1 hit, 1 gold, 2 predictions -> 2/3.
    assert lamp_metrics(CITATIONS, ["[1]", "[1]", "[2]"], ["[1]", "[2]", "[2]"])["f1"] == pytest.approx(2 / 3)


def test_two_texts_that_are_not_labels_count_as_equal_like_in_lamp() -> None:
    assert lamp_metrics(MOVIES, ["horror"], ["drama"])["accuracy"] == 1.0
    assert example_scores(MOVIES, ["horror", "comedy"], ["drama", "drama"]).tolist() == [1.0, 0.0]


# --- regression ---


def test_what_is_not_a_number_counts_as_the_worst_end_of_the_scale() -> None:
    # gold 1, 2, 3 -> 5 is furthest or as far: errors 4, 3, 2; gold 4, 5 -> 1 is furthest: errors 3, 4.
    result = lamp_metrics(RATINGS, ["1", "2", "3", "4", "5"], ["bad", "", "5 stars", "4/5", "<rewrite>"])
    assert result == {"MAE": 16 / 5, "RMSE": pytest.approx(math.sqrt(54 / 5))}


def test_numbers_are_neither_rounded_nor_clipped_and_are_single_precision() -> None:
    assert lamp_metrics(RATINGS, ["3"], ["9"])["MAE"] == 6.0
    assert lamp_metrics(RATINGS, ["5"], ["1e1"])["MAE"] == 5.0
    assert lamp_metrics(RATINGS, ["4"], ["4.2"])["MAE"] == 4.19999980926513671875 - 4  # the float32 next to 4.2


def test_a_rating_scores_one_minus_a_quarter_per_step_of_error() -> None:
    scores = example_scores(RATINGS, ["5", "5", "1", "3", "3", "3", "1"], ["5", "4", "3", "none", "nan", "9", "inf"])
    # "none" and "nan" for gold 3 count as 5, error 2; "9" is 6 off and not below 0; "inf" for gold 1 counts as 5.
    assert scores.tolist() == [1.0, 0.75, 0.5, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("pred", ["nan", "inf", " -Infinity", "1e99"])
def test_numbers_that_are_not_finite_are_rejected_with_the_id(pred: str, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="example 1 is"):
        lamp_metrics(RATINGS, ["3", "3"], ["3", pred])
    golds = write(tmp_path / "g", "LaMP_3", [("310", "3"), ("311", "3")])
    preds = write(tmp_path / "p", "LaMP_3", [("311", pred), ("310", "3")])
    with pytest.raises(KitError, match="example 311 is"):
        metrics_of_files(golds, preds)


@pytest.mark.parametrize("gold", ["", "five", "nan"])
def test_a_gold_that_is_not_a_rating_never_becomes_a_score(gold: str) -> None:
    for function in (lamp_metrics, example_scores):
        with pytest.raises(KitError, match="gold of example 1 "):
            function(RATINGS, ["3", gold], ["3", "3"])


# --- generation ---


def test_rouge_is_the_plain_mean_of_f_measures_by_hand() -> None:
    # "the cat sat" / "sat the cat down": 3 common words -> P 3/4, R 3/3, F 6/7; longest common run "the cat": P 2/4,
    # R 2/3, F 4/7. Second pair: nothing in common -> 0.
    golds, preds = ["the cat sat", "x"], ["Sat the cat, down!", "y"]
    assert lamp_metrics(HEADLINES, golds, preds) == pytest.approx({"rouge-1": 3 / 7, "rouge-L": 2 / 7})
    assert example_scores(HEADLINES, golds, preds) == pytest.approx(np.array([5 / 7, 0.0]))


def official_rouge(values: np.ndarray, seed: int) -> float:
    """What LaMP's evaluator prints for these values of single examples: the median of 1,000 bootstrap means."""
    rng = np.random.default_rng(seed)
    means = [float(values[rng.integers(len(values), size=len(values))].mean()) for _ in range(1000)]
    return float(np.median(means))


def test_the_official_median_of_bootstraps_is_the_plain_mean_but_for_noise() -> None:
    values = np.random.default_rng(0).beta(2, 3, size=1500)  # 1,500 ROUGE values with a standard error of 0.005
    found = [official_rouge(values, seed) for seed in range(3)]
    assert len(set(found)) == 3, "LaMP's own number depends on the seed, which its script does not set"
    assert max(abs(value - values.mean()) for value in found) < 1e-3


def test_rouge_of_texts_without_ascii_words_is_zero_and_no_error() -> None:
    assert lamp_metrics(HEADLINES, ["", "日本"], ["", "日本"]) == {"rouge-1": 0.0, "rouge-L": 0.0}


# --- parseable ---


def test_parseable_is_what_the_evaluator_can_read() -> None:
    assert [is_parseable(RATINGS, text) for text in ("4", " 4.0\n", "9", "5 stars", "", "nan", "1e99")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    assert [is_parseable(MOVIES, text) for text in ("comedy ", "Comedy", "comedy.")] == [True, False, False]
    assert [is_parseable(HEADLINES, text) for text in ("A title", " \n")] == [True, False]


# --- wrong input ---


def test_golds_and_predictions_must_pair() -> None:
    for function in (lamp_metrics, example_scores):
        with pytest.raises(KitError, match="2 golds and 1 predictions"):
            function(RATINGS, ["1", "2"], ["1"])
        with pytest.raises(KitError, match="nothing to score"):
            function(RATINGS, [], [])


def test_ids_must_be_equal_as_sets_and_the_message_counts_both_sides(tmp_path: Path) -> None:
    golds = write(tmp_path / "g", "LaMP_3", [("1", "3"), ("2", "3"), ("3", "3")])
    preds = write(tmp_path / "p", "LaMP_3", [("3", "3"), ("9", "3")])
    with pytest.raises(KitError, match=r"of 3 ids 2 have no prediction \(such as '1'\), and 1 predictions .* '9'"):
        metrics_of_files(golds, preds)


def test_ids_may_come_in_any_order(tmp_path: Path) -> None:
    golds = write(tmp_path / "g", "LaMP_3", [("1", "1"), ("2", "5")])
    preds = write(tmp_path / "p", "LaMP_3", [("2", "5"), ("1", "1")])
    assert metrics_of_files(golds, preds) == {"MAE": 0.0, "RMSE": 0.0}


def test_repeated_ids_other_tasks_and_unknown_tasks_are_rejected(tmp_path: Path) -> None:
    golds = write(tmp_path / "g", "LaMP_3", [("1", "3")])
    with pytest.raises(KitError, match=r"p has 2 rows but only 1 ids: 1 rows repeat one, such as '1'"):
        metrics_of_files(golds, write(tmp_path / "p", "LaMP_3", [("1", "3"), ("1", "4")]))
    with pytest.raises(KitError, match=r"LaMP_3 and .* of LaMP_4"):
        metrics_of_files(golds, write(tmp_path / "p", "LaMP_4", [("1", "3")]))
    with pytest.raises(
        KitError, match=r"The gold file .*g8 says \"task\": 'LaMP_8'. There is no task 'LaMP_8': choose one of"
    ):
        metrics_of_files(write(tmp_path / "g8", "LaMP_8", [("1", "3")]), golds)


def test_lamp_2_is_movies_or_news_as_the_golds_say(tmp_path: Path) -> None:
    # One of two right. Movies: "comedy" 1/1 -> F1 1, 15 labels; the news label list has 15 as well.
    for gold, other in (("comedy", "action"), ("politics", "style & beauty")):
        golds = write(tmp_path / "g", "LaMP_2", [("1", gold), ("2", other)])
        preds = write(tmp_path / "p", "LaMP_2", [("1", gold), ("2", "?")])
        assert metrics_of_files(golds, preds) == pytest.approx({"accuracy": 0.5, "f1": 1 / 15})
    assert task_of_golds("LaMP_2", ["politics "]).name == "LaMP-2-news"
    assert task_of_golds("LaMP_2", ["horror"]).name == "LaMP-2"


def test_e_mail_subjects_are_scored_like_titles(tmp_path: Path) -> None:
    golds = write(tmp_path / "g", "LaMP_6", [("1", "Lunch at one?")])
    assert metrics_of_files(golds, golds) == {"rouge-1": 1.0, "rouge-L": 1.0}


def test_an_output_that_is_not_text_is_rejected_with_its_id(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"of id '1' in .* is 'None'"):
        metrics_of_files(write(tmp_path / "g", "LaMP_3", [("1", None)]), tmp_path / "g")
    (tmp_path / "g").write_text('{"task": "LaMP_3", "golds": [{"id": "1"}]}')
    with pytest.raises(KitError, match=r'Row 0 of .* lacks "id" or "output"'):
        metrics_of_files(tmp_path / "g", tmp_path / "g")
    (tmp_path / "g").write_text('[{"id": "1", "input": "", "profile": []}]')
    with pytest.raises(KitError, match="not a LaMP outputs file"):
        metrics_of_files(tmp_path / "g", tmp_path / "g")


def test_a_folder_or_a_missing_file_in_place_of_a_file_is_named_as_such(tmp_path: Path) -> None:
    golds = write(tmp_path / "dev_outputs.json", "LaMP_3", [("1", "3")])
    with pytest.raises(KitError, match=r" is a folder, not a file; that folder has dev_outputs.json. Give the file"):
        metrics_of_files(tmp_path, golds)
    with pytest.raises(KitError, match=r"no file .*preds.json; that folder has dev_outputs.json. Correct the path"):
        metrics_of_files(golds, tmp_path / "preds.json")


# --- submission ---


def test_predictions_are_written_in_lamps_submission_format(tmp_path: Path) -> None:
    path = tmp_path / "new" / "preds.json"
    write_predictions(path, HEADLINES, ["40", "41"], ["Café – \ud83d", ""])
    assert json.loads(path.read_text()) == {
        "task": "LaMP_4",
        "golds": [{"id": "40", "output": "Café – \ud83d"}, {"id": "41", "output": ""}],
    }
    assert [file.name for file in path.parent.iterdir()] == ["preds.json"]  # no temporary file stays behind
    assert metrics_of_files(path, path)["rouge-1"] == 0.5  # "caf" matches itself; two empty texts score 0, as in LaMP


def test_predictions_need_one_id_each(tmp_path: Path) -> None:
    for ids in (["1"], ["1", "1"]):
        with pytest.raises(KitError, match=f"2 predictions for {len(ids)} ids"):
            write_predictions(tmp_path / "p", RATINGS, ids, ["1", "2"])
    assert not (tmp_path / "p").exists()
