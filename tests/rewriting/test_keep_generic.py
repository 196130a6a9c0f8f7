"""The rule that keeps the generic answer: what it catches, and that it spares what people really wrote."""

from __future__ import annotations

import pytest

from rpo_kit.lamp.personas import build, persona
from rpo_kit.lamp.tasks import get_task
from rpo_kit.presets import EvaluationSettings
from rpo_kit.rewriting.keep_generic import reason_to_keep

TWEETS, LEAST = get_task("LaMP-7"), EvaluationSettings().keep_content
BOILER = "The boiler broke on Christmas Eve and we ate cold pizza in our coats."
ADDED = "It reminded me how unpredictable life can be, and that small moments become stories for friends and family."
PROFILE = [{"id": "1", "text": "finally finished my essay, time for bed"}]


def reason(rewrite: str, generic: str = "Our boiler broke on Christmas Eve, so we ate cold pizza.", **other):
    values = {"task": TWEETS, "query": BOILER, "profile": PROFILE, "least": LEAST} | other
    return reason_to_keep(values["task"], values["query"], generic, rewrite, values["profile"], values["least"])


@pytest.mark.parametrize(
    "generic",
    ["Our boiler broke on Christmas Eve, so we ate cold pizza.", "Our boiler broke on Christmas Eve.", "I am sorry."],
)
def test_a_rewrite_of_which_a_few_words_are_left_is_not_used(generic):
    assert reason("christmas eve joker", generic) == (
        "The rewrite keeps 25 % of the content; missing: boiler, broke, ate, …"
    )


def test_a_rewrite_about_something_else_is_not_used_however_long():
    told = reason("omg sewed everything up with red thread in broad daylight while waiting for a very late bus xx")
    assert told == "The rewrite keeps 0 % of the content; missing: boiler, broke, Christmas, …"


@pytest.mark.parametrize(
    "rewrite",
    [
        "ugh boiler broke on christmas eve smh",  # half of the content, as the personas' own voices keep
        "heating died the night before xmas, frozen dinner wearing jackets, boiler man not coming til monday",
        BOILER,
    ],
)
def test_a_rewrite_that_keeps_half_or_says_as_much_in_other_words_is_used(rewrite):
    assert reason(rewrite) is None


def test_a_title_may_choose_other_words_of_a_long_article_than_the_generic_one():
    article = (
        "The city council voted last night to turn the abandoned railway yard behind the harbor into a public garden. "
        "Volunteers from three schools will plant apple trees, and the mayor promised benches before winter arrives. "
        "Neighbors had asked for a parking garage, but a survey of two thousand households found little support."
    )
    values = {"task": get_task("LaMP-4"), "query": article, "generic": "City council approves project"}
    assert reason("Abandoned railway yard becomes public garden", **values) is None
    assert "keeps 0 %" in reason("Seven wonderful recipes for busy parents", **values)


@pytest.mark.parametrize(
    "generic",
    [
        f"{BOILER} It was truly an unforgettable evening that taught us patience, planning and calm under pressure.",
        f"Here is a friendly version of your tweet: {BOILER} Shall I make it shorter, funnier, or add some hashtags?",
    ],
)
def test_what_a_talkative_black_box_adds_to_the_query_may_go(generic):
    assert reason("ugh boiler broke on christmas eve smh", generic) is None
    assert reason(BOILER, generic) is None
    assert reason("christmas eve joker", generic)


def test_a_query_without_content_leaves_the_generic_answer_to_compare_with():
    generic = "The boiler broke, so Ann walked two miles to buy cold pizza and coats."
    assert reason("boiler joker", generic, query="Where is it?")
    assert reason("boiler broke so ann walked 2 miles", generic, query="Where is it?") is None


def test_without_a_profile_there_is_nothing_to_fit_the_answer_to():
    told = "The profile is empty: there is nothing to fit the answer to."
    assert reason(BOILER, profile=[]) == told
    assert reason_to_keep(get_task("LaMP-3"), "It leaks.", "3", "1", [], LEAST) == told
    assert reason_to_keep(get_task("LaMP-3"), "It leaks.", "3", "1", PROFILE, LEAST) is None, "a label has no content"


def test_the_rule_can_be_turned_off_and_never_keeps_an_empty_answer():
    assert reason("christmas eve joker", least=0.0) is None
    assert reason("christmas eve joker", profile=[], least=0.0) is None
    assert reason("christmas eve joker", generic=" \n") is None
    assert reason("christmas eve joker", least=0.2) is None, "a quarter is enough then"


def test_headlines_and_titles_may_be_short_but_not_about_something_else():
    headlines = get_task("LaMP-4")
    assert not headlines.is_paraphrase
    article = "Keldmoor council voted to drain the old pool because of cracks. The move drew 75 letters from swimmers."
    generic = "Keldmoor council to drain old pool"
    assert reason_to_keep(headlines, article, generic, "75 letters, one old pool", PROFILE, LEAST) is None
    assert reason_to_keep(headlines, article, generic, "Why ban kites?", PROFILE, LEAST)


@pytest.mark.parametrize("name", ["LaMP-4", "LaMP-5", "LaMP-7"])
def test_of_the_golds_of_the_embedded_benchmark_at_most_one_in_a_hundred_would_not_be_used(name):
    """In every voice, with a black box that repeats the query, apologises, keeps its first half, or adds to it."""
    task, rules, unused, count = get_task(name), persona(name), 0, 0
    for example in build(name, "dev", 100):
        query = task.query_text(example["input"])
        words = query.split()
        for generic in (query, "I'm sorry, I cannot help.", " ".join(words[: len(words) // 2]), f"{query} {ADDED}"):
            for habit in rules.HABITS:
                gold = rules.apply(habit, example["facts"]["query"])
                unused += bool(reason_to_keep(task, query, generic, gold, PROFILE, LEAST))
                count += 1
    assert unused <= 0.01 * count
