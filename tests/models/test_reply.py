"""Whatever a server sends: the answer is found in it, or the reason is given in the server's own words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_kit.models.chat import Completion
from rpo_kit.models.reply import MAX_COUNT, error_response, read_reply
from rpo_kit.models.retry import UNLIMITED, AttemptError, attempt_error


def body_of(content: object = "4", finish_reason: str | None = "stop", **more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], **more}).encode()


def fault(body: object) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        read_reply(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


# ---- errors with status 200 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "The model is overloaded."}, "status 503: The model is overloaded."),
        ({"error": {"message": "One moment", "code": 502}}, "status 502: One moment"),
        ({"error": {"message": "One moment", "code": "529"}}, "status 529: One moment"),
        ({"error": {"message": "One moment", "type": "rate_limit_error"}}, "status 429: One moment"),
        ([{"error": {"message": "Slow down", "status": "RESOURCE_EXHAUSTED"}}], "status 429: Slow down"),
        ({"error": True, "message": "Upstream timed out"}, "status 503: Upstream timed out"),
        ({"detail": "Internal error"}, "status 503: Internal error"),
        ({"status": 503, "title": "Please wait"}, "status 503: Please wait"),
        ({"choices": [{"error": {"code": 500, "message": "died"}, "message": {"content": "Half"}}]}, "500: died"),
        (
            {"error": {"code": 502, "message": "Provider error", "metadata": {"raw": "no GPU is free"}}},
            "status 502: Provider error: no GPU is free",
        ),
    ],
)
def test_an_error_that_can_pass_is_retried_as_if_it_had_its_own_status(body, words):
    error = fault(body)
    assert words in error.reason
    assert (error.retries, error.fatal, error.charged) == (UNLIMITED, False, False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "Invalid value for top_p"}, "Invalid value for top_p"),
        ({"error": {"message": "Too much", "type": "invalid_request_error"}}, "status 400: Too much"),
        ({"error": {"message": "No", "code": 403}}, "status 403: No"),
        (
            {"detail": [{"loc": ["body"], "msg": "field required"}, {"msg": "and more"}]},
            "field required; and more",
        ),
        ({"object": "error", "message": "The prompt is too long", "code": 40001}, "The prompt is too long"),
        ({"error": "Unexpected endpoint or method. Returning 200 anyway"}, "Unexpected endpoint"),
    ],
)
def test_an_error_that_cannot_pass_is_not_retried(body, words):
    error = fault(body)
    assert words in error.reason
    assert (error.retries, error.fatal) == (0, False)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ({"message": "Who are you?", "code": 401}, "the key was rejected"),
        ({"message": "No such model", "code": 404}, "there is no such model or address"),
        ({"message": "Add money", "code": 402}, "the server asks for payment"),
        ({"message": "Add money", "type": "insufficient_quota"}, "the quota is exhausted"),
    ],
)
def test_an_error_that_affects_every_request_stops_the_stream(error, why):
    assert fault({"error": error}).fatal
    assert fault({"error": error}).reason.startswith(why)


@pytest.mark.parametrize("body", [{"error": "It rains."}, {"message": "Unknown error"}, {"choices": []}, [], 3, None])
def test_an_error_of_unknown_kind_is_retried_once(body):
    error = fault(body)
    assert (error.kind, error.retries, error.charged) == ("unknown", 1, True)


@pytest.mark.parametrize("empty", [None, "", {}, [], False])
def test_an_empty_error_beside_an_answer_is_ignored(empty):
    assert read_reply(body_of(error=empty)).completion.text == "4"


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=40))
def test_the_servers_message_is_in_the_reason_wherever_it_is(words):
    for body in (
        {"error": words},
        {"error": {"message": words}},
        {"error": {"message": {"detail": words}}},
        {"errors": [{"msg": words}]},
        {"detail": words},
        {"choices": [{"error": {"message": words}}]},
    ):
        assert words in fault(body).reason
        assert words in error_response(500, json.dumps(body).encode(), {}).message


# ---- what is not JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!doctype html><html><head><TITLE>A\n gateway</TITLE>", "a web page (A gateway); is the address right?"),
        (b"  <html>Hello", "the server sent a web page; is the address right? Most end in /v1"),
        (b"", "the server sent nothing"),
        (b" \r\n", "the server sent nothing"),
        (b'data: {"choices": []}\n\n', 'is not JSON (Expecting value: line 1 column 1 (char 0)): data: {"choices"'),
        (b"[" * 200_000, "is not JSON (nested too deeply): [[["),
        (b'{"usage": ' + b"9" * 5_000 + b"}", "is not JSON (Exceeds the limit"),
        (b"\xff\xfe\xff", "is not JSON"),
    ],
)
def test_a_body_that_is_not_json_is_described(body, words):
    error = fault(body)
    assert words in error.reason
    assert error.reason.startswith("no readable answer: ")
    assert len(error.reason) < 1_000
    assert (error.kind, error.retries, error.charged) == ("lost", UNLIMITED, True)


def test_an_error_status_with_a_web_page_or_nothing_is_named_too():
    assert error_response(502, b"<html><title>502 Bad Gateway</title>", {}).message == "a web page (502 Bad Gateway)"
    assert error_response(500, b"", {}).message == "the server sent nothing"
    assert error_response(503, b"please wait", {}).message == "please wait"
    moved = error_response(308, b"", {"location": "https://h/v1"})
    assert (
        moved.message
        == "the server sent nothing; it redirects to https://h/v1: if that is the right server, use its address"
    )
    assert attempt_error(error_response(429, b'{"error": {"type": "insufficient_quota"}}', {})).fatal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "error", "usage", "finish_reason", "text", "type", "code"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=60), st.integers(200, 599))
def test_any_body_is_an_answer_or_a_fault_with_a_reason(body, status):
    try:
        text = read_reply(body).completion.text
    except AttemptError as error:
        text = error.reason
    assert text.strip()
    text.encode()
    attempt_error(error_response(status, body, {}))


def test_a_body_that_is_nested_as_deeply_as_json_can_be_is_a_fault():
    for depth in (400, 900, 980):
        for wrap in ("{}", '{{"error": {}}}', '{{"choices": [{{"message": {{"content": {}}}}}]}}', '{{"detail": {}}}'):
            assert fault(wrap.format("[" * depth + "]" * depth).encode()).reason


# ---- the text -----------------------------------------------------------------------------------------------------

THOUGHTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Five? No."}]},
    {"type": "reasoning", "text": "Five? No."},
    {"type": "redacted_thinking", "data": "Five? No."},
]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.just(True), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
        | st.tuples(st.just(False), st.sampled_from(THOUGHTS)),
        max_size=6,
    )
)
def test_of_a_content_in_parts_the_texts_are_joined_and_thoughts_left_out(parts):
    content = [{"type": "text", "text": part} if is_text else part for is_text, part in parts]
    text = "".join(part for is_text, part in parts if is_text)
    if text.strip():
        assert read_reply(body_of(content)).completion.text == text
    else:
        assert fault(body_of(content)).kind == "empty"


def test_other_forms_of_a_text_are_read_as_well():
    value = [{"type": "text", "text": {"value": "4"}}]
    for content in (["4"], [{"text": "4"}], [{"type": "output_text", "text": "4"}], value):
        assert read_reply(body_of(content)).completion.text == "4"
    old = b'{"choices": [{"text": "4", "finish_reason": "length"}]}'
    assert read_reply(old).completion == Completion("4", False, 0, 0)


def test_thoughts_beside_the_content_are_not_an_answer():
    body = {"choices": [{"message": {"content": "", "reasoning_content": "Four."}, "finish_reason": "stop"}]}
    assert fault(body).reason == "the answer is empty: the server sent only its reasoning"
    body["choices"][0]["message"]["content"] = "4"
    assert read_reply(json.dumps(body).encode()).completion.text == "4"


def test_a_refusal_in_parts_is_a_refusal():
    assert fault(body_of([{"type": "refusal", "refusal": "I will not."}])).reason == "refused: I will not."


# ---- how it ended -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", "STOP", "eos_token", "end_turn", "stop_sequence", "", None])
def test_an_answer_that_reached_its_end_is_finished(reason):
    assert read_reply(body_of("4", reason)).completion.finished


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length", "something new"])
def test_an_answer_that_was_cut_or_ended_for_an_unknown_reason_is_not(reason):
    assert not read_reply(body_of("4", reason)).completion.finished


@pytest.mark.parametrize("reason", ["error", "network_error", "abort", "insufficient_system_resource", "CANCELLED"])
def test_an_answer_that_was_broken_off_is_retried(reason):
    error = fault(body_of("The head of the", reason))
    assert (error.reason, error.retries) == (f"the answer was broken off ({reason.lower()})", UNLIMITED)


@pytest.mark.parametrize("reason", ["content_filter", "content-filter", "SAFETY", "PROHIBITED_CONTENT", "sensitive"])
def test_an_answer_that_a_filter_cut_is_a_refusal(reason):
    assert fault(body_of("The head of the", reason)).reason.startswith("refused: ")


# ---- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}, (7, 3)),
        ({"prompt_tokens": 7.0, "completion_tokens": 3}, (7, 3)),
        ({"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 3}, (0, 3)),
        ({"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 10}, (7, 3)),
        ({"prompt_tokens": 7, "total_tokens": 10}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 90}, (7, 83)),  # 80 of them are thoughts
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, (0, 3)),
        ({"prompt_tokens": True, "completion_tokens": "3"}, (0, 0)),
        ({"prompt_tokens": -7, "completion_tokens": None}, (0, 0)),
        ([7, 3], (0, 0)),
    ],
)
def test_only_valid_counts_are_counted(usage, counts):
    completion = read_reply(body_of(usage=usage)).completion
    assert (completion.prompt_tokens, completion.new_tokens) == counts


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), JSON))
def test_no_reported_usage_breaks_the_account(usage):
    completion = read_reply(body_of(usage=usage)).completion
    for count in (completion.prompt_tokens, completion.new_tokens):
        assert type(count) is int
        assert 0 <= count <= MAX_COUNT


def test_the_model_that_answered_is_named():
    assert read_reply(body_of(model="other")).model == "other"
    assert read_reply(body_of(model=3)).model == ""
