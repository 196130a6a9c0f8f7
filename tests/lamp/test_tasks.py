"""The texts of each task are LaMP's to the letter."""

import ast
from pathlib import Path

import pytest

import rpo_kit
from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task

ALL = TASKS | MORE_TASKS
TAGS = (
    "sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, "
    "romance, thought-provoking, social commentary, violence, true story"
)
CATEGORIES = (
    "women, religion, politics, style & beauty, entertainment, culture & arts, sports, science & technology, travel, "
    "business, crime, education, healthy living, parents, food & drink"
)
# The official input of each task, written out whole and not put together from the code's own constants.
INPUTS = {
    "LaMP-2": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        f"explanation. tags: [{TAGS}] description: A ship: lost."
    ),
    "LaMP-3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: A ship: lost."
    ),
    "LaMP-4": "Generate a headline for the following article: A ship: lost.",
    "LaMP-5": "Generate a title for the following abstract of a paper: A ship: lost.",
    "LaMP-7": "Paraphrase the following tweet without any explanation before or after it: A ship: lost.",
    "LaMP-2-news": (
        "Which category does this article relate to among the following categories? Just answer with the category name "
        f"without further explanation. categories: [{CATEGORIES}] article: A ship: lost."
    ),
    "LaMP-6": "Generate a subject for the following email: A ship: lost.",
}
CITATION = (
    'For an author who has written the paper with the title "On Ships", which reference is related? Just answer with '
    '[1] or [2] without explanation. [1]: "Sails" [2]: "Ropes and Knots"'
)
# What LaMP looks for to find the query in an input (first occurrence).
MARKS = {
    "LaMP-2": "description:", "LaMP-3": "review:", "LaMP-4": "article:", "LaMP-5": "paper:", "LaMP-7": ":",
    "LaMP-2-news": "article:", "LaMP-6": ":",
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_the_official_ones(name: str) -> None:
    assert get_task(name).make_input(text="A ship: lost.") == INPUTS[name]


@pytest.mark.parametrize("name", INPUTS)
def test_the_query_is_the_varying_part_alone(name: str) -> None:
    task = get_task(name)
    assert task.query_text(INPUTS[name]) == "A ship: lost."
    assert task.query_text(task.make_input(text="")) == ""
    # LaMP cuts behind a mark; removing the instruction must give the same words.
    assert task.retrieval_query(INPUTS[name]) == INPUTS[name].split(MARKS[name], 1)[1].strip()


def test_a_citation_query_has_three_parts() -> None:
    task = get_task("LaMP-1")
    assert task.make_input(title="On Ships", ref1="Sails", ref2="Ropes and Knots") == CITATION
    assert task.query_text(CITATION) == '"On Ships" [1]: "Sails" [2]: "Ropes and Knots"'


def test_citations_are_retrieved_by_the_two_references_and_not_by_the_title() -> None:
    assert get_task("LaMP-1").retrieval_query(CITATION) == "Sails Ropes and Knots"


def test_quotes_inside_a_citation_title_shift_the_retrieval_query_as_they_do_in_lamp() -> None:
    # Between quote marks stand, in turn: "A ", " of All", "Sails", "Ropes". LaMP takes the second and the third.
    task = get_task("LaMP-1")
    input = task.make_input(title='A "Theory" of All', ref1="Sails", ref2="Ropes")
    assert task.retrieval_query(input) == " of All Sails"
    # The prompt, on the other hand, gets the parts as they were put in.
    assert task.query_text(input) == '"A "Theory" of All" [1]: "Sails" [2]: "Ropes"'


def test_labels_are_in_the_evaluators_order() -> None:
    assert get_task("LaMP-1").labels == ("[1]", "[2]")
    assert ", ".join(get_task("LaMP-2").labels) == TAGS
    assert ", ".join(get_task("LaMP-2-news").labels) == CATEGORIES
    assert get_task("LaMP-3").labels == ("1", "2", "3", "4", "5")
    generation = [name for name, task in ALL.items() if task.kind == "generation"]
    assert generation == ["LaMP-4", "LaMP-5", "LaMP-7", "LaMP-6"]
    assert all(not ALL[name].labels for name in generation)


ITEM = {"id": "9", "title": "T", "abstract": "A", "text": "X", "tag": "comedy", "description": "D", "score": "4"}
ITEM["category"] = "food & drink"


@pytest.mark.parametrize(
    ("name", "indexed", "context"),
    [
        ("LaMP-1", "T A", '"T"'),
        ("LaMP-2", "D", 'the tag for the movie: "D" is "comedy" '),
        ("LaMP-3", "X", '4 is the score for "X" '),
        ("LaMP-4", "T X", '"T" is the title for "X" '),
        ("LaMP-5", "T A", '"T" is a title for "A" '),
        ("LaMP-7", "X", '"X" '),
        ("LaMP-2-news", "T X", 'the category for the article: "X" is "food & drink" '),
        ("LaMP-6", "X", '"T" is the title for "X" '),
    ],
)
def test_what_is_indexed_and_shown_of_an_item_is_lamps(name: str, indexed: str, context: str) -> None:
    assert get_task(name).corpus_text(ITEM) == indexed
    assert get_task(name).context_line(ITEM) == context


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("LaMP-3", '4 is the score for "X" , and 1 is the score for "Y" . IN'),
        ("LaMP-5", '"T" is a title for "A" , and "T" is a title for "A" . Following the given patterns IN'),
        ("LaMP-7", '"X" , and "Y"  are written by a person. Following the given patterns IN'),
    ],
)
def test_context_prompts_join_as_lamp_does(name: str, prompt: str) -> None:
    assert get_task(name).context_prompt("IN", [ITEM, ITEM | {"text": "Y", "score": "1"}]) == prompt


