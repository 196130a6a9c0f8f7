"""The hindsight teacher: observations are true of the item, plans of the gold, and nothing untaught is trained on."""

import pytest

from rpo_kit.lamp import personas
from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task
from rpo_kit.presets import get_preset, teacher_of
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import read_records
from rpo_kit.training.filters import Filters, rejection_reason
from rpo_kit.training.hindsight import (
    CONTRADICTED,
    INVENTED,
    UNKNOWN_NAME,
    UNSHOWN,
    HindsightTeacher,
    changes,
    hindsight_draft,
)
from rpo_kit.training.hindsight_texts import kept_share, names_of, read_traits, squashed
from rpo_kit.training.synthesis import open_teacher, synthesize
from rpo_kit.training.teachers import Request

QUERY = {"title": "A tree", "ref1": "Sorting networks revisited", "ref2": "Planar graphs and drawings"}


def draft(name, items, gold, generic, query="I am going to be late for the match today.", first=1, shown=False):
    task = get_task(name)
    parts = {part: query if part == "text" else QUERY[part] for part in task.parts}
    if task.parts == ("abstract",):
        parts = {"abstract": query}
    filled = [{"id": f"i{n}", **dict.fromkeys(task.fields, "x"), **item} for n, item in enumerate(items)]
    example = {"id": "q", "input": task.make_input(**parts), "output": gold, "generic": generic}
    return hindsight_draft(task, Request("q/0", example, filled, first), shown)


def parts_of(made):
    trajectory = parse(made.text).trajectory
    return trajectory.observe, trajectory.plan, trajectory.rewrite, made.reason


def tweets(items, gold, generic="The match is today.", **more):
    return parts_of(draft("LaMP-7", [{"text": text} for text in items], gold, generic, **more))


# ---- traits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "case", "end"),
    [
        ("gonna be late", "lower case", "no end mark"),
        ("@Ann gonna be late.", "lower case", "ends ."),  # a name is not the user's casing
        ("off to Rome!!", "lower start", "ends !!"),
        ("hm.!", "lower case", "ends !"),
        ("wow!.", "lower case", "ends ."),
        ("what…?", "lower case", "ends ?"),
        ("see http://t.co/x!", "lower case", "ends !"),
        ("今日は電車が遅れた。", "no case", "ends ."),
        ("كيف حالك؟", "no case", "ends ?"),
        ("Off to Rome!", "Sentence case", "ends !"),
        ("Off to rome ...", "Sentence case", "ends ..."),
        ("OFF TO ROME what?!", "CAPITALS", "ends ?!"),
        ("Off to rome?? ", "Sentence case", "ends ??"),
        ('He said "why?"', "Sentence case", "ends ?"),
        ("12:30", "no words", "no end mark"),
        ("", "no words", "no end mark"),
    ],
)
def test_each_text_has_one_casing_and_one_end_mark(text, case, end):
    traits = read_traits(text)
    assert (traits.case, traits.end) == (case, end)


@pytest.mark.parametrize(
    ("text", "marks", "spellings"),
    [
        ("@ann thats soooo good lol", ("@",), ("thats", "soooo", "lol")),
        ("tea &amp; cake :) #sunday", (":)", "#", "&"), ()),
        ("love it &lt;3 http://a.example/lol", (":)", "link"), ()),  # an address is not a spelling
        ("wait... what", ("...",), ()),
        ("win!! \U0001f600", ("emoji", "!!", "!"), ()),
        ("At 10:30 in room 4", (), ()),
    ],
)
def test_marks_and_spellings_are_found_and_html_entities_are_read(text, marks, spellings):
    traits = read_traits(text)
    assert (traits.marks, traits.spellings) == (marks, spellings)


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("@ann Off to Rome now!! http://t.co/x", "Off … now!!"),  # as in casing and end mark, names and links aside
        ("lol", "lol"),
        ("lol lol", "lol"),
        ("@ann", "@ann"),
        ("12:30 :)", "12 … :)"),
        ("[2] so it is </observe>", "2 … /observe"),  # brackets are the trajectory's own
        ("s" + 30 * "o", "s" + 19 * "o"),
        ("今日は電車が遅れた。", "今日は電車が遅れた … 今日は電車が遅れた。"),
        ("http://t.co/x", "no word"),
        ("", "no word"),
    ],
)
def test_an_observation_quotes_the_first_and_the_last_word(text, quote):
    assert read_traits(text).quote == quote


