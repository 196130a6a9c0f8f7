"""Official files become a dataset; what is wrong with a file is reported on load, with file, id and remedy."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import read_lamp, split_summary, write_lamp
from rpo_kit.lamp.files import GOLDS, read_outputs
from rpo_kit.lamp.item import items_by_id, read_gold
from rpo_kit.lamp.leave_one_out import examples_from_items
from rpo_kit.lamp.metrics import metrics_of_files, write_predictions
from rpo_kit.lamp.source import split_of_files
from rpo_kit.lamp.tasks import TASKS, Task, get_task
from rpo_kit.presets import DataSettings

RATINGS, MOVIES = get_task("LaMP-3"), get_task("LaMP-2")


def example(number: int, items: int = 2, **more: Any) -> dict[str, Any]:
    profile = [{"id": f"31{number}{n}", "text": f"Item {n}.", "score": "1"} for n in range(items)]
    return {"id": f"31{number}", "input": RATINGS.make_input(text=f"Review {number}."), "profile": profile} | more


def write_split(folder: Path, questions: object, outputs: dict[Any, Any] | None = None, task: str = "LaMP_3") -> Path:
    """The two files of a dev split, as a user may have them on disk; by default "5" is everyone's output."""
    if outputs is None:
        assert isinstance(questions, list)
        outputs = {row["id"]: "5" for row in questions}
    golds = [{"id": key, "output": output} for key, output in outputs.items()]
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    return folder


# --- what is read ---


def test_a_row_has_input_user_gold_and_profile(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0, items=1), example(1, items=0)], {"311": "4", "310": "2"})
    dataset = read_lamp(tmp_path, RATINGS, "dev")
    assert dataset.column_names == ["id", "user_id", "input", "output", "profile"]
    assert dataset[0] == {
        "id": "310",
        "user_id": "310",  # the file names no user, so each example is its own
        "input": RATINGS.make_input(text="Review 0."),
        "output": "2",
        "profile": [{"id": "3100", "text": "Item 0.", "score": "1"}],
    }
    assert dataset[1]["output"] == "4"


def test_users_and_dates_of_the_time_split_are_read(tmp_path: Path) -> None:
    item = {"id": "3100", "text": "x", "score": "1", "date": "2011-05-03"}
    undated = item | {"date": None}
    write_split(tmp_path, [example(0, user_id="u7", profile=[item]), example(1, user_id="u8", profile=[undated])])
    dataset = read_lamp(tmp_path, RATINGS, "dev")
    assert dataset["user_id"][:] == ["u7", "u8"]
    assert [item["date"] for item in dataset[0]["profile"]] == ["2011-05-03"]
    assert [item["date"] for item in dataset[1]["profile"]] == [""]


DATED = {"id": "1", "text": "x", "score": "1", "date": "2011-05-03"}
UNDATED = {"id": "2", "text": "x", "score": "1"}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"user_id": "u"}, {}, "has no user_id"),
        ({}, {"user_id": "u"}, "has a user_id"),
        ({"profile": [UNDATED]}, {"profile": [DATED]}, "has an item with a date"),
        ({"profile": [DATED]}, {"profile": [DATED, UNDATED]}, "has an item with no date"),
        ({"profile": []}, {"profile": [UNDATED, DATED]}, "has an item with a date"),
    ],
)
def test_a_file_that_mixes_the_two_splits_is_named_with_the_example(
    first: dict[str, Any], second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_split(tmp_path, [example(0, **first), example(1, **second)])
    with pytest.raises(KitError, match=rf"Example '311' in .*dev_questions.json {said}.* mixes LaMP's time split"):
        read_lamp(tmp_path, RATINGS, "dev")


@pytest.mark.parametrize("rating", ["five", "", "nan", "inf"])
def test_an_invalid_rating_is_reported_on_load(rating: str, tmp_path: Path) -> None:
    write_split(tmp_path, [example(0, profile=[UNDATED | {"score": rating}])])
    with pytest.raises(KitError, match=r"Example '310' .* profile item 0: score is .*, which is not a rating"):
        read_lamp(tmp_path, RATINGS, "dev")
    write_split(tmp_path, [example(0)], {"310": rating})
    with pytest.raises(
        KitError, match=r"gold of '310' in the gold file .*dev_outputs.json is .*, which is not a rating"
    ):
        read_lamp(tmp_path, RATINGS, "dev")


def test_an_id_of_half_a_character_is_read_like_any_text(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0, id="3\ud800")], {"3\ud800": "4"})
    assert read_lamp(tmp_path, RATINGS, "dev")["id"][:] == ["3\ufffd"]


