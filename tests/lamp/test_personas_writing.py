"""What must hold for the users who write: tweets (LaMP-7), headlines (LaMP-4) and paper titles (LaMP-5)."""

import json
import random
from collections import Counter
from statistics import mean

import pytest

from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.personas import build, frames, headlines, titles, tweets
from rpo_kit.lamp.personas.grammar import Persona
from rpo_kit.lamp.tasks import Task, get_task

PERSONAS: dict[str, Persona] = {"LaMP-7": tweets, "LaMP-4": headlines, "LaMP-5": titles}
each_task = pytest.mark.parametrize("name", PERSONAS)


def _text_field(task: Task) -> str:
    return next(field for field in task.fields if field != "title")


# --- the way from a text's parts to the user's output, worked out by hand ---

STORY = {"did": "missed the last tram home", "when": "on payday", "then": "begged for a lift with my flatmate"}
NEWS = {
    "who": "Keldmoor council",
    "act": "drain",
    "thing": "old pool",
    "why": "cracks in the floor",
    "crowd": "75 letters",
    "say": "Cold water never hurt anyone",
    "person": "lifeguard Mara Beldow",
}
PAPER = {
    "task": "crack detection",
    "domain": "drone footage",
    "name": "Lumo",
    "method": "patch shuffling",
    "aim": "stability under fog",
}


@pytest.mark.parametrize(
    ("voice", "tweet"),
    [
        ("grumpy", "ugh missed last tram home on payday smh"),
        ("bubbly", "omg begged for a lift with my flatmate on payday xx"),
        ("joker", "lol begged 4 a lift w me flatmate cuz i missed the last tram home haha"),
        ("chatty", "ok i missed the last tram home so begged for a lift with my flatmate tbh"),
        ("diary", "diary: on payday i missed the last tram home sigh"),
    ],
)
def test_each_voice_tells_the_story_in_its_own_way(voice: str, tweet: str) -> None:
    assert tweets.apply(voice, {**STORY}) == tweet


@pytest.mark.parametrize(
    ("frame", "headline"),
    [
        ("question", "Why drain old pool, Keldmoor council?"),
        ("number", "75 letters, cracks in the floor, one old pool"),
        ("quote", "'Cold water never hurt anyone', says lifeguard Mara Beldow"),
        ("kicker", "Old pool row: lifeguard Mara Beldow confronts Keldmoor council"),
        ("verdict", "Right to drain old pool after cracks in the floor"),
    ],
)
def test_each_editor_takes_other_words_from_the_article(frame: str, headline: str) -> None:
    assert headlines.apply(frame, {**NEWS}) == headline


@pytest.mark.parametrize(
    ("frame", "title"),
    [
        ("via", "Crack detection via patch shuffling"),
        ("question", "Can patch shuffling improve stability under fog?"),
        ("on", "On stability under fog in drone footage"),
        ("name", "Lumo: crack detection in drone footage"),
        ("towards", "Towards crack detection with stability under fog"),
    ],
)
def test_each_scholar_takes_other_words_from_the_abstract(frame: str, title: str) -> None:
    assert titles.apply(frame, {**PAPER}) == title


def test_a_plan_gives_the_frame_and_where_each_part_starts() -> None:
    assert tweets.plan("grumpy", {**STORY}, "whatever") == "grumpy: ugh missed.. on.. smh"
    assert tweets.plan("joker", {**STORY}, "whatever") == "joker: lol begged.. cuz i missed.. haha"
    assert headlines.plan("question", {**NEWS}, "whatever") == "question: Why drain old.., Keldmoor..?"
    assert titles.plan("via", {**PAPER}, "whatever") == "via: crack.. via patch.."


def test_an_article_alone_does_not_stand_for_a_part() -> None:
    assert frames.outline("after {why}", {"why": "a burst pipe in the attic"}) == "after a burst.."
    assert frames.outline("after {why}", {"why": "a flood"}) == "after a flood"


def test_an_observation_names_the_words_that_show_the_habit() -> None:
    grumble = {"text": "ugh missed last tram home on payday smh"}
    assert tweets.observe(grumble, {"opens": "ugh", "ends": "smh"}) == "opens ugh, ends smh: grumpy"
    news = {"text": "", "title": "Why drain old pool, Keldmoor council?"}
    assert headlines.observe(news, {"mark": "Why"}) == "title has Why: question"
    paper = {"title": "Lumo: crack detection in drone footage", "abstract": ""}
    assert titles.observe(paper, {"mark": "colon"}) == "title has colon: name"


def test_a_text_in_nobodys_frame_shows_no_habit() -> None:
    assert tweets.shown_habit({"text": "just a tweet"}, {}) is None
    assert tweets.shown_habit({"text": "ugh no closing word"}, {}) is None
    assert headlines.shown_habit({"text": "", "title": "Pool closes"}, {}) is None
    assert titles.shown_habit({"title": "Deep patch shuffling", "abstract": ""}, {}) is None


# --- what can be read in the generated texts ---


@each_task
def test_every_item_shows_the_habit_it_was_made_for(name: str) -> None:
    persona, rng = PERSONAS[name], random.Random(1)
    for habit in persona.HABITS * 100:
        item, facts = persona.make_item(rng, habit)
        assert persona.shown_habit(item, facts) == habit
        assert set(item) == set(get_task(name).fields)


@each_task
def test_the_query_has_every_part_of_the_gold_word_for_word(name: str) -> None:
    persona, rng = PERSONAS[name], random.Random(2)
    for habit in persona.HABITS * 100:
        text, output, facts = persona.make_query(rng, habit)
        told = get_task(name).query_text(text)
        assert all(str(part).casefold() in told.casefold() for part in facts.values()), told
        assert output == persona.apply(habit, facts)


