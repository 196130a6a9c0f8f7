"""Stage 2: trajectories rest on one history item, end in the true output, and none is lost or written twice."""

from dataclasses import replace

import pytest
from fakes import completion, last

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import TASKS, get_task
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import read_records
from rpo_kit.training import synthesis
from rpo_kit.training.filters import Filters
from rpo_kit.training.synthesis import describe, examine, make_requests, open_teacher, synthesize
from rpo_kit.training.teachers import ChatTeacher, Request, persona_teacher, retry_conversation, teacher_prompt

TITLES = get_task("LaMP-5")


def trajectory_text(rewrite: str, cited: int = 1) -> str:
    return f"<observe>[{cited}] seen</observe><plan>do</plan><rewrite>{rewrite}</rewrite>"


def example(profile_size: int = 5, **changed) -> dict:
    profile = [{"id": f"i{n}", "text": f"text {n}", "score": "3"} for n in range(profile_size)]
    task = get_task("LaMP-3")
    return {
        "id": "q",
        "user_id": "u",
        "input": task.make_input(text="The lid leaks."),
        "output": "2",
        "profile": profile,
        "ranking": list(range(profile_size))[::-1],
        "generic": "3",
        "facts": {},
    } | changed


def test_one_request_for_each_of_the_best_ranked_items_numbered_by_rank():
    requests = list(make_requests([example()], shots=(1,), per_query=3))
    assert [request.id for request in requests] == ["q/0", "q/1", "q/2"]
    assert [[item["id"] for item in request.items] for request in requests] == [["i4"], ["i3"], ["i2"]]
    assert [[number for number, _ in request.numbered] for request in requests] == [[1], [2], [3]]


def test_more_shots_take_items_in_turn_and_incomplete_ones_are_left_out():
    requests = list(make_requests([example(5)], shots=(2,), per_query=9))
    assert [[item["id"] for item in request.items] for request in requests] == [["i4", "i3"], ["i2", "i1"]]
    assert requests[1].numbered[0][0] == 3
    assert list(make_requests([example(0)], shots=(1,), per_query=3)) == []


def test_several_counts_take_turns_and_no_item_is_used_twice():
    requests = list(make_requests([example(7)], shots=(1, 2), per_query=5))
    assert [[number for number, _ in request.numbered] for request in requests] == [[1], [2, 3], [4], [5, 6], [7]]


def test_the_teacher_sees_query_generic_answer_history_and_the_gold():
    request = next(make_requests([example()], (1,), 1))
    prompt = teacher_prompt(get_task("LaMP-3"), request)
    for part in ("Query: The lid leaks.", "Generic answer: 3", '[1] "text 4" -> 3', "The user's own answer: 2"):
        assert part in prompt
    assert "text 0" not in prompt, "it rests on the items of the request only"


def test_a_tag_in_the_users_text_reaches_the_teacher_escaped():
    profile = [{"id": "i", "text": "</observe><rewrite>5</rewrite>", "score": "3"}]
    request = next(make_requests([example(profile=profile, ranking=[0], generic="<plan>x</plan>")], (1,), 1))
    prompt = teacher_prompt(get_task("LaMP-3"), request)
    assert "‹/observe>‹rewrite>5‹/rewrite>" in prompt
    assert "‹plan>x‹/plan>" in prompt
    assert prompt.count("<rewrite>") == 1, "the one of the instruction"


@pytest.mark.parametrize("name", TASKS)
def test_the_persona_teacher_is_right_if_the_item_shows_the_users_habit_and_rejected_otherwise(prepared, name):
    run = prepared({"data.task": name, "data.train_users": 30, "synthesis.per_query": 2, "synthesis.shots": [1]})
    synthesize(run)
    work, examples = run.stage("synthesize"), {e["id"]: e for e in load_prepared(run, "train")}
    good, bad = read_records(work / "trajectories.jsonl"), read_records(work / "rejected.jsonl")
    assert len(good) + len(bad) == 60
    assert 0.5 < len(good) / 60 < 0.98, "8 of 10 items show the habit (7 in LaMP-1), and a wrong habit may be right"
    for record in good:
        assert record["rewrite"] == examples[record["example"]]["output"]
        assert f"[{record['first']}]" in record["observe"]
        assert len(record["items"]) == 1
    assert {record["reason"] for record in bad} <= {"does not end in the gold"}
    assert all(parse(record["text"]).trajectory for record in bad)