def test_numbers_are_read_as_text_like_in_lamps_evaluator(tmp_path: Path) -> None:
    item = {"id": 3100, "text": "x", "score": 5}
    dataset = read_lamp(write_split(tmp_path, [example(0, profile=[item])], {"310": 4}), RATINGS, "dev")
    assert dataset[0]["profile"] == [{"id": "3100", "text": "x", "score": "5"}]
    assert dataset[0]["output"] == "4"


@pytest.mark.parametrize("gold", ["4", "4.0", 4, 4.0, " 4\n", "4e0"])
def test_a_rating_is_read_as_lamp_writes_it(gold: object, tmp_path: Path) -> None:
    assert read_lamp(write_split(tmp_path, [example(0)], {"310": gold}), RATINGS, "dev")[0]["output"].strip() == "4"


NEWS, HEADLINES, CITATIONS = (get_task(name) for name in ("LaMP-2-news", "LaMP-4", "LaMP-1"))


@pytest.mark.parametrize(
    ("task", "gold", "said"),
    [
        (MOVIES, "Sci-Fi", "is 'Sci-Fi', and LaMP compares labels character by character: write it as 'sci-fi'"),
        (
            MOVIES,
            "horror",
            r"is 'horror', which is not a label of LaMP-2 \(Movie tagging\): correct it to one of sci-fi",
        ),
        (MOVIES, "politics", "not a label of LaMP-2 .* Or give --task LaMP-2-news"),
        (NEWS, "Style & Beauty", "write it as 'style & beauty'"),
        (NEWS, "comedy", "Or give --task LaMP-2"),
        (CITATIONS, "1", r"is '1', which is not a label of LaMP-1 .* one of \[1\], \[2\]"),
        (CITATIONS, 1, "is '1', which is not a label"),
        (RATINGS, "4.5", "which is not a rating from 1 to 5"),
        (RATINGS, "0", "which is not a rating from 1 to 5"),
        (RATINGS, 9, "which is not a rating from 1 to 5"),
        (RATINGS, float("nan"), "is nan, as pandas writes a missing value"),
        (RATINGS, "9" * 300, "is '9999.*…', which is not a rating from 1 to 5"),
        (HEADLINES, float("nan"), "is nan, as pandas writes a missing value"),
        (HEADLINES, None, "is 'None', which is not text"),
        (HEADLINES, 1984, "is the number '1984', where text is expected: write it in quotes"),
        (HEADLINES, ["a"], "is a list of 1, which is not text"),
        (HEADLINES, True, "is 'True', which is not text"),
    ],
)
def test_a_gold_that_is_not_one_of_the_tasks_labels_is_rejected_on_load(
    task: Task, gold: object, said: str, tmp_path: Path
) -> None:
    """LaMP's evaluator gives both such a gold and junk the index -1, and so counts them as equal."""
    row = {"id": "310", "input": an_input(task), "profile": []}
    with pytest.raises(KitError, match=rf"The gold of '310' in the gold file .*dev_outputs.json .*{said}"):
        read_lamp(write_split(tmp_path, [row], {"310": gold}, task.official_name), task, "dev")


def an_input(task: Task) -> str:
    return task.make_input(**dict.fromkeys(task.parts, "Rain fell."))


