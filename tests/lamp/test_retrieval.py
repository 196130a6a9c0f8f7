"""Rankings follow LaMP's BM25, the dates, or chance, and depend on nothing else."""

import json
import logging
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp import okapi
from rpo_kit.lamp.corpora import corpora
from rpo_kit.lamp.data import read_lamp
from rpo_kit.lamp.okapi import okapi_scores
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import get_task

TWEETS = get_task("LaMP-7")


def example(query: str, texts: list[str], id: str = "1", dates: list[str] | None = None) -> dict[str, Any]:
    profile = [{"id": f"{id}{n}", "text": text} for n, text in enumerate(texts)]
    for item, date in zip(profile, dates or [], strict=False):
        item["date"] = date
    return {"id": id, "user_id": id, "input": TWEETS.make_input(text=query), "output": "", "profile": profile}


def order(query: str, texts: list[str]) -> list[int]:
    return rank(TWEETS, [example(query, texts)], "bm25")[0]


# --- bm25 ---


def test_bm25_scores_by_hand() -> None:
    # N = 4 documents, mean length 7/4. "cat" is in one of them: idf = log(3.5 / 1.5). "the" is in three:
    # log(1.5 / 3.5) < 0, so it gets a quarter of the mean idf over the four words (the: 3; cat, dog, sun: 1 each).
    documents = ["the cat cat", "the dog", "the", "sun"]
    once = math.log(3.5 / 1.5)
    the = 0.25 * (3 * once + math.log(1.5 / 3.5)) / 4

    def part(times: int, length: int) -> float:  # tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length))
        return times * 2.5 / (times + 1.5 * (0.25 + 0.75 * length / 1.75))

    scores = okapi_scores(pa.array(documents), "cat the the unseen")
    expected = [once * part(2, 3) + 2 * the * part(1, 3), 2 * the * part(1, 2), 2 * the * part(1, 1), 0.0]
    assert scores == pytest.approx(expected, abs=1e-12)


def test_shared_words_come_first_and_rare_ones_count_more() -> None:
    assert order("red ship", ["blue car", "red car", "red ship", "red sun", "green tea"])[:1] == [2]
    assert order("red ship", ["ship", "red", "red", "tea", "sun"])[0] == 0


def test_words_are_split_at_blanks_with_case_and_punctuation_kept() -> None:
    assert order("Ship", ["ship", "Ship,", "Ship", "x", "y"])[0] == 2


def test_of_equal_items_the_later_comes_first() -> None:
    assert order("nothing shared", ["a", "b", "c"]) == [2, 1, 0]
    assert order("a", ["a", "b", "a", "c", "d"]) == [2, 0, 4, 3, 1]


def test_citations_are_ranked_by_the_references() -> None:
    task = get_task("LaMP-1")
    profile = [
        {"id": str(n), "title": title, "abstract": abstract}
        for n, (title, abstract) in enumerate([("graphs", "-"), ("x", "sails and ropes"), ("y", "-"), ("z", "-")])
    ]
    input = task.make_input(title="graphs", ref1="sails", ref2="ropes")
    assert rank(task, [{"id": "1", "input": input, "profile": profile}], "bm25") == [[1, 3, 2, 0]]


def test_examples_that_share_a_profile_are_ranked_as_if_alone() -> None:
    texts = ["a b", "b c", "c d", "d e", "e f"]
    together = [example("a", texts, "1"), example("e f", ["e", "f"], "2"), example("f", texts, "3")]
    assert rank(TWEETS, together, "bm25") == [rank(TWEETS, [one], "bm25")[0] for one in together]
    assert rank(TWEETS, together, "bm25")[2][0] == 4


def test_words_are_split_where_python_splits_them() -> None:
    # All white space there is, two blanks in a row, and letters beyond ASCII, which change nothing.
    spaces = [chr(n) for n in range(sys.maxunicode) if chr(n).isspace()]
    assert {"\t", "\x1c", "\x85", "\xa0", "\u2009", "\u3000"} < {*spaces}
    for blank in [*spaces, "  "]:
        texts, query = [f"naïve{blank}ship", f"{blank}tea{blank}", "日本", "x", "", "ship"], f"{blank}ship{blank}tea"
        expected = plain_okapi([text.split() for text in texts], query.split())
        assert okapi_scores(pa.array(texts), query).tolist() == expected
        assert len({0.0, *expected}) == 4, "a ship in two words, a tea, a ship alone"
    for letter in "\x00\x08\x1b\u00c2\u0100\u2010\u200b\u2060\ufeff\U00010085":  # no white space
        assert okapi_scores(pa.array([f"a{letter}b", "c"]), "b").tolist() == [0.0, 0.0]


