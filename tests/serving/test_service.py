"""A request chooses the stage, the number of items and more; what it may not choose is refused in a sentence."""

from __future__ import annotations

import json

import pytest
from asking import ASK, PROFILE, TASK, client, create, raw, rejected, serving
from fakes import RecordingChat
from openai import BadRequestError, NotFoundError
from transformers import AutoTokenizer

from rpo_kit.models.chat import Completion
from rpo_kit.models.local import LoadedModel
from rpo_kit.rewriting import reflection
from rpo_kit.rewriting.personalizer import Personalizer, Rewrite
from rpo_kit.serving.messages import MAX_K, Options, options_of
from rpo_kit.serving.responses import explanation_of
from rpo_kit.serving.service import Service

MANY = [{"id": str(n), "text": f"Broke after {n} days.", "score": "1", "date": f"2020-01-{n:02}"} for n in range(1, 13)]


def test_the_models_of_the_run_are_listed_and_found_by_name(served):
    assert [model.id for model in client(served).models.list()] == ["rpo", "rpo-sft", "rpo-untrained"]
    found = client(served).models.retrieve("rpo-sft")
    assert (found.id, found.object, found.owned_by) == ("rpo-sft", "model", "rpo_kit")
    assert found.created == served.service.created
    with pytest.raises(NotFoundError, match="There is no model 'gpt': this server has rpo, rpo-sft, rpo-untrained"):
        client(served).models.retrieve("gpt")


def test_the_model_chooses_the_stage(served):
    sft = served.service.models["rpo-sft"]
    assert create(served, model="rpo-sft", user="ann").model == "rpo-sft"
    assert (len(sft.asked), len(served.asked)) == (1, 0)
    assert create(served, model="rpo", user="ann").model == "rpo"
    assert (len(sft.asked), len(served.asked)) == (1, 1)


@pytest.mark.parametrize("name", ["gpt-4o", "", 3, ["rpo"], {}, "rpo-SFT", "x" * 5000])
def test_an_unknown_model_is_not_found(served, name):
    status, response = raw(served, json.dumps(ASK | {"user": "ann", "model": name}).encode())
    assert status == 404
    assert response["error"]["code"] == "model_not_found"
    assert response["error"]["type"] == "not_found_error"
    assert "this server has rpo, rpo-sft, rpo-untrained" in response["error"]["message"]
    assert len(response["error"]["message"]) < 200
    assert served.asked == []


def test_a_request_chooses_k_and_the_retriever(served):
    for options in ({}, {"k": 2}, {"k": 0, "retriever": "recency"}, {"retriever": "random"}, {"k": None}):
        create(served, user="ann", extra_body={"rpo": options})
    assert served.service.personalizer.asked_with == [
        (6, "bm25"), (2, "bm25"), (0, "recency"), (6, "random"), (6, "bm25")
    ]  # fmt: skip
    assert (served.service.personalizer.shots, served.service.personalizer.retriever) == (6, "bm25"), "unchanged"


def test_requests_that_choose_the_same_are_answered_by_the_same_object(served):
    for _ in range(3):
        create(served, user="ann", extra_body={"rpo": {"k": 2}})
    assert list(served.service.changed) == [("rpo", 2, None)], "or no two of them would share a batch"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"k": -1}, f"`rpo.k` must be a whole number from 0 to {MAX_K}"),
        ({"k": MAX_K + 1}, "`rpo.k` must be a whole number"),
        ({"k": 2.5}, "`rpo.k` must be a whole number"),
        ({"k": True}, "`rpo.k` must be a whole number"),
        ({"k": "2"}, "`rpo.k` must be a whole number"),
        ({"retriever": "magic"}, "`rpo.retriever` must be one of bm25, bm25-lamp, recency, random"),
        ({"retriever": "dense:facebook/contriever"}, "`rpo.retriever` must be one of"),
        ({"retriever": ["bm25"]}, "`rpo.retriever` must be one of"),
        ({"explain": "yes"}, "`rpo.explain` must be true or false"),
        ({"shots": 3}, "`rpo` must be an object with some of k, user, items, retriever, explain; there is no shots in"),
        (["k"], "`rpo` must be an object"),
        ({"user": "bob"}, "name different users"),
        ({"user": "../secret"}, "`user` must consist of"),
        ({"items": {}}, "`rpo.items` must be a JSON list"),
        ({"items": [{"text": "fine"}]}, "Item 0 of `rpo.items` must have text and score"),
        ({"items": "fine"}, "`rpo.items`: Line 1 is not of the form `text -> score`"),
    ],
)
def test_an_impossible_option_is_refused_and_reaches_no_model(served, options, why):
    status, message = rejected(served, **ASK, user="ann", rpo=options)
    assert status == 400
    assert why in message
    assert served.asked == []


def test_an_openai_client_raises_its_own_error_for_it(served):
    with pytest.raises(BadRequestError, match=r"`rpo\.k` must be") as caught:
        create(served, user="ann", extra_body={"rpo": {"k": -1}})
    assert caught.value.type == "invalid_request_error"