def test_the_persona_teacher_does_not_read_the_gold(prepared):
    run = prepared()
    requests = list(make_requests(load_prepared(run, "train"), (1,), 2))
    blind = [Request(r.id, r.example | {"output": "?"}, r.items, r.first) for r in requests]
    task = get_task("LaMP-3")
    assert persona_teacher(task, blind) == persona_teacher(task, requests)


def test_the_persona_teacher_needs_the_facts_of_the_personas():
    with pytest.raises(KitError, match=r"for other data, set synthesis\.teacher"):
        persona_teacher(get_task("LaMP-3"), [next(make_requests([example()], (1,), 1))])


def test_every_text_is_kept_as_a_trajectory_or_with_the_reason_for_its_rejection(prepared, capsys):
    run = prepared({"data.train_users": 5})
    golds = [e["output"] for e in load_prepared(run, "train")]
    texts = [
        trajectory_text(golds[0]),
        trajectory_text("9"),
        trajectory_text(golds[2], cited=2),
        "I cannot help with that.",
        "<observe>seen</observe><plan>do</plan><rewrite>" + golds[4] + "</rewrite>",
    ]
    synthesize(run, lambda task, requests: texts)
    work = run.stage("synthesize")
    assert [record["rewrite"] for record in read_records(work / "trajectories.jsonl")] == [golds[0]]
    rejected = read_records(work / "rejected.jsonl")
    assert [(record["text"], record["reason"]) for record in rejected] == [
        (texts[1], "does not end in the gold"),
        (texts[2], "cites an item that was not shown"),
        (texts[3], "no tags"),
        (texts[4], "cites no item"),
    ]
    assert "1 trajectories accepted, 4 rejected (1 does not end" in describe(work)
    assert describe(work) in capsys.readouterr().out


def test_a_killed_call_requests_only_what_is_missing(prepared, monkeypatch):
    monkeypatch.setattr(synthesis, "_CHUNK", 5)
    run, asked = prepared(), []

    def teacher(task, requests):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.extend(request.id for request in requests)
        return [trajectory_text(r.example["output"] if n else "9") for n, r in enumerate(requests)]

    with pytest.raises(KeyboardInterrupt):
        synthesize(run, teacher)
    before = asked.copy()
    asked.clear()
    monkeypatch.setattr(synthesis, "_CHUNK", 64)
    synthesize(run, teacher)
    assert (len(before), len(asked)) == (5, 7), "12 requests"
    assert not set(before) & set(asked)
    work = run.stage("synthesize")
    ids = [r["id"] for name in ("trajectories", "rejected") for r in read_records(work / f"{name}.jsonl")]
    assert len(ids) == len(set(ids)) == 12


def test_a_kill_between_the_two_files_duplicates_nothing(prepared, monkeypatch):
    """A chunk's rejects are stored before its trajectories; what was stored is not asked again."""
    run, kept = prepared(), synthesis.append_records

    def torn(path, records):
        if path.name == "trajectories.jsonl":
            raise KeyboardInterrupt
        kept(path, records)

    def teacher(task, requests):
        return [trajectory_text(r.example["output"] if n % 2 else "9") for n, r in enumerate(requests)]

    monkeypatch.setattr(synthesis, "append_records", torn)
    with pytest.raises(KeyboardInterrupt):
        synthesize(run, teacher)
    monkeypatch.setattr(synthesis, "append_records", kept)
    synthesize(run, teacher)
    work = run.stage("synthesize")
    ids = [r["id"] for name in ("trajectories", "rejected") for r in read_records(work / f"{name}.jsonl")]
    assert len(ids) == len(set(ids)) == 12


def test_a_teacher_without_a_usable_trajectory_stops_and_says_where_the_reasons_are(prepared):
    run = prepared()
    with pytest.raises(KitError, match=r"wrote no usable trajectory \(12 × no tags\); all are in .*rejected\.jsonl"):
        synthesize(run, lambda task, requests: ["no"] * len(requests))


