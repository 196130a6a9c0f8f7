"""Stage 5: systems side by side, with intervals over users that a reader can check."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import completion, error, last

from rpo_kit.errors import KitError
from rpo_kit.lamp.data import write_lamp
from rpo_kit.lamp.metrics import metrics_of_files
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.chat import Completion
from rpo_kit.pipeline import inputs_of
from rpo_kit.presets import changed
from rpo_kit.rewriting import prompts, reflection
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.runs import existing_run, read_records, write_text
from rpo_kit.setting_rules import TRIVIAL, kind_of
from rpo_kit.stages import require
from rpo_kit.study import evaluation
from rpo_kit.study.evaluation import chosen_systems, evaluate, evaluate_inputs, predict, rewrite
from rpo_kit.study.results import read_tables
from rpo_kit.study.significance import t_quantile
from rpo_kit.study.statistics import (
    bootstrap_interval,
    bootstrap_means,
    compared,
    copy_rate,
    metrics_table,
    paired_table,
    references,
)

RATINGS = get_task("LaMP-3")
TWO_USERS = math.sqrt(2 / 1) * t_quantile(1) / 1.959964  # by how much their interval is wider than the percentiles


def trajectory(text: str) -> str:
    return f"<observe>[1] a</observe><plan>b</plan><rewrite>{text}</rewrite>"


def record(prediction: str, complaint: str | None = None) -> dict[str, Any]:
    return {"id": "?", "prediction": prediction, "complaint": complaint}


# ---- statistics ---------------------------------------------------------------------------------------------------


def test_the_interval_resamples_whole_users():
    """Two users, one with three right answers, one with a wrong one: a resample is (a,a), (a,b), (b,a) or (b,b).

    Means: 6/6 = 1, 3/4, 3/4, 0/2 = 0, so the 2.5 and 97.5 percentiles are 0 and 1; resampling queries would give a
    mean below 1/4 in 5 % of the cases only, and a mean of 3/4 as the most frequent one. The interval is wider, as two
    users are few.
    """
    values, users = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert bootstrap_interval(values, users) == pytest.approx([0.75 - 0.75 * TWO_USERS, 0.75 + 0.25 * TWO_USERS])


def test_users_are_weighted_by_their_number_of_queries():
    # every resample of one user is that user: the mean over queries, 2/3
    assert bootstrap_means(np.array([1.0, 1.0, 0.0]), ["a"] * 3, 5, 0) == pytest.approx([2 / 3] * 5)


def test_with_one_query_per_user_the_interval_is_the_usual_one():
    # 400 users, half of them right: sd 0.5, standard error 0.025, interval 0.5 +- 1.96 * 0.025
    values = np.array([0.0, 1.0] * 200)
    low, high = bootstrap_interval(values, [str(n) for n in range(400)], resamples=5000)
    assert low == pytest.approx(0.451, abs=0.004)
    assert high == pytest.approx(0.549, abs=0.004)


def test_the_order_of_the_rows_and_the_users_names_do_not_matter_and_the_seed_does():
    values, users = np.array([0.1, 0.5, 0.9, 0.3]), ["a", "b", "c", "a"]
    assert bootstrap_interval(values, users) == bootstrap_interval(values, users)
    swapped = bootstrap_interval(values[[3, 1, 2, 0]], users)
    assert swapped == pytest.approx(bootstrap_interval(values, users))
    assert bootstrap_interval(values, users, 50, seed=1) != bootstrap_interval(values, users, 50, seed=2)


def examples(golds: list[str], users: list[str], generic: str = "3") -> list[dict[str, Any]]:
    return [
        {
            "id": str(n),
            "user_id": user,
            "input": RATINGS.make_input(text="fine"),
            "output": gold,
            "profile": [{"id": f"{n}0", "text": "good", "score": "5"}],
            "ranking": [0],
            "generic": generic,
            "facts": {},
        }
        for n, (gold, user) in enumerate(zip(golds, users, strict=True))
    ]


def test_the_table_has_scores_lamps_metrics_and_what_went_wrong(new_run):
    rows = examples(["1", "5", "3", "2"], ["a", "a", "b", "c"])
    found = {
        "base": [record("3")] * 4,
        "sft": [record("1"), record("4"), record("3", "no tags"), record("a five, I think")],
    }
    table = metrics_table(new_run(), RATINGS, rows, found).set_index("system")
    # base: errors 2, 2, 0, 1; 1 - |e|/4 = 0.5, 0.5, 1, 0.75
    assert table.loc["base", "score"] == pytest.approx(0.6875)
    assert table.loc["base", "MAE"] == pytest.approx(1.25)
    assert table.loc["base", "RMSE"] == pytest.approx(np.sqrt(9 / 4))
    # sft: errors 0, 1, 0 and, for a gold of 2, the worst end 5: 3
    assert table.loc["sft", "score"] == pytest.approx((1 + 0.75 + 1 + 0.25) / 4)
    assert table.loc["sft", "MAE"] == pytest.approx(1.0)
    assert table.loc["sft", "unparsed"] == 0.25
    assert table.loc["sft", "words"] == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert (table["low"] <= table["score"]).all()
    assert (table["score"] <= table["high"]).all()
    assert table["examples"].tolist() == [4, 4]
    assert list(table.index) == ["base", "sft"], "no references where the habits are not known"


def test_a_rating_that_lamps_evaluator_rejects_counts_as_the_worst_one(new_run):
    table = metrics_table(new_run(), RATINGS, examples(["1"], ["a"]), {"rl": [record("nan")]})
    assert table["MAE"].item() == 4.0


def test_each_system_is_compared_with_the_one_before_and_with_the_first(new_run):
    rows = examples(["1", "5"], ["a", "b"])
    found = {
        "base": [record("3"), record("3")],  # 0.5, 0.5
        "sft": [record("2"), record("4")],  # 0.75, 0.75
        "rl": [record("1"), record("4")],  # 1, 0.75
    }
    table = paired_table(new_run(), RATINGS, rows, found)
    assert table[["system", "minus"]].values.tolist() == [["sft", "base"], ["rl", "base"], ["rl", "sft"]]
    assert table["score"].tolist() == pytest.approx([0.25, 0.375, 0.125])
    # sft - base is 0.25 for both users, whatever is drawn; rl - sft is 0.25 or 0
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.25, 0.25])
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx([0.125 * (1 - TWO_USERS), 0.125 * (1 + TWO_USERS)])
    # resampled means of 0.25 and 0: a quarter are 0.25, half 0.125, a quarter 0, so one standard error is 0.0884
    assert table["mde"].tolist() == pytest.approx([0.0, 0.2475 * TWO_USERS, 0.2475 * TWO_USERS], rel=0.1)


def test_the_best_of_the_method_is_compared_with_every_other_baseline():
    assert compared(["base", "majority", "context-1", "context", "sft"]) == [
        ("majority", "base"), ("context-1", "base"), ("context", "base"), ("sft", "base"), ("sft", "context"),
        ("sft", "majority"), ("sft", "context-1"),
    ]  # fmt: skip
    assert compared(["majority", "copy-nearest"]) == [("copy-nearest", "majority")]


def test_systems_are_a_setting_and_an_unknown_one_is_an_error_before_anything_runs(new_run, capsys):
    tweets = new_run({"data.task": "LaMP-7", "evaluation.systems": '["base", "majority", "pag-1", "context-2"]'})
    assert chosen_systems(tweets, tweets.preset.evaluation.systems) == ["base", "pag-1", "context-2"]
    assert "majority left out, because items of LaMP-7 have no label" in capsys.readouterr().out
    with pytest.raises(KitError, match=r"no system 'gpt' to evaluate: choose from base, .*pag-K, .*majority"):
        evaluate(new_run(), ["gpt"])
    for name in ("lead-0", "lead-", "constant-3", "context-many", "pag-"):
        with pytest.raises(KitError, match=rf"no system '{name}' to evaluate: choose from .*lead-N"):
            evaluate(new_run(), [name])


def test_a_single_system_has_nothing_to_be_compared_with(new_run):
    table = paired_table(new_run(), RATINGS, examples(["1"], ["a"]), {"base": [record("3")]})
    assert table.empty
    assert table.to_csv(index=False) == "system,minus,score,low,high,mde\n"


def test_copies_of_shown_items_are_counted_for_generation_tasks():
    task = get_task("LaMP-4")
    profile = [{"id": str(n), "text": "long", "title": title} for n, title in enumerate(["Rain", "Sun "])]
    rows = [{"profile": profile, "ranking": [1, 0]}] * 4
    assert copy_rate(task, rows, ["Sun", "Rain", "Snow", "sun"], shots=1) == 0.25
    assert copy_rate(task, rows, ["Sun", "Rain", "Snow", "sun"], shots=2) == 0.5
    assert copy_rate(RATINGS, rows, ["1"] * 4, shots=2) == 0.0


def test_the_references_are_a_guess_and_the_majority_of_the_shown_items():
    facts = {
        "query": {"reads": 3},
        "items": {"a": {"reads": 3}, "b": {"reads": 2}, "c": {"reads": 4}},
        "habit": {"name": "harsh"},
    }
    profile = [{"id": i, "text": "t", "score": score} for i, score in (("a", "4"), ("b", "1"), ("c", "3"))]
    row = examples(["2"], ["u"])[0] | {"facts": facts, "profile": profile, "ranking": [0, 1, 2]}
    # harsh, fair and generous users give 2, 3, 4; 3 is right or one off for each of them, so it is the best guess
    golds = [row | {"output": gold} for gold in ("2", "3", "4")]
    assert references(RATINGS, golds, 3)["best guess"].tolist() == [0.75, 1.0, 0.75]
    # the items show generous, harsh, harsh: with three of them the oracle says 2, with one 4
    assert references(RATINGS, [row], 3)["oracle"].tolist() == [1.0]
    assert references(RATINGS, [row], 1)["oracle"].tolist() == [0.5]


# ---- predictions --------------------------------------------------------------------------------------------------


def test_without_a_trajectory_the_generic_answer_is_used_and_the_completion_is_stored(monkeypatch, tiny_llama):
    from transformers import AutoTokenizer

    written = iter([Completion(trajectory("1"), True, 9, 5), Completion("1", False, 9, 24)])
    monkeypatch.setattr(reflection, "generate", lambda loaded, prompts, **_: [next(written) for _ in prompts])
    loaded = evaluation.LoadedModel(None, AutoTokenizer.from_pretrained(tiny_llama), 2048)
    first, second = rewrite(loaded, RATINGS, examples(["1", "1"], ["a", "b"]), shots=6, max_new_tokens=24)
    assert (first["prediction"], first["complaint"], first["tokens"]) == ("1", None, 5)
    assert (second["prediction"], second["complaint"], second["raw"]) == ("3", "no tags", "1")
    assert second["finished"] is False


def test_cuts_are_counted_and_reported(monkeypatch, tiny_llama, capsys):
    from transformers import AutoTokenizer

    texts = iter([Completion(trajectory("1"), True, 9, 5), Completion(trajectory("2"), False, 9, 24)])
    monkeypatch.setattr(reflection, "generate", lambda loaded, prompts, **_: [next(texts) for _ in prompts])
    rows = examples(["1", "1"], ["a", "b"])
    rows[0]["profile"][0]["text"] = "a long story " * 500
    loaded = evaluation.LoadedModel(None, AutoTokenizer.from_pretrained(tiny_llama), 2048)
    records = rewrite(loaded, RATINGS, rows, shots=6, max_new_tokens=24)
    assert [record["shortened"] for record in records] == [True, False]
    evaluation.report_cuts({"base": [record("3")] * 2, "rl": records})
    assert capsys.readouterr().out == (
        "evaluate: rl: 1 of 2 prompts had their history items shortened to fit\n"
        "evaluate: rl: 1 of 2 completions were cut off at the token limit\n"
    )


def test_a_killed_evaluation_computes_only_what_is_missing_and_keeps_the_order(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_CHUNK", 2)
    run, asked = prepared(), []
    rows = load_prepared(run, "dev")

    def answerer(*_: Any) -> Any:
        def answer(chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if len(asked) == 4:
                raise KeyboardInterrupt
            asked.extend(example["id"] for example in chunk)
            return [{"id": e["id"], "prediction": f"for {e['id']}"} for e in chunk]

        return evaluation._in_chunks(answer)

    monkeypatch.setattr(evaluation, "_answerer", answerer)
    with pytest.raises(KeyboardInterrupt):
        predict(run, "sft", rows, tmp_path, None)
    before = asked.copy()
    asked.clear()
    found = predict(run, "sft", rows, tmp_path, None)
    assert (before, asked) == ([e["id"] for e in rows[:4]], [e["id"] for e in rows[4:]])
    assert [r["prediction"] for r in found] == [f"for {e['id']}" for e in rows]
    assert len(read_records(tmp_path / "records" / "sft.jsonl")) == 6


@pytest.mark.parametrize(
    ("system", "items", "summary"),
    [
        ("base", None, False),
        ("context-1", 1, False),
        ("context-3", 3, False),
        ("context", 2, False),
        ("pag-0", 0, True),
        ("pag-3", 3, True),
    ],
)
def test_a_system_prompts_the_base_model_as_its_name_says(
    prepared, recording_chat, tmp_path, monkeypatch, system, items, summary
):
    run = prepared({"evaluation.shots": 2})
    base = recording_chat(lambda conversation: "Likes lids." if "typical" in conversation[0]["content"] else "4")
    monkeypatch.setattr(evaluation, "open_chat_for", lambda of, spec: base)
    rows = load_prepared(run, "dev")
    found = predict(run, system, rows, tmp_path, None)
    asked = [conversation[0]["content"] for conversation in base.asked]
    if items is None:
        assert (asked, {record["prediction"] for record in found}) == ([], {"3"})
        return
    requests, prompts = (asked[: len(rows)], asked[len(rows) :]) if summary else ([], asked)
    assert (len(requests), len(prompts)) == (len(rows) if summary else 0, len(rows))
    for row, prompt in zip(rows, prompts, strict=True):
        shown = [row["profile"][n] for n in row["ranking"][:items]]
        with_items = RATINGS.context_prompt(row["input"], shown)
        assert prompt == (f"About the person who asks: Likes lids.\n\n{with_items}" if summary else with_items)
    assert {record["prediction"] for record in found} == {"4"}


# ---- the stage ----------------------------------------------------------------------------------------------------


def test_the_stage_writes_tables_and_predictions_that_lamps_evaluator_reads(trained, tmp_path, monkeypatch):
    run = trained()
    opened = []

    def answerer(run: Any, system: str, adapter: Any, work: Any) -> Any:
        opened.append((system, adapter and adapter.parent.name))
        return lambda rows: [[{"id": e["id"], "prediction": e["output"] if system == "rl" else "3"} for e in rows]]

    monkeypatch.setattr(evaluation, "_answerer", answerer)
    evaluate(run)
    names = ["base", "constant", "majority", "copy-nearest", "context", "untrained", "sft-1", "sft", "rl-1", "rl"]
    assert opened == [(n, n.removesuffix("-1") if n[:2] in ("sf", "rl") else None) for n in names]
    work = run.stage("evaluate")
    metrics = pd.read_csv(work / "metrics.csv").set_index("system")
    assert list(metrics.index) == [*names, "best guess", "oracle", "oracle-1"]
    assert metrics.loc["rl", "score"] == 1.0
    rows = load_prepared(run, "dev")
    golds = {"task": "LaMP_3", "golds": [{"id": e["id"], "output": e["output"]} for e in rows]}
    (tmp_path / "golds.json").write_text(json.dumps(golds))
    assert metrics_of_files(tmp_path / "golds.json", work / "predictions" / "rl.json") == {"MAE": 0.0, "RMSE": 0.0}
    found = metrics_of_files(tmp_path / "golds.json", work / "predictions" / "base.json")
    assert found["MAE"] == pytest.approx(metrics.loc["base", "MAE"])
    paired = pd.read_csv(work / "paired.csv")
    # against base, three more against the one before, RL against four baselines, SFT and RL against themselves at k = 1
    assert len(paired) == 7 + 3 + 4 + 2
    assert {"constant", "majority", "copy-nearest"} < set(paired[paired["system"] == "rl"]["minus"])
    opened.clear()
    evaluate(run)
    assert opened == [], "done already"


@pytest.mark.parametrize("name", ["LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4", "LaMP-5", "LaMP-7"])
def test_the_trivial_baselines_of_a_task_get_their_rows_and_the_others_a_sentence(prepared, capsys, name):
    run = prepared({"data.task": name})
    evaluate(run, ["base", *TRIVIAL, "lead-2"])
    said, task = capsys.readouterr().out, get_task(name)
    defined = [system for system in (*TRIVIAL, "lead-2") if kind_of(system) in task.baselines]
    for system in TRIVIAL:
        assert (f"evaluate: {system} left out, because " in said) == (system not in defined)
    metrics, paired = read_tables(f"{run.stage('evaluate')}/")
    assert [system for system in metrics["system"] if system not in ("best guess", "oracle")] == ["base", *defined]
    assert set(paired["system"]) == {"base", *defined}
    golds = [example["output"] for example in load_prepared(run, "train")]
    for system in set(defined) - {"majority", "copy-nearest"}:
        answers = read_records(run.stage("evaluate") / "records" / f"{system}.jsonl")
        for example, answer in zip(load_prepared(run, "dev"), answers, strict=True):
            query, text = task.query_text(example["input"]), answer["prediction"]
            words = sorted(len(gold.split()) for gold in golds)[(len(golds) - 1) // 2]
            number = {"lead": words, "lead-2": 2}.get(system)
            assert text == (" ".join(query.split()[:number]) if number else query) or system == "constant"
            assert system != "constant" or text in task.labels


def test_without_train_examples_only_what_needs_none_is_evaluated(new_run, recording_chat, tmp_path, capsys):
    task, ids = get_task("LaMP-4"), ("1", "2")
    rows = [{"id": id_, "input": task.make_input(text="Rain fell."), "output": "Rain", "profile": []} for id_ in ids]
    write_lamp(tmp_path / "lamp", task, "dev", rows)
    run = new_run({"data.task": "LaMP-4", "data.source": str(tmp_path / "lamp")})
    prepare(run, lambda spec: recording_chat())
    evaluate(run, ["base", "lead", "lead-1", "copy-nearest"])
    assert "evaluate: lead left out, because the run has no train examples" in capsys.readouterr().out
    metrics = read_tables(f"{run.stage('evaluate')}/")[0].set_index("system")
    assert list(metrics.index) == ["base", "lead-1", "copy-nearest"]
    assert metrics.loc["lead-1", "score"] == 1.0
    evaluate(run, ["base", "lead", "lead-1", "copy-nearest"])
    assert "evaluate: done already" in capsys.readouterr().out


def test_a_run_with_stored_systems_is_not_evaluated_again(prepared, tmp_path, capsys):
    """As one made before there were more: it keeps its systems, so that nothing has changed for it."""
    systems = ["base", "majority", "copy-nearest"]
    evaluate(prepared({"evaluation.systems": systems}))
    again = existing_run("r", tmp_path)
    assert again.preset.evaluation.systems == tuple(systems)
    capsys.readouterr()
    evaluate(again)
    assert "evaluate: done already" in capsys.readouterr().out


def test_an_excluded_example_is_in_the_predictions_so_that_lamps_golds_fit(new_run, recording_chat, tmp_path, capsys):
    task = get_task("LaMP-2")
    for number, split in enumerate(("train", "dev")):
        rows = [{"id": f"{number}1{n}", "input": task.make_input(text=f"Film {n}."), "profile": []} for n in range(3)]
        rows[0]["input"] = "x Overwhelmed by her suffocating schedule"  # as LaMP-2's example 110
        golds = [{"id": row["id"], "output": "comedy"} for row in rows]
        write_text(tmp_path / "lamp" / f"{split}_questions.json", json.dumps(rows))
        write_text(tmp_path / "lamp" / f"{split}_outputs.json", json.dumps({"task": "LaMP_2", "golds": golds}))
    right = recording_chat(lambda conversation: "comedy")
    for users, name in ((9, "whole"), (1, "part")):
        settings = {"data.task": "LaMP-2", "data.source": str(tmp_path / "lamp"), "data.dev_users": users}
        run = new_run(settings, name)
        prepare(run, lambda spec: right)
        evaluate(run, ["base"])
    predictions = [tmp_path / name / "evaluate" / "predictions" / "base.json" for name in ("whole", "part")]
    outputs = [[row["output"] for row in json.loads(path.read_text())["golds"]] for path in predictions]
    assert outputs == [["comedy", "comedy", ""], ["comedy"]], "one user of the split cannot be scored there anyway"
    assert metrics_of_files(tmp_path / "lamp" / "dev_outputs.json", predictions[0])["accuracy"] == pytest.approx(2 / 3)
    assert capsys.readouterr().out.count("1 excluded examples (110) get an empty output") == 1


@pytest.fixture
def refusing(prepared, endpoint):
    """A run whose base model at an endpoint refuses one dev user's prompt and cannot summarize another; no cache."""
    settings = {"endpoint.tries": 1, "endpoint.tolerate": 0.2, "endpoint.cache": False, "endpoint.concurrency": 1}
    run = prepared(settings | {"base": f"{endpoint.url}#m"})
    first, second = load_prepared(run, "dev")[:2]
    newest = get_task("LaMP-3").item_line(second["profile"][-1])[:60]

    def reply(body):
        asked = last(body)
        if refused and asked.endswith(first["input"]) and not asked.startswith("About"):
            return error(400, "content policy")
        return error(500, "no") if refused and newest in asked and "typical" in asked else (200, completion("4"))

    refused, endpoint.reply = ["yes"], reply
    return run, first["id"], second["id"], refused