def test_citation_context_follows_the_word_title() -> None:
    prompt = get_task("LaMP-1").context_prompt(CITATION, [ITEM, ITEM | {"title": "U"}])
    assert prompt.startswith(
        'For an author who has written the paper with the title, and "T", and "U" "On Ships", which reference'
    )


def test_without_items_the_context_prompt_is_the_input() -> None:
    assert all(task.context_prompt("IN", []) == "IN" for task in ALL.values())


def test_an_item_is_one_line_in_the_reflection_prompt() -> None:
    item = ITEM | {"text": "Broke\n\n twice.\t{really} ", "score": "1"}
    assert get_task("LaMP-3").item_line(item) == '"Broke twice. {really} " -> 1'
    assert get_task("LaMP-2").item_line(ITEM) == '"D" -> comedy'
    assert get_task("LaMP-4").item_line(ITEM) == '"X" -> T'


def test_the_gold_field_is_a_field_of_the_items() -> None:
    assert {name: task.gold_field for name, task in ALL.items()} == {
        "LaMP-1": "title", "LaMP-2": "tag", "LaMP-3": "score", "LaMP-4": "title", "LaMP-5": "title", "LaMP-7": "text",
        "LaMP-2-news": "category", "LaMP-6": "title",
    }  # fmt: skip
    assert all({task.gold_field, task.text_field} <= set(task.fields) for task in ALL.values())


@pytest.mark.parametrize("name", ALL)
def test_an_input_without_the_instruction_is_rejected_by_name(name: str) -> None:
    task = get_task(name)
    assert not task.is_official("x Overwhelmed by her schedule")
    with pytest.raises(KitError, match=f"not an input of {name}.*Overwhelmed"):
        task.query_text("x Overwhelmed by her schedule")
    with pytest.raises(KitError, match=name):
        task.retrieval_query("x Overwhelmed by her schedule")


def test_parts_that_do_not_belong_to_the_task_are_rejected() -> None:
    with pytest.raises(KitError, match=r"\['ref1', 'ref2', 'title'\], not from \['text'\]"):
        get_task("LaMP-1").make_input(text="x")


def test_an_unknown_task_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(KitError, match=r"'LaMP-8'.*LaMP-1, LaMP-2, .*, LaMP-7, LaMP-2-news, LaMP-6\."):
        get_task("LaMP-8")
    assert get_task("LaMP_3") is TASKS["LaMP-3"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("2-news", "LaMP-2-news"), ("lamp-3", "LaMP-3"), ("LaMP2N", "LaMP-2-news"), ("movies", "LaMP-2"), ("7", "LaMP-7")],
)
def test_a_task_is_suggested_if_the_name_is_nearly_right(name: str, meant: str) -> None:
    with pytest.raises(KitError, match=rf"no task '{name}': choose one of .* Did you mean {meant}\?$"):
        get_task(name)


