"""Requests that wait for a model are answered in one batch, and each gets its own answer or error."""

from __future__ import annotations

import threading
import time

import pytest

from rpo_kit.serving.together import Together


class Model:
    """Answers with its inputs in capitals; the first batch waits until `others` requests are waiting too."""

    def __init__(self, together: Together, others: int = 0) -> None:
        self.together, self.others, self.batches = together, others, []

    def batch(self, pairs):
        self.batches.append([input for input, _ in pairs])
        until = time.monotonic() + 10
        while len(self.together.waiting) < self.others and time.monotonic() < until:
            time.sleep(0.002)
        self.others = 0
        if any(input == "wrong" for input, _ in pairs):
            raise ValueError("wrong")
        return [input.upper() for input, _ in pairs]


def ask_all(together, requests):
    """What each request (model, input) got; they arrive in this order while the first is answered."""
    found = [None] * len(requests)

    def ask(n, model, input):
        try:
            found[n] = together(model, input, [])
        except ValueError as error:
            found[n] = error

    threads = [threading.Thread(target=ask, args=(n, *request)) for n, request in enumerate(requests)]
    for n, thread in enumerate(threads):
        thread.start()
        until = time.monotonic() + 10
        while n and len(together.waiting) < n and time.monotonic() < until:
            time.sleep(0.001)
        while not n and not requests[0][0].batches and time.monotonic() < until:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    return found


def test_those_who_arrive_while_the_models_work_share_the_next_batch():
    together = Together(most=8)
    model = Model(together, others=5)
    assert ask_all(together, [(model, input) for input in "abcdef"]) == list("ABCDEF")
    assert model.batches == [["a"], ["b", "c", "d", "e", "f"]]


def test_a_batch_is_limited_and_the_oldest_come_first():
    together = Together(most=2)
    model = Model(together, others=4)
    assert ask_all(together, [(model, input) for input in "abcde"]) == list("ABCDE")
    assert model.batches == [["a"], ["b", "c"], ["d", "e"]]


def test_a_request_at_fault_fails_alone():
    together = Together()
    model = Model(together, others=3)
    first, good, wrong, also = ask_all(together, [(model, input) for input in ("a", "b", "wrong", "c")])
    assert (first, good, also) == ("A", "B", "C")
    assert isinstance(wrong, ValueError)
    assert model.batches == [["a"], ["b", "wrong", "c"], ["b"], ["wrong"], ["c"]]


def test_requests_to_different_models_are_not_mixed():
    together = Together()
    one, two = Model(together, others=3), Model(together)
    assert ask_all(together, [(one, "a"), (two, "b"), (one, "c"), (two, "d")]) == list("ABCD")
    assert (one.batches, two.batches) == ([["a"], ["c"]], [["b", "d"]])


def test_who_comes_alone_does_not_wait_for_others():
    together = Together()
    model = Model(together)
    assert together(model, "a", []) == "A"
    with pytest.raises(ValueError, match="wrong"):
        together(model, "wrong", [])
    assert together(model, "b", []) == "B", "an error leaves nothing locked"
    assert together.waiting == []
