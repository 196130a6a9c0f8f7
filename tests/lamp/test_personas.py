"""The embedded benchmark: what a user of it relies on, and the habits of raters, film taggers and citing authors."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import read_lamp
from rpo_kit.lamp.personas import MODULES, build, citations, grammar, movies, persona, ratings, write
from rpo_kit.lamp.tasks import TASKS

ALL = list(MODULES)
CHOOSING = ["LaMP-1", "LaMP-2", "LaMP-3"]  # the tasks of this file; the writing tasks have their own
ITEM_WORDS = {"LaMP-1": (20, 36), "LaMP-2": (22, 32), "LaMP-3": (12, 22)}  # of the longest field
QUERY_WORDS = {"LaMP-2": (25, 40), "LaMP-3": (16, 28)}


@pytest.fixture(scope="module")
def many() -> dict[str, list[dict]]:
    return {task: list(build(task, "train", 2000, items_per_user=1)) for task in CHOOSING}


def longest_field(item: dict[str, str]) -> str:
    return max((value for key, value in item.items() if key != "id"), key=len)


# --- the benchmark as a whole


@pytest.mark.parametrize("task", ALL)
def test_the_gold_always_follows_the_habit(task):
    for row in build(task, "dev", 40):
        assert persona(task).apply(row["facts"]["habit"]["name"], row["facts"]["query"]) == row["output"]


@pytest.mark.parametrize("task", ALL)
def test_an_item_made_to_show_a_habit_shows_it(task):
    module, rng = persona(task), random.Random("items")
    for habit in module.HABITS * 10:
        assert module.shown_habit(*module.make_item(rng, habit)) == habit


@pytest.mark.parametrize("task", CHOOSING)
def test_items_show_the_habit_as_often_as_stated(task):
    module = persona(task)
    shows = [
        module.shown_habit(item, row["facts"]["items"][item["id"]]) == row["facts"]["habit"]["name"]
        for row in build(task, "train", 200)
        for item in row["profile"]
    ]
    assert sum(shows) / len(shows) == pytest.approx(module.SHOWS, abs=0.025)  # 2,400 items: three standard errors


@pytest.mark.parametrize("task", ALL)
def test_habits_are_dealt_evenly(task):
    habits = persona(task).HABITS
    dealt = Counter(row["facts"]["habit"]["name"] for row in build(task, "dev", 5 * len(habits), items_per_user=1))
    assert dealt == dict.fromkeys(habits, 5)


@pytest.mark.parametrize("task", ALL)
def test_more_users_leave_the_first_ones_as_they_were(task):
    assert list(build(task, "dev", 3)) == list(build(task, "dev", 5))[:3]


@pytest.mark.parametrize("task", ALL)
def test_train_and_dev_share_neither_users_nor_queries(task):
    train, dev = (list(build(task, split, 60, items_per_user=2)) for split in ("train", "dev"))
    for column in ("id", "user_id", "input"):
        assert not {row[column] for row in train} & {row[column] for row in dev}
    assert list(build(task, "dev", 1, seed=1)) != dev[:1]


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed():
    code = (
        "import json; from rpo_kit.lamp.personas import MODULES, build; "
        "print(json.dumps([list(build(task, 'dev', 4)) for task in MODULES]))"
    )
    root = Path(__file__).parents[2]
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert json.loads(first)[0][0] == next(build("LaMP-1", "dev", 1))


@pytest.mark.parametrize("task", ALL)
def test_written_files_are_lamps_with_the_facts_beside_them(task, tmp_path):
    write(tmp_path, task, {"train": 3, "dev": 2}, items_per_user=4, seed=7)
    rows = list(build(task, "dev", 2, items_per_user=4, seed=7))
    read = read_lamp(tmp_path, TASKS[task], "dev")
    assert [dict(row) for row in read] == [
        {k: row[k] for k in ("id", "user_id", "input", "output", "profile")} for row in rows
    ]
    facts = json.loads((tmp_path / "dev_facts.json").read_text(encoding="utf-8"))
    assert facts == {row["id"]: row["facts"] for row in rows}
    assert "habit" not in (tmp_path / "dev_questions.json").read_text(encoding="utf-8")
    assert len(read_lamp(tmp_path, TASKS[task], "train")) == 3


@pytest.mark.parametrize("task", ALL)
def test_an_item_has_the_fields_of_its_task_and_official_input(task):
    row = next(build(task, "dev", 1, items_per_user=1))
    assert set(row["profile"][0]) == {"id", *TASKS[task].fields}
    assert TASKS[task].is_official(row["input"])


@pytest.mark.parametrize("task", CHOOSING)
def test_observations_and_plans_are_short_and_hold_the_values(task):
    module = persona(task)
    for row in build(task, "train", 30, items_per_user=3):
        facts = row["facts"]
        for item in row["profile"]:
            said = module.observe(item, facts["items"][item["id"]])
            assert str(module.shown_habit(item, facts["items"][item["id"]])) in said
            assert len(said.split()) <= 10
        planned = module.plan(facts["habit"]["name"], facts["query"], row["output"])
        assert planned.endswith(row["output"])
        assert len(planned.split()) <= 14


def test_unknown_tasks_and_splits_are_named():
    with pytest.raises(
        KitError, match=r"no personas for the task 'LaMP-9': set --task to one of LaMP-1, .*--data FOLD"
    ):
        persona("LaMP-9")
    with pytest.raises(KitError, match="no split 'val': choose one of train, dev, test"):
        build("LaMP-3", "val", 1)


# --- the texts


@pytest.mark.parametrize("task", CHOOSING)
def test_texts_have_a_length_that_cpu_training_can_afford(task, many):
    shortest, longest = ITEM_WORDS[task]
    assert all(shortest <= len(longest_field(row["profile"][0]).split()) <= longest for row in many[task])
    if task in QUERY_WORDS:
        shortest, longest = QUERY_WORDS[task]
        assert all(shortest <= len(TASKS[task].query_text(row["input"]).split()) <= longest for row in many[task])


@pytest.mark.parametrize("task", CHOOSING)
def test_hardly_any_two_texts_of_two_thousand_are_the_same(task, many):
    assert len({TASKS[task].item_line(row["profile"][0]) for row in many[task]}) >= 1900
    assert len({longest_field(row["profile"][0]) for row in many[task]}) >= 1990
    assert len({row["input"] for row in many[task]}) >= 1990


@pytest.mark.parametrize("task", CHOOSING)
@pytest.mark.parametrize("side", ["items", "queries"])
def test_no_five_words_recur_in_more_than_two_of_a_hundred_texts(task, side, many):
    texts = [
        longest_field(row["profile"][0]) if side == "items" else TASKS[task].query_text(row["input"])
        for row in many[task]
    ]
    if task == "LaMP-1" and side == "queries":  # the official wording between the three titles is no template of ours
        texts = [text.replace(" [1]: ", " . ").replace(" [2]: ", " . ") for text in texts]
    counts: Counter[str] = Counter()
    for text in texts:
        for sentence in re.split(r"[.:;?!\"]", text.lower()):
            words = re.findall(r"[\w'-]+", sentence)
            counts.update({" ".join(words[i : i + 5]) for i in range(len(words) - 4)})
    phrase, number = counts.most_common(1)[0]
    assert number / len(texts) < 0.02, phrase


@pytest.mark.parametrize("task", CHOOSING)
def test_no_trace_of_the_grammar_is_left_in_a_text(task, many):
    for row in many[task]:
        for text in (longest_field(row["profile"][0]), *re.findall(r'"(.*?)"', row["input"])):
            assert not re.search(r"[{}|]|\(n\)|  | [,.;:?!]|[,;:][.?!]|[?!.]\.|,,|\b[Aa] [aeio]\w", text), text
            assert text[0].isupper() or text[0].isdigit()


@pytest.mark.parametrize("path", sorted(Path(grammar.__file__).parent.glob("banks/*.json")), ids=lambda path: path.stem)
def test_brackets_of_every_phrase_close(path):
    for name, phrases in grammar.load_bank(path.stem).items():
        for phrase in phrases:
            assert phrase.count("[") == phrase.count("]"), (name, phrase)
            assert phrase.count("{") == phrase.count("}"), (name, phrase)


# --- the grammar


def test_choices_nest_names_resolve_in_scope_first_and_articles_fit():
    bank = {"thing": ("[old|[odd|open]] oven",), "tools.thing": ("drill",)}
    rng = random.Random(0)
    assert {grammar.expand(rng, bank, "a(n) {thing}!") for _ in range(50)} == {
        "An old oven!",
        "An odd oven!",
        "An open oven!",
    }
    assert grammar.expand(rng, bank, "a(n) {thing}, {who}.", {"who": "Ilka"}, scope="tools") == "A drill, Ilka."
    assert grammar.expand(rng, bank, "it works. a(n) {thing}", scope="tools", capitals=False) == "it works. a drill"
    assert [grammar.tidy(f"a(n) {word}") for word in ("hour", "unicorn", "usual day")] == [
        "An hour",
        "A unicorn",
        "A usual day",
    ]


def test_a_phrase_does_not_return_within_a_text_while_others_are_left():
    bank = {"fruit": ("pear", "plum", "fig")}
    text = grammar.expand(random.Random(3), bank, "{fruit} {fruit} {fruit}", capitals=False)
    assert sorted(text.split()) == ["fig", "pear", "plum"]


def test_a_missing_name_gives_a_readable_error():
    with pytest.raises(KitError, match="no 'verb'"):
        grammar.expand(random.Random(0), {}, "They {verb}.")


# --- raters


def test_a_rater_shifts_what_a_neutral_reader_reads_by_one():
    assert [ratings.apply(habit, {"reads": 3}) for habit in ("harsh", "fair", "generous")] == ["2", "3", "4"]
    assert ratings.shown_habit({"text": "…", "score": "1"}, {"reads": 2}) == "harsh"
    assert ratings.shown_habit({"text": "…", "score": "5"}, {"reads": 2}) is None  # no rater of ours is three off
    assert ratings.observe({"text": "…", "score": "5"}, {"reads": 4}) == "reads 4, gave 5: generous"
    assert ratings.plan("harsh", {"reads": 3}, "3") == "reads 3, harsh: give 2"


def test_ratings_never_exceed_the_scale_and_no_review_names_a_number(many):
    scores = Counter(row["profile"][0]["score"] for row in many["LaMP-3"])
    assert set(scores) == {"1", "2", "3", "4", "5"}
    for row in many["LaMP-3"]:
        assert not re.search(r"\d|\b(two|three|four|five|stars?)\b", longest_field(row["profile"][0]).lower())


def test_a_review_never_praises_what_it_complains_about():
    bank = grammar.load_bank("ratings")
    for category in bank["categories"]:
        assert len(bank[f"{category}.products"]) >= 8
        assert len(bank[f"{category}.aspects"]) >= 8
        assert all(aspect.count(" / ") == 1 for aspect in bank[f"{category}.aspects"])  # praise / complaint


# --- film taggers


def test_a_tagger_names_the_tag_of_the_family():
    facts = {"genre": "romance", "origin": "true story", "feel": "violence"}
    assert [movies.apply(habit, facts) for habit in movies.HABITS] == ["romance", "true story", "violence"]
    assert movies.observe({"tag": "romance", "description": "…"}, facts) == "romance is the genre: tags by genre"
    assert movies.plan("genre", facts, "violence") == "romance, true story, violence; by genre: romance"


def test_the_families_are_lamps_fifteen_tags_and_clashing_pairs_never_meet(many):
    assert sorted(tag for family in movies.FAMILIES.values() for tag in family) == sorted(TASKS["LaMP-2"].labels)
    golds = Counter(row["output"] for row in many["LaMP-2"])
    assert set(golds) == set(TASKS["LaMP-2"].labels)
    for row in many["LaMP-2"]:
        tags = set(row["facts"]["query"].values())
        assert len(tags) == 3
        assert not any(clash <= tags for clash in movies.CLASHES)


# --- citing authors


def test_an_author_cites_from_the_home_field():
    facts = {"first": "robotics", "second": "graph theory"}
    assert citations.apply("graph theory", facts) == "[2]"
    assert citations.apply("robotics", facts) == "[1]"
    assert citations.apply("genomics", facts) == "[1]"  # neither: the first one
    assert citations.observe({"title": "…", "abstract": "…"}, {"field": "genomics"}) == "about genomics"
    assert citations.plan("graph theory", facts, "[1]") == "[1] robotics, [2] graph theory: choose [2]"


def test_one_reference_is_from_home_and_its_position_is_random(many):
    places = Counter()
    for row in many["LaMP-1"]:
        home, fields = row["facts"]["habit"]["name"], row["facts"]["query"]
        assert (fields["first"] == home) != (fields["second"] == home)
        places[row["output"]] += 1
    assert places["[1]"] == pytest.approx(1000, abs=70)  # three standard errors of 2,000 coins