@given(st.text(st.characters(codec="utf-8")), st.sampled_from([name for name in TASKS if TASKS[name].labels]))
def test_only_a_label_is_accepted_as_gold(gold: str, name: str) -> None:
    task = TASKS[name]
    with contextlib.suppress(KitError):
        assert read_gold(task, gold, "it").strip() in task.labels


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "NaN", "N/A", "0", "True", "-"])
def test_users_and_ids_may_have_names_that_pandas_reads_as_missing(name: str, tmp_path: Path) -> None:
    item = {"id": name, "text": name, "score": "1"}
    dataset = read_lamp(write_split(tmp_path, [example(0, id=name, user_id=name, profile=[item])]), RATINGS, "dev")
    assert (dataset[0]["id"], dataset[0]["user_id"], dataset[0]["profile"]) == (name, name, [item])


ITEM = {"id": "1", "text": "x", "score": "1"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (example(0, id=""), r'"id" of row 0 of the question file .*dev_questions.json is empty'),
        (example(0, id=None), r'"id" of row 0 .* is \'None\''),
        (example(0, user_id=" "), "Example '310' in .*: user_id is empty: fill it in"),
        (example(0, user_id=float("nan")), "user_id is nan, as pandas writes a missing value"),
        (example(0, input=5), "input is the number '5', where text is expected"),
        (example(0, profile=[ITEM | {"text": float("nan")}]), "profile item 0: text is nan, as pandas"),
        (example(0, profile=[ITEM | {"text": 1984}]), "profile item 0: text is the number '1984', where text"),
        (example(0, profile=[ITEM | {"text": {"a": 1}}]), "text is a JSON object of 1, which is not text"),
        (example(0, profile=[ITEM | {"id": ""}]), "profile item 0: id is empty"),
        (example(0, profile=[ITEM | {"score": 7}]), "score is '7', which is not a rating from 1 to 5"),
        (example(0, profile=[ITEM | {"date": float("nan")}]), "date is nan, as pandas writes a missing value"),
        (
            example(0, profile=[ITEM, ITEM | {"text": "y"}]),
            "has two profile items with the id '1': give each its own id",
        ),
        (example(0, profile=[ITEM, ITEM | {"id": 1}]), "has two profile items with the id '1'"),
        (example(0, profile=["I liked it."]), r"lacks id, text, score: items of LaMP-3 .* as in {\"id\": "),
    ],
)
def test_a_missing_or_non_text_value_is_named_with_file_id_and_remedy(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=said):
        read_lamp(write_split(tmp_path, [row], {"310": "5"}), RATINGS, "dev")


def test_items_with_a_foreign_label_are_shown_and_counted_but_never_queries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films = [{"id": str(n), "description": f"Film {n}.", "tag": tag} for n, tag in enumerate(("comedy", "horror"))]
    row = {"id": "110", "input": MOVIES.make_input(text="A ship."), "profile": films}
    dataset = read_lamp(write_split(tmp_path, [row], {"110": "comedy"}, "LaMP_2"), MOVIES, "dev")
    assert dataset[0]["profile"] == [{"id": f["id"], "description": f["description"], "tag": f["tag"]} for f in films]
    assert "1 profile items have a label that is not one of the task's" in caplog.text
    queries = [row["input"] for row, _ in examples_from_items(MOVIES, dataset, {}, 2, 0)]
    assert queries == [MOVIES.make_input(text="Film 0.")]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_what_is_written_is_read_back(task: Task, tmp_path: Path) -> None:
    text = 'Tabs\t, "quotes", {braces}, <rewrite>tags</rewrite>, naïve 日本 \U0001f600 \n'
    parts = {"title": text, "ref1": "a", "ref2": "b"} if task.name == "LaMP-1" else {"text": text}
    profile = [{"id": f"{n}"} | {field: text + str(n) for field in task.fields} for n in range(3)]
    output = task.labels[-1] if task.labels else text
    if task.kind == "regression":
        profile = [item | {"score": "5.0"} for item in profile]
    row = {"id": "1", "user_id": "u", "input": task.make_input(**parts), "output": output, "profile": profile}
    write_lamp(tmp_path, task, "train", iter([row]))
    assert read_lamp(tmp_path, task, "train")[0] == row
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train_outputs.json", "train_questions.json"]