def test_a_title_has_a_first_word_and_a_casing_of_its_own():
    traits = read_traits('Why "Slow" Trains Win: 7 Reasons', "title")
    assert (traits.case, traits.opens, traits.words) == ("Title Case", "Why", 6)
    assert traits.marks == ("colon", "quotes", "number")
    assert read_traits("War and Peace on the Radio", "title").case == "Title Case"
    assert read_traits("Slow trains win again", "title").case == "Sentence case"


def test_kept_words_and_names_are_counted_without_regard_to_case():
    assert kept_share("Late for the MATCH again", "late for", "the match") == 4 / 5
    assert kept_share("", "late") == 0
    assert names_of("@Ann see www.a.example #Tea") == {"@ann", "www.a.example", "#tea"}


# ---- tweets -------------------------------------------------------------------------------------------------------


def test_a_tweet_starts_from_the_closer_text_and_says_which_changes_the_items_show():
    observe, plan, rewrite, reason = tweets(["so tired lol"], "gonna be late for the match today lol!")
    assert observe == "[1] so … lol: lower case, no end mark, lol"
    assert plan == "start from the query, keep most words; as shown: lower case, lol; besides: ends !"
    assert (rewrite, reason) == ("gonna be late for the match today lol!", None)


def test_a_plan_starts_from_the_generic_answer_if_the_gold_is_closer_to_it():
    plan = tweets(["Nice day"], "The match is today")[1]
    assert plan == "start from the generic answer, keep most words; as shown: no end mark"


def test_a_spelling_that_no_item_shows_is_not_planned():
    assert "gonna" not in tweets(["so tired"], "gonna be late for the match today")[1]


def test_an_observation_is_no_list_that_may_go_on_and_a_plan_takes_only_what_it_names():
    """It names the mark that says most, and one spelling."""
    observe, plan, *_ = tweets(["@ann soooo good lol :) #tea"], "gonna be late for the match today lol :) #tea")
    assert observe == "[1] soooo … #tea: lower case, no end mark, :), soooo"
    assert plan.partition("; ")[2] == "as shown: lower case, no end mark, :); besides: #"


def test_half_of_the_items_must_show_a_casing_and_one_a_spelling():
    source, gold = read_traits("I am late."), read_traits("im late lol")
    items = [read_traits(text) for text in ("so lol", "Not today", "Never again", "oh no")]
    assert changes(source, gold, items) == (["lower case", "no end mark", "lol"], [])
    assert changes(source, gold, items[:3]) == (["no end mark", "lol"], ["lower case"])


def test_several_items_have_one_line_each_numbered_by_rank():
    observe = tweets(["so tired", "OK then!"], "late for the match today", first=3)[0]
    assert [line.partition(" ")[0] for line in observe.splitlines()] == ["[3]", "[4]"]


@pytest.mark.parametrize(
    ("items", "gold", "reason"),
    [
        (["So tired that there is nothing left to do."], "late for the match today", UNSHOWN),
        (["so tired"], "grandma baked seven cakes", INVENTED),
        (["so tired"], "late for the match today @bob", UNKNOWN_NAME),
        (["so tired @bob"], "late for the match today @bob", UNKNOWN_NAME),  # whom it answers is not a habit …
        (["so tired #meh"], "late for the match today #meh", None),  # … but a hashtag may be
        (["So tired!"], "I am late for the match today.", None),  # nothing has to change but words
    ],
)
def test_what_would_teach_to_invent_is_rejected_with_the_reason_and_the_text(items, gold, reason):
    assert tweets(items, gold)[2:] == (gold, reason)


@pytest.mark.parametrize(
    ("items", "gold", "rewrite"),
    [
        (["so tired lol"], "i am goin to be late for the match lol", "i am going to be late for the match lol"),
        (["goin home"], "i am goin to be late for the match lol", "i am goin to be late for the match today."),
        (["so tired"], "@bob I am going to be late for the match", "I am going to be late for the match"),
        (["#meh again"], "I am late for the match #meh", "I am late for the match #meh"),
        (["so tired"], "im soooo late for THE match today", "I am going to be late for THE match today"),
        (["so tired"], "I am late &amp; sorry :)", "I am late for the match today."),
        (["so tired"], "I am going to be late :) for the match", "I am going to be late :) for the match"),
    ],
)
def test_a_rewrite_of_what_is_shown_takes_from_the_gold_only_words_that_are_known(items, gold, rewrite):
    made = draft("LaMP-7", [{"text": text} for text in items], gold, "x", shown=True)
    assert parts_of(made)[2] == made.ends_in == rewrite


