"""The terminal's line per notebook: a sign of life at once, what is done, what is left, the result."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rpo_kit.runs import Run, append_records, open_run, write_text
from rpo_kit.study import chapter_line
from rpo_kit.study.chapter_line import ChapterLine, Count, count, last_step, minutes
from rpo_kit.study.demo import CHAPTERS


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run("r", "tiny", root=tmp_path)


def line(out: io.StringIO, counts: list[Count | None], clock: Clock | None = None, **more: Any) -> ChapterLine:
    """A line that finds these counts, the first when it begins."""
    left = list(counts)
    return ChapterLine(
        "[4/8] 03_sft", lambda: left.pop(0) if len(left) > 1 else left[0], None, out, clock or Clock(), **more
    )


def test_the_name_stands_there_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(chapter_line, "POLL", 60)
    out = io.StringIO()
    with line(out, [None]) as one:
        assert out.getvalue() == "[4/8] 03_sft …"
        one.close("4 s")
    assert out.getvalue() == "[4/8] 03_sft … 4 s\n"


def test_a_log_gets_one_line_with_a_sign_of_life_per_quarter():
    out = io.StringIO()
    one = line(out, [None, *(Count(step, 60, "steps") for step in range(1, 61))])
    for _ in range(60):
        one.tick()
    one.close("60 of 60 steps, 5.1 min; loss 2.26 to 0.05")
    assert out.getvalue() == " 25 % 50 % 75 %, 60 of 60 steps, 5.1 min; loss 2.26 to 0.05\n"


def test_what_is_done_at_one_stroke_needs_no_percentage():
    out = io.StringIO()
    one = line(out, [None, Count(18, 18, "answers")])
    one.tick()
    one.close("18 of 18 answers, 8 s")
    assert out.getvalue() == " 18 of 18 answers, 8 s\n"


def test_a_terminal_shows_what_is_done_and_what_is_left_in_place():
    out, clock = Terminal(), Clock()
    one = line(out, [Count(10, 60, "steps"), Count(20, 60, "steps")], clock)  # ten of an earlier call
    clock.now = 90.0
    one.tick()
    assert out.getvalue() == "\r[4/8] 03_sft … 20 of 60 steps, 1.5 min, about 6.0 min left\x1b[K"
    one.close("done")
    assert out.getvalue().endswith("\r[4/8] 03_sft … done\x1b[K\n")


def test_before_the_first_step_the_time_alone_moves():
    out, clock = Terminal(), Clock()
    one = line(out, [None], clock)
    clock.now = 4.0
    one.tick()
    assert out.getvalue() == "\r[4/8] 03_sft … 4 s\x1b[K"


def test_a_remark_stands_on_lines_of_its_own():
    out, remarks = io.StringIO(), ["A step takes 7 s.", ""]
    one = ChapterLine("03", lambda: None, lambda: remarks.pop(0), out)
    one.tick()
    one.tick()
    assert out.getvalue() == "\nA step takes 7 s.\n03 …"


def test_a_file_that_is_being_replaced_does_not_stop_the_line():
    def gone() -> Count:
        raise FileNotFoundError

    counts = [None, gone]
    out = io.StringIO()
    one = ChapterLine("03", lambda: counts.pop(0) and gone(), None, out)
    one.tick()
    one.close("done")
    assert out.getvalue() == " done\n"


def test_after_an_interruption_the_shell_begins_on_a_new_line(monkeypatch):
    monkeypatch.setattr(chapter_line, "POLL", 60)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), line(out, [None]):
        raise KeyboardInterrupt
    assert out.getvalue() == "[4/8] 03_sft …\n"


def test_the_thread_looks_while_the_notebook_runs(monkeypatch):
    monkeypatch.setattr(chapter_line, "POLL", 0.01)
    out = io.StringIO()
    with line(out, [None, Count(1, 2, "steps")]) as one:
        one.stopped.wait(5) if not _seen(out, "50 %") else None
        one.close("done")
    assert "50 %" in out.getvalue()


def _seen(out: io.StringIO, text: str, tries: int = 500) -> bool:
    import time

    for _ in range(tries):
        if text in out.getvalue():
            return True
        time.sleep(0.01)
    return False


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_nothing_is_counted_before_a_stage_has_written_anything(run):
    assert [count(run, chapter) for chapter in CHAPTERS] == [None] * len(CHAPTERS)


def test_what_is_done_is_read_from_the_files_of_the_stages(run):
    def records(name: str, number: int) -> None:
        append_records(run.folder / name, [{"id": str(n)} for n in range(number)])

    records("prepare/generic.jsonl", 7)
    records("synthesize/trajectories.jsonl", 3)
    records("synthesize/rejected.jsonl", 1)
    records("evaluate/records/base.jsonl", 6)
    records("evaluate/records/sft.jsonl", 2)
    for stage, steps in (("sft", 2), ("rl", 1)):
        write_text(run.stage(stage) / "log.csv", pd.DataFrame({"step": range(1, steps + 1)}).to_csv(index=False))
    for folder in ("sweep/fixed-2-seed0", "sweep/sft"):
        write_text(run.folder / folder / "scores" / "scores.csv", "score\n")
    write_text(run.folder / "components" / "full" / "scores-seed0" / "manifest.json", "{}")
    assert [str(count(run, chapter)) for chapter in CHAPTERS[:8]] == [
        "None",
        "7 of 18 generic answers",
        "4 trajectories",
        "2 of 3 steps",
        "1 of 2 steps",
        "8 answers",
        "1 of 2 trials",
        "1 trials",
    ]


def test_a_total_that_only_the_data_know_is_not_invented(tmp_path):
    run = open_run("r", "tiny", {"data.source": "official"}, root=tmp_path)
    append_records(run.stage("prepare") / "generic.jsonl", [{"id": "1"}])
    assert str(count(run, CHAPTERS[1])) == "1 generic answers"


@pytest.mark.parametrize("text", [None, "", "step\n", "loss\n1.0\n"])
def test_a_log_without_steps_counts_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    assert last_step(tmp_path / "log.csv") == 0


def test_short_times_are_seconds():
    assert [minutes(8.4), minutes(60), minutes(404)] == ["8 s", "1.0 min", "6.7 min"]
