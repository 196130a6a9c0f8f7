"""Where a gold leaks in LaMP's files, and which examples belong to one user."""

from typing import Any

import numpy as np
import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.leaks import check_no_placeholder, gold_positions, has_entity, history_key, users_by_history
from rpo_kit.lamp.tasks import get_task


def positions(name: str, input: dict[str, str], output: str, items: list[dict[str, str]]) -> list[int]:
    task = get_task(name)
    example: dict[str, Any] = {"input": task.make_input(**input), "output": output, "profile": items}
    return gold_positions(task, example)


def test_a_text_is_given_away_by_the_gold_itself() -> None:
    tweets = [{"text": "gm all"}, {"text": " so tired "}, {"text": "so tired"}, {"text": "So tired"}]
    assert positions("LaMP-7", {"text": "I am tired."}, "so tired ", tweets) == [1, 2]
    assert positions(
        "LaMP-4", {"text": "x"}, "Rain", [{"text": "x", "title": "Sun"}, {"text": "y", "title": "Rain"}]
    ) == [1]
    assert positions("LaMP-7", {"text": "x"}, "", [{"text": ""}]) == [], "a withheld output is in no profile"


def test_a_label_is_given_away_by_the_same_query_and_not_by_the_same_label() -> None:
    items = [{"text": "Fine.", "score": "4"}, {"text": "Broke.", "score": "4"}]
    assert positions("LaMP-3", {"text": "Broke. "}, "4", items) == [1]
    assert positions("LaMP-3", {"text": "New."}, "4", items) == []


def test_a_citation_is_given_away_by_the_right_reference_only() -> None:
    items = [{"title": title, "abstract": "-"} for title in ("Sails", "Ropes")]
    parts = {"title": "Ships", "ref1": "Sails", "ref2": "Ropes"}
    assert positions("LaMP-1", parts, "[2]", items) == [1]
    assert positions("LaMP-1", parts, "[1]", items) == [0]
    assert positions("LaMP-1", parts, "", items) == []


def test_references_are_read_from_citations_only() -> None:
    task = get_task("LaMP-1")
    assert task.references(task.make_input(title='A "b"', ref1="c", ref2='"d"')) == ("c", '"d"')
    with pytest.raises(KitError, match="not an input of LaMP-1"):
        task.references("What is the score")
    with pytest.raises(KitError, match="Queries of LaMP-3 have no references"):
        get_task("LaMP-3").references(get_task("LaMP-3").make_input(text="x"))


def keys(*texts: str) -> np.ndarray:
    return np.array([history_key({"id": str(n), "text": text}) for n, text in enumerate(texts)], np.int64)


def test_histories_that_share_more_than_half_of_the_smaller_one_belong_to_one_user() -> None:
    histories = [
        keys("a", "b", "c"),
        keys("x", "y"),
        keys("b", "c", "d"),
        keys("c", "x", "q", "r"),
        keys("y", "x", "z"),
    ]
    # 2 shares b, c of three with 0; 4 shares both of 1's two; 3 shares one of two with 1.
    assert users_by_history(list("01234"), histories) == ["0", "1", "0", "3", "1"]


def test_one_user_links_on_through_others_and_empty_histories_stay_alone() -> None:
    histories = [keys("a", "b", "c"), keys(), keys("b", "c", "d"), keys("c", "d", "e"), keys()]
    assert users_by_history(list("01234"), histories) == ["0", "1", "0", "0", "4"]
    assert users_by_history([], []) == []


def test_a_text_that_many_users_wrote_does_not_make_them_one_user() -> None:
    histories = [keys("Great!", "Great!", f"only {n}", f"mine {n}", f"own {n}") for n in range(5)]
    assert users_by_history(list("01234"), histories) == list("01234")


def test_ids_and_dates_are_not_part_of_an_items_content() -> None:
    item = {"id": "1", "text": "a", "score": "2", "date": "2011"}
    assert history_key(item) == history_key(item | {"id": "2", "date": "2012"}) != history_key(item | {"score": "3"})


def test_entities_are_recognised_and_plain_ampersands_are_not() -> None:
    assert [has_entity(text) for text in ("Q&amp;A", "&quot;", "&#39;", "AT&T; b", "&", "amp;")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_file_names_are_not_e_mails_in_lamp_6_only() -> None:
    with pytest.raises(KitError, match=r"^Item 3 is '147-000874-EM.txt': LaMP-6 is distributed with file names"):
        check_no_placeholder(get_task("LaMP-6"), "147-000874-EM.txt", "Item 3")
    check_no_placeholder(get_task("LaMP-6"), "see 147-000874-EM.txt", "Item 3")
    check_no_placeholder(get_task("LaMP-4"), "147-000874-EM.txt", "Item 3")
