"""An endpoint that fails: finished answers are kept, what can pass is retried, every failure has a name."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pytest
from fakes import CUT, GARBAGE, HANG, completion, error, last

from rpo_kit.errors import KitError
from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.cache import open_database
from rpo_kit.models.open import open_chat
from rpo_kit.models.retry import (
    MAX_PAUSE,
    AttemptError,
    EndpointError,
    ErrorResponse,
    attempt_error,
    pause_after,
    read_retry_after,
)
from rpo_kit.presets import EndpointSettings

QUICK = EndpointSettings(backoff=0.001, timeout=5.0, cache=False)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def complete(endpoint, texts, settings=QUICK):
    return open_chat(f"{endpoint.url}#m", settings=settings).complete([ask(t) for t in texts], max_new_tokens=5)


# ---- trying again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [error(s, "busy") for s in (408, 409, 429, 500, 502, 503, 504)] + [CUT, GARBAGE])
def test_temporary_faults_are_retried(endpoint, first):
    replies = iter([first, first, (200, completion("at last"))])
    endpoint.reply = lambda body: next(replies)
    assert [answer.text for answer in complete(endpoint, ["q"])] == ["at last"]


def test_a_request_that_hangs_is_retried(endpoint):
    replies = iter([HANG, (200, completion("at last"))])
    endpoint.reply = lambda body: next(replies)
    settings = EndpointSettings(backoff=0.001, timeout=0.3)
    assert [answer.text for answer in complete(endpoint, ["q"], settings)] == ["at last"]


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_permanent_faults_are_not_retried_and_the_others_continue(endpoint, status):
    endpoint.reply = lambda body: error(status, "no") if last(body) == "bad" else (200, completion("good"))
    answers = complete(endpoint, ["a", "bad", "b"])
    assert [answer.text for answer in answers] == ["good", "", "good"]
    assert answers[1].failure == f"status {status}: no (1 try)"
    assert len(endpoint.requests) == 3


def test_an_item_that_keeps_failing_is_reported_after_all_tries(endpoint):
    endpoint.reply = lambda body: error(500, "overloaded") if last(body) == "bad" else (200, completion("good"))
    answers = complete(endpoint, ["a", "bad"], EndpointSettings(backoff=0.001, tries=3))
    assert answers[0].text == "good"
    assert answers[1].failure.endswith("(3 tries)")
    assert "overloaded" in answers[1].failure
    assert Counter(map(last, endpoint.requests)) == {"a": 1, "bad": 3}


@pytest.mark.parametrize("answer", [completion(""), completion(None), {**completion("x"), "choices": []}, {"a": 1}, []])
def test_an_empty_answer_is_paid_for_twice_and_no_more(endpoint, answer):
    endpoint.reply = lambda body: (200, answer)
    assert complete(endpoint, ["q"])[0].failure.startswith(("the answer is empty", "the answer holds no choice"))
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    "replies",
    [
        [error(503, "busy"), (200, completion(""))],
        [(200, completion("")), error(503, "busy")],
        [error(503, "busy")] * 2 + [(200, completion("")), CUT, CUT],
        [GARBAGE, (200, {"error": "It rains."}), (200, completion("")), error(429, "slow down")],
    ],
)
def test_each_kind_of_fault_has_its_own_retries(endpoint, replies):
    left = iter([*replies, (200, completion("at last"))])
    endpoint.reply = lambda body: next(left)
    assert complete(endpoint, ["q"], EndpointSettings(backoff=0.001, tries=3))[0].text == "at last"


@pytest.mark.parametrize(
    ("replies", "asked"),
    [
        ([error(503, "busy"), (200, completion("")), (200, completion(""))], 3),
        ([(200, completion("")), error(503, "a"), error(503, "b"), error(503, "c")], 4),
        ([(200, {"error": "It rains."}), GARBAGE, (200, {"error": "It rains."})], 3),
    ],
)
def test_the_retries_of_a_kind_are_limited_whatever_happens_in_between(endpoint, replies, asked):
    left = iter([*replies, (200, completion("too late"))])
    endpoint.reply = lambda body: next(left)
    assert complete(endpoint, ["q"], EndpointSettings(backoff=0.001, tries=3))[0].failure.endswith(f"({asked} tries)")


def test_with_one_try_nothing_is_sent_twice(endpoint):
    for reply in (error(503, "busy"), (200, completion("")), GARBAGE, (200, {"error": "It rains."})):
        endpoint.reply, before = lambda body, reply=reply: reply, len(endpoint.requests)
        assert complete(endpoint, ["q"], EndpointSettings(tries=1))[0].failure.endswith("(1 try)")
        assert len(endpoint.requests) == before + 1


def test_garbage_fails_alone(endpoint):
    bad = {
        "deep": "[" * 200_000,
        "digits": '{"usage": ' + "9" * 5_000 + "}",
        "page": "<html><title>A gateway</title>",
        "nothing": "",
        "other": '{"choices": [[{}]], "usage": 3}',
    }
    endpoint.reply = lambda body: (200, bad.get(last(body)) if last(body) in bad else completion("good"))
    answers = complete(endpoint, ["a", *bad, "b"], EndpointSettings(backoff=0.001, tries=2))
    assert [answer.text for answer in answers] == ["good", "", "", "", "", "", "good"]
    assert all(answer.failure.endswith("(2 tries)") for answer in answers[1:-1])


def test_an_invalid_usage_does_not_stop_the_stream(endpoint):
    odd = completion("good") | {"usage": {"prompt_tokens": 10**30, "completion_tokens": -(10**30)}}
    endpoint.reply = lambda body: (200, odd)
    assert [answer.text for answer in complete(endpoint, ["a", "b"])] == ["good", "good"]


def test_a_very_long_reason_is_cut(endpoint):
    endpoint.reply = lambda body: error(400, "no " * 10**6)
    assert len(complete(endpoint, ["q"])[0].failure) < 700


def test_a_refusal_is_a_failure_and_not_an_answer(endpoint):
    refused = completion(None)
    refused["choices"][0]["message"]["refusal"] = "I will not."
    endpoint.reply = lambda body: (200, refused if last(body) == "a" else completion("half", "content_filter"))
    assert [a.failure for a in complete(endpoint, ["a", "b"])] == [
        "refused: I will not. (1 try)",
        "refused: content_filter (1 try)",
    ]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (error(401, "bad key"), "the key was rejected"),
        (error(404, "no model m"), "there is no such model or address"),
        (error(429, "You exceeded your quota", "insufficient_quota"), "the quota is exhausted"),
    ],
)
def test_if_no_request_can_succeed_the_stream_stops_at_once_and_yields_finished_answers(endpoint, reply, why):
    endpoint.reply = lambda body: (200, completion("good")) if last(body) in "01" else reply
    model = open_chat(f"{endpoint.url}#m", settings=EndpointSettings(concurrency=1))
    batches, got = model.stream([ask(str(n)) for n in range(50)], max_new_tokens=5), []
    with pytest.raises(
        EndpointError, match=rf"No request to the model .* can succeed: {why}.*Finished answers are kept"
    ):
        got.extend(pair for batch in batches for pair in batch)
    assert [index for index, _ in got] == [0, 1]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("unsupported_value", "'temperature' does not support 0.0 with this model. Only the default (1) is supported."),
        ("unsupported_parameter", "'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
    ],
)
def test_a_model_that_rejects_a_setting_gets_one_request_and_the_error_says_what_to_do(endpoint, code, words):
    endpoint.reply = lambda body: error(400, words, code)
    settings = EndpointSettings(concurrency=1)
    with pytest.raises(EndpointError, match=r"add --set endpoint\.send_temperature=false; if it wants") as caught:
        complete(endpoint, map(str, range(50)), settings)
    assert words in str(caught.value)
    assert len(endpoint.requests) == 1


def test_a_reasoning_model_gets_more_tokens_and_no_temperature_if_it_rejects_one(endpoint):
    complete(endpoint, ["q"], EndpointSettings())
    complete(endpoint, ["q"], EndpointSettings(send_temperature=False, thinking_tokens=1000))
    plain, thinking = endpoint.requests
    assert (plain["temperature"], plain["max_tokens"]) == (0.0, 5)
    assert thinking["max_tokens"] == 1005
    assert "temperature" not in thinking


@pytest.mark.parametrize("text", ["", None])
def test_a_model_that_reasons_until_its_tokens_are_used_up_is_not_paid_twice(endpoint, text):
    endpoint.reply = lambda body: (200, completion(text, "length"))
    assert complete(endpoint, ["q"])[0].failure.startswith(
        "the answer is empty: its tokens were used up before it began"
    )
    assert len(endpoint.requests) == 1


def test_after_twenty_failures_in_a_row_the_rest_is_not_tried(endpoint):
    endpoint.reply = lambda body: error(400, "no")
    with pytest.raises(EndpointError, match=r"20 requests in a row failed at .*, the last with: status 400"):
        complete(endpoint, map(str, range(500)))
    assert len(endpoint.requests) < 40


def test_a_server_that_does_not_answer_is_named(endpoint):
    endpoint.server.server_close()
    answer = complete(endpoint, ["q"], EndpointSettings(backoff=0.001, tries=2))[0]
    assert answer.failure.startswith(f"nothing answers at {endpoint.url}: is the server running? (ConnectError(")


# ---- how long to wait ---------------------------------------------------------------------------------------------


def test_pauses_double_with_jitter_up_to_a_ceiling():
    assert [pause_after(n, 0.5, None, 1.0) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert [pause_after(n, 0.5, None, 0.0) for n in (1, 2, 3, 4)] == [0.25, 0.5, 1.0, 2.0]
    assert pause_after(50, 0.5, None, 1.0) == MAX_PAUSE


def test_the_servers_retry_after_is_never_cut_short():
    assert pause_after(1, 0.5, 7.0, 0.0) == 7.0
    assert pause_after(1, 0.5, 7.0, 1.0) == pytest.approx(7.7)
    assert pause_after(5, 0.5, 1.0, 1.0) == 8.0, "our own pause is longer"


def test_retry_after_is_read_as_seconds_milliseconds_or_a_date():
    assert read_retry_after({"retry-after": "3"}) == 3.0
    assert read_retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert read_retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(100, abs=2)
    assert read_retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0.0
    assert read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({}) is None


def test_a_pause_that_the_server_asks_for_is_respected(endpoint):
    replies = iter([error(429, "slow down"), (200, completion("ok"))])
    endpoint.headers = {"retry-after-ms": "120"}
    endpoint.reply = lambda body: next(replies)
    start = time.perf_counter()
    complete(endpoint, ["q"])
    assert time.perf_counter() - start >= 0.12


@pytest.mark.parametrize("reply", [error(401, "bad key"), error(404, "no model m")])
def test_a_stop_does_not_wait_for_a_pause_that_the_server_asked_for(endpoint, reply):
    pausing = threading.Event()

    def answer(body):
        if last(body) == "pause":
            pausing.set()
            return error(429, "slow down")
        pausing.wait(5)
        return reply

    endpoint.headers, endpoint.reply = {"retry-after": "60"}, answer
    start = time.perf_counter()
    with pytest.raises(EndpointError):
        complete(endpoint, ["pause", "stop"])
    assert time.perf_counter() - start < 20


def test_a_reader_who_leaves_does_not_wait_for_a_pause_either(endpoint):
    endpoint.headers = {"retry-after": "60"}
    endpoint.reply = lambda body: error(429, "slow") if last(body) == "pause" else (200, completion("good"))
    batches = open_chat(f"{endpoint.url}#m", settings=QUICK).stream([ask("pause"), ask("a")], max_new_tokens=2)
    start = time.perf_counter()
    next(batches)
    batches.close()
    assert time.perf_counter() - start < 20


def test_an_hour_is_not_waited_for():
    error = attempt_error(ErrorResponse(429, "", "daily limit", {"retry-after": "3600"}))
    assert (error.retries, error.reason) == (0, "the server asks to wait 3600 s (status 429: daily limit)")
    assert isinstance(error, AttemptError)


# ---- the cache ----------------------------------------------------------------------------------------------------


def test_the_same_question_is_paid_for_once_also_by_another_run(endpoint):
    settings = EndpointSettings()
    first = complete(endpoint, ["a", "b"], settings)
    assert complete(endpoint, ["b", "a"], settings) == first[::-1]
    assert len(endpoint.requests) == 2


def test_whatever_decides_the_answer_decides_the_key(endpoint):
    def asked_with(model="m", text="q", tokens=5, temperature=0.0):
        before = len(endpoint.requests)
        open_chat(f"{endpoint.url}#{model}").complete([ask(text)], max_new_tokens=tokens, temperature=temperature)
        return len(endpoint.requests) - before

    assert asked_with() == 1
    assert asked_with() == 0
    assert [asked_with(model="n"), asked_with(text="r"), asked_with(tokens=6), asked_with(temperature=0.5)] == [1] * 4
    system = [{"role": "system", "content": "s"}, *ask("q")]
    open_chat(f"{endpoint.url}#m").complete([system], max_new_tokens=5)
    assert len(endpoint.requests) == 6


def test_answers_stored_by_earlier_versions_are_found_again(endpoint):
    model = open_chat(f"{endpoint.url}#m")
    model.spec = EndpointSpec("http://h/v1", "m", "")
    assert model.cache_key(ask("q"), model.sampling(8, 1.0), sample=2) == (
        "1867806e7ca6cf68aad16724b4004cf4be2bd051da9cc8fc1fdcfdc5d5bf03c8"
    )


def test_drawn_answers_to_one_question_are_different_samples_and_stay_the_same_ones(endpoint):
    numbers = iter("abcdef")
    endpoint.reply = lambda body: (200, completion(next(numbers)))

    def draw(count):
        model = open_chat(f"{endpoint.url}#m", settings=EndpointSettings(concurrency=1))
        return [a.text for a in model.complete([ask("q")] * count, max_new_tokens=5, temperature=1.0)]

    assert [draw(2), draw(3)] == [["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    "bad",
    [
        (200, completion("")),
        (200, completion("half", "length")),
        (200, completion("half", "error")),
        (200, completion("half", "something new")),
        (200, completion("half") | {"error": {"code": 502, "message": "died"}}),
        (200, completion("x", "content_filter")),
        CUT,
    ],
)
def test_errors_refusals_empty_and_truncated_answers_are_not_cached(endpoint, bad):
    settings = EndpointSettings(backoff=0.001, tries=2)
    endpoint.reply = lambda body: bad
    complete(endpoint, ["q"], settings)
    endpoint.reply = lambda body: (200, completion("whole"))
    assert complete(endpoint, ["q"], settings)[0].text == "whole"


def test_without_the_cache_everything_is_requested_again(endpoint):
    complete(endpoint, ["a"])
    complete(endpoint, ["a"])
    assert len(endpoint.requests) == 2


def test_the_store_holds_no_prompts(endpoint, tmp_path):
    complete(endpoint, ["a very secret question"], EndpointSettings())
    endpoint.reply = lambda body: (200, completion("an answer"))
    complete(endpoint, ["another secret question"], EndpointSettings())
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))
    assert b"an answer" in stored
    assert b"another secret question" not in stored


def test_two_writers_share_one_store_and_pay_for_nothing_twice(endpoint):
    def half(start):
        complete(endpoint, [str(n) for n in range(start, start + 60)], EndpointSettings())

    threads = [threading.Thread(target=half, args=(start,)) for start in (0, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(map(last, endpoint.requests)) == Counter(map(str, range(100)))
    assert len(complete(endpoint, map(str, range(100)), EndpointSettings())) == 100
    assert len(endpoint.requests) == 100


def test_a_new_store_can_be_opened_by_several_at_the_same_moment(tmp_path):
    """Without waiting in the switch to the log, about one in thirty gets "database is locked" (measured)."""
    rejected: list[KitError] = []

    def open_at_once(barrier: threading.Barrier, path: Path) -> None:
        barrier.wait()
        try:
            open_database(path).close()
        except KitError as error:
            rejected.append(error)

    for number in range(100):
        barrier = threading.Barrier(4)
        arguments = (barrier, tmp_path / f"{number}.sqlite")
        threads = [threading.Thread(target=open_at_once, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rejected == []


def test_a_file_that_is_not_a_database_is_named(endpoint, tmp_path):
    (tmp_path / "answers.sqlite").write_text("not a database, but long enough to be taken for one" * 99)
    with pytest.raises(KitError, match=r"answers\.sqlite cannot be used as the store of answers .*move it away"):
        complete(endpoint, ["q"], EndpointSettings())


# ---- the same question, on its way already ------------------------------------------------------------------------


def slow(endpoint, reply):
    """Answers wait until another request has come or a moment has passed, so that same questions meet on their way."""

    def answer(body):
        time.sleep(0.05)
        return reply(body)

    endpoint.reply = answer


@pytest.mark.parametrize("order", ["in a row", "in turn", "shuffled"])
def test_a_request_in_flight_is_not_sent_again(endpoint, order):
    slow(endpoint, lambda body: (200, completion(f"answer {last(body)}")))
    texts = [str(n // 10) for n in range(60)] if order == "in a row" else [str(n % 6) for n in range(60)]
    if order == "shuffled":
        random.Random(0).shuffle(texts)
    answers = complete(endpoint, texts, EndpointSettings())
    assert [answer.text for answer in answers] == [f"answer {text}" for text in texts]
    assert Counter(map(last, endpoint.requests)) == Counter(map(str, range(6)))


def test_waiting_callers_share_a_failure_or_a_truncated_answer(endpoint):
    slow(endpoint, lambda body: error(400, "no") if last(body) == "bad" else (200, completion("half", "length")))
    answers = complete(endpoint, ["bad", "bad", "cut", "cut"], EndpointSettings())
    assert [(answer.text, answer.finished) for answer in answers[2:]] == [("half", False)] * 2
    assert all("status 400" in answer.failure for answer in answers[:2])
    assert Counter(map(last, endpoint.requests)) == {"bad": 1, "cut": 1}


def test_a_request_in_flight_is_not_sent_again_by_another_thread(endpoint):
    slow(endpoint, lambda body: (200, completion("good")))
    chat, got = open_chat(f"{endpoint.url}#m"), []
    threads = [
        threading.Thread(target=lambda: got.append(chat.complete([ask("a"), ask("b")], max_new_tokens=5)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[answer.text for answer in answers] for answers in got] == [["good", "good"]] * 6
    assert Counter(map(last, endpoint.requests)) == {"a": 1, "b": 1}
    assert chat.ledger.used_here.requests == 2


CHILD = """
import sys
from rpo_kit.models.open import open_chat
chat = open_chat(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print([a.text for a in chat.complete([[{"role": "user", "content": str(n)}] for n in range(30)], max_new_tokens=5)])
"""


def test_a_request_in_flight_is_not_sent_again_by_another_process(endpoint):
    slow(endpoint, lambda body: (200, completion("good")))
    command = [sys.executable, "-c", CHILD, f"{endpoint.url}#m"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        assert child.communicate()[0] == f"{['good'] * 30}\n"
    assert Counter(map(last, endpoint.requests)) == Counter(map(str, range(30)))


def test_sampled_answers_are_requested_one_by_one(endpoint):
    slow(endpoint, lambda body: (200, completion("good")))
    open_chat(f"{endpoint.url}#m").complete([ask("q")] * 5, max_new_tokens=5, temperature=1.0)
    assert len(endpoint.requests) == 5


def test_a_caller_that_leaves_passes_the_request_to_the_next(endpoint):
    first_arrived, gone = threading.Event(), threading.Event()

    def reply(body):
        if last(body) == "slow" and not gone.is_set():
            first_arrived.set()
            return HANG
        return 200, completion("good")

    endpoint.reply = reply
    chat = open_chat(f"{endpoint.url}#m")
    batches = chat.stream([ask("slow"), ask("quick")], max_new_tokens=5)
    next(batches)
    assert first_arrived.wait(5)
    gone.set()
    batches.close()
    assert chat.complete([ask("slow")], max_new_tokens=5)[0].text == "good"


# ---- which model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answered", "other"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("openai/gpt-4o:free", "gpt-4o", False),
        ("qwen2.5", "/models/Qwen2.5.gguf", False),
        ("llama3:8b", "llama3:latest", False),
        ("gpt-4o", "gpt-4o-mini", True),
        ("m", "gpt-3.5-turbo", True),
        ("m", None, False),
    ],
)
def test_another_model_than_the_requested_one_is_reported_once(endpoint, capsys, asked, answered, other):
    endpoint.reply = lambda body: (200, completion("good") | {"model": answered})
    chat = open_chat(f"{endpoint.url}#{asked}")
    for text in "abc":
        chat.complete([ask(text)], max_new_tokens=2)
    told = capsys.readouterr().out
    assert told.count("the server reports that") == other
    if other:
        assert f"the server reports that its model is {answered!r}" in told
        assert f"as those of {asked!r}" in told


# ---- faults in bulk -----------------------------------------------------------------------------------------------


def test_of_a_thousand_items_with_thirty_percent_faults_none_is_lost_none_doubled_every_failure_named(endpoint):
    """429, 500, hang, cut, garbage, an empty choice: 5 % each of all requests, drawn with a seed by the server."""
    faults = [error(429, "slow down"), error(500, "oops"), HANG, CUT, GARBAGE, (200, completion(""))]
    draw, lock, answered = random.Random(0), threading.Lock(), Counter()

    def reply(body):
        with lock:
            fault = draw.choice(faults) if draw.random() < 0.3 else None
            answered[last(body)] += fault is None
        return fault or (200, completion(f"answer {last(body)}"))

    endpoint.reply = reply
    settings = EndpointSettings(concurrency=32, backoff=0.001, timeout=2.0, tries=3)
    model = open_chat(f"{endpoint.url}#m", settings=settings)
    got = [pair for batch in model.stream([ask(str(n)) for n in range(1000)], max_new_tokens=5) for pair in batch]
    assert sorted(index for index, _ in got) == list(range(1000))
    good = [(index, answer) for index, answer in got if not answer.failure]
    assert all(answer.text == f"answer {index}" for index, answer in good)
    failed = [answer.failure for _, answer in got if answer.failure]
    assert len(good) + len(failed) == 1000
    assert 0 < len(failed) < 100, "about 1000 * (0.3^3 + two empty answers: 0.05 * 0.05)"
    assert all(failure.endswith(" tries)") and len(failure) > 20 for failure in failed)
    assert max(answered.values()) <= 2, "an answer that came too late, if any, was asked for again"
    assert model.ledger.used_here.requests >= len(endpoint.requests), "each request that arrived is in the account"

    endpoint.reply = lambda body: (200, completion(f"answer {last(body)}"))
    before = len(endpoint.requests)
    again = open_chat(f"{endpoint.url}#m", settings=settings).complete(
        [ask(str(n)) for n in range(1000)], max_new_tokens=5
    )
    assert [answer.text for answer in again] == [f"answer {n}" for n in range(1000)]
    assert len(endpoint.requests) - before == len(failed), "the next run asks for what failed and nothing else"
