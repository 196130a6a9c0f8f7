"""Large files become an Arrow file once: reopened at once, rebuilt if the file changes, never half written."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp import data, table
from rpo_kit.lamp.data import read_lamp, split_summary
from rpo_kit.lamp.tasks import get_task

RATINGS = get_task("LaMP-3")


def write(folder: Path, texts: list[str], **more: Any) -> Path:
    """A dev split with one example and two profile items per text."""
    rows = [
        {"id": f"31{n}", "input": RATINGS.make_input(text=text)}
        | {"profile": [{"id": f"31{n}{i}", "text": f"{text} {i}", "score": "1"} for i in range(2)]}
        for n, text in enumerate(texts)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "dev_questions.json").write_text(json.dumps([row | more for row in rows]))
    golds = [{"id": row["id"], "output": "5"} for row in rows]
    (folder / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_a_conversion_is_the_dataset_that_memory_would_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_BATCH", 10)  # several batches
    lamp = write(tmp_path / "lamp", ["a b", "c d", "e f"])
    whole = read_lamp(lamp, RATINGS, "dev")
    first = read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
    monkeypatch.setattr(data, "stream_list", lambda path: pytest.fail("it was converted before"))
    second = read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
    assert first.to_list() == second.to_list() == whole.to_list()
    assert split_summary(first) == split_summary(second) == split_summary(whole)
    assert names(tmp_path / "cache") == [".arrow", ".json"]


def test_a_second_opening_reports_what_is_unusual_like_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lamp = write(tmp_path / "lamp", ["a", "b"], profile=[])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
        assert "2 of 2 examples have an empty profile" in caplog.text


@pytest.mark.parametrize("name", ["dev_questions.json", "dev_outputs.json"])
def test_a_changed_file_is_read_again_and_the_old_conversion_deleted(name: str, tmp_path: Path) -> None:
    lamp = write(tmp_path / "lamp", ["a b"])
    read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
    text = (lamp / name).read_text()
    (lamp / name).write_text(text.replace("a b", "x y").replace('"5"', '"4"'))  # the same size
    os.utime(lamp / name, ns=(1, 1))
    again = read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")[0]
    assert (again["input"][-3:], again["output"]) == (("x y", "5") if "questions" in name else ("a b", "4"))
    assert names(tmp_path / "cache") == [".arrow", ".json"]


def test_conversions_of_other_options_and_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder, ["a b"])
        for drop in (False, True):
            read_lamp(tmp_path / folder, RATINGS, "dev", drop_gold=drop, cache=tmp_path / "cache")
    assert names(tmp_path / "cache") == [".arrow"] * 4 + [".json"] * 4


def test_a_broken_file_leaves_no_conversion_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_BATCH", 1)  # the first row is written before the second turns out to be broken
    lamp = write(tmp_path / "lamp", ["a b", "c d"])
    text = (lamp / "dev_questions.json").read_text()
    (lamp / "dev_questions.json").write_text(text[:-30])
    with pytest.raises(KitError, match="not complete JSON"):
        read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_conversion_without_notes_was_interrupted_and_is_made_again(tmp_path: Path) -> None:
    lamp = write(tmp_path / "lamp", ["a b"])
    read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        if path.suffix == ".arrow":
            path.write_bytes(path.read_bytes()[:100])
        else:
            path.unlink()
    assert len(read_lamp(lamp, RATINGS, "dev", cache=tmp_path / "cache")) == 1


def test_large_files_are_converted_into_the_cache_folder_automatically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPO_CACHE", str(tmp_path / "kit"))
    lamp = write(tmp_path / "lamp", ["a b"])
    read_lamp(lamp, RATINGS, "dev")
    assert not (tmp_path / "kit").exists()
    monkeypatch.setattr(table, "LARGE", 10)
    read_lamp(lamp, RATINGS, "dev")
    assert names(tmp_path / "kit" / "lamp") == [".arrow", ".json"]


def test_dates_that_turn_up_late_are_reported_and_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_BATCH", 1)
    lamp = write(tmp_path / "lamp", ["a", "b"])
    rows = json.loads((lamp / "dev_questions.json").read_text())
    rows[1]["profile"][0]["date"] = "2011-05-03"
    (lamp / "dev_questions.json").write_text(json.dumps(rows))
    mixed = r"'311' .* has an item with a date.* mixes LaMP's time split .* with its user split"
    with pytest.raises(KitError, match=mixed):
        read_lamp(lamp, RATINGS, "dev")
