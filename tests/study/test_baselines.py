"""Baselines beside RPO: what they answer, by hand, and which prompts the base model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.chat import Completion
from rpo_kit.models.local import LoadedModel, LocalChat, prompt_tokens
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.setting_rules import TRIVIAL
from rpo_kit.study.baselines import (
    answer_with_summary,
    constant,
    copy_nearest,
    echo,
    inject_context,
    lead,
    majority,
    why_undefined,
)

RATINGS, MOVIES, HEADLINES = get_task("LaMP-3"), get_task("LaMP-2"), get_task("LaMP-4")


def rated(*scores: str, ranking: list[int] | None = None) -> dict[str, Any]:
    profile = [{"id": str(n), "text": f"text {n}", "score": score} for n, score in enumerate(scores)]
    example = {"id": "7", "input": RATINGS.make_input(text="fine"), "profile": profile, "generic": "3"}
    return example | {"ranking": ranking or list(range(len(scores)))}


def test_the_median_rating_may_lie_between_two_and_an_empty_history_leaves_the_generic_answer() -> None:
    assert majority(RATINGS, rated("5", "1", "4")) == "4"
    assert majority(RATINGS, rated("4", "4", "5", "5")) == "4.5"
    assert majority(RATINGS, rated()) == copy_nearest(RATINGS, rated()) == "3"


def test_in_a_tie_the_label_of_the_better_ranked_item_wins() -> None:
    profile = [{"id": str(n), "description": "x", "tag": tag} for n, tag in enumerate(["comedy", "classic", "comedy"])]
    example = {"profile": profile, "ranking": [1, 0, 2], "generic": "action"}
    assert majority(MOVIES, example) == "comedy"
    assert majority(MOVIES, example | {"ranking": [1, 0]}) == "classic"


def test_copying_takes_the_gold_of_the_item_ranked_first() -> None:
    assert copy_nearest(RATINGS, rated("5", "1", "4", ranking=[2, 0, 1])) == "4"
    profile = [{"id": "1", "text": "a", "title": "Rain"}]
    assert copy_nearest(HEADLINES, {"profile": profile, "ranking": [0]}) == "Rain"


@pytest.mark.parametrize(
    ("item", "label"), [("On sails and masts", "[1]"), ("Knots of Ropes", "[2]"), ("Algebra", "[1]")]
)
def test_for_citations_copying_takes_the_reference_nearer_to_the_item_ranked_first(item: str, label: str) -> None:
    task = get_task("LaMP-1")
    input = task.make_input(title="Ships", ref1="Masts and sails", ref2="Ropes and more knots")
    profile = [{"id": "1", "title": item, "abstract": "-"}]
    assert copy_nearest(task, {"input": input, "profile": profile, "ranking": [0]}) == label


def test_a_majority_needs_labels_in_the_history() -> None:
    tasks = ("LaMP-1", "LaMP-2", "LaMP-2-news", "LaMP-3", "LaMP-4", "LaMP-7")
    undefined = [why_undefined("majority", get_task(name)) for name in tasks]
    assert undefined[1:4] == ["", "", ""]
    assert [undefined[n] for n in (0, 4, 5)] == [f"items of {tasks[n]} have no label" for n in (0, 4, 5)]
    assert not any(why_undefined(system, get_task("LaMP-1")) for system in ("base", "copy-nearest", "pag-0"))


@pytest.mark.parametrize(
    ("name", "baselines"),
    [
        ("LaMP-1", ["constant", "copy-nearest"]),
        ("LaMP-2", ["constant", "majority", "copy-nearest"]),
        ("LaMP-2-news", ["constant", "majority", "copy-nearest"]),
        ("LaMP-3", ["constant", "majority", "copy-nearest"]),
        ("LaMP-4", ["lead", "lead-12", "copy-nearest"]),
        ("LaMP-5", ["lead", "lead-12", "copy-nearest"]),
        ("LaMP-6", ["lead", "lead-12", "copy-nearest"]),
        ("LaMP-7", ["echo", "copy-nearest"]),
    ],
)
def test_each_task_has_the_trivial_baselines_that_make_sense_for_it(name: str, baselines: list[str]) -> None:
    asked = ("echo", "lead", "lead-12", "constant", "majority", "copy-nearest")
    assert set(TRIVIAL) == set(asked) - {"lead-12"}
    assert [system for system in asked if not why_undefined(system, get_task(name))] == baselines


def test_an_echo_is_the_tweet_to_paraphrase() -> None:
    task = get_task("LaMP-7")
    assert echo(task, {"input": task.make_input(text="I burnt  the toast.")}) == "I burnt  the toast."


@pytest.mark.parametrize(
    ("system", "answer"),
    [
        ("lead", "Rain fell on"),
        ("lead-1", "Rain"),
        ("lead-5", "Rain fell on Sunday"),
        ("lead-05", "Rain fell on Sunday"),
    ],
)
def test_a_lead_has_as_many_words_as_its_name_says_or_as_the_median_gold_of_train(system: str, answer: str) -> None:
    golds = ["one two", "one two three", "a b c d e f", "a b c d e f g h"]  # 2, 3, 6 and 8 words: the lower middle is 3
    example = {"input": HEADLINES.make_input(text="Rain fell\non Sunday")}
    assert lead(system, golds)(HEADLINES, example) == answer


def test_the_constant_is_the_label_with_the_best_score_on_train_and_for_ratings_not_the_most_frequent_one() -> None:
    assert constant(MOVIES, ["comedy", "classic", "classic"])(MOVIES, {}) == "classic"
    # errors of "1": 0 0 0 3 3 4 4, sum 14; of "4": 3 3 3 0 0 1 1, sum 11; of "5": 4 4 4 1 1 0 0, sum 14
    assert constant(RATINGS, ["1", "1", "1", "4", "4", "5", "5"])(RATINGS, rated("2")) == "4"
    citations = get_task("LaMP-1")
    assert constant(citations, ["[2]", "[1]"])(citations, {}) == "[1]", "in a tie the first label"


def test_context_injection_is_lamps_prompt_with_the_k_best_items(prepared: Any, recording_chat: Any) -> None:
    example = load_prepared(prepared(), "dev")[0]
    base = recording_chat(lambda conversation: "I'd say 4")
    ((found,),) = inject_context(base, RATINGS, [example], shots=2, tokens=32)
    assert found == {"id": example["id"], "prediction": "4", "raw": "I'd say 4", "finished": True}
    prompt = base.asked[0][0]["content"]
    shown = [item["text"] in prompt for item in (example["profile"][n] for n in example["ranking"])]
    assert shown == [True, True] + [False] * 5
    assert prompt.endswith(example["input"])


def test_pag_summarises_the_newest_items_first_and_answers_with_the_summary(
    recording_chat: Any, tmp_path: Path
) -> None:
    example = rated(*"12345" * 4)  # 20 items, without dates: the last ones are the newest
    base = recording_chat(lambda conversation: "Likes lids." if "typical" in conversation[0]["content"] else "4")
    kept = tmp_path / "summaries.jsonl"
    _, (found,) = answer_with_summary(base, RATINGS, [example], 1, 32, kept)
    assert found == {"id": "7", "prediction": "4", "raw": "4", "finished": True, "summary": "Likes lids."}
    request, prompt = (conversation[0]["content"] for conversation in base.asked)
    assert [f'"text {n}"' in request for n in (0, 3, 4, 19)] == [False, False, True, True], "sixteen of them"
    assert RATINGS.query_text(example["input"]) not in request, "the summary does not depend on the query"
    context = RATINGS.context_prompt(example["input"], example["profile"][:1])
    assert prompt == f"About the person who asks: Likes lids.\n\n{context}"
    ((again,),) = answer_with_summary(base, RATINGS, [example], 0, 32, kept)
    assert (again["summary"], len(base.asked)) == ("Likes lids.", 3), "made once for every K"


def test_pag_without_items_shows_the_summary_and_the_bare_query(recording_chat: Any, tmp_path: Path) -> None:
    base = recording_chat(lambda conversation: "4")
    list(answer_with_summary(base, RATINGS, [rated("5", "5")], 0, 32, tmp_path / "summaries.jsonl"))
    assert base.asked[1][0]["content"] == f"About the person who asks: 4\n\n{rated()['input']}"


class Small(LocalChat):
    """A model in this process with a small window, which records its prompts and always gives the same answer."""

    def __init__(self, folder: Any, window: int, says: str = "4") -> None:
        from transformers import AutoTokenizer

        super().__init__(LoadedModel(None, AutoTokenizer.from_pretrained(folder), window))
        self.says, self.prompts, self.sizes = says, [], []

    def complete(self, conversations: Any, *, max_new_tokens: int, temperature: float = 0.0) -> list[Completion]:
        self.prompts += [conversation[0]["content"] for conversation in conversations]
        self.sizes += [prompt_tokens(self.model.tokenizer, c) + max_new_tokens for c in conversations]
        return [Completion(self.says, True, 1, 1)] * len(conversations)


@pytest.mark.parametrize("shots", [0, 1, 6])
@pytest.mark.parametrize("text", ["a long story " * 500, "x" * 5000, "長い話" * 2000, "short"])
@pytest.mark.parametrize("window", [400, 600, 2000])
def test_no_prompt_of_pag_exceeds_the_window(
    tiny_llama: Any, tmp_path: Path, text: str, shots: int, window: int
) -> None:
    base = Small(tiny_llama, window, "Likes lids, and says so at length. " * 3)
    example = rated(*"12345" * 4)
    for item in example["profile"]:
        item["text"] = text
    _, (found,) = answer_with_summary(base, RATINGS, [example], shots, 12, tmp_path / "summaries.jsonl")
    assert max(base.sizes) <= window
    assert found["summary"] in base.prompts[1]
    assert base.prompts[1].endswith(example["input"])
    if window == 2000:
        assert base.prompts[0].count("-> ") == 16, "all sixteen with their ratings"
        assert base.prompts[1].count("is the score for") == shots


def test_what_does_not_fit_the_window_is_an_error_that_names_the_setting(tiny_llama: Any, tmp_path: Path) -> None:
    kept = tmp_path / "summaries.jsonl"
    with pytest.raises(KitError, match=r"history of example 7 cannot be summarized .*Raise that setting"):
        list(answer_with_summary(Small(tiny_llama, 150), RATINGS, [rated(*"12345")], 1, 12, kept))
    example = rated("5") | {"input": RATINGS.make_input(text="a long question " * 200)}
    with pytest.raises(
        KitError, match=r"Example 7 with its summary is \d+ tokens too long .*raise reflection.max_seq_length"
    ):
        list(answer_with_summary(Small(tiny_llama, 600), RATINGS, [example], 1, 12, kept))


def test_a_model_in_this_process_gets_prompts_that_fit_its_window(tiny_llama: Any) -> None:
    base = Small(tiny_llama, 512)
    example = rated("5", "4")
    for item in example["profile"]:
        item["text"] = "a long story " * 500
    list(inject_context(base, RATINGS, [example], shots=2, tokens=32))
    assert base.prompts[0].endswith(example["input"])
    assert base.prompts[0].count("is the score for") == 2
    room = prompt_tokens(base.model.tokenizer, [{"role": "user", "content": base.prompts[0]}]) + 32
    assert 400 < room <= 512 + 16