def test_what_the_base_model_refuses_is_left_out_reported_and_retried_alone(refusing, endpoint, capsys):
    run, first, second, refused = refusing
    evaluate(run, ["base", "context", "pag-1"])
    work = run.stage("evaluate")
    failed = {record["id"]: record["reason"] for record in read_records(work / "failed.jsonl")}
    assert set(failed) == {f"context/{first}", f"pag-1/{second}"}
    assert failed[f"pag-1/{second}"].startswith("no summary: status 500")
    assert len(endpoint.requests) == 6 + 6 + 5, "no prompt without its summary"
    told = capsys.readouterr().out
    assert "2 of 12 answers are missing" in told
    assert "the tables cover the 4 of 6 examples that every system answered" in told
    assert told.index("estimate ") < told.index("spent ")
    metrics = pd.read_csv(work / "metrics.csv").set_index("system")
    assert set(metrics["examples"]) == {4}
    assert len(json.loads((work / "predictions" / "context.json").read_text())["golds"]) == 5
    refused.clear()
    evaluate(run, ["base", "context", "pag-1"])
    assert "evaluate: 2 answers were missing last time and are requested again" in capsys.readouterr().out
    assert len(endpoint.requests) == 17 + 1 + 2
    assert set(pd.read_csv(work / "metrics.csv")["examples"]) == {6}
    assert not (work / "failed.jsonl").exists()
    ids = [example["id"] for example in load_prepared(run, "dev")]
    assert [record["id"] for record in read_records(work / "records" / "pag-1.jsonl")] == ids, "in the data's order"