@pytest.mark.parametrize("name", ["LaMP-9", "", "squad"])
def test_no_task_is_suggested_if_none_is_similar(name: str) -> None:
    with pytest.raises(KitError, match=r"LaMP-6\.$"):
        get_task(name)


def test_the_two_tasks_called_lamp_2_share_a_name_in_files_and_have_others_in_papers() -> None:
    movies, news = get_task("LaMP-2"), get_task("LaMP-2-news")
    assert movies.official_name == news.official_name == "LaMP_2"
    assert get_task("LaMP-2M") is get_task("LaMP_2") is movies
    assert get_task("LaMP-2N") is get_task("LaMP-2-old") is news
    assert not set(movies.labels) & set(news.labels), "which is what tells their files apart"
    official = [task.official_name for task in ALL.values()]
    assert all(task.shares_official_name == (official.count(task.official_name) > 1) for task in ALL.values())


# --- the table holds every difference ---


def tasks_where(field: str) -> set[str]:
    return {name for name, task in ALL.items() if getattr(task, field)}


def test_what_differs_between_tasks_is_in_the_table() -> None:
    assert tasks_where("items_have_labels") == {"LaMP-2", "LaMP-3", "LaMP-2-news"}
    assert tasks_where("label_parts") == {"LaMP-1"}
    assert set(ALL) - tasks_where("gold_is_distinctive") == {"LaMP-1", "LaMP-3"}, "figures stand for other things too"
    assert tasks_where("no_leave_one_out") == {"LaMP-1", "LaMP-7"}
    assert tasks_where("placeholder") == tasks_where("placeholder_help") == {"LaMP-6"}
    assert {name: task.parts for name, task in ALL.items()} == dict.fromkeys(ALL, ("text",)) | {
        "LaMP-1": ("title", "ref1", "ref2")
    }
    assert all(len(task.label_parts) in (0, len(task.labels)) for task in ALL.values())


def test_the_text_field_is_the_query_of_leave_one_out() -> None:
    for name in set(ALL) - tasks_where("no_leave_one_out"):
        assert ALL[name].text_field == next(field for field in ALL[name].fields if field != ALL[name].gold_field)


NAMES = {spelling for task in ALL.values() for spelling in (task.name, task.official_name)}


def checks_of_a_name(source: str) -> list[int]:
    """Lines that compare something with a task's name, match it, or look it up in a dictionary."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        constants: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            constants = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            constants = [node.value]
        elif isinstance(node, ast.Dict):
            constants = [key for key in node.keys if key]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            constants = [part for argument in node.args for part in ast.walk(argument)]
        lines += [node.lineno for part in constants if isinstance(part, ast.Constant) and part.value in NAMES]
    return lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('task.name == "LaMP-1"', True),
        ('task.official_name != "LaMP_2"', True),
        ('task.name in ("LaMP-1", "LaMP-7")', True),
        ('task is get_task("LaMP-2")', True),
        ('task.name.startswith("LaMP-2")', True),
        ('why = {"LaMP-1": "…"}', True),
        ('match task.name:\n    case "LaMP-1":\n        pass', True),
        ('get_task("LaMP-3").make_input(text="…")', False),
        ('if task.label_parts:\n    "a sentence about LaMP-1"', False),
    ],
)
def test_a_check_of_a_tasks_name_is_found(source: str, found: bool) -> None:
    assert bool(checks_of_a_name(source)) == found


def test_no_module_but_the_table_checks_a_tasks_name() -> None:
    """`personas/__init__.py` is exempt: its dictionary names the module that imitates each task."""
    kit = Path(rpo_kit.__file__).parent
    exempt = {kit / "lamp" / "tasks.py", kit / "lamp" / "personas" / "__init__.py"}
    assert len(exempt & {*kit.rglob("*.py")}) == 2
    checks = {
        f"{path.relative_to(kit)}:{line}"
        for path in {*kit.rglob("*.py")} - exempt
        for line in checks_of_a_name(path.read_text(encoding="utf-8"))
    }
    assert checks == set()