def test_an_official_file_looks_as_lamps_readme_says(tmp_path: Path) -> None:
    write_lamp(tmp_path, RATINGS, "dev", [example(0, items=1) | {"user_id": "u", "output": "5"}])
    assert json.loads((tmp_path / "dev_outputs.json").read_text()) == {
        "task": "LaMP_3",
        "golds": [{"id": "310", "output": "5"}],
    }
    assert json.loads((tmp_path / "dev_questions.json").read_text()) == [example(0, items=1) | {"user_id": "u"}]


def test_half_a_character_is_replaced_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = {"id": "3100", "text": "cut off \ud83d", "score": "1"}
    dataset = read_lamp(write_split(tmp_path, [example(0, profile=[item])]), RATINGS, "dev")
    assert dataset[0]["profile"][0]["text"] == "cut off \ufffd"
    assert "'310'" in caplog.text
    assert "profile item 0: text has half a character" in caplog.text


# --- what is kept, excluded, counted, shown ---


def test_an_empty_profile_is_kept_counted_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = read_lamp(write_split(tmp_path, [example(0, items=0), example(1)]), RATINGS, "dev")
    assert dataset[0]["profile"] == []
    assert split_summary(dataset)["empty_profiles"] == 1
    assert "1 of 2 examples have an empty profile" in caplog.text


def test_a_row_without_instruction_is_excluded_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film = {"id": "1100", "description": "A ship.", "tag": "classic"}
    rows = [
        {"id": "110", "input": "x Overwhelmed by her suffocating schedule", "profile": [film]},
        {"id": "111", "input": MOVIES.make_input(text="A ship."), "profile": [film]},
    ]
    dataset = read_lamp(write_split(tmp_path, rows, {"110": "romance", "111": "comedy"}, "LaMP_2"), MOVIES, "dev")
    assert dataset["id"][:] == ["111"]
    assert split_summary(dataset)["excluded"] == ["110"]
    assert "excluded 1 of 2 examples without instruction: 110." in caplog.text


def test_a_gold_in_its_own_profile_is_counted_reported_and_dropped_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [example(0), example(1, input=RATINGS.make_input(text="Item 1."))]  # item 1 rates the same review
    dataset = read_lamp(write_split(tmp_path, rows), RATINGS, "dev")
    assert split_summary(dataset)["gold_in_profile"] == 1
    assert len(dataset[1]["profile"]) == 2
    assert "1 of 2 examples have their gold in their own profile; set data.drop_gold" in caplog.text
    dropped = read_lamp(tmp_path, RATINGS, "dev", drop_gold=True)
    assert [item["text"] for item in dropped[1]["profile"]] == ["Item 0."]
    assert len(dropped[0]["profile"]) == 2
    assert split_summary(dropped)["gold_dropped"] == 1
    assert "those items are dropped" in caplog.text


def test_html_entities_are_counted_and_kept_because_lamp_scores_them(tmp_path: Path) -> None:
    rows = [example(0, input=RATINGS.make_input(text="Q&amp;A")), example(1, input=RATINGS.make_input(text="Q&A;"))]
    dataset = read_lamp(write_split(tmp_path, rows), RATINGS, "dev")
    assert split_summary(dataset)["html_entities"] == 1
    assert dataset[0]["input"].endswith("Q&amp;A")


def test_users_without_an_id_are_found_by_their_history(tmp_path: Path) -> None:
    """LaMP-2 and LaMP-4: each example of a user has the items of the others in its profile, but not its own."""
    reviews = [{"id": str(n), "text": f"Review {n}.", "score": "1"} for n in range(6)]
    others = [{"id": str(n), "text": f"Other {n}.", "score": "1"} for n in range(6)]
    profiles = [reviews[1:], others[1:], reviews[:3] + reviews[4:], others[:5]]
    rows = [example(n, profile=profile) for n, profile in enumerate(profiles)]
    dataset = read_lamp(write_split(tmp_path, rows), RATINGS, "dev")
    assert dataset["user_id"][:] == ["310", "311", "310", "311"]
    assert dataset.column_names == ["id", "user_id", "input", "output", "profile"]
    assert split_summary(dataset)["users"] == 2


