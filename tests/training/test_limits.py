"""Trajectories that are too long for the later stages are reported when they are written."""

import pytest

from rpo_kit.runs import read_records
from rpo_kit.training.limits import report_lengths, token_lengths
from rpo_kit.training.synthesis import synthesize

RECORD = {"observe": "[1] reads 2, gave 1: harsh", "plan": "reads 3, harsh: give 2", "rewrite": "2"}


def test_a_length_is_that_of_the_text_which_the_module_has_to_write_and_its_end(new_run):
    short, long = token_lengths(new_run(), [RECORD, RECORD | {"plan": RECORD["plan"] * 2}])
    assert 0 < short < long < 2 * short


@pytest.mark.parametrize(
    ("rl", "evaluation", "settings"),
    [
        (20, 20, ["rl.max_new_tokens", "evaluation.max_new_tokens"]),
        (2000, 20, ["evaluation.max_new_tokens"]),
        (20, 2000, ["rl.max_new_tokens"]),
        (2000, 2000, []),
    ],
)
def test_too_small_a_limit_is_named_with_one_that_fits(new_run, capsys, rl, evaluation, settings):
    limits = {"rl.max_new_tokens": rl, "evaluation.max_new_tokens": evaluation, "reflection.max_seq_length": 4096}
    run = new_run(limits)
    longest = max(token_lengths(run, [RECORD]))
    report_lengths(run, [RECORD])
    said = capsys.readouterr().out
    assert bool(said) == bool(settings)
    for setting in settings:
        suggested = int(said.partition(f"--set {setting}=")[2].split()[0].rstrip("."))
        assert longest <= suggested < longest + 16
        assert f"1 exceed {setting}=20" in said


def test_synthesize_reports_it(prepared, capsys):
    run = prepared({"rl.max_new_tokens": 24})
    synthesize(run)
    count = len(read_records(run.stage("synthesize") / "trajectories.jsonl"))
    assert f"{count} exceed rl.max_new_tokens=24" in capsys.readouterr().out