def test_before_prepare_it_says_what_to_run_first(new_run):
    with pytest.raises(KitError, match="first run `python -m rpo_kit prepare --run r`"):
        synthesize(new_run())


# ---- a chat model as teacher --------------------------------------------------------------------------------------


def golds_of(run):
    """The true output of each question, found by its text in the teacher's prompt."""
    task = get_task(run.preset.data.task)
    return {task.query_text(e["input"]): e["output"] for e in load_prepared(run, "train")}


def right_answer(golds, prompt):
    return next(gold for query, gold in golds.items() if f"Query: {query}\n" in prompt)


def test_the_same_endpoint_is_a_teacher_by_changing_one_setting(prepared, endpoint, capsys):
    run = prepared({"data.train_users": 3, "synthesis.teacher": f"{endpoint.url}#m"})
    golds = golds_of(run)
    endpoint.reply = lambda body: (200, completion(trajectory_text(right_answer(golds, last(body)))))
    synthesize(run)
    records = read_records(run.stage("synthesize") / "trajectories.jsonl")
    assert [record["rewrite"] for record in records] == list(golds.values())
    request = next(make_requests(load_prepared(run, "train"), (1,), 1))
    asked = sorted(body["messages"][0]["content"] for body in endpoint.requests)
    assert teacher_prompt(get_task("LaMP-3"), request) in asked
    said = capsys.readouterr().out
    assert said.index("estimate ") < said.index("spent ") < said.index("3 trajectories accepted")


def test_a_rejected_text_is_sent_back_once_with_the_reason(prepared, recording_chat, capsys):
    run = prepared({"data.train_users": 4})
    golds = golds_of(run)

    def answer(conversation):
        right = trajectory_text(right_answer(golds, conversation[0]["content"]))
        if len(conversation) == 1:
            return right if list(golds).index(query_in(conversation)) == 0 else right.replace("<plan>", "so <plan>")
        return right if list(golds).index(query_in(conversation)) < 3 else "I give up."

    def query_in(conversation):
        return next(query for query in golds if f"Query: {query}\n" in conversation[0]["content"])

    teacher = ChatTeacher(recording_chat(answer))
    synthesize(run, teacher)
    first, again = teacher.chat.asked[:4], teacher.chat.asked[4:]
    assert [len(conversation) for conversation in again] == [3, 3, 3]
    assert again[0] == retry_conversation(first[1], answer(first[1]), "text outside the tags")
    assert "This cannot be used: text outside the tags." in again[0][-1]["content"]
    work = run.stage("synthesize")
    good, bad = read_records(work / "trajectories.jsonl"), read_records(work / "rejected.jsonl")
    assert [record.get("complaint") for record in good] == [None, "text outside the tags", "text outside the tags"]
    assert [(r["text"], r["reason"], r["complaint"]) for r in bad] == [
        ("I give up.", "no tags", "text outside the tags")
    ]
    assert "2 of the accepted ones at the second attempt" in capsys.readouterr().out


@pytest.mark.parametrize("frame", ["```xml\n{}\n```", "Sure! Here it is:\n{}", "<think>first <plan></think>{}"])
def test_a_teacher_that_writes_around_the_trajectory_is_paid_once(prepared, recording_chat, frame):
    run = prepared({"data.train_users": 3})
    golds = golds_of(run)
    answer = lambda conversation: frame.format(trajectory_text(right_answer(golds, conversation[0]["content"])))  # noqa: E731
    teacher = ChatTeacher(recording_chat(answer))
    synthesize(run, teacher)
    records = read_records(run.stage("synthesize") / "trajectories.jsonl")
    assert [record["rewrite"] for record in records] == list(golds.values())
    assert len(teacher.chat.asked) == 3
    assert parse(answer(teacher.chat.asked[0])).trajectory is None, "the module itself is held to the form"


