"""The answer in a chatty reply: whatever surrounds it is removed, and the answer itself is unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo_kit.lamp.labels import find_label
from rpo_kit.lamp.reading import read, without_thoughts
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task

ALL = TASKS | MORE_TASKS
RATINGS, CITATIONS, MOVIES, HEADLINES, TWEETS = (
    get_task(name) for name in ("LaMP-3", "LaMP-1", "LaMP-2", "LaMP-4", "LaMP-7")
)
RATINGS_READ = [
    ("4", "4"),
    ("I'd give it 4 out of 5.", "4"),
    ("**Score: 2**", "2"),
    ("10", "10"),
    (" no idea ", "no idea"),
    ("<think>It runs from 1 to 5. It leaks, so low.</think>\n\n2", "2"),
    ("On a scale of 1 to 5, I would give this a 2.", "2"),
    ("<thinking>1 to 5</thinking>3", "3"),
    ("I think 1 star at first.</think>\n4", "4"),
    ("[THINK]1..5[/THINK]3", "3"),
    ("◁think▷maybe 1◁/think▷ 5", "5"),
    ("<think>It could be 1", ""),
    ("1-5: 4", "4"),
    ("(1-5) 3", "3"),
    ("Rating (1-5): 3", "3"),
    ("4/5", "4"),
    ("4.5/5", "4.5"),
    ("4.5", "4.5"),
    ("4.0", "4"),
    ("4,5 out of 5 stars", "4.5"),
    ("8/10", "8/10"),
    ("4 out of 10", "4 out of 10"),
    ("Out of 5 stars, I'd give 2.", "2"),
    ("four out of five stars", "4"),
    ("★★★☆☆", "3"),
    ("Four", "4"),
    ("On a scale from 1 (worst) to 5 (best), this is a 4.", "4"),
    ("With 1 being the worst and 5 the best, I'd say 3.", "3"),
    ("On a 5-point scale: 2", "2"),
    ("Among 1, 2, 3, 4, or 5 I choose 4.", "4"),
    ("I bought 2 of these. Rating: 5", "5"),
    ("RATING: 3", "3"),
    ("5 stars", "5"),
    ("0.5", "0.5"),
    ("3.5 stars", "3.5"),
    ("```\n4\n```", "4"),
    ("{\"rating\": 4}", "4"),
    ("```json\n{\"score\": 2, \"why\": \"1 lid\"}\n```", "2"),
    ("The score is 4 on a scale of 1-5", "4"),
    ("I'd rate it a 2 on a scale between 1 and 5.", "2"),
    ("between 1 and 5, I'd say 4", "4"),
    ("Score: 3 (out of 5)", "3"),
    ("3 of 5", "3"),
    ("1 to 5", "1 to 5"),
    ("As an AI, I cannot rate this from 1 to 5.", "As an AI, I cannot rate this from 1 to 5."),
    ("$5 wasted. 1", "1"),
    ("5-star product", "5"),
]  # fmt: skip
LABELS_READ = [
    ("LaMP-1", "Reference [2] is related, not [1].", "[2]"),
    ("LaMP-2", "The tag is Dark Comedy.", "dark comedy"),
    ("LaMP-2", "comedies, perhaps romance", "romance"),
    ("LaMP-2", "a based on a book story", "based on a book"),
    ("LaMP-1", "Between [1] and [2], I choose [2].", "[2]"),
    ("LaMP-1", "2", "[2]"),
    ("LaMP-1", "Reference 1", "[1]"),
    ("LaMP-1", "\\[2\\]", "[2]"),
    ("LaMP-1", "Not [1] but [2]", "[2]"),
    ("LaMP-1", "[1] is not related, [2] is.", "[2]"),
    ("LaMP-1", "Answer: [1]", "[1]"),
    ("LaMP-1", "<answer>[2]</answer>", "[2]"),
    ("LaMP-2", "SCI FI", "sci-fi"),
    ("LaMP-2", "Sci‑Fi", "sci-fi"),
    ("LaMP-2", "thought provoking", "thought-provoking"),
    ("LaMP-2", "tags: [sci-fi, based on a book, comedy, action]. The tag: action", "action"),
    ("LaMP-2", "**Comedy**", "comedy"),
    ("LaMP-2-news", "Style and Beauty", "style & beauty"),
    ("LaMP-2-news", "food &amp; drink", "food & drink"),
]  # fmt: skip
TEXTS_READ = [
    ("LaMP-4", "\n\nHeadline: \"Rain at last\"\nIt rained.", "Rain at last"),
    ("LaMP-5", "Title: On lids\n", "On lids"),
    ("LaMP-7", "", ""),
    ("LaMP-4", "Sure! Here is a headline for the article:\n\nRain returns to the coast", "Rain returns to the coast"),
    ("LaMP-4", "Here's a headline: Rain returns", "Rain returns"),
    ("LaMP-4", "**Headline:** Rain returns", "Rain returns"),
    ("LaMP-4", "HEADLINE: Rain", "Rain"),
    ("LaMP-4", "title - x", "title - x"),
    ("LaMP-4", "Certainly!\n\n**Rain returns**", "Rain returns"),
    ("LaMP-4", "Here are some headlines:\n\n1. Rain returns\n2. No rain", "Rain returns"),
    ("LaMP-4", "1. Rain returns\n2. No rain", "Rain returns"),
    ("LaMP-4", "A good headline would be \"Rain returns\".", "Rain returns"),
    ("LaMP-4", "The title race: who wins?", "The title race: who wins?"),
    ("LaMP-4", "# Rain returns", "Rain returns"),
    ("LaMP-4", "```\nRain returns\n```", "Rain returns"),
    ("LaMP-4", "```Rain returns```", "Rain returns"),
    ("LaMP-4", "`Rain`", "Rain"),
    ("LaMP-4", "\"Rain\" and \"Snow\"", "\"Rain\" and \"Snow\""),
    ("LaMP-4", "\"He said \"no\"\"", "He said \"no\""),
    ("LaMP-4", "“Rain”", "Rain"),
    ("LaMP-4", "@X: \"I'm here\"", "@X: \"I'm here\""),
    ("LaMP-7", "@X: \"I'm …\"", "@X: \"I'm …\""),
    ("LaMP-4", "<think>hmm: headline\nx</think>Rain", "Rain"),
    ("LaMP-4", "Okay, here's a possible headline for the article:\n\"Rain: a return\"", "Rain: a return"),
    ("LaMP-4", "Sure, here you go!\nRain", "Rain"),
    ("LaMP-5", "The title of the paper could be: On lids", "On lids"),
    ("LaMP-5", "Possible Title: \"On lids\"", "On lids"),
    ("LaMP-5", "On Lids: A Study", "On Lids: A Study"),
    ("LaMP-5", "Here we go again: lids", "Here we go again: lids"),
    ("LaMP-7", "Paraphrased tweet: I am tired", "I am tired"),
    ("LaMP-7", "Here is a paraphrase of the tweet: I am tired", "I am tired"),
    ("LaMP-7", "Sure, I love it", "Sure, I love it"),
    ("LaMP-7", "Yes! I did it", "Yes! I did it"),
    ("LaMP-7", "*sigh* I am tired *cry*", "*sigh* I am tired *cry*"),
    ("LaMP-7", "I can't assist with that request.", "I can't assist with that request."),
    ("LaMP-7", "\"x\"", "x"),
    ("LaMP-7", "\"x", "\"x"),
    ("LaMP-7", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>tired", "tired"),
    ("LaMP-7", "analysisThe user is tired.assistantfinaltired", "tired"),
    ("LaMP-7", "Here's the deal: I am broke", "Here's the deal: I am broke"),
    ("LaMP-7", "This is my new answer to you: no", "This is my new answer to you: no"),
    ("LaMP-4", "{\"headline\": \"Rain\"}", "Rain"),
    ("LaMP-4", "Headline:\nRain", "Rain"),
    ("LaMP-4", "**Headline:**\n\n**Rain**", "Rain"),
    ("LaMP-4", "Headline: Rain\n\nExplanation: it rained", "Rain"),
    ("LaMP-4", "'90s nostalgia dancin'", "'90s nostalgia dancin'"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "rating"), RATINGS_READ)
def test_a_rating_is_read_and_not_the_scale_beside_it(reply, rating):
    assert read(RATINGS, reply).text == rating


@pytest.mark.parametrize(("name", "reply", "label"), LABELS_READ)
def test_a_label_is_read_however_it_is_spelled(name, reply, label):
    assert read(get_task(name), reply).text == label


@pytest.mark.parametrize(("name", "reply", "text"), TEXTS_READ)
def test_a_text_is_read_without_what_the_model_says_about_it(name, reply, text):
    assert read(get_task(name), reply).text == text


# ---- thoughts -----------------------------------------------------------------------------------------------------

THOUGHTS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<THOUGHT>", "</THOUGHT>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]
ANY = st.text(st.characters(codec="utf-8", exclude_characters="<>[]◁▷|"), max_size=30)


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
@given(thought=ANY, before=ANY, after=ANY)
def test_thoughts_are_removed_whatever_they_say(opening, closing, thought, before, after):
    assert without_thoughts(f"{before}{opening}{thought}{closing}{after}") == f"{before}{after}".strip()
    assert without_thoughts(f"{thought}{closing}{after}") == after.strip(), "the chat template may have opened them"
    assert without_thoughts(f"{before}{opening}{thought}") == before.strip(), "they may have been cut off"
    assert without_thoughts(f"{opening}{opening}{thought}{closing}{thought}{closing}{after}") == after.strip()


@given(ANY)
def test_a_text_without_thoughts_is_unchanged(text):
    assert without_thoughts(text) == text.strip()


# ---- properties ---------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "Sure! ",
            "Here is a headline: ",
            "\n",
            "Title: ",
            '"',
            "**",
            "```",
            "<think>",
            "</think>",
            ":",
            "- ",
            "# ",
            "'",
        ),
        *(
            "1",
            "[1]",
            "[2]",
            "4.5",
            " on a scale of 1 to 5 ",
            "/5",
            " out of ",
            " to ",
            "-",
            "★",
            "sci-fi",
            ", ",
            "not ",
        ),
        *("{", "}"),
    ]
)
REPLIES = st.lists(PIECES | st.text(max_size=5), max_size=14).map("".join)


@given(REPLIES, st.sampled_from(sorted(ALL)))
def test_reading_never_raises_and_reading_again_changes_nothing(reply, name):
    text = read(ALL[name], reply).text
    assert text == text.strip()
    if ALL[name].kind == "generation":
        assert "\n" not in text
    elif find_label(ALL[name], text) is not None:
        assert read(ALL[name], text).text == text


@given(REPLIES, st.sampled_from([name for name in ALL if ALL[name].labels]))
def test_what_is_found_is_on_the_tasks_list(reply, name):
    label = find_label(ALL[name], reply)
    if ALL[name].kind == "regression":
        assert label is None or 1 <= float(label) <= 5
    else:
        assert label is None or label in ALL[name].labels


WORDS = st.lists(
    st.sampled_from(["Rain", "returns", "it's", "to", "@X:", "coast,", "5", "&", "#fb", "…", "(again)"]), min_size=1
)


@given(WORDS.map(" ".join), st.sampled_from(["", "\n", "Sure! Here is a headline:\n\n", "**Headline:** ", "Title: "]))
def test_a_headline_survives_every_frame(headline, frame):
    assert read(HEADLINES, frame + headline).text == headline
    assert read(HEADLINES, f'{frame}"{headline}"').text == headline
    assert read(HEADLINES, f"{frame}**{headline}**\n\nIt says what happened.").text == headline
    assert read(HEADLINES, f"<think>x: {headline}</think>\n```\n{headline}\n```").text == headline


@given(st.integers(1, 5), st.sampled_from(["on a scale of 1 to 5", "on a scale from 1 to 5", "(1-5)", "from 1 to 5"]))
def test_a_rating_survives_every_scale(rating, scale):
    for reply in (f"{scale}: {rating}", f"I'd give it a {rating} {scale}.", f"Rating {scale}: {rating}/5"):
        assert read(RATINGS, reply).text == str(rating)


@given(st.sampled_from(MOVIES.labels), st.sampled_from([str.upper, str.title, str.lower]), ANY)
def test_a_tag_is_read_in_any_case(tag, case, thought):
    assert read(MOVIES, f"<think>{thought}</think>{case(tag)}.").text == tag


# ---- what is counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "reply", "removed", "refusal"),
    [
        (HEADLINES, "Sure! Here is a headline:\n\nRain", ("preamble",), False),
        (HEADLINES, "<think>hm</think>Here's a title: Rain", ("thoughts", "preamble"), False),
        (HEADLINES, "Headline: Rain", (), False),
        (HEADLINES, "I'm sorry, but I can't help with that.", (), True),
        (HEADLINES, "As an AI language model, I do not write headlines.", (), True),
        (TWEETS, "I cannot paraphrase this tweet.", (), True),
        (TWEETS, "I can't help it lol", (), False),
        (TWEETS, "i'm so sorry, i can't wait", (), False),
        (RATINGS, "As an AI, I cannot rate this from 1 to 5.", (), True),
        (RATINGS, "As an AI I have no taste, but I'd say 4.", (), False),
        (RATINGS, "<think>1 to 5</think>4", ("thoughts",), False),
        (CITATIONS, "I don't have enough information.", (), True),
    ],
)
def test_preambles_thoughts_and_refusals_are_reported(task, reply, removed, refusal):
    reading = read(task, reply)
    assert (reading.removed, reading.refusal) == (removed, refusal)


@pytest.mark.parametrize(
    "text",
    [
        "OK This flu has decided to start migrating: it's in my chest",
        "YES! My new idea: a tour to more cities",
        "Okay everyone c: i'm gonna try to sleep",
        "The title race: who wins?",
        "Here we go again: lids",
        "Great day, but still doing HW :9",
        "Sorry to hear that you cannot come",
        "'90s nostalgia, and everyone's dancin'",
        "*sigh* I am tired *cry*",
        '"Rain" and "Snow"',
        "1. FC Union wins",
        "[ANALYSIS] Why it rains",
    ],
)
def test_what_people_write_is_not_a_preamble(text):
    for task in (HEADLINES, TWEETS):
        reading = read(task, text)
        assert (reading.text, reading.removed, reading.refusal) == (text, (), False)


@pytest.mark.parametrize("piece", ["<think>", "<", "3 ", "not [1] ", "Sure! ", "here is a title ", '"', "1 to ", "{"])
def test_a_huge_reply_is_read_at_once(piece):
    for name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4"):
        reading = read(get_task(name), piece * 20_000)
        assert isinstance(reading.text, str)
        assert len(reading.text) <= len(piece) * 20_000, "nothing is made up"