def test_lamp_6_as_distributed_is_rejected_with_where_to_get_the_texts(tmp_path: Path) -> None:
    mails = get_task("LaMP-6")
    item = {"id": "1", "text": "147-000874-EM.txt", "title": "147-000874-EM.txt"}
    for input in ("147-000875-EM.txt", mails.make_input(text="147-000875-EM.txt")):
        write_split(tmp_path, [{"id": "510", "input": input, "profile": [item]}], task="LaMP_6")
        with pytest.raises(
            KitError, match=r"'510' .*'\S*.* 147-000875-EM.txt'|'147-000875-EM.txt'.*Avocado.*LDC2015T03"
        ):
            read_lamp(tmp_path, mails, "dev")
    filled = {"id": "510", "input": mails.make_input(text="Lunch?"), "profile": [item | {"text": "a", "title": "b"}]}
    write_split(tmp_path, [filled], task="LaMP_6")
    assert read_lamp(tmp_path, mails, "dev")[0]["output"] == "5"


def test_a_clean_split_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_lamp(write_split(tmp_path, [example(0)]), RATINGS, "dev")
    assert caplog.text == ""


def test_the_summary_counts_by_hand_and_survives_saving_and_selecting(tmp_path: Path) -> None:
    users = ("v", "u", "u")
    rows = [example(n, items=items, user_id=users[n]) for n, items in enumerate((1, 2, 6))]
    dataset = read_lamp(write_split(tmp_path, [*rows, example(3, input="x", user_id="w")]), RATINGS, "dev")
    summary = split_summary(dataset)
    assert summary == {
        "task": "LaMP-3", "split": "dev", "examples": 3, "users": 2, "empty_profiles": 0, "excluded": ["313"],
        "profile_min": 1, "profile_median": 2.0, "profile_mean": 3.0, "profile_max": 6, "most_common_outputs": {"5": 3},
        "gold_in_profile": 0, "gold_dropped": 0, "html_entities": 0,
    }  # fmt: skip
    dataset.save_to_disk(str(tmp_path / "arrow"))
    again = load_from_disk(str(tmp_path / "arrow"))
    assert split_summary(again) == summary
    assert split_summary(again.select([0]))["excluded"] == ["313"]
    assert split_summary(again.select([]))["examples"] == 0


def test_withheld_test_outputs_are_empty_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "test_questions.json").write_text(json.dumps([example(0)]))
    assert read_lamp(tmp_path, RATINGS, "test")[0]["output"] == ""
    assert "withholds" in caplog.text


# --- bad files ---


@pytest.mark.parametrize("name", ["dev_questions.json", "dev_outputs.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a":' * 100_000, "nested too deeply"),
        ('[{"id": ' + "9" * 5000 + "}]", "cannot be read: Exceeds the limit"),
        ('[{"id": "1", "input": "x", "id": "2"}]', r"an object, id '2', has the key 'id' twice"),
        ('{"task": "LaMP_3", "task": "LaMP_4", "golds": []}', r"(has the key 'task' twice|JSON list of examples)"),
    ],
    ids=range(4),
)
def test_ambiguous_or_absurd_json_gives_a_readable_error(name: str, content: str, message: str, tmp_path: Path) -> None:
    write_split(tmp_path, [example(0)])
    (tmp_path / name).write_text(content)
    with pytest.raises(KitError, match=message) as caught:
        read_lamp(tmp_path, RATINGS, "dev")
    assert name in str(caught.value)
    assert len(str(caught.value)) < 600


