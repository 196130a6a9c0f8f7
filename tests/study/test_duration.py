"""How long the demo takes here: one measured demo, scaled by the settings and by the first SFT steps."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.presets import PRESETS, get_preset, override
from rpo_kit.runs import Run, open_run, write_text
from rpo_kit.study import duration
from rpo_kit.study.duration import Pace, command, estimate, is_known, known_seconds, known_step, seconds_here, shorter

CPU = PRESETS["cpu"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration.shutil, "which", lambda name: None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run("mine", "cpu", root=tmp_path)


def test_the_parts_add_up_to_the_demo_that_was_measured():
    """docs/benchmarks.md: 19.1 minutes; notebooks 01 and 03 to 08 took 47, 275, 368, 165, 133, 127 and 20 s."""
    seconds = known_seconds(CPU)
    assert sum(seconds.values()) / 60 == pytest.approx(19.1, rel=0.03)
    measured = {"prepare": 47, "sft": 275, "rl": 368, "evaluate": 165, "sweep": 133, "components": 127}
    for stage, value in measured.items():
        assert seconds[stage] == pytest.approx(value, rel=0.1), stage


@pytest.mark.parametrize(
    ("settings", "stage", "more"),
    [
        ({"sft.steps": 120}, "sft", 251),
        ({"rl.group_size": 16}, "rl", 313),
        ({"data.dev_users": 200}, "evaluate", 159),
        ({"sweep.seeds": [0, 1]}, "sweep", 144),
    ],
)
def test_twice_the_work_takes_twice_the_time_beside_the_rest_of_the_notebook(settings, stage, more):
    changed = known_seconds(override(CPU, settings))
    assert changed[stage] - known_seconds(CPU)[stage] == pytest.approx(more, rel=0.01)


def test_everything_is_scaled_by_the_time_of_a_step():
    same, slow = known_step(CPU), 2 * known_step(CPU)
    assert seconds_here(CPU, slow) == pytest.approx(2 * seconds_here(CPU, same))
    assert seconds_here(CPU, same, "rl") == pytest.approx(seconds_here(CPU, same) - 4 - 47 - 6 - 275, abs=1)


def test_the_shares_are_known_for_the_preset_cpu_and_its_models_without_a_gpu(monkeypatch):
    assert is_known(CPU)
    assert is_known(override(CPU, {"rl.steps": 40}))
    assert is_known(PRESETS["short"])
    assert not is_known(PRESETS["tiny"])
    assert not is_known(get_preset("cpu", {"base": "openai:m"}))
    monkeypatch.setattr(duration.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert not is_known(CPU)


def steps(run: Run, number: int) -> None:
    write_text(run.stage("sft") / "log.csv", pd.DataFrame({"step": range(1, number + 1)}).to_csv(index=False))


def watched(run: Run, numbers: list[int], seconds: float = 13.6) -> list[str]:
    now = [0.0]
    pace, told = Pace(run, lambda: now[0]), []
    for number in numbers:
        now[0] += seconds
        steps(run, number)
        told.append(pace.told())
    return told


def test_the_pace_is_told_once_after_three_timed_steps(run):
    told = watched(run, [1, 2, 3, 4, 5, 6])
    assert [bool(text) for text in told] == [False, False, False, True, False, False]
    assert "An SFT step takes 13.6 s here" in told[3]
    assert "about 62 minutes here" in told[3]


def test_steps_of_an_earlier_call_are_not_timed(run):
    steps(run, 50)
    assert [bool(text) for text in watched(run, [50, 51, 52, 53, 54])] == [False, False, False, False, True]


def test_training_that_begins_anew_is_timed_from_its_first_step(run):
    steps(run, 60)  # with other settings; moved away when the stage begins
    assert [bool(text) for text in watched(run, [1, 2, 3, 4])] == [False, False, False, True]


def test_other_presets_are_told_nothing(tmp_path):
    assert watched(open_run("t", "tiny", root=tmp_path), [1, 2, 3, 4, 5]) == [""] * 5


def test_a_machine_that_is_fast_enough_is_offered_nothing_smaller(run):
    assert "--set" not in estimate(run, known_step(CPU))


def test_a_slow_machine_is_offered_the_short_preset_by_a_command_that_works(run, monkeypatch, tmp_path):
    text = estimate(run, 13.6)
    words = shlex.split(text.splitlines()[-1])
    assert "numbers that say less" in text
    assert words[:4] == ["python", "-m", "rpo_kit", "demo"]
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    opened: list[Run] = []
    monkeypatch.setattr("rpo_kit.study.demo.demo", opened.append)
    assert main(words[3:]) == 0
    assert (opened[0].name, opened[0].preset) == ("mine-short", PRESETS["short"])
    assert f"For about {seconds_here(PRESETS['short'], 13.6) / 60:.0f} minutes from now" in text


def test_what_was_changed_stays_changed_and_is_quoted_for_a_shell(tmp_path):
    changes = {"data.task": "LaMP-3", "sweep.arms": ["fixed-2"], "rl.steps": 40}
    preset, kept = shorter(get_preset("cpu", changes))
    assert (preset, kept) == (get_preset("short", changes), changes)
    assert command("mine", {"sweep.arms": ["fixed-2"]}).endswith("""--run mine-short --set 'sweep.arms=["fixed-2"]'""")


def test_the_short_preset_is_not_offered_where_it_would_save_nothing(tmp_path):
    small = open_run("small", "short", root=tmp_path)
    assert "--preset" not in estimate(small, 60.0)