def test_too_many_failures_are_an_error_after_the_rest_is_stored(refusing, endpoint, prepared):
    run, *_ = refusing
    strict = prepared(changed(run.preset) | {"endpoint.tolerate": 0.1})
    with pytest.raises(
        KitError, match=r"2 of 12 answers are missing .*, more than the share endpoint\.tolerate=0\.1.*run again"
    ):
        evaluate(strict, ["base", "context", "pag-1"])
    assert len(read_records(run.stage("evaluate") / "records" / "pag-1.jsonl")) == 5
    assert not (run.stage("evaluate") / "metrics.csv").exists()


def test_profiles_that_have_fewer_items_than_k_are_counted(prepared, capsys):
    evaluate(prepared({"data.items_per_user": 3}), ["base"])
    assert "evaluate: 6 of 6 profiles have fewer than 6 items" in capsys.readouterr().out


def test_without_the_trained_stages_the_error_names_the_command_to_run_first(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize --run r`"):
        evaluate(prepared())


def test_an_evaluation_is_refused_when_its_inputs_were_made_with_other_settings(trained, new_run, monkeypatch):
    monkeypatch.setattr(
        evaluation, "_answerer", lambda *_: lambda rows: [[{"id": e["id"], "prediction": "3"} for e in rows]]
    )
    evaluate(trained())
    for changes in ({"data.task": "LaMP-7"}, {"data.retriever": "recency"}, {"base": "local:other"}):
        with pytest.raises(KitError, match=r"'prepare' of run 'r' was made from other inputs \((data|base) changed\)"):
            evaluate(new_run(changes))
    with pytest.raises(KitError, match=r"'sft' .* other inputs \(model changed\): first run `python -m rpo_kit sft"):
        evaluate(new_run({"reflection.max_seq_length": 1000}))


def test_more_dev_users_are_evaluated_without_training_again(trained, prepared):
    before = evaluate_inputs(trained(), ["base", "rl"])
    run = prepared({"data.dev_users": 9})
    after = evaluate_inputs(run, ["base", "rl"])
    assert after["rl"] == before["rl"], "the adapter that there is"
    assert after["data"] != before["data"]
    with pytest.raises(KitError, match=r"'synthesize' .* \(data, generic changed\)"):
        evaluate_inputs(prepared({"data.train_users": 11}), ["rl"])


def test_an_edited_prompt_makes_stale_what_used_it(trained, monkeypatch):
    run = trained()
    monkeypatch.setattr(prompts, "load", lambda name: f"another {name}")
    assert require(run, "synthesize", **inputs_of(run, "synthesize")), "rules ask nobody"
    with pytest.raises(KitError, match=r"'sft' .* \(prompts changed\)"):
        inputs_of(run, "rl")
    assert "pag" in evaluate_inputs(run, ["pag-1"]), "the only ones that read a summary"
    assert "pag" not in evaluate_inputs(run, ["base"])