DEEP = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "a"]), inner, max_size=2),
)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_json_in_a_row_gives_a_dataset_or_a_readable_error(data: Any, tmp_path: Path) -> None:
    row = example(0) | data.draw(st.dictionaries(st.sampled_from(["id", "input", "profile", "user_id"]), DEEP))
    row["profile"] = data.draw(st.just(row["profile"]) | st.lists(DEEP, max_size=2))
    write_split(tmp_path, [row], {"310": data.draw(DEEP | st.just("5"))})
    with contextlib.suppress(KitError):
        dataset = read_lamp(tmp_path, RATINGS, "dev")
        assert all(isinstance(value, str) for read in dataset for value in (read["id"], read["user_id"], read["input"]))
        assert set(dataset["output"]) <= set(RATINGS.labels)


def test_a_message_names_the_files_role_and_the_users_own_prediction_is_never_downloaded(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0)])
    golds, predictions = tmp_path / "dev_outputs.json", tmp_path / "mine.json"
    for content in ("", "<html>", "[", "[]", '{"task": "LaMP_3", "golds": [{"id": "310"}]}', "[" * 200_000):
        predictions.write_text(content)
        with pytest.raises(KitError, match=r"[Tt]he prediction file .*mine.json") as caught:
            metrics_of_files(golds, predictions)
        assert "download" not in str(caught.value)
    with pytest.raises(KitError, match=r"The prediction file is missing: there is no file .*nowhere"):
        metrics_of_files(golds, tmp_path / "nowhere")
    write_predictions(predictions, RATINGS, ["311"], ["5"])
    with pytest.raises(
        KitError, match=r"The prediction file .*mine.json does not match the gold file .*dev_outputs.json"
    ):
        metrics_of_files(golds, predictions)
    predictions.write_text('{"task": "LaMP_3", "golds": [{"id": "310", "output": null}]}')
    with pytest.raises(KitError, match=r"of id '310' in the prediction file .* is 'None', .* write it again") as caught:
        metrics_of_files(golds, predictions)
    golds.write_text("[")
    with pytest.raises(KitError, match=r"The gold file .* is not complete JSON.*download it again"):
        metrics_of_files(golds, predictions)
    with pytest.raises(KitError, match=r"The gold file .*: download it again"):
        read_outputs(golds, GOLDS)


def test_items_are_found_by_an_id_that_only_one_of_them_has() -> None:
    assert items_by_id([ITEM, UNDATED], "q") == {"1": ITEM, "2": UNDATED}
    with pytest.raises(KitError, match="Two profile items of example 'q' have the id '1'"):
        items_by_id([ITEM, ITEM | {"text": "y"}], "q")


HTML = "\n<!DOCTYPE html>\n<html><body>LaMP</body></html>"


@pytest.mark.parametrize("name", ["dev_questions.json", "dev_outputs.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML.encode(), "is a web page and not JSON.*LaMP_2/new.*download it again .--data official does"),
        (b'[{"id": "310", "input": "What', "Unterminated string starting at character 24 of 29.*broke off: download"),
        (b"", "not complete JSON.*character 0 of 0"),
        (b"\x1f\x8b\x08\x00", "not UTF-8 text.*decompress"),
        (b'{"id": "310"}', "(JSON list of examples|not a LaMP outputs file)"),
        (b"[]", "(an empty list of examples|not a LaMP outputs file)"),
    ],
)
def test_a_file_that_is_not_lamps_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_split(tmp_path, [example(0)])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KitError, match=f"{name}.*{message}") as caught:
        read_lamp(tmp_path, RATINGS, "dev")
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_named_with_what_the_folder_has(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"no file .*dev_questions.json; that folder is empty"):
        read_lamp(tmp_path, RATINGS, "dev")
    write_split(tmp_path, [example(0)])
    with pytest.raises(KitError, match=r"no file .*train_questions.json; that folder has dev_outputs.json, dev_ques"):
        read_lamp(tmp_path, RATINGS, "train")
    with pytest.raises(KitError, match=r"folder .*nowhere does not exist"):
        read_lamp(tmp_path / "nowhere", RATINGS, "dev")
    (tmp_path / "dev_outputs.json").unlink()
    with pytest.raises(KitError, match=r"no file .*dev_outputs.json"):
        read_lamp(tmp_path, RATINGS, "dev")