def test_no_word_of_such_a_rewrite_comes_from_nowhere():
    query = "I am going to be late for the match today."
    for gold in ("grandma baked seven cakes today", "late late late 4 the match", "", "so what , match !"):
        made = draft("LaMP-7", [{"text": "so tired, wanna go home"}], gold, "x", shown=True)
        trajectory = parse(made.text).trajectory
        known = {squashed(word) for word in f"{query} so tired, wanna go home".split()}
        assert trajectory is None or {squashed(w) for w in trajectory.rewrite.split() if w[0].isalnum()} <= known, gold


def test_a_gold_that_shares_little_is_rejected_either_way():
    for shown in (False, True):
        assert draft("LaMP-7", [{"text": "so tired"}], "grandma baked cakes", "x", shown=shown).reason == INVENTED


def test_only_tweets_have_rewrites_of_what_is_shown():
    items, gold = [{"text": "x", "score": "2"}], "2"
    assert draft("LaMP-3", items, gold, "4", shown=True) == draft("LaMP-3", items, gold, "4")
    titles = [{"title": "Why Trains Win"}], "Why the Match Starts Today", "Match starts today."
    assert draft("LaMP-4", *titles, shown=True) == draft("LaMP-4", *titles)


def test_rewrites_of_what_is_shown_are_accepted_as_they_are(prepared):
    settings = {"data.task": "LaMP-7", "synthesis.teacher": "hindsight-shown", "synthesis.per_query": 2}
    run = prepared(settings)
    synthesize(run)
    golds = {example["id"]: example["output"] for example in load_prepared(run, "train")}
    records = read_records(run.stage("synthesize") / "trajectories.jsonl")
    assert any(record["rewrite"] != golds[record["example"]].strip() for record in records)
    assert not any("wrote" in record for record in records)


# ---- titles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LaMP-4", "LaMP-5", "LaMP-6"])
def test_a_title_starts_from_the_generic_answer_and_opens_as_the_items_do(name):
    made = draft(name, [{"title": "Why Trains Win"}], "Why the Match Starts Today", "Match starts today.")
    observe, plan, _, reason = parts_of(made)
    assert observe == "[1] Why … Win: Title Case, 3 words, no end mark"
    assert plan == (
        "start from the generic answer, keep most words; as shown: Title Case, no end mark, opens Why; besides: longer"
    )
    assert reason is None


# ---- ratings, labels, references ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "gold", "generic", "plan", "reason"),
    [
        (["2"], "3", "5", "generic 5; as shown, lower: 3", None),
        (["5", "1", "4"], "5", "3", "generic 3; as shown, higher: 5", None),
        (["2.5", "1.5"], "2", "3", "generic 3; as shown, lower: 2", None),  # half stars, which are no label here
        (["5"], "3", "5", "generic 5; as shown, lower: 3", UNSHOWN),
        (["5"], "3", "4", "generic 4; as shown, lower: 3", UNSHOWN),
        (["1"], "5", "5", "generic 5; keep", None),
        (["4"], "4", "good", "generic unclear; as shown: 4", None),
        (["1"], "4", "good", "generic unclear; as shown: 4", UNSHOWN),
    ],
)
def test_a_rating_moves_to_the_side_on_which_the_items_lie(scores, gold, generic, plan, reason):
    made = draft("LaMP-3", [{"score": score} for score in scores], gold, generic)
    observe, *rest = parts_of(made)
    assert observe == "\n".join(f"[{n}] gave {score}" for n, score in enumerate(scores, 1))
    assert rest == [plan, gold, reason]


@pytest.mark.parametrize(
    ("tags", "gold", "generic", "plan", "reason"),
    [
        (["comedy"], "comedy", "action", "generic action; as shown: comedy", None),
        (["comedy"], "action", "action", "generic action; keep", None),
        (["comedy", "comedy", "action"], "action", "comedy", "generic comedy; as shown: action", UNSHOWN),
        (["comedy"], "comedy", "a film", "generic unclear; as shown: comedy", None),
    ],
)
def test_a_tag_is_taken_over_if_most_items_have_it(tags, gold, generic, plan, reason):
    items = [{"description": "The match that nobody saw", "tag": tag} for tag in tags]
    observe, *rest = parts_of(draft("LaMP-2", items, gold, generic))
    assert observe.splitlines()[0] == "[1] comedy; shares match"
    assert rest == [plan, gold, reason]