def plain_okapi(documents: list[list[str]], query: list[str]) -> list[float]:
    """The formula once more, word by word in plain Python, in LaMP's order of additions."""
    holders: dict[str, int] = {}
    for word in (word for document in documents for word in dict.fromkeys(document)):
        holders[word] = holders.get(word, 0) + 1
    idf = {w: math.log(len(documents) - n + 0.5) - math.log(n + 0.5) for w, n in holders.items()}
    total = 0.0
    for value in idf.values():
        total += value
    low = 0.25 * (total / len(idf))
    mean_length = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(documents)
    for word in (word for word in query if word in idf):
        weight = low if idf[word] < 0 else idf[word]
        for n, document in enumerate(documents):
            tf = document.count(word)
            scores[n] += weight * (tf * 2.5 / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean_length)))
    return scores


def test_bm25_scores_are_the_formulas_to_the_last_bit() -> None:
    draw = random.Random(0)
    for size in (1, 2, 3, 17, 300):  # more than 255 documents are counted in blocks
        documents = [[str(int(draw.paretovariate(0.6))) for _ in range(30)] for _ in range(size)]
        query = documents[0] + ["unseen", "1", "1"]
        scores = okapi_scores(pa.array([" ".join(words) for words in documents]), " ".join(query))
        assert scores.tobytes() == np.array(plain_okapi(documents, query)).tobytes()
    common = [["a", "b"], ["a", "b"], ["a", "b"], ["a"]]  # all weights below 0: a part of the last one's score is -0
    assert okapi_scores(pa.array([" ".join(words) for words in common]), "b").tobytes() == (
        np.array(plain_okapi(common, ["b"])).tobytes()
    )