def test_a_folder_with_train_files_alone_is_told_how_to_hold_out_users(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0)])
    for kind in ("questions", "outputs"):
        (tmp_path / f"dev_{kind}.json").rename(tmp_path / f"train_{kind}.json")
    settings = DataSettings(source=str(tmp_path), task="LaMP-3")
    with pytest.raises(KitError, match=r"has no dev files: set data\.dev_share=0\.2"):
        split_of_files(settings, "dev")
    assert split_of_files(dataclasses.replace(settings, dev_share=0.2), "dev") == "train"


def test_the_folder_of_another_task_is_recognised(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0)])
    with pytest.raises(
        KitError, match=r"The gold file .*dev_outputs.json is of LaMP_3, not of LaMP_2.*, or --task LaMP-3\."
    ):
        read_lamp(tmp_path, MOVIES, "dev")
    write_split(tmp_path, [example(0)], task="LaMP_2")
    with pytest.raises(
        KitError, match=r"gold file .* is of LaMP_2, not of LaMP_3.*, or --task LaMP-2 or LaMP-2-news\."
    ):
        read_lamp(tmp_path, RATINGS, "dev")
    films = {"id": "110", "input": MOVIES.make_input(text="x"), "profile": []}
    write_split(tmp_path, [films], {"110": "5"}, task="LaMP_3")
    with pytest.raises(KitError, match=r"is of LaMP-3, .* or give --task LaMP-2, whose examples they are\."):
        read_lamp(tmp_path, RATINGS, "dev")
    news = {"id": "110", "input": "Which category does", "profile": [{"id": "1", "text": "x", "category": "travel"}]}
    write_split(tmp_path, [news], {"110": "comedy"}, task="LaMP_2")
    with pytest.raises(KitError, match=r"'110' .*item 0 lacks description, tag: items of LaMP-2 \(Movie tagging\)"):
        read_lamp(tmp_path, MOVIES, "dev")
    write_split(tmp_path, [news | {"profile": []}], {"110": "comedy"}, task="LaMP_2")
    with pytest.raises(KitError, match=r"No example in .* is of LaMP-2"):
        read_lamp(tmp_path, MOVIES, "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "311", "input": "x"}, r"Row 1, id '311', of .*dev_questions.json lacks profile"),
        ({"input": "x", "profile": []}, r"Row 1 of .*dev_questions.json lacks id"),
        ("row", r"Row 1 of .*dev_questions.json lacks everything"),
        (example(1, input=None), r"'311' in .*dev_questions.json: input is 'None', which is not text"),
        (example(1, profile=None), r"'311' in .*dev_questions.json has a profile that is not a list"),
        (example(1, profile=["x"]), r"'311' .*profile item 0 lacks id, text, score"),
        (example(1, profile=[{"id": "1", "text": "x"}]), r"'311' .*profile item 0 lacks score"),
        (example(1, profile=[{"id": "1", "text": "x", "score": None}]), r"'311' .*item 0: score is 'None'"),
        (example(0), r"'310' occurs twice in .*dev_questions.json"),
    ],
)
def test_a_bad_row_is_named_by_file_and_id(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=message):
        read_lamp(write_split(tmp_path, [example(0), row], {"310": "5", "311": "5"}), RATINGS, "dev")


def test_examples_and_golds_must_have_the_same_ids(tmp_path: Path) -> None:
    write_split(tmp_path, [example(0), example(1)], {"311": "5", "319": "5", "318": "5"})
    with pytest.raises(KitError, match=r"1 of 2 examples have no gold \['310'\], 2 golds .* \['318', '319'\]"):
        read_lamp(tmp_path, RATINGS, "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (example(0), "Row 0 .* lacks output"),
        (example(0, output="5", input="x"), "is not an input of .*: use Task.make_input"),
        (example(0, output="5", profile=[{"id": "1"}]), "item 0 lacks text, score"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=message):
        write_lamp(tmp_path, RATINGS, "dev", [row])
    assert list(tmp_path.iterdir()) == []
