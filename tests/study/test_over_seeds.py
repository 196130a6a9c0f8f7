"""Runs that differ in their seeds alone become one table; a module is compared with that of another run; and what is
stored names no folder of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rpo_kit.errors import KitError
from rpo_kit.presets import override
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, write_text
from rpo_kit.stages import stage
from rpo_kit.study import evaluation, significance
from rpo_kit.study.evaluation import evaluate
from rpo_kit.study.over_seeds import SeedScores, export_results, scores, tables_over_seeds
from rpo_kit.study.results import read_tables, result_text
from rpo_kit.study.transfer import report, transfer

SYSTEMS = '["base", "majority", "sft", "rl"]'
RIGHT = {"sft": (2, 3), "rl": (4, 6)}  # how many users the modules with seed 0 and 1 get right; base gets "3"
MakeRun = Callable[..., Run]


@pytest.fixture
def evaluated(trained: MakeRun, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """An evaluated run whose answers are made up: evaluated("name", seed=1). Its modules get `RIGHT` users right; those
    of a run whose name begins with "far" one user fewer.
    """

    def answerer(run: Run, system: str, adapter: Path | None, work: Path) -> Any:
        right = 0
        if system in RIGHT:
            assert adapter is not None
            trained_in = adapter.parent.parent
            seed = json.loads((trained_in / "run.json").read_text())["preset"]["sft"]["seed"]
            right = RIGHT[system][seed] - trained_in.name.startswith("far")
        wanted = [example["id"] for example in load_prepared(run, "dev")][:right]
        return lambda rows: [[{"id": e["id"], "prediction": e["output"] if e["id"] in wanted else "0"} for e in rows]]

    monkeypatch.setattr(evaluation, "_answerer", answerer)

    def make(name: str, seed: int = 0, **settings: Any) -> Run:
        seeds = {"sft.seed": seed, "rl.seed": seed, "evaluation.systems": SYSTEMS}
        run = trained(seeds | {key.replace("__", "."): value for key, value in settings.items()}, name)
        evaluate(run)
        return run

    return make


def test_the_tables_hold_means_over_the_runs_with_intervals_over_users_and_seeds(evaluated):
    runs = [evaluated("a"), evaluated("b", 1)]
    metrics, paired = tables_over_seeds(runs)
    table = metrics.set_index("system")
    by_run = [scores(run, "rl") for run in runs]
    assert table.loc["rl", "score"] == pytest.approx(np.mean(by_run))
    assert table["seeds"].to_dict() == {"base": 1, "majority": 1, "sft": 2, "rl": 2, "best guess": 1, "oracle": 1}
    alone = read_tables(f"{runs[0].stage('evaluate')}/")[0].set_index("system")
    assert table.loc["base", ["score", "MAE"]].tolist() == alone.loc["base", ["score", "MAE"]].tolist()
    for system in ("sft", "rl"):
        assert table.loc[system, "low"] < table.loc[system, "score"] < table.loc[system, "high"]
    row = paired.set_index(["system", "minus"]).loc[("rl", "sft")]
    assert row["score"] == pytest.approx(table.loc["rl", "score"] - table.loc["sft", "score"])
    assert "reflection module after SFT + RL minus" in result_text(metrics, paired)


def test_the_content_kept_has_an_interval_over_users_and_seeds_too(evaluated):
    runs = [evaluated("a", data__task="LaMP-7"), evaluated("b", 1, data__task="LaMP-7")]
    row = tables_over_seeds(runs)[0].set_index("system").loc["rl"]
    alone = [read_tables(f"{run.stage('evaluate')}/")[0].set_index("system").loc["rl"] for run in runs]
    assert row["content_kept"] == pytest.approx(np.mean([table["content_kept"] for table in alone]))
    assert row["content_low"] < min(table["content_kept"] for table in alone), "the seeds differ"
    assert 0 <= row["content_low"] < row["content_kept"] < row["content_high"] <= 1


def test_one_sft_adapter_under_several_seeds_of_rl_is_counted_once(evaluated, monkeypatch):
    runs = [evaluated("a"), evaluated("b", rl__seed=1)]
    found = SeedScores.of(runs)
    assert (len(found.by_system["sft"]), len(found.by_system["rl"])) == (1, 2)
    assert tables_over_seeds(runs)[0].set_index("system").loc["sft", "seeds"] == 1
    with pytest.raises(KitError, match="share an SFT adapter"):
        tables_over_seeds([*runs, evaluated("c", 1, rl__seed=2)])


def test_modules_that_vary_differently_do_not_lend_each_other_their_variance(monkeypatch):
    """Of RL minus the base model, where there is no difference; SFT does not vary with its seed, RL does."""
    monkeypatch.setattr(significance, "sign_flip_test", lambda *_: 1.0)  # slow, and not looked at
    generator, users, found = np.random.default_rng(1), [str(n) for n in range(100)], []
    for _ in range(200):
        sft, base = (generator.normal(0, 0.15, (1, 100)) for _ in range(2))
        rl = sft + generator.normal(0, 0.05, (3, 1)) + generator.normal(0, 0.1, (3, 100))
        systems = {"base": base, "sft": np.repeat(sft, 3, 0), "rl": rl}
        found.append(SeedScores(systems, users, 200, 0).difference("rl", "base"))
    assert np.mean([row["low"] > 0 or row["high"] < 0 for row in found]) < 0.1, "5 % wanted"


def test_an_evaluation_with_other_settings_than_the_present_ones_is_refused(evaluated):
    runs = [evaluated("a"), evaluated("b", 1)]
    changed = [Run(run.folder, override(run.preset, {"rl.steps": 99})) for run in runs]
    with pytest.raises(KitError, match=r"'a' was evaluated before rl\.steps changed"):
        tables_over_seeds(changed)


def test_what_has_no_seed_need_be_evaluated_by_the_first_run_alone(evaluated):
    systems = '["base", "sft", "rl"]'
    runs = [evaluated("a"), evaluated("b", 1, evaluation__systems=systems)]
    assert {"majority", "sft", "rl"} < set(tables_over_seeds(runs)[0]["system"])
    runs = [evaluated("c", evaluation__systems='["base", "rl"]'), runs[1]]
    assert "sft" not in set(tables_over_seeds(runs)[0]["system"])


def test_what_the_first_run_alone_has_evaluated_or_stored_is_no_mean(evaluated):
    runs = [evaluated("a"), evaluated("b", 1, sft__seed=0, evaluation__systems='["base", "rl"]')]
    file = runs[1].stage("evaluate") / "metrics.csv"
    pd.read_csv(file).drop(columns="unparsed").to_csv(file, index=False)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    del manifest["outputs"]["metrics.csv"]
    write_text(file.parent / "manifest.json", json.dumps(manifest))
    table = tables_over_seeds(runs)[0].set_index("system")
    assert table.loc["sft", "seeds"] == 1
    assert np.isnan(table.loc["rl", "unparsed"])
    assert not np.isnan(table.loc["sft", "unparsed"])


def test_seeds_that_agree_add_no_width_and_seeds_that_differ_do():
    generator = np.random.default_rng(0)
    users, values = [str(n) for n in range(200)], generator.normal(0.5, 0.2, 200)
    base = np.zeros((1, 200))
    alike = SeedScores({"base": base, "rl": np.stack([values] * 3), "sft": np.stack([values] * 3)}, users, 500, 0)
    moved = np.stack([values - 0.1, values, values + 0.1])
    apart = SeedScores({"base": base, "rl": moved, "sft": moved}, users, 500, 0)
    narrow, wide = (found.difference("rl", "base") for found in (alike, apart))
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])
    assert wide["mde"] > 3 * narrow["mde"]
    assert apart.difference("base", "base")["high"] == 0, "no seed"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "has the seeds of another"),
        ({"seed": 1, "rl__learning_rate": 0.5}, "differ in rl.learning_rate, not in their seeds alone"),
        ({"seed": 1, "data__seed": 5}, "differ in data.seed"),
    ],
)
def test_runs_that_are_no_seeds_of_one_another_are_refused(evaluated, second, message):
    runs = [evaluated("a"), evaluated("b", **second)]
    with pytest.raises(KitError, match=message):
        tables_over_seeds(runs)


def test_a_run_that_is_not_evaluated_is_named(evaluated, trained):
    runs = [evaluated("a"), trained({"sft.seed": 1, "rl.seed": 1}, "b")]
    with pytest.raises(KitError, match="'evaluate' of run 'b' is not finished"):
        tables_over_seeds(runs)


# ---- another run's module -----------------------------------------------------------------------------------------


def test_the_ratio_is_the_gain_of_the_other_module_over_that_of_the_own(evaluated, capsys):
    near, far = evaluated("near"), evaluated("far")
    found = transfer([far], [near], ["sft", "rl"]).set_index("system")
    base, own, other = scores(near, "base").mean(), scores(near, "rl").mean(), found.loc["rl", "transferred"]
    assert found.loc["rl", "own"] == pytest.approx(own)
    assert other == pytest.approx(scores(far, "rl").mean()), "the same users, and made-up answers"
    assert other < own
    row = found.loc["rl"]
    assert row["difference"] == pytest.approx(other - own)
    if not np.isnan(row["ratio"]):
        assert row["ratio"] == pytest.approx((other - base) / (own - base))
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert list(found.index) == ["sft", "rl"]
    assert "completions do not parse" not in capsys.readouterr().out
    assert "reflection module after SFT + RL" in report(found.reset_index())
    capsys.readouterr()
    assert transfer([far], [near]).set_index("system").equals(found.loc[["rl"]]), "the last step"
    assert "done already" in capsys.readouterr().out
    with pytest.raises(KitError, match="must have evaluated base and sft"):
        transfer([far], [evaluated("bare", evaluation__systems='["base", "rl"]')], ["sft"])


def test_pairs_of_runs_are_seeds_of_one_comparison(evaluated):
    near, far = [evaluated("near0"), evaluated("near1", 1)], [evaluated("far0"), evaluated("far1", 1)]
    found = transfer(far, near).set_index("system")
    assert found.loc["rl", "seeds"] == 2
    assert found.loc["rl", "transferred"] == pytest.approx(np.mean([scores(run, "rl") for run in far]))


def test_one_sft_adapter_on_either_side_is_one_seed(evaluated):
    near = [evaluated("near0"), evaluated("near1", 1, sft__seed=0)]
    far = [evaluated("far0", sft__seed=1), evaluated("far1", 1)]
    found = transfer(far, near, ["sft", "rl"]).set_index("system")
    assert found["seeds"].to_dict() == {"sft": 1, "rl": 2}


def test_dev_users_that_the_other_module_was_trained_on_are_refused(evaluated, monkeypatch):
    near, far = evaluated("near"), evaluated("far")
    dev = load_prepared(near, "dev")
    monkeypatch.setattr("rpo_kit.study.transfer.load_prepared", lambda run, split: dev)
    with pytest.raises(KitError, match=f"{len(dev)} dev users of run 'near' are among the train users of run 'far'"):
        transfer([far], [near])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data__task": "LaMP-5"}, "different tasks"),
        ({"reflection__lora_rank": 2}, "different settings of the module"),
    ],
)
def test_a_module_of_another_kind_is_refused(evaluated, other, message):
    near = evaluated("near")
    with pytest.raises(KitError, match=message):
        transfer([evaluated("far", **other)], [near])


def test_every_pair_is_checked_before_the_first_answer_is_rewritten(evaluated, monkeypatch):
    near, far = evaluated("near"), evaluated("far")
    monkeypatch.setattr("rpo_kit.study.transfer.predict", lambda *_: pytest.fail("an answer was rewritten"))
    with pytest.raises(KitError, match="its own target"):
        transfer([near], [near])
    (far.stage("rl") / "manifest.json").unlink()
    with pytest.raises(KitError, match="'rl' of run 'far' is not finished"):
        transfer([far], [near], ["sft", "rl"])


def test_as_many_runs_come_from_as_go_to(evaluated):
    near = evaluated("near")
    with pytest.raises(KitError, match="not 1 and 2"):
        transfer([near], [near, near])


# ---- what is stored -----------------------------------------------------------------------------------------------


def test_an_evaluation_without_training_is_stored_without_logs(new_run, tmp_path):
    run = new_run()
    with stage(run, "evaluate") as work:
        for name, head in (("metrics.csv", "system"), ("paired.csv", "system,minus")):
            write_text(work / name, f"{head},score,low,high\n")
    export_results([run], *read_tables(f"{work}/"), tmp_path, "base")
    assert sorted(path.name for path in tmp_path.glob("base_*")) == [
        "base_metrics.csv",
        "base_paired.csv",
        "base_run.json",
    ]


def test_an_evaluation_is_stored_with_its_logs_and_its_provenance(new_run, tmp_path):
    run, folder = new_run({"data.source": "personas"}), tmp_path / "kept"
    written = {
        "evaluate/metrics.csv": "system,score,low,high\nrl,0.1,0.0,0.2\n",
        "evaluate/paired.csv": "system,minus,score,low,high,mde\n",
    }
    written |= {"sft/log.csv": "step,loss\n1,0.3\n", "rl/log.csv": "step,reward\n"}
    with stage(run, "evaluate"):
        pass
    for name, text in written.items():
        write_text(run.folder / name, text)
    later = new_run({"data.task": "LaMP-7"})
    export_results([later], *read_tables(f"{run.stage('evaluate')}/"), folder, "long_LaMP-3")
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    text = kept.pop("long_LaMP-3_run.json")
    made = json.loads(text)
    assert made["preset"]["data"]["task"] == "LaMP-3", "with which it was evaluated, whatever the settings are now"
    assert made.keys() == {"name", "preset", "packages", "commit", "machine"}
    assert str(tmp_path) not in text
    assert made["preset"]["base"].startswith("local:")
    names = ("metrics", "paired", "sft_log", "rl_log")
    assert kept == dict(zip([f"long_LaMP-3_{name}.csv" for name in names], written.values(), strict=True))


def test_runs_are_stored_with_the_seeds_and_logs_of_all(evaluated, tmp_path):
    runs = [evaluated("a"), evaluated("b", 1)]
    for run in runs:
        write_text(run.stage("rl") / "log.csv", f"step,reward\n1,0.{run.preset.rl.seed}\n")
    export_results(runs, *tables_over_seeds(runs), tmp_path / "kept", "both")
    made = json.loads((tmp_path / "kept" / "both_run.json").read_text())
    assert made["seeds"] == {"a": {"sft.seed": 0, "rl.seed": 0}, "b": {"sft.seed": 1, "rl.seed": 1}}
    log = pd.read_csv(tmp_path / "kept" / "both_rl_log.csv")
    assert log.to_dict("list") == {"run": ["a", "b"], "step": [1, 1], "reward": [0.0, 0.1]}