def test_the_user_and_the_history_may_stand_under_rpo(served):
    create(served, extra_body={"rpo": {"user": "ann"}})
    create(served, extra_body={"rpo": {"items": PROFILE}})
    create(served, extra_body={"rpo": {"items": "Broke twice. -> 1\n\nFine. -> 5"}})
    lines = [{"id": "1", "text": "Broke twice.", "score": "1"}, {"id": "2", "text": "Fine.", "score": "5"}]
    assert [profile for _, profile in served.asked] == [PROFILE, PROFILE, lines]
    status, message = rejected(served, **ASK, rpo={"items": PROFILE}, profile=PROFILE)
    assert (status, message) == (
        400,
        "The request has `rpo.items` and `profile`: send the history in one of them.",
    )


def test_options_without_effect_are_none():
    assert options_of({}) == options_of({"rpo": None}) == options_of({"rpo": {}}) == Options()


def test_texts_of_the_user_are_in_the_response_only_if_it_is_to_explain(served):
    quiet = raw(served, json.dumps(ASK | {"user": "ann"}).encode())[1]
    assert set(quiet["rpo"]) == {"complaint", "kept_generic", "shortened", "seconds", "tokens"}
    status, told = raw(served, json.dumps(ASK | {"user": "ann", "rpo": {"explain": True}}).encode())
    assert status == 200
    assert set(told["rpo"]) - set(quiet["rpo"]) == {"generic", "items", "observations", "cited", "plan"}


def test_an_explanation_says_which_items_each_observation_cites_and_why_a_rewrite_is_not_used():
    from rpo_kit.rewriting.trajectory import Trajectory

    trajectory = Trajectory("[2] gave 1, as in [1]\nno item\n[9] is not there", "one lower", "2")
    rewrite = Rewrite("3", "3", MANY[:2], trajectory, None, {}, {}, kept_generic="The rewrite keeps 3 %.")
    explanation = explanation_of(rewrite, [], explain=True)
    assert explanation["cited"] == [["2", "1"], [], []]
    assert explanation["kept_generic"] == "The rewrite keeps 3 %."
    unparsed = explanation_of(Rewrite("3", "3", [], None, "no tags", {}, {}), [], explain=True)
    assert (unparsed["complaint"], unparsed["observations"], unparsed["plan"]) == ("no tags", [], "")


@pytest.fixture
def personalizer(tiny_llama, monkeypatch):
    """A real one, whose module writes one trajectory; `seen` are the module's prompts."""
    seen = []

    def generate(model, asked, **_):
        seen.extend(messages[-1]["content"] for messages in asked)
        return [Completion("<observe>[1] a</observe><plan>p</plan><rewrite>2</rewrite>", True, 1, 1)] * len(asked)

    monkeypatch.setattr(reflection, "generate", generate)
    module = LoadedModel(None, AutoTokenizer.from_pretrained(tiny_llama), 4096)
    personalizer = Personalizer(RecordingChat(), module, TASK)
    personalizer.seen = seen
    return personalizer


def test_k_items_are_shown_and_the_newest_come_first_by_recency(personalizer):
    with serving(Service(personalizer, None)) as there:
        shown = []
        for options in ({"k": 1, "retriever": "recency"}, {"k": 3, "retriever": "recency"}, {"k": 0}, {}):
            found = create(there, extra_body={"rpo": {"items": MANY, "explain": True} | options})
            shown.append(found.rpo["items"])
    assert shown[:3] == [["12"], ["12", "11", "10"], []]
    assert len(shown[3]) == 6
    assert "Broke after 12 days." in personalizer.seen[0]
    assert "Broke after 11 days." not in personalizer.seen[0]


def test_a_date_that_is_none_is_the_clients_fault(personalizer):
    with serving(Service(personalizer, None)) as there:
        wrong = [MANY[0] | {"date": "yesterday"}, MANY[1]]
        status, message = rejected(there, **ASK, rpo={"items": wrong, "retriever": "recency"})
        assert (status, "has the date 'yesterday'" in message) == (400, True)
        assert rejected_or_answered(there, wrong, "bm25") == 200


def rejected_or_answered(there, items, retriever):
    return raw(there, json.dumps(ASK | {"rpo": {"items": items, "retriever": retriever}}).encode())[0]


def test_no_text_of_a_profile_goes_to_the_base_model_or_to_the_log(personalizer, capfd):
    secret = [{"id": "1", "text": "Xyzzy plugh.", "score": "1"}]
    with serving(Service(personalizer, None)) as there:
        create(there, extra_body={"rpo": {"items": secret}})
        create(there, extra_body={"profile": secret})
        rejected(there, **ASK, rpo={"items": [{"text": "Xyzzy plugh."}]})
    asked = json.dumps(personalizer.base.asked)
    assert asked.count("It leaks.") == 2
    assert "plugh" not in asked
    assert "plugh" in personalizer.seen[0], "the module does read it"
    out, err = capfd.readouterr()
    assert "plugh" not in out + err
