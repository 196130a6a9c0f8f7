"""The budget of a run: never exceeded, reported before and after, shared by stages and processes."""

import shutil
import threading

import pytest
from fakes import completion, error
from hypothesis import given
from hypothesis import strategies as st

from rpo_kit.errors import KitError
from rpo_kit.models.budget import BudgetError, Ledger, Usage, read_prices, upper_bound
from rpo_kit.models.cache import open_database
from rpo_kit.models.chat import reporting_cost
from rpo_kit.models.open import open_chat_for
from rpo_kit.presets import EndpointSettings, get_preset


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


QUESTIONS = [ask(f"question {n}") for n in range(40)]


def collected(model, questions=QUESTIONS, tokens=3):
    got = []
    try:
        for batch in model.stream(questions, max_new_tokens=tokens):
            got += batch
    except BudgetError as caught:
        return got, str(caught)
    return got, None


def test_the_request_that_would_exceed_the_limit_is_not_sent_and_earlier_answers_are_kept(endpoint, new_run):
    run = new_run({"endpoint.max_requests": 10})
    got, why = collected(open_chat_for(run, f"{endpoint.url}#m"))
    assert len(endpoint.requests) == len(got) == 10
    assert "The budget of this run (10 requests) leaves no room for the next request" in why


def test_retries_count_as_requests(endpoint, new_run):
    endpoint.reply = lambda body: error(500, "no")
    run = new_run({"endpoint.max_requests": 10, "endpoint.tries": 4, "endpoint.backoff": 0.001})
    _, why = collected(open_chat_for(run, f"{endpoint.url}#m"))
    assert why
    assert len(endpoint.requests) == 10


def test_tokens_never_exceed_the_limit_and_cheaper_answers_free_budget(endpoint, new_run):
    # an answer costs 10 tokens; its bound is 3 new ones and 10 bytes + 16 for the question
    run = new_run({"endpoint.max_tokens": 100})
    model = open_chat_for(run, f"{endpoint.url}#m")
    got, why = collected(model)
    spent = model.ledger.used_here
    assert spent.tokens == 10 * len(got) <= 100
    assert spent.tokens + upper_bound(QUESTIONS[0], 3).tokens > 100, "no room was left unused"
    assert why


def test_money_is_counted_with_the_prices_given(endpoint, new_run):
    spec = f"{endpoint.url}#m"
    prices = [f"{spec} 1000000 2000000"]  # 1 a prompt token and 2 a new one: 7 + 2 * 3 = 13 a request
    run = new_run({"endpoint.max_cost": 100.0, "endpoint.prices": prices})
    model = open_chat_for(run, spec)
    collected(model)
    assert 13 <= model.ledger.cost(model.ledger.total()) <= 100
    with pytest.raises(KitError, match=r"max_cost is set, but .*#other has no price: add it"):
        open_chat_for(run, f"{endpoint.url}#other")


def test_the_account_is_the_runs_and_outlives_the_process_that_spends(endpoint, new_run):
    run = new_run({"endpoint.max_requests": 25})
    collected(open_chat_for(run, f"{endpoint.url}#teacher"), QUESTIONS[:20])
    got, why = collected(open_chat_for(run, f"{endpoint.url}#base"), QUESTIONS)
    assert (len(got), bool(why)) == (5, True)
    assert len(collected(open_chat_for(new_run({"endpoint.max_requests": 25}, "other"), f"{endpoint.url}#b"))[0]) == 25
    more = new_run({"endpoint.max_requests": 60})
    assert len(collected(open_chat_for(more, f"{endpoint.url}#base"))[0]) == 40, "20 + 5 + 35, and 5 from the cache"


def test_a_run_that_was_deleted_and_created_again_has_spent_nothing(endpoint, new_run):
    def spent():
        model = open_chat_for(new_run({"endpoint.cache": False}), f"{endpoint.url}#m")
        collected(model, QUESTIONS[:4])
        return sum(amount.requests for amount in model.ledger.total().values())

    assert [spent(), spent()] == [4, 8]
    shutil.rmtree(new_run().folder)
    assert spent() == 4


def test_a_request_that_finds_no_server_costs_nothing(endpoint, new_run):
    run = new_run({"endpoint.max_requests": 2, "endpoint.tries": 5, "endpoint.backoff": 0.001})
    model = open_chat_for(run, f"{endpoint.url}#m")
    endpoint.server.server_close()
    (answer,) = model.complete(QUESTIONS[:1], max_new_tokens=3)
    assert answer.failure.endswith("(5 tries)")
    assert (model.ledger.used_here, model.ledger.total()[model.name]) == (Usage(), Usage())


def test_cached_answers_cost_nothing(endpoint, new_run):
    model = open_chat_for(new_run({"endpoint.max_requests": 40}), f"{endpoint.url}#m")
    assert collected(model)[1] is None
    assert collected(model)[1] is None
    assert len(endpoint.requests) == 40