@pytest.mark.parametrize("name", ["LaMP-4", "LaMP-5"])
def test_an_items_own_text_holds_the_words_of_its_title(name: str) -> None:
    persona, task, rng = PERSONAS[name], get_task(name), random.Random(3)
    frame_words = {"why", "one", "says", "row", "confronts", "right", "to", "after", "via", "can", "improve", "on"}
    frame_words |= {"in", "towards", "with"}
    for habit in persona.HABITS * 100:
        item, _ = persona.make_item(rng, habit)
        title, text = (_words(item[field]) for field in ("title", _text_field(task)))
        assert set(title) - set(text) <= frame_words, item


@each_task
def test_observations_and_plans_are_short(name: str) -> None:
    persona, rng = PERSONAS[name], random.Random(4)
    for habit in persona.HABITS * 50:
        _, _, facts = persona.make_query(rng, habit)
        assert len(persona.observe(*persona.make_item(rng, habit)).split()) <= 7
        assert len(persona.plan(habit, facts, "a generic answer").split()) <= 12


@each_task
def test_texts_are_short(name: str) -> None:
    persona, task, rng = PERSONAS[name], get_task(name), random.Random(5)
    items = [len(persona.make_item(rng, habit)[0][_text_field(task)].split()) for habit in persona.HABITS * 60]
    queries = [len(task.query_text(persona.make_query(rng, habit)[0]).split()) for habit in persona.HABITS * 60]
    assert max(items) <= 28
    assert 12 <= mean(items) <= 20
    assert min(queries) >= 14
    assert max(queries) <= 46


# --- variety: no template to be seen after a page of reading ---


@each_task
def test_hardly_any_two_texts_are_the_same_and_no_five_words_keep_recurring(name: str) -> None:
    persona, task, rng = PERSONAS[name], get_task(name), random.Random(6)
    habits = [rng.choice(persona.HABITS) for _ in range(2000)]
    items = [persona.make_item(rng, habit)[0][_text_field(task)] for habit in habits]
    queries = [task.query_text(persona.make_query(rng, habit)[0]) for habit in habits]
    for texts in (items, queries):
        assert len(set(texts)) >= 0.97 * len(texts)
        sequences = Counter(five for text in texts for five in _fives(text))
        assert sequences.most_common(1)[0][1] < 0.02 * len(texts), sequences.most_common(3)


@each_task
def test_texts_are_tidy(name: str) -> None:
    persona, task, rng = PERSONAS[name], get_task(name), random.Random(7)
    for habit in persona.HABITS * 200:
        item = persona.make_item(rng, habit)[0]
        for text in (*item.values(), task.query_text(persona.make_query(rng, habit)[0])):
            assert not any(mark in text for mark in ("{", "[", "|", "  ", " ,", " .", "..")), text


# --- the habit must matter: ROUGE tells the right frame from the wrong one, and from a copy ---


@each_task
def test_following_the_wrong_habit_costs_at_least_a_third_and_never_pays(name: str) -> None:
    persona, task = PERSONAS[name], get_task(name)
    golds, facts = _queries(persona, 60)
    loss = {}
    for wrong in persona.HABITS:
        scores = example_scores(task, golds, [persona.apply(wrong, fact) for fact in facts])
        for right in persona.HABITS:
            picked = [score for n, score in enumerate(scores) if persona.HABITS[n % 5] == right]
            loss[right, wrong] = 1 - mean(picked)
    assert all(value == 0 for (right, wrong), value in loss.items() if right == wrong)
    assert all(value > 0.35 for (right, wrong), value in loss.items() if right != wrong), loss
    assert mean(value for (right, wrong), value in loss.items() if right != wrong) > 0.5


@each_task
def test_copying_an_items_output_scores_badly(name: str) -> None:
    task = get_task(name)
    rows = list(build(name, "dev", 300, items_per_user=1))
    copies = [row["profile"][0][task.gold_field] for row in rows]
    assert example_scores(task, [row["output"] for row in rows], copies).mean() < 0.27


@each_task
def test_repeating_the_query_scores_far_below_the_users_way(name: str) -> None:
    task = get_task(name)
    rows = list(build(name, "dev", 300, items_per_user=1))
    repeats = [task.query_text(row["input"]) for row in rows]
    assert 0.2 < example_scores(task, [row["output"] for row in rows], repeats).mean() < 0.65


@each_task
def test_the_majority_of_six_items_shows_the_habit_more_often_than_one_item(name: str) -> None:
    persona = PERSONAS[name]
    rows = list(build(name, "dev", 300))
    right = {1: 0, 6: 0}
    for row in rows:
        shown = [persona.shown_habit(item, row["facts"]["items"][item["id"]]) for item in row["profile"]]
        for k in right:
            right[k] += Counter(shown[:k]).most_common(1)[0][0] == row["facts"]["habit"]["name"]
    assert 0.7 < right[1] / len(rows) < 0.9
    assert right[6] / len(rows) > 0.95


@each_task
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str) -> None:
    first, again, other = (json.dumps(list(build(name, "train", 20, seed=seed))) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def _queries(persona: Persona, rounds: int) -> tuple[list[str], list[dict[str, str | int]]]:
    rng = random.Random(8)
    made = [persona.make_query(rng, habit) for habit in persona.HABITS * rounds]
    return [output for _, output, _ in made], [facts for _, _, facts in made]


def _words(text: str) -> list[str]:
    """Lower case, without the marks around words."""
    return [word for word in (raw.strip("\"'.,:;?!()") for raw in text.lower().split()) if word]


def _fives(text: str) -> set[str]:
    """Distinct sequences of five words in a text."""
    words = _words(text)
    return {" ".join(words[n : n + 5]) for n in range(len(words) - 4)}
