"""A run folder survives a kill: stages are skipped, resumed or rerun for a stated reason, and files are complete."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from rpo_kit import provenance, runs
from rpo_kit.errors import KitError
from rpo_kit.presets import SFTSettings, get_preset
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import append_records, existing_run, open_run, read_records, runs_root, write_json, write_text
from rpo_kit.stages import require, stage


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return open_run("r", "tiny", root=tmp_path)


def interrupted_sft(run: runs.Run) -> None:
    with stage(run, "sft", seed=1) as work:
        append_records(work / "part.jsonl", [{"id": "1"}])
        raise KeyboardInterrupt


# ---- stages -------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_skipped(run, capsys):
    with stage(run, "prepare", seed=1) as work:
        write_text(work / "result.txt", "42")
    with stage(run, "prepare", seed=1) as work:
        assert work is None
    assert "done already" in capsys.readouterr().out
    assert (run.stage("prepare") / "result.txt").read_text() == "42"


def test_a_stage_whose_inputs_changed_is_rerun_and_names_them(run, capsys):
    with stage(run, "prepare", seed=1, task="LaMP-3") as work:
        write_text(work / "result.txt", "42")
    with stage(run, "prepare", seed=2, task="LaMP-3") as work:
        assert list(work.glob("*.txt")) == [], "work made from other inputs must not be mixed in"
    said = capsys.readouterr().out
    assert "seed changed; the old result is in prepare.kept-" in said
    assert "task" not in said
    (kept,) = run.folder.glob("prepare.kept-*")
    assert (kept / "result.txt").read_text() == "42"


def test_an_input_that_is_new_or_missing_counts_as_changed(run, capsys):
    with stage(run, "evaluate", sft="a", rl="b"):
        pass
    with stage(run, "evaluate", sft="a", context="c") as work:
        assert work is not None
    assert "evaluate: context, rl changed" in capsys.readouterr().out


def test_an_interrupted_stage_keeps_its_work_and_is_not_finished(run):
    with pytest.raises(KeyboardInterrupt):
        interrupted_sft(run)
    with pytest.raises(KitError, match=r"'sft' of run 'r' is not finished.*python -m rpo_kit sft --run r"):
        require(run, "sft")
    with stage(run, "sft", seed=1) as work:
        assert read_records(work / "part.jsonl") == [{"id": "1"}]
    assert require(run, "sft") == run.folder / "sft"


def test_a_stage_made_from_other_inputs_is_rejected_if_the_inputs_are_given(run):
    with stage(run, "sft", seed=1, task="LaMP-3"):
        pass
    assert require(run, "sft", seed=1, task="LaMP-3")
    with pytest.raises(KitError, match=r"'sft' of run 'r' was made from other inputs \(seed changed\): first run"):
        require(run, "sft", seed=2, task="LaMP-3")
    assert require(run, "sft"), "what only reads stored numbers may have it"


def test_work_left_by_an_interrupted_call_with_other_settings_is_not_continued(run):
    with pytest.raises(KeyboardInterrupt):
        interrupted_sft(run)
    with stage(run, "sft", seed=2) as work:
        assert read_records(work / "part.jsonl") == []
    (kept,) = run.folder.glob("sft.kept-*")
    assert read_records(kept / "part.jsonl") == [{"id": "1"}]


def test_unfinished_work_resumes_when_its_settings_return_whatever_was_tried_in_between(run, capsys):
    def interrupted(seed, name):
        with suppress(KeyboardInterrupt), stage(run, "sft", seed=seed) as work:
            found = sorted(path.name for path in work.glob("*.txt"))
            write_text(work / name, "hours")
            raise KeyboardInterrupt
        return found

    assert interrupted(1, "checkpoint-250.txt") == []
    assert interrupted(2, "checkpoint-1.txt") == []
    assert interrupted(3, "checkpoint-2.txt") == []
    assert interrupted(1, "more.txt") == ["checkpoint-250.txt"]
    assert interrupted(2, "more.txt") == ["checkpoint-1.txt"]
    said = capsys.readouterr().out
    assert "sft: seed changed; the unfinished result is in sft.kept-" in said
    assert "sft: begun before with these settings; restored" in said


def test_a_finished_result_returns_with_its_settings_whatever_was_tried_in_between(run, capsys):
    with stage(run, "rl", steps=200) as work:
        write_text(work / "result.txt", "hours")
    for steps in (3, 4):
        with suppress(KeyboardInterrupt), stage(run, "rl", steps=steps) as work:
            write_text(work / "begun.txt", "minutes")
            raise KeyboardInterrupt
    with stage(run, "rl", steps=200) as work:
        assert work is None
    assert (require(run, "rl", steps=200) / "result.txt").read_text() == "hours"
    assert "rl: done before with these settings; restored" in capsys.readouterr().out


def test_two_finished_results_swap_places(run):
    for steps in (1, 2, 1, 2):
        with stage(run, "rl", steps=steps) as work:
            if work:
                write_text(work / "made.txt", str(steps))
    assert (run.stage("rl") / "made.txt").read_text() == "2"
    (kept,) = run.folder.glob("rl.*")
    assert (kept / "made.txt").read_text() == "1"


def test_folders_in_the_settings_are_stored_as_absolute_paths(tmp_path, monkeypatch):
    for name in ("lamp", "encoder", "official"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"data.source": "lamp", "data.retriever": "dense:encoder", "base": "local:smollm2"}
    preset = open_run("r", "tiny", given, root=tmp_path / "runs").preset
    assert (preset.data.source, preset.data.retriever) == (str(tmp_path / "lamp"), f"dense:{tmp_path / 'encoder'}")
    assert preset.base == "local:smollm2"
    assert open_run("r", None, {"data.source": "official"}, root=tmp_path / "runs").preset.data.source == "official"


def test_the_latest_old_results_are_kept_and_older_ones_deleted_with_a_message(run, capsys):
    for seed in range(8):
        with stage(run, "sft", seed=seed) as work:
            write_text(work / "seed.txt", str(seed))
    kept = sorted((path / "seed.txt").read_text() for path in run.folder.glob("sft.kept-*"))
    assert kept == ["2", "3", "4", "5", "6"]
    assert (run.folder / "sft" / "seed.txt").read_text() == "7"
    assert capsys.readouterr().out.count("the oldest of 6 results, is deleted") == 2


def test_a_result_kept_by_an_earlier_version_returns(run):
    for seed in (1, 2):
        with stage(run, "sft", seed=seed) as work:
            write_text(work / "seed.txt", str(seed))
    (kept,) = run.folder.glob("sft.kept-*")
    kept.rename(run.folder / "sft.old")
    with stage(run, "sft", seed=1) as work:
        assert work is None
    assert (run.stage("sft") / "seed.txt").read_text() == "1"


def test_a_changed_input_file_reruns_the_stage_and_an_equal_copy_does_not(run, tmp_path):
    data = tmp_path / "generic.jsonl"
    data.write_text("one")
    with stage(run, "sft", data=data):
        pass
    data.unlink()
    data.write_text("one")  # new time stamp, same bytes
    with stage(run, "sft", data=data) as work:
        assert work is None
    data.write_text("two")
    with stage(run, "sft", data=data) as work:
        assert work is not None


def test_a_missing_input_file_is_named(run, tmp_path):
    with pytest.raises(KitError, match=r"gone\.jsonl is missing"), stage(run, "sft", data=tmp_path / "gone.jsonl"):
        pass


def test_a_stage_says_how_it_was_made_even_if_it_is_skipped(run, monkeypatch):
    with stage(run, "sft", seed=1):
        pass
    made = json.loads((run.stage("sft") / "manifest.json").read_text())
    assert made["packages"]["trl"][0].isdigit()
    assert made["packages"].keys() >= {"torch", "transformers", "trl", "peft", "unsloth"}
    assert made["commit"]
    assert made["preset"]["name"] == "tiny"
    monkeypatch.setattr(provenance, "git_commit", lambda: "later")
    with stage(open_run("r", root=run.folder.parent), "sft", seed=1) as work:
        assert work is None
    assert json.loads((run.stage("sft") / "manifest.json").read_text()) == made


# ---- files --------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    write_text(path, "old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_a_write_interrupted_before_the_rename_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_written_files_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "a", "é")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a").read_bytes() == "é".encode()


def test_records_come_back_in_order_and_a_missing_file_has_none(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"id": "1", "text": "a\nb"}, {"id": "2", "text": "“é”\u2028"}])
    append_records(path, [{"id": "3"}])
    assert [record["id"] for record in read_records(path)] == ["1", "2", "3"]
    assert read_records(path)[0]["text"] == "a\nb"
    assert read_records(path)[1]["text"] == "“é”\u2028"


@pytest.mark.parametrize("incomplete", [b'{"id": "2', b"{", '{"id": "é'.encode()[:-1], b'{"id": "2"}'])
def test_an_incomplete_last_line_does_not_count_and_the_next_append_removes_it(tmp_path, incomplete):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"id": "1"}])
    with path.open("ab") as file:
        file.write(incomplete)
    assert read_records(path) == [{"id": "1"}]
    append_records(path, [{"id": "2"}, {"id": "3"}])
    assert read_records(path) == [{"id": "1"}, {"id": "2"}, {"id": "3"}]


def test_an_incomplete_first_line_and_a_very_long_incomplete_line_are_removed_too(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "' + b"x" * 200_000)
    append_records(path, [{"id": "1"}])
    with path.open("ab") as file:
        file.write(b'{"id": "' + b"y" * 200_000)
    append_records(path, [{"id": "2"}])
    assert read_records(path) == [{"id": "1"}, {"id": "2"}]


# ---- fingerprints and provenance ----------------------------------------------------------------------------------


def test_fingerprints_depend_on_values_and_bytes_only(tmp_path):
    assert fingerprint(SFTSettings()) == fingerprint(SFTSettings())
    assert fingerprint(SFTSettings()) != fingerprint(SFTSettings(steps=201))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_text(folder / "x" / "file", "text")
    assert fingerprint(one) == fingerprint(two)
    write_text(two / "x" / "file", "text!")
    assert fingerprint(one) != fingerprint(two)


def test_a_fingerprint_sees_a_file_move_inside_a_folder(tmp_path):
    write_text(tmp_path / "f" / "a", "text")
    before = fingerprint(tmp_path / "f")
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "b")
    assert fingerprint(tmp_path / "f") != before


def test_a_run_remembers_its_settings(tmp_path):
    made = open_run("mine", "tiny", {"rl.steps": "7", "sweep.arms": '["random"]', "base": "openai:m"}, root=tmp_path)
    assert existing_run("mine", root=tmp_path).preset == made.preset
    assert made.preset.rl.steps == 7


def test_a_reopened_run_keeps_its_settings_except_those_that_are_given(tmp_path):
    made = open_run("mine", "tiny", {"rl.steps": 7, "data.task": "LaMP-3"}, root=tmp_path)
    assert open_run("mine", None, {}, root=tmp_path) == made, "what the notebooks' parameters cell says"
    changed = open_run("mine", overrides={"rl.steps": 8}, root=tmp_path).preset
    assert (changed.name, changed.rl.steps, changed.data.task) == ("tiny", 8, "LaMP-3")
    assert existing_run("mine", root=tmp_path).preset == changed
    assert open_run("mine", "cpu", root=tmp_path).preset == get_preset("cpu"), "a preset replaces them"
    assert open_run("new", root=tmp_path).preset == get_preset("cpu")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"preset": {"name": "gone"}}', '{"preset": {"name": "cpu", "rl": {"stps": 1}}}']
)
def test_the_error_for_unreadable_settings_names_the_file(tmp_path, content):
    write_text(tmp_path / "mine" / "run.json", content)
    with pytest.raises(KitError, match=r"settings in .*mine/run\.json cannot be read .*--preset"):
        existing_run("mine", root=tmp_path)


def test_the_error_for_an_unknown_run_lists_the_runs(tmp_path):
    open_run("mine", "tiny", root=tmp_path)
    with pytest.raises(KitError, match=r"There is no run 'nime' in .*; existing runs: mine"):
        existing_run("nime", root=tmp_path)
    with pytest.raises(KitError, match="no runs exist yet"):
        existing_run("mine", root=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_that_is_not_a_folder_name_is_rejected(tmp_path, name):
    with pytest.raises(KitError, match="cannot be the name of a run"):
        open_run(name, "tiny", root=tmp_path)


def test_runs_are_stored_where_rpo_runs_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "there"))
    assert runs_root() == (tmp_path / "there").resolve()
    monkeypatch.delenv("RPO_RUNS")
    assert runs_root() == Path(runs.__file__).resolve().parents[1] / "runs"


def test_a_package_that_is_not_installed_is_listed_as_such(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package-here",))
    assert provenance.package_versions() == {"no-such-package-here": "not installed"}


def test_every_preset_survives_being_stored(tmp_path):
    for name in ("cpu", "cpu-long", "tiny", "colab-t4", "gpu-24gb", "paper"):
        open_run(name, name, root=tmp_path)
        assert existing_run(name, root=tmp_path).preset == get_preset(name)


@pytest.mark.parametrize("line", [b"\0" * 40, b'{"id": "1"', b"\xff\xfe", b"[" * 100_000, b"3", b'"text"', b"null"])
def test_a_damaged_line_in_the_middle_is_reported_and_the_others_are_read(tmp_path, capsys, line):
    path = tmp_path / "generic.jsonl"
    path.write_bytes(b'{"id": "1"}\n' + line + b'\n{"id": "2"}\n')
    for _ in range(2):
        assert [record["id"] for record in read_records(path)] == ["1", "2"]
    assert capsys.readouterr().out.count(f"{path}, line 2, is damaged") == (line != b"null")


def test_the_path_of_the_runs_folder_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RPO_RUNS", "~/my runs")
    assert runs_root() == tmp_path / "my runs"


def test_a_file_in_place_of_the_runs_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KitError, match=r"Runs cannot be kept in .*file is a file\. Set RPO_RUNS to a folder"):
            open_run("r", "tiny", root=root)


def test_files_are_written_even_if_the_disk_does_not_support_permissions(tmp_path, monkeypatch):
    def refused(path: str, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "chmod", refused)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("number", [13, 30, 1])
def test_a_folder_that_cannot_be_written_gives_one_sentence(tmp_path, monkeypatch, number):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runs, "write_bytes", refused)
    with pytest.raises(KitError, match=r"cannot be written \(.*\): set RPO_RUNS to a folder that you may write to"):
        open_run("r", "tiny", root=tmp_path)


def test_a_run_of_an_earlier_version_opens_without_its_retired_settings(tmp_path):
    run = open_run("r", "tiny", root=tmp_path)
    file = run.folder / "run.json"
    stored = json.loads(file.read_text())
    stored["preset"]["rl"]["micro_batch"] = 32
    file.write_text(json.dumps(stored))
    assert open_run("r", None, {"rl.steps": 4}, root=tmp_path).preset.rl.steps == 4
    with pytest.raises(KitError, match=r"no setting 'rl\.micro_batch' any more: .* up to rl\.micro_batch_tokens"):
        open_run("r", None, {"rl.micro_batch": 3}, root=tmp_path)