@pytest.mark.parametrize("cells", [1, 7, 2**20])
def test_documents_are_counted_in_blocks_of_any_size_also_where_not_one_fits(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(okapi, "_CELLS", cells)  # bytes of a block; a document of three words needs three
    documents = [["a", "b"], ["a", "c"], ["a"], ["b", "b"], ["c"]]
    scores = okapi_scores(pa.array([" ".join(words) for words in documents]), "a b")
    assert scores.tolist() == plain_okapi(documents, ["a", "b"])


def test_a_dataset_with_large_strings_or_holes_is_ranked_as_well() -> None:
    tweets = Dataset.from_list([example("rain", ["sun", "rain"])])
    items = pa.list_(pa.struct([("id", pa.large_string()), ("text", pa.large_string())]))
    place = tweets.column_names.index("profile")
    large = Dataset(tweets.data.table.set_column(place, "profile", tweets.data.table["profile"].cast(items)))
    assert rank(TWEETS, large, "bm25") == rank(TWEETS, tweets, "bm25") == [[1, 0]]
    holes = Dataset.from_list([example("rain", ["sun", "rain"]), example("rain", ["rain", None, "sun"])])
    assert rank(TWEETS, holes, "bm25") == [[1, 0], [0, 2, 1]]


def test_equal_scores_come_in_the_order_of_lamps_own_call_or_the_later_first() -> None:
    texts = ["a", "b", "a", "c", "a", "b"] * 20
    scores = okapi_scores(pa.array(texts), "a b")
    one = example("a b", texts)
    assert rank(TWEETS, [one], "bm25-lamp") == [np.argsort(scores)[::-1].tolist()]
    assert rank(TWEETS, [one], "bm25") == [sorted(range(120), key=lambda n: (scores[n], n), reverse=True)]


# --- recency ---


def test_recency_without_dates_is_the_position_from_the_end() -> None:
    assert rank(TWEETS, [example("q", ["a", "b", "c"])], "recency") == [[2, 1, 0]]


def test_recency_goes_by_date_as_numbers_and_by_position_on_one_day() -> None:
    dates = ["2011-05-03", "2009", "2011-5-12", "2011-05-03", ""]
    assert rank(TWEETS, [example("q", ["a"] * 5, dates=dates)], "recency") == [[2, 3, 0, 1, 4]]


def test_an_invalid_date_is_named_with_item_and_example() -> None:
    with pytest.raises(KitError, match=r"item '71' of example '7' has the date 'May 3'"):
        rank(TWEETS, [example("q", ["a", "b"], "7", dates=["2011", "May 3"])], "recency")


# --- random ---


def test_random_depends_on_seed_and_example_but_not_on_the_other_examples() -> None:
    texts = [str(n) for n in range(30)]
    examples = [example("q", texts, id) for id in ("1", "2", "3")]
    first = rank(TWEETS, examples, "random", seed=5)
    assert rank(TWEETS, examples[::-1], "random", seed=5) == first[::-1]
    assert rank(TWEETS, examples[1:2], "random", seed=5) == [first[1]]
    assert first[0] != first[1] != first[2]
    assert rank(TWEETS, examples, "random", seed=6)[0] != first[0]


def test_random_is_the_same_on_any_machine() -> None:
    assert rank(TWEETS, [example("q", list("abcdef"), "310")], "random") == [[1, 2, 5, 3, 0, 4]]  # as first drawn


# --- all methods ---


@pytest.mark.parametrize("method", ["bm25", "bm25-lamp", "recency", "random"])
def test_each_ranking_holds_the_whole_profile_once_and_is_repeatable(method: Any) -> None:
    examples = [example("a b c", [f"a{n} b" for n in range(size)], str(size)) for size in (0, 1, 2, 40)]
    ranked = rank(TWEETS, examples, method)
    assert [sorted(one) for one in ranked] == [list(range(size)) for size in (0, 1, 2, 40)]
    assert all(type(index) is int for one in ranked for index in one)
    assert rank(TWEETS, examples, method) == ranked
    assert rank(TWEETS, [], method) == []


def test_empty_and_absurd_texts_are_ranked_like_any_other() -> None:
    assert order("", ["a", "b"]) == [1, 0]
    assert order("a", ["", "  "]) == [1, 0]
    assert order("a", ["", "a", ""]) == [1, 2, 0]
    assert order("ship " * 50_000, ["tea", "ship", "sun"]) == [1, 2, 0]
    assert order("ship", ["tea " * 50_000, "ship", "sun"]) == [1, 2, 0]


def test_a_dataset_is_ranked_like_a_list_and_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [example("a", ["b", "a", "c"], "1"), example("x", [], "2")]
    golds = [{"id": row["id"], "output": ""} for row in rows]
    (tmp_path / "dev_questions.json").write_text(json.dumps(rows))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_7", "golds": golds}))
    dataset = read_lamp(tmp_path, TWEETS, "dev")
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        assert rank(TWEETS, dataset, "bm25") == [[1, 2, 0], []]
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_selection_of_a_dataset_is_ranked_by_its_own_rows() -> None:
    rows = [example(query, ["b", "a", "c"], str(n)) for n, query in enumerate("abc")]
    dataset = Dataset.from_list(rows)
    assert rank(TWEETS, dataset, "bm25") == rank(TWEETS, rows, "bm25") == [[1, 2, 0], [0, 2, 1], [2, 1, 0]]
    assert rank(TWEETS, dataset.select([2, 0]), "bm25") == [[2, 1, 0], [1, 2, 0]]


@pytest.mark.parametrize("name", ["LaMP-4", "LaMP-5", "LaMP-3"])
def test_what_arrow_joins_is_the_tasks_own_text(name: str) -> None:
    task = get_task(name)
    items = [{field: f"{field} {n} {{x}}" for field in ("id", *task.fields)} for n in range(3)]
    rows = [{"id": "1", "input": task.make_input(text="q"), "profile": items[:n]} for n in (3, 0, 2)]
    ((texts, queries),) = corpora(task, Dataset.from_list(rows))
    assert [array.to_pylist() for array in texts] == [[task.corpus_text(i) for i in items[:n]] for n in (3, 0, 2)]
    assert queries == ["q"] * 3


def test_an_unknown_retriever_is_an_error_that_lists_the_known_ones() -> None:
    known = "bm25, bm25-lamp, dense:NAME, recency, random"
    with pytest.raises(KitError, match=rf"'dense': set data\.retriever to one of {known}"):
        rank(TWEETS, [], "dense")


# --- take ---


def test_top_k_gives_the_first_k_or_fewer() -> None:
    one = example("q", ["a", "b", "c"])
    assert [item["text"] for item in top_k(one, [2, 0, 1], 2)] == ["c", "a"]
    assert [item["text"] for item in top_k(one, [2, 0, 1], 6)] == ["c", "a", "b"]
    assert top_k(one, [2, 0, 1], 0) == top_k(example("q", []), [], 4) == []
    with pytest.raises(KitError, match="k is -1"):
        top_k(one, [2, 0, 1], -1)
