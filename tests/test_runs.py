"""A run folder survives a kill: stages are skipped, resumed or redone for a stated reason, and files are whole."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from rpo_kit import provenance, runs
from rpo_kit.errors import KitError
from rpo_kit.presets import SFTSettings, get_preset
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import (
    append_records,
    existing_run,
    open_run,
    read_records,
    require,
    runs_root,
    stage,
    write_json,
    write_text,
)


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


def test_a_stage_whose_inputs_changed_is_redone_and_names_them(run, capsys):
    with stage(run, "prepare", seed=1, task="LaMP-3") as work:
        write_text(work / "result.txt", "42")
    with stage(run, "prepare", seed=2, task="LaMP-3") as work:
        assert list(work.glob("*.txt")) == [], "work made from other inputs must not be mixed in"
    said = capsys.readouterr().out
    assert "seed changed; the old result is in prepare.old" in said
    assert "task" not in said
    assert (run.folder / "prepare.old" / "result.txt").read_text() == "42"


def test_an_input_that_is_new_or_gone_counts_as_changed(run, capsys):
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


def test_a_stage_that_was_made_from_other_inputs_is_refused_where_the_inputs_are_named(run):
    with stage(run, "sft", seed=1, task="LaMP-3"):
        pass
    assert require(run, "sft", seed=1, task="LaMP-3")
    with pytest.raises(KitError, match=r"'sft' of run 'r' was made with other settings \(seed changed\): first run"):
        require(run, "sft", seed=2, task="LaMP-3")
    assert require(run, "sft"), "what only reads stored numbers may have it"


def test_work_left_by_an_interrupted_call_with_other_settings_is_not_continued(run):
    with pytest.raises(KeyboardInterrupt):
        interrupted_sft(run)
    with stage(run, "sft", seed=2) as work:
        assert read_records(work / "part.jsonl") == []
    assert read_records(run.folder / "sft.old" / "part.jsonl") == [{"id": "1"}]


def test_a_finished_result_comes_back_with_its_settings_whatever_was_tried_between(run, capsys):
    with stage(run, "rl", steps=200) as work:
        write_text(work / "result.txt", "hours")
    for steps in (3, 4):
        with suppress(KeyboardInterrupt), stage(run, "rl", steps=steps) as work:
            write_text(work / "begun.txt", "minutes")
            raise KeyboardInterrupt
    assert "the unfinished result is dropped, the finished one stays in rl.old" in capsys.readouterr().out
    with stage(run, "rl", steps=200) as work:
        assert work is None
    assert (require(run, "rl", steps=200) / "result.txt").read_text() == "hours"
    assert "rl: done before with these settings; restored from rl.old" in capsys.readouterr().out


def test_two_finished_results_change_places(run):
    for steps in (1, 2, 1, 2):
        with stage(run, "rl", steps=steps) as work:
            if work:
                write_text(work / "made.txt", str(steps))
    assert (run.stage("rl") / "made.txt").read_text() == "2"
    assert (run.folder / "rl.old" / "made.txt").read_text() == "1"
    assert not (run.folder / "rl.back").exists()


def test_folders_among_the_settings_are_kept_as_whole_paths(tmp_path, monkeypatch):
    for name in ("lamp", "encoder", "official"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"data.source": "lamp", "data.retriever": "dense:encoder", "base": "local:smollm2"}
    preset = open_run("r", "tiny", given, root=tmp_path / "runs").preset
    assert (preset.data.source, preset.data.retriever) == (str(tmp_path / "lamp"), f"dense:{tmp_path / 'encoder'}")
    assert preset.base == "local:smollm2"
    assert open_run("r", None, {"data.source": "official"}, root=tmp_path / "runs").preset.data.source == "official"


def test_a_stage_that_is_redone_twice_keeps_the_latest_old_result_only(run):
    for seed in (1, 2, 3):
        with stage(run, "sft", seed=seed) as work:
            write_text(work / "seed.txt", str(seed))
    assert (run.folder / "sft.old" / "seed.txt").read_text() == "2"
    assert (run.folder / "sft" / "seed.txt").read_text() == "3"


def test_a_changed_input_file_redoes_the_stage_and_an_equal_copy_does_not(run, tmp_path):
    data = tmp_path / "generic.jsonl"
    data.write_text("one")
    with stage(run, "sft", data=data):
        pass
    data.unlink()
    data.write_text("one")  # other time stamp, same bytes
    with stage(run, "sft", data=data) as work:
        assert work is None
    data.write_text("two")
    with stage(run, "sft", data=data) as work:
        assert work is not None


def test_a_missing_input_file_is_named(run, tmp_path):
    with pytest.raises(KitError, match=r"gone\.jsonl is missing"), stage(run, "sft", data=tmp_path / "gone.jsonl"):
        pass


def test_a_stage_says_with_what_it_was_made_and_a_skipped_one_says_so_still(run, monkeypatch):
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


def test_records_come_back_in_order_and_a_missing_file_holds_none(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"id": "1", "text": "a\nb"}, {"id": "2", "text": "“é”\u2028"}])
    append_records(path, [{"id": "3"}])
    assert [record["id"] for record in read_records(path)] == ["1", "2", "3"]
    assert read_records(path)[0]["text"] == "a\nb"
    assert read_records(path)[1]["text"] == "“é”\u2028"


@pytest.mark.parametrize("torn", [b'{"id": "2', b"{", '{"id": "é'.encode()[:-1], b'{"id": "2"}'])
def test_a_torn_last_line_does_not_count_and_is_cut_off_by_the_next_append(tmp_path, torn):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"id": "1"}])
    with path.open("ab") as file:
        file.write(torn)
    assert read_records(path) == [{"id": "1"}]
    append_records(path, [{"id": "2"}, {"id": "3"}])
    assert read_records(path) == [{"id": "1"}, {"id": "2"}, {"id": "3"}]


def test_a_torn_first_line_and_a_very_long_torn_line_are_cut_off_too(tmp_path):
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


def test_a_run_that_is_opened_again_keeps_its_settings_but_for_those_that_are_named(tmp_path):
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
def test_settings_that_cannot_be_read_are_a_sentence_with_the_file(tmp_path, content):
    write_text(tmp_path / "mine" / "run.json", content)
    with pytest.raises(KitError, match=r"settings in .*mine/run\.json cannot be read .*--preset"):
        existing_run("mine", root=tmp_path)


def test_an_unknown_run_is_told_which_there_are(tmp_path):
    open_run("mine", "tiny", root=tmp_path)
    with pytest.raises(KitError, match=r"There is no run 'nime' in .*; there are: mine"):
        existing_run("nime", root=tmp_path)
    with pytest.raises(KitError, match="none yet"):
        existing_run("mine", root=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(KitError, match="cannot be the name of a run"):
        open_run(name, "tiny", root=tmp_path)


def test_runs_live_where_rpo_runs_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "there"))
    assert runs_root() == (tmp_path / "there").resolve()
    monkeypatch.delenv("RPO_RUNS")
    assert runs_root() == Path(runs.__file__).resolve().parents[1] / "runs"


def test_a_package_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package-here",))
    assert provenance.package_versions() == {"no-such-package-here": "not installed"}


def test_every_preset_survives_being_stored(tmp_path):
    for name in ("cpu", "cpu-long", "tiny", "colab-t4", "gpu-24gb", "paper"):
        open_run(name, name, root=tmp_path)
        assert existing_run(name, root=tmp_path).preset == get_preset(name)