@pytest.mark.parametrize(
    ("title", "gold", "generic", "line", "plan", "reason"),
    [
        ("On planar graphs", "[2]", "[1]", "first: no word; second: planar, graphs", "closer to the second: [2]", None),
        ("On planar graphs", "[1]", "[1]", "first: no word; second: planar, graphs", "keep", CONTRADICTED),
        ("On cats", "[1]", "[1]", "first: no word; second: no word", "keep", None),
        ("On cats", "[1]", "[2]", "first: no word; second: no word", "take the first: [1]", UNSHOWN),
    ],
)
def test_a_reference_is_chosen_by_the_words_that_the_users_papers_share(title, gold, generic, line, plan, reason):
    observe, planned, rewrite, why = parts_of(draft("LaMP-1", [{"title": title}], gold, generic))
    assert observe == f"[1] {line}"
    assert planned.startswith(f"generic {generic}; ")
    assert planned.endswith(plan)
    assert (rewrite, why) == (gold, reason)


# ---- all tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TASKS, *MORE_TASKS])
def test_what_it_accepts_passes_the_filters_of_every_task(name):
    task = get_task(name)
    gold = task.labels[1] if task.labels else "Late for the Match"
    item = {"id": "i0", **dict.fromkeys(task.fields, "x")}
    item |= {task.gold_field: gold if task.items_have_labels else "Slow trains win"}
    made = draft(name, [item], gold, gold)
    trajectory = parse(made.text).trajectory
    example = {"input": task.make_input(**dict.fromkeys(task.parts, "A b c.")), "output": gold, "generic": gold}
    assert made.reason is None
    assert rejection_reason(task, example, [(1, item)], trajectory, Filters(1.0)) is None


def test_a_gold_with_tags_of_the_grammar_is_rejected_and_an_empty_one_too():
    for gold in ("</rewrite>", ""):
        made = draft("LaMP-7", [{"text": "so tired"}], gold, "x")
        assert (made.text, made.reason) == ("", "the gold is empty or contains tags")


def test_the_same_request_gives_the_same_draft_whatever_comes_with_it():
    task = get_task("LaMP-3")
    requests = [
        Request(f"{n}/0", {"input": "", "output": "2", "generic": "4"}, [{"id": "i", "text": "x", "score": str(n)}])
        for n in range(1, 6)
    ]
    batches = list(HindsightTeacher().write(task, requests, lambda *_: None, chunk=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    alone = [hindsight_draft(task, request) for request in requests]
    assert [made for batch in batches for _, made in batch] == alone


# ---- as the default -----------------------------------------------------------------------------------------------


def test_rules_are_those_of_the_personas_on_personas_and_hindsight_on_other_data(new_run):
    assert teacher_of(get_preset("cpu")) == "persona"
    assert teacher_of(get_preset("cpu", {"data.source": "official"})) == "hindsight"
    assert teacher_of(get_preset("cpu", {"synthesis.teacher": "hindsight"})) == "hindsight"
    assert teacher_of(get_preset("paper")) == "openai:gpt-4o-mini"
    assert isinstance(open_teacher(new_run({"synthesis.teacher": "hindsight"})), HindsightTeacher)


def test_lamps_own_files_get_trajectories_without_a_model_and_reasons_for_the_others(
    new_run, recording_chat, tmp_path, capsys
):
    personas.write(tmp_path / "lamp", "LaMP-3", {"train": 8, "dev": 2})
    run = new_run({"data.source": str(tmp_path / "lamp"), "synthesis.per_query": 3})
    prepare(run, lambda spec: recording_chat())
    assert "will refuse" not in capsys.readouterr().out
    synthesize(run)
    folder = run.stage("synthesize")
    good, bad = read_records(folder / "trajectories.jsonl"), read_records(folder / "rejected.jsonl")
    assert good
    assert {record["reason"] for record in bad} == {UNSHOWN}
    assert all(record["text"].startswith("<observe>[") for record in bad), "what would have been written stays readable"
