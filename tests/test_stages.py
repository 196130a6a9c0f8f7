"""A manifest is not the result: the files are checked too, and only a finished result replaces a finished one."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from rpo_kit import stages
from rpo_kit.errors import KitError
from rpo_kit.runs import append_records, open_run, read_records, write_text
from rpo_kit.stages import damaged, require, stage, take_over


@pytest.fixture
def run(tmp_path):
    run = open_run("r", "tiny", root=tmp_path)
    with stage(run, "sft", seed=1) as work:
        write_text(work / "adapter" / "weights", "0123")
        append_records(work / "records.jsonl", [{"id": "1"}])
    return run


@pytest.mark.parametrize(
    ("harm", "entry"),
    [
        (lambda folder: (folder / "adapter" / "weights").unlink(), "adapter"),
        (lambda folder: (folder / "adapter" / "weights").write_text("012x"), "adapter"),
        (lambda folder: (folder / "adapter" / "weights").write_text(""), "adapter"),
        (lambda folder: shutil.rmtree(folder / "adapter"), "adapter"),
        (lambda folder: (folder / "records.jsonl").unlink(), "records.jsonl"),
    ],
)
def test_only_a_result_that_is_missing_or_changed_is_made_again(run, harm, entry, capsys):
    folder = run.stage("sft")
    harm(folder)
    assert damaged(folder) == [entry]
    with stage(run, "sft", seed=1) as work:
        assert work == folder
        assert not (work / entry).exists()
        others = {"adapter", "records.jsonl"} - {entry}
        assert all((work / other).exists() for other in others), "what is whole stays"
        write_text(work / "adapter" / "weights", "0123")
    assert f"sft: {entry} is missing or was changed after it was written" in capsys.readouterr().out
    with stage(run, "sft", seed=1) as work:
        assert work is None


def test_later_stages_name_the_file_that_an_earlier_stage_lacks(run):
    (run.stage("sft") / "adapter" / "weights").unlink()
    with pytest.raises(KitError, match=r"'sft' of run 'r' lacks adapter/weights: first run `python -m rpo_kit sft"):
        require(run, "sft", seed=1)


def test_a_copied_run_with_other_time_stamps_is_complete(run, tmp_path):
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy", copy_function=shutil.copy))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert damaged(copy / "sft") == []


def test_a_record_corrected_by_hand_is_kept(run):
    (run.stage("sft") / "records.jsonl").write_text('{"id": "2"}\n')
    with stage(run, "sft", seed=1) as work:
        assert work is None


def test_a_stage_inside_another_is_not_part_of_its_result(run):
    """An example are the scores of an arm of the sweep, which are computed after its training."""
    for seed in (1, 2):
        with stage(run, "sft/scores", seed=seed) as work:
            write_text(work / "scores.csv", str(seed))
    (run.stage("sft") / "manifest.json").unlink()
    with stage(run, "sft", seed=1):
        pass
    with stage(run, "sft/scores", seed=3) as work:
        write_text(work / "scores.csv", "3")
    assert damaged(run.stage("sft")) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"inputs": 3}', "{}"])
def test_a_stage_with_a_damaged_manifest_counts_as_unfinished_and_resumes(run, text):
    (run.stage("sft") / "manifest.json").write_text(text)
    with pytest.raises(KitError, match="is not finished"):
        require(run, "sft", seed=1)
    with stage(run, "sft", seed=1) as work:
        assert read_records(work / "records.jsonl") == [{"id": "1"}]
    assert require(run, "sft", seed=1)


def test_an_older_manifest_that_lists_no_outputs_still_counts(run):
    path = run.stage("sft") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["outputs"]
    path.write_text(json.dumps(manifest))
    with stage(run, "sft", seed=1) as work:
        assert work is None


# ---- failed requests are sent again -------------------------------------------------------------------------------


def test_a_retry_that_fails_keeps_the_finished_result(run):
    before = (run.stage("sft") / "records.jsonl").read_bytes()
    for _ in range(2):
        with suppress(KitError), stage(run, "sft", retry=True, seed=1) as work:
            append_records(work / "records.jsonl", [{"id": "2"}])
            raise KitError("The budget is spent.")
    assert (require(run, "sft", seed=1) / "records.jsonl").read_bytes() == before
    assert (run.stage("sft") / "adapter" / "weights").read_text() == "0123"


def test_a_retry_starts_from_the_stored_answers_and_replaces_the_result_when_done(run):
    with suppress(KeyboardInterrupt), stage(run, "sft", retry=True, seed=1) as work:
        append_records(work / "records.jsonl", [{"id": "2"}])
        raise KeyboardInterrupt
    with stage(run, "sft", retry=True, seed=1) as work:
        assert [record["id"] for record in read_records(work / "records.jsonl")] == ["1", "2"]
        append_records(work / "records.jsonl", [{"id": "3"}])
    assert len(read_records(require(run, "sft", seed=1) / "records.jsonl")) == 3
    assert not list(run.folder.glob("sft.retry-*"))
    assert (run.stage("sft") / "adapter" / "weights").read_text() == "0123"


def test_trying_other_settings_in_between_deletes_nothing(run):
    with stage(run, "sft", seed=2) as work:
        write_text(work / "adapter" / "weights", "second")
    with pytest.raises(KeyboardInterrupt), stage(run, "sft", retry=True, seed=2):
        raise KeyboardInterrupt
    for seed, weights in ((1, "0123"), (2, "second"), (1, "0123")):
        with stage(run, "sft", seed=seed) as work:
            assert work is None
        assert (run.stage("sft") / "adapter" / "weights").read_text() == weights


@pytest.mark.parametrize("at", range(1, 8))
def test_a_kill_between_any_two_renames_loses_no_finished_result(run, monkeypatch, at):
    """`at`: the rename before which the process dies. The same command, run again, finds both results."""
    count, rename = [0], Path.rename

    def dies(self, target):
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        return rename(self, target)

    with stage(run, "sft", seed=2) as work:
        write_text(work / "adapter" / "weights", "second")
    monkeypatch.setattr(Path, "rename", dies)
    for seed in (1, 2):
        try:
            with stage(run, "sft", seed=seed, retry=False) as work:
                assert work is None
        except KeyboardInterrupt:
            break
    monkeypatch.setattr(Path, "rename", rename)
    for seed, weights in ((1, "0123"), (2, "second")):
        with stage(run, "sft", seed=seed) as work:
            assert work is None, f"result of seed {seed}, killed before rename {at}"
        assert (run.stage("sft") / "adapter" / "weights").read_text() == weights


def test_the_next_call_finishes_a_deletion_that_was_killed(run):
    left = run.folder / ".discarded-1234"
    left.mkdir()
    (left / "big").write_text("x")
    with stage(run, "sft", seed=2):
        pass
    assert not left.exists()


def test_on_a_disk_without_links_files_are_copied(run, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(stages.os, "link", refused)
    with stage(run, "sft", retry=True, seed=1) as work:
        assert (work / "adapter" / "weights").read_text() == "0123"


# ---- a result of another run ---------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    return open_run("other", "tiny", root=tmp_path)


def test_a_result_made_from_the_same_inputs_is_taken_over_whole(run, other, capsys):
    assert take_over(other, "sft", run.stage("sft"), seed=1)
    assert not other.stage("sft").exists(), "it waits until the stage is called"
    with stage(other, "sft", seed=1) as work:
        assert work is None
    assert "restored" in capsys.readouterr().out
    for name in ("manifest.json", "adapter/weights", "records.jsonl"):
        assert (other.stage("sft") / name).read_bytes() == (run.stage("sft") / name).read_bytes()
    append_records(other.stage("sft") / "records.jsonl", [{"id": "2"}])
    assert len(read_records(run.stage("sft") / "records.jsonl")) == 1, "records are copied, not linked"
    assert take_over(other, "sft", run.stage("sft"), seed=1), "a second call finds it in place"
    assert list(other.folder.glob("sft.*")) == []


@pytest.mark.parametrize("harm", ["other inputs", "unfinished", "damaged", "missing"])
def test_a_result_of_other_inputs_or_a_damaged_one_is_not_taken_over(run, other, harm):
    folder = run.stage("sft")
    if harm == "unfinished":
        (folder / "manifest.json").unlink()
    elif harm == "damaged":
        (folder / "adapter" / "weights").write_text("")
    elif harm == "missing":
        shutil.rmtree(folder)
    assert not take_over(other, "sft", folder, seed=2 if harm == "other inputs" else 1)
    assert list(other.folder.glob("sft*")) == []


def test_a_stage_can_begin_with_some_files_of_a_result_of_other_inputs(run, other, capsys):
    assert not take_over(other, "sft", run.stage("sft"), ("records.jsonl", "absent.jsonl"), seed=2)
    with stage(other, "sft", seed=2) as work:
        assert sorted(path.name for path in work.iterdir()) == ["records.jsonl", "started.json"]
        append_records(work / "records.jsonl", [{"id": "2"}])
    assert "begun before" in capsys.readouterr().out
    assert len(read_records(run.stage("sft") / "records.jsonl")) == 1
    assert take_over(other, "sft", run.stage("sft"), ("records.jsonl",), seed=2)
    assert len(read_records(other.stage("sft") / "records.jsonl")) == 2, "what is finished is not begun again"


def test_work_that_was_begun_is_not_replaced(run, other):
    with suppress(KeyboardInterrupt), stage(other, "sft", seed=1) as work:
        write_text(work / "checkpoint", "3")
        raise KeyboardInterrupt
    assert not take_over(other, "sft", run.stage("sft"), seed=1)
    with stage(other, "sft", seed=1) as work:
        assert (work / "checkpoint").exists()