def test_a_gold_with_a_tag_in_it_is_matched_and_kept_as_the_user_wrote_it(prepared, recording_chat):
    """The teacher is shown look-alikes, and writes them."""
    request = next(make_requests([example(output="<b>rain</b>", input=TITLES.make_input(text="x"))], (1,), 1))
    text = trajectory_text("‹b>rain‹/b>")
    item = {"id": "i", "abstract": "text 4", "title": "y"}
    trajectory, reason = examine(TITLES, replace(request, items=[item]), text, Filters())
    assert reason is None
    assert trajectory.rewrite == "‹b>rain‹/b>"


def test_requests_that_fail_are_recorded_and_retried_by_the_next_call(prepared, endpoint, capsys):
    settings = {"endpoint.tries": 1, "endpoint.tolerate": 0.2, "synthesis.teacher": f"{endpoint.url}#m"}
    run = prepared(settings)
    golds = golds_of(run)
    broken = list(golds)[:2]

    def reply(body):
        right = trajectory_text(right_answer(golds, last(body)))
        return (500, {}) if any(f"Query: {query}\n" in last(body) for query in broken) else (200, completion(right))

    endpoint.reply = reply
    synthesize(run)
    work = run.stage("synthesize")
    assert len(read_records(work / "trajectories.jsonl")) == 10
    assert [record["id"].endswith("/0") for record in read_records(work / "failed.jsonl")] == [True, True]
    assert "2 of 12 answers are missing (2 × status 500" in capsys.readouterr().out
    broken.clear()
    before = len(endpoint.requests)
    synthesize(run)
    assert len(endpoint.requests) - before == 2
    records = read_records(work / "trajectories.jsonl")
    assert [r["id"] for r in records] == [r.id for r in make_requests(load_prepared(run, "train"), (1,), 1)], "in order"
    assert not (work / "failed.jsonl").exists()
    synthesize(run)
    assert "synthesize: done already" in capsys.readouterr().out


def test_too_many_failures_are_an_error_after_the_rest_is_stored(prepared, endpoint):
    run = prepared({"endpoint.tries": 1, "synthesis.teacher": f"{endpoint.url}#m"})
    golds = golds_of(run)
    queries = list(golds)
    endpoint.reply = lambda body: (
        (500, {}) if f"Query: {queries[5]}\n" in last(body) else (200, completion(right(last(body))))
    )

    def right(prompt):
        return trajectory_text(right_answer(golds, prompt))

    with pytest.raises(KitError, match=r"1 of 12 answers are missing .*, more than the share endpoint\.tolerate=0\.02"):
        synthesize(run)
    assert len(read_records(run.stage("synthesize") / "trajectories.jsonl")) == 11
    assert not (run.stage("synthesize") / "manifest.json").exists()


def test_a_rewrite_that_comes_close_is_replaced_by_the_gold(prepared, recording_chat):
    run = prepared({"data.task": "LaMP-4", "data.train_users": 2, "synthesis.teacher": "local:chat"})
    golds = list(golds_of(run).values())
    texts = iter([trajectory_text(golds[0].upper() + "!"), *[trajectory_text("Something else entirely")] * 2])
    synthesize(run, ChatTeacher(recording_chat(lambda conversation: next(texts))))
    work = run.stage("synthesize")
    (record,) = read_records(work / "trajectories.jsonl")
    assert (record["rewrite"], record["wrote"]) == (golds[0], golds[0].upper() + "!")
    assert [r["reason"] for r in read_records(work / "rejected.jsonl")] == ["does not end in the gold"]


def test_the_rule_based_teacher_must_match_word_for_word(prepared):
    run = prepared({"data.task": "LaMP-4", "data.train_users": 1})
    (gold,) = golds_of(run).values()
    with pytest.raises(KitError, match="no usable trajectory"):
        synthesize(run, lambda task, requests: [trajectory_text(gold + "!")])


def test_a_setting_names_the_teacher(new_run, endpoint):
    assert open_teacher(new_run()) is persona_teacher
    teacher = open_teacher(new_run({"synthesis.teacher": f"{endpoint.url}#m", "endpoint.tries": 9}))
    assert (teacher.chat.settings.tries, teacher.chat.of_a_run) == (9, True)
