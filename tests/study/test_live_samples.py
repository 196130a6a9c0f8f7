"""What a live plot shows besides its curves: a sign of life at once, the minutes left, an example."""

from __future__ import annotations

import os

import pytest
from matplotlib.figure import Figure

from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import append_records
from rpo_kit.study import live_samples, widgets
from rpo_kit.study.live_samples import BEGINNING, NOTHING, Progress, Samples, contrast, last_step_of, newest
from rpo_kit.training.synthesis import synthesize


def rollout(step: int, completion: int, reward: float, example: str = "1") -> dict[str, object]:
    values = {"step": step, "k": 2, "example": example, "completion": completion, "rewrite": "2", "reward": reward}
    values |= {"text": f"<rewrite>{step}/{completion}</rewrite>", "parse_error": None, "cited": [1], "tokens": 9}
    return values | {"score": reward, "format": 1.0, "content": None, "advantage": reward - 0.5, "ended": True}


def test_the_prompt_whose_samples_differ_most_is_chosen_with_its_best_and_worst_sample():
    same = [rollout(1, n, 0.9, "a") for n in range(3)]
    mixed = [rollout(1, n, reward, "b") for n, reward in enumerate((0.4, 0.8, 0.1))]
    assert [(one["example"], one["reward"]) for one in contrast(same + mixed)] == [("b", 0.8), ("b", 0.1)]
    again = [rollout(1, n, reward, "b") for n, reward in enumerate((0.5, 0.6))]
    assert contrast(again + mixed)[1]["reward"] == 0.1, "one example twice in a step: two prompts"
    assert contrast(mixed[:1]) == mixed[:1]
    assert contrast([]) == []


def test_only_the_last_step_is_read_and_only_the_end_of_a_long_file(tmp_path, monkeypatch):
    path = tmp_path / "rollouts.jsonl"
    append_records(path, [rollout(step, n, 0.5) for step in (1, 2) for n in (0, 1)])
    assert [(one["step"], one["completion"]) for one in last_step_of(path)] == [(2, 0), (2, 1)]
    size = path.stat().st_size
    monkeypatch.setattr(live_samples, "_TAIL", size // 2 + 20)  # begins within the line before step 2
    assert [(one["step"], one["completion"]) for one in last_step_of(path)] == [(2, 0), (2, 1)]
    assert last_step_of(None) == []


def test_of_a_sweep_the_trial_that_is_running_is_shown(tmp_path):
    assert newest(tmp_path) is None
    for age, trial in enumerate(("random-seed0", "fixed-2-seed0")):
        path = tmp_path / trial / "rollouts.jsonl"
        append_records(path, [rollout(1, 0, 0.5)])
        os.utime(path, ns=(10 - age, 10 - age))
    assert newest(tmp_path) == tmp_path / "random-seed0" / "rollouts.jsonl"


def test_rl_shows_samples_of_the_current_step_with_query_and_gold(prepared):
    run = prepared()
    sample, train = Samples(run, "rl"), load_prepared(run, "train")
    assert sample(1) == "", "nothing is written yet"
    append_records(run.stage("rl") / "rollouts.jsonl", [rollout(3, n, n / 2, train[1]["id"]) for n in (0, 1)])
    shown = sample(3)
    assert "step 3: the prompt whose samples differ most in reward" in shown
    assert shown.index("3/1") < shown.index("3/0"), "the best one first"
    assert f"gold: <b>{train[1]['output']}</b>" in shown


def test_sft_shows_the_trajectories_that_it_learns_in_turn(prepared):
    run = prepared()
    synthesize(run)
    sample = Samples(run, "sft")
    count = len((run.stage("synthesize") / "trajectories.jsonl").read_text().splitlines())
    assert f"number 2 of the {count} trajectories" in sample(1)
    assert sample(count + 1) == sample(1) != sample(2)


@pytest.mark.parametrize("stage", ["sft", "rl", "sweep"])
def test_what_is_missing_or_of_other_data_leaves_the_place_empty(new_run, prepared, stage):
    assert Samples(new_run(), stage)(1) == ""
    run = prepared(name="other")
    append_records(run.stage("rl") / "rollouts.jsonl", [rollout(1, 0, 0.5, "no such example")])
    append_records(run.stage("sweep") / "a" / "rollouts.jsonl", [{"step": 1, "completion": 0}])
    assert Samples(run, stage)(1) == ""


# ---- how far ------------------------------------------------------------------------------------------------------


def test_the_minutes_left_follow_from_the_pace_since_the_first_step():
    progress = Progress(60, 100.0)  # the model takes 30 s to load
    assert progress.after(1, 130.0) == "Step 1 of 60."
    assert progress.after(11, 190.0) == "Step 11 of 60, about 4.9 minutes left."
    assert progress.after(60, 490.0) == "Step 60 of 60."
    assert progress.ended(496.0) == "Trained in 6.6 minutes."


def test_a_resumed_training_is_timed_from_where_it_resumed():
    progress = Progress(60, 0.0)
    progress.after(51, 10.0)
    assert progress.after(52, 16.0) == "Step 52 of 60, about 0.8 minutes left."


def test_the_trials_of_a_sweep_begin_anew():
    progress = Progress(2, 0.0, " of this trial")
    progress.after(1, 10.0)
    progress.after(2, 20.0)
    assert progress.after(1, 60.0) == "Step 1 of 2 of this trial."
    assert progress.after(5, 70.0) == "Step 5 of this trial.", "SFT of an arm has steps of its own"


def test_nothing_to_train_is_said():
    assert Progress(3, 0.0).ended(9.0) == NOTHING


# ---- in the live plot ---------------------------------------------------------------------------------------------


class Handle:
    def __init__(self, content: object) -> None:
        self.contents = [content]

    def update(self, content: object) -> None:
        self.contents.append(content)


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    made: list[Handle] = []

    def display(content: object, display_id: bool) -> Handle:
        made.append(Handle(content))
        return made[-1]

    monkeypatch.setattr(widgets, "display", display)
    return made


def test_a_live_plot_of_a_run_speaks_before_the_model_is_loaded(prepared, handles):
    run = prepared()
    live = widgets.live_plot(lambda rows: Figure(figsize=(1, 1)), run, "rl")
    assert BEGINNING in handles[0].contents[0].data
    train = load_prepared(run, "train")
    append_records(run.stage("rl") / "rollouts.jsonl", [rollout(1, n, n / 2, train[0]["id"]) for n in (0, 1)])
    live([{"step": 1.0}])
    status, picture, sample = handles
    assert "Step 1 of 2." in status.contents[-1].data
    assert picture.contents[0].data.startswith(b"\x89PNG")
    assert "1/1" in sample.contents[0].data
    live.finish()
    assert "Trained in 0.0 minutes." in status.contents[-1].data
    assert len(handles) == 3


def test_a_live_plot_of_a_finished_stage_says_so(prepared, handles):
    widgets.live_plot(lambda rows: Figure(), prepared(), "components").finish()
    assert [handle.contents[-1].data.count(NOTHING) for handle in handles] == [1]
