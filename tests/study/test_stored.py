from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit import stages
from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.runs import write_json
from rpo_kit.study.stored import SCORES, read_record, read_table

TABLE = pd.DataFrame({"arm": ["progressive", "fixed-2"], "shots": [6, 6], "score": [0.912, 0.876]})
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut within a value": lambda content: content[:-3],
    "cut after a comma": lambda content: content[: content.rindex(b",") + 1],
    "saved with semicolons and decimal commas": lambda content: content.replace(b",", b";").replace(b".", b","),
    "saved with decimal commas": lambda content: content.replace(b"0.876", b'"0,876"'),
    "saved as UTF-16": lambda content: content.decode().encode("utf-16"),
    "with a value too many": lambda content: content.replace(b"0.876", b"0.876,1"),
    "without its heading": lambda content: content[content.index(b"\n") + 1 :],
    "a spreadsheet's own format": lambda _: b"PK\x03\x04\x14\x00\x08\x08\xff\xfe\x00\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_a_sentence_that_names_the_file(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    file.write_bytes(damage(TABLE.to_csv(index=False).encode()))
    with pytest.raises(KitError, match=r"bars.csv was cut, or changed after it was written \(.+\): run the command"):
        read_table(file, ("shots", "score"), ("arm",))


def test_a_table_saved_again_without_harm_is_read(tmp_path: Path) -> None:
    file, content = tmp_path / "bars.csv", TABLE.to_csv(index=False)
    for saved in (content, content.replace("\n", "\r\n"), f"\ufeff{content}", "arm,shots,score\n"):
        file.write_bytes(saved.encode())
        assert list(read_table(file, ("shots", "score"), ("arm",))) == list(TABLE)


def test_a_user_called_na_stays_one(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("id,user,score\n001,NA,0.5\n", encoding="utf-8")
    assert read_table(file, ("score",), ("id", "user"), SCORES).iloc[0].tolist() == ["001", "NA", 0.5]


def test_a_table_of_a_stage_must_be_as_the_stage_wrote_it(new_run) -> None:
    run = new_run()
    with stages.stage(run, "evaluate", users=2) as folder:
        assert folder is not None
        (folder / "metrics.csv").write_text("score\n0.912\n", encoding="utf-8")
    file = run.stage("evaluate") / "metrics.csv"
    assert read_table(file, ("score",))["score"].tolist() == [0.912]
    file.write_text("score\n0.9\n", encoding="utf-8")  # rounded by a spreadsheet
    with pytest.raises(KitError, match="not as its stage wrote it"):
        read_table(file, ("score",))


@pytest.mark.parametrize("content", ["", '{"plan": {"arms"', "[1, 2]\n", "null\n"])
def test_a_damaged_record_is_a_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "provenance.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(KitError, match=r"provenance.json was cut, or changed"):
        read_record(file)
    write_json(file, {"plan": {}})
    assert read_record(file) == {"plan": {}}


def test_what_is_missing_is_a_sentence(tmp_path: Path) -> None:
    for read in (read_record, lambda path: read_table(path, ())):
        with pytest.raises(KitError, match=r"none\.csv is missing: run the command that writes it"):
            read(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["bars.csv", "curves.csv", "differences.csv", "provenance.json"])
def test_figure_3_says_which_file_is_damaged(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from rpo_kit.study import result_commands

    for file in (result_commands.FIGURES / "data").glob("demo_LaMP-7_*"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(result_commands, "FIGURES", tmp_path)
    damaged = tmp_path / "data" / f"demo_LaMP-7_{name}"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert main(["figure3", "--data", "demo_LaMP-7"]) == 2
    assert f"{damaged} was cut" in capsys.readouterr().err


def test_numbers_stored_before_are_not_replaced_without_a_word(new_run, tmp_path: Path, monkeypatch, capsys) -> None:
    from rpo_kit.study import result_commands

    data = result_commands.FIGURES / "data"
    run = new_run()
    with stages.stage(run, "evaluate", users=2) as folder:
        assert folder is not None
        for name in ("metrics.csv", "paired.csv"):
            (folder / name).write_bytes((data / f"demo_LaMP-7_{name}").read_bytes())
    monkeypatch.setattr(result_commands, "FIGURES", tmp_path)
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    assert main(["results", "--run", run.name, "--export", "mine"]) == 0
    assert "replaced" not in capsys.readouterr().out
    assert main(["results", "--run", run.name, "--export", "mine"]) == 0
    assert "mine_metrics.csv and its companions, stored before, are replaced" in capsys.readouterr().out