def test_a_time_out_stays_charged_at_its_bound(endpoint, new_run):
    endpoint.reply = lambda body: "hang"
    run = new_run({"endpoint.timeout": 0.2, "endpoint.tries": 1})
    model = open_chat_for(run, f"{endpoint.url}#m")
    model.complete(QUESTIONS[:1], max_new_tokens=3)
    assert model.ledger.used_here == upper_bound(QUESTIONS[0], 3)


def test_a_server_that_counts_nothing_is_charged_the_bound(endpoint, new_run):
    endpoint.reply = lambda body: (200, completion("x", usage=False))
    model = open_chat_for(new_run(), f"{endpoint.url}#m")
    model.complete(QUESTIONS[:1], max_new_tokens=3)
    assert model.ledger.used_here == upper_bound(QUESTIONS[0], 3)


@pytest.mark.parametrize(
    ("prompt", "new", "charged"),
    [(7, 3, (7, 3)), (0, 3, (26, 3)), (7, 0, (7, 3)), (0, 0, (26, 3)), (None, 2, (26, 2)), (7, None, (7, 3))],
)
def test_a_count_that_a_server_leaves_out_is_charged_at_its_bound(endpoint, new_run, prompt, new, charged):
    usage = {"prompt_tokens": prompt, "completion_tokens": new}
    endpoint.reply = lambda body: (200, completion("x") | {"usage": usage})
    model = open_chat_for(new_run(), f"{endpoint.url}#m")
    model.complete(QUESTIONS[:1], max_new_tokens=3)
    assert model.ledger.used_here == Usage(1, *charged), "the question has 10 bytes, its template up to 16"


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0, "completion_tokens": 1}, {"completion_tokens": 1}, {}, None])
def test_a_usage_without_the_prompt_lets_no_run_exceed_its_limit(endpoint, new_run, usage):
    endpoint.reply = lambda body: (200, completion("x") | {"usage": usage})
    got, why = collected(open_chat_for(new_run({"endpoint.max_tokens": 200}), f"{endpoint.url}#m"))
    assert why
    assert len(got) <= 200 // 26, "the question has 10 bytes, its template up to 16"


def test_an_error_with_status_200_costs_what_one_with_its_own_status_costs(endpoint, new_run):
    run = new_run({"endpoint.tries": 1, "endpoint.cache": False})
    for reply in (error(502, "busy"), (200, {"error": {"message": "busy", "code": 502}})):
        endpoint.reply = lambda body, reply=reply: reply
        model = open_chat_for(run, f"{endpoint.url}#m")
        model.complete(QUESTIONS[:1], max_new_tokens=3)
        assert model.ledger.used_here == Usage(1)


def test_the_estimate_is_printed_before_and_the_actual_cost_after_even_if_it_stops(endpoint, new_run, capsys):
    model = open_chat_for(new_run({"endpoint.max_requests": 10}), f"{endpoint.url}#m")
    with pytest.raises(BudgetError), reporting_cost(model, QUESTIONS, 3):
        model.complete(QUESTIONS, max_new_tokens=3)
    before, after = capsys.readouterr().out.splitlines()
    assert (
        "40 requests, 120 + 120 tokens at most, plus retries; 0 answers are cached; limits of the run: 10 req" in before
    )
    assert "10 requests, 70 + 30 tokens; the run so far: 10 requests" in after
    assert "10 answers are cached" in model.estimate(QUESTIONS, 3)


def test_two_processes_with_one_account_do_not_exceed_its_limit_together(tmp_path):
    settings = EndpointSettings(max_requests=200)
    admitted = []

    def spend():
        ledger = Ledger(open_database(tmp_path / "a.sqlite"), "m", settings)
        admitted.append(sum(ledger.reserve(Usage(1, 5, 5)) for _ in range(150)))

    threads = [threading.Thread(target=spend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 200


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 100), st.booleans())))
def test_whatever_the_order_of_requests_and_answers_the_limit_holds(steps):
    """Each step enters a request of up to `most` tokens; it costs a part of that, known at once or at the end only."""
    ledger, late = Ledger(open_database(None), "m", EndpointSettings(max_tokens=1000)), []
    for most, percent, at_once in steps:
        if ledger.reserve(Usage(1, most, 0)):
            late.append((Usage(1, most, 0), Usage(1, most * percent // 100, 0)))
            if at_once:
                ledger.settle(*late.pop())
        assert sum(s.tokens for s in ledger.total().values()) <= 1000
    for pair in late:
        ledger.settle(*pair)
    assert ledger.total().get("m", Usage()) == ledger.used_here


def test_what_is_not_a_price_is_rejected():
    assert read_prices(["openai:gpt-4o-mini 0.15 0.60"]) == {"openai:gpt-4o-mini": (0.15, 0.60)}
    with pytest.raises(KitError, match=r"'gpt-4o 1' is not a price; write the model, the price per million"):
        read_prices(["gpt-4o 1"])
    assert get_preset("cpu", {"endpoint.prices": '["m 1 2"]'}).endpoint.prices == ("m 1 2",)
