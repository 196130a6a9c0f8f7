"""Stage 6: the trials of Figure 3 differ in their curriculum only, and a finished trial is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rpo_kit import provenance
from rpo_kit.errors import KitError
from rpo_kit.presets import RLSettings
from rpo_kit.rewriting.prepare import load_golds, load_prepared
from rpo_kit.runs import Run, write_text
from rpo_kit.stages import stage
from rpo_kit.study import ablation
from rpo_kit.study.ablation import score_adapter, sweep
from rpo_kit.study.baselines import trivial_answers
from rpo_kit.study.statistics import references
from rpo_kit.study.sweep_tables import CSV_FILES, Scores, export_figure_data, read_scores

ARMS = ("fixed-2", "progressive")


@pytest.fixture
def swept(trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[Any]]:
    """A run whose RL and scoring are replaced: an adapter is a text, a score is known for each trial, user and k."""
    run = trained({"sweep.seeds": [0, 1], "sweep.steps": 3, "sweep.eval_shots": [2, 6], "rl.learning_rate": 0.5})
    calls: list[Any] = []

    def train(run: Run, on_log: Any, stage_name: str, settings: RLSettings) -> None:
        with stage(run, stage_name, settings=settings) as work:
            if work is None:
                return
            calls.append((stage_name, settings))
            write_text(work / "adapter" / "adapter_model.safetensors", stage_name)
            log = pd.DataFrame({"step": [1, 2, 3], "reward": [0.1, 0.2, 0.3], "shots": [2, 4, 6], "loss": 0.0})
            write_text(work / "log.csv", log.to_csv(index=False))

    def load(settings: Any, adapter: Path) -> str:
        calls.append(("loaded", adapter.parent.name))
        return (adapter / "adapter_model.safetensors").read_text()

    def write(loaded: str, task: Any, examples: list[Any], shots: int, *_: int) -> list[dict[str, Any]]:
        """Right with k = 6 after progressive training with seed 0, otherwise always 3."""
        right = loaded == "sweep/progressive-seed0" and shots == 6
        return [{"id": e["id"], "prediction": e["output"] if right else "3"} for e in examples]

    for name, value in (("train_rl", train), ("load_reflection", load), ("rewrite", write)):
        monkeypatch.setattr(ablation, name, value)
    return run, calls


def test_trials_differ_in_curriculum_and_seed_only_and_start_from_the_same_adapter(swept):
    run, calls = swept
    sweep(run)
    trained = [call for call in calls if call[0] != "loaded"]
    assert [name for name, _ in trained] == [f"sweep/{arm}-seed{seed}" for seed in (0, 1) for arm in ARMS]
    for (name, settings), (arm, seed) in zip(trained, [(arm, s) for s in (0, 1) for arm in ARMS], strict=True):
        assert (settings.curriculum, settings.seed, settings.steps) == (arm, seed, 3), name
        assert (settings.learning_rate, settings.group_size) == (0.5, run.preset.rl.group_size)
        assert settings.prompts_per_step == run.preset.sweep.prompts_per_step
        assert settings.micro_batch_tokens == run.preset.rl.micro_batch_tokens
        assert (settings.shots_from, settings.shots_to) == (2, 6)
    assert [call[1] for call in calls if call[0] == "loaded"] == [
        "sft",
        *(f"{arm}-seed{seed}" for seed in (0, 1) for arm in ARMS),
    ]


def test_the_bars_are_means_over_seeds_with_intervals_over_users(swept):
    run, _ = swept
    sweep(run)
    bars = pd.read_csv(run.stage("sweep") / "bars.csv").set_index(["arm", "shots"])
    examples = load_prepared(run, "dev")[:4]
    generic = np.mean([1 - abs(int(e["output"]) - 3) / 4 for e in examples])
    assert set(bars.index) == {
        (arm, k)
        for arm in ("SFT only", *ARMS, "best trivial", "best guess", "oracle")
        for k in run.preset.sweep.eval_shots
    }
    named = json.loads((run.stage("sweep") / "provenance.json").read_text())["best_trivial"]
    answers = trivial_answers(ablation.get_task("LaMP-3"), examples, list(load_golds(run, "train").values()))
    scores = {name: np.mean([1 - abs(float(a) - float(e["output"])) / 4 for a, e in zip(texts, examples, strict=True)])
              for name, texts in answers.items()}  # fmt: skip
    assert bars.loc[("best trivial", 6), "score"] == pytest.approx(scores[named])
    assert scores[named] == max(scores.values())
    assert bars["unparsed"].isna().to_dict()[("oracle", 2)]
    assert bars.loc[("SFT only", 2), "score"] == pytest.approx(generic)
    assert bars.loc[("progressive", 2), "score"] == pytest.approx(generic)
    assert bars.loc[("progressive", 6), "score"] == pytest.approx((1 + generic) / 2), "seed 0 is right, seed 1 is not"
    assert bars.loc[("oracle", 6), "score"] == pytest.approx(
        references(ablation.get_task("LaMP-3"), examples, 6)["oracle"].mean()
    )
    assert bars["users"].eq(4).all(), "tiny looks at four dev users"
    assert bars["seeds"].to_dict()[("progressive", 2)] == 2
    assert bars["seeds"].to_dict()[("SFT only", 2)] == 1
    assert ((bars["low"] <= bars["score"]) & (bars["score"] <= bars["high"])).all()


def test_the_differences_are_paired_on_the_same_users(swept):
    run, _ = swept
    sweep(run)
    found = pd.read_csv(run.stage("sweep") / "differences.csv").set_index(["arm", "minus", "shots"])
    bars = pd.read_csv(run.stage("sweep") / "bars.csv").set_index(["arm", "shots"])
    pairs = [("fixed-2", "SFT only"), ("progressive", "SFT only"), ("progressive", "fixed-2")]
    items = {(arm, "k = 2", 6) for arm in ("SFT only", "fixed-2", "progressive")}
    trivial = [(arm, "best trivial") for arm in ("SFT only", "fixed-2", "progressive")]
    assert set(found.index) == {(*pair, k) for pair in pairs + trivial for k in (2, 6)} | items
    over_trivial = bars.loc[("progressive", 6), "score"] - bars.loc[("best trivial", 6), "score"]
    assert found.loc[("progressive", "best trivial", 6), "score"] == pytest.approx(over_trivial)
    gain = bars.loc[("progressive", 6), "score"] - bars.loc[("SFT only", 6), "score"]
    assert found.loc[("progressive", "SFT only", 6), "score"] == pytest.approx(gain)
    assert gain > 0
    alike = found.loc[("progressive", "SFT only", 2)]
    assert (alike["low"], alike["score"], alike["high"]) == (0, 0, 0), "the same answers: no interval, as it is paired"
    more = bars.loc[("progressive", 6), "score"] - bars.loc[("progressive", 2), "score"]
    assert found.loc[("progressive", "k = 2", 6), "score"] == pytest.approx(more)
    assert more > 0
    assert found.loc[("SFT only", "k = 2", 6), "seeds"] == 1
    assert found.loc[("progressive", "k = 2", 6), "seeds"] == 2


def test_the_differences_have_power_and_adjusted_p_values(swept):
    run, _ = swept
    sweep(run)
    found = pd.read_csv(run.stage("sweep") / "differences.csv")
    assert found.columns.tolist() == [
        *("arm", "minus", "shots", "score", "low", "high", "users", "seeds", "mde", "p", "p_holm"),
    ]
    alike = found[(found["shots"] == 2) & (found["minus"] != "best trivial")]
    assert (alike["mde"].tolist(), alike["p"].tolist()) == ([0] * len(alike), [1] * len(alike))
    gain = found.set_index(["arm", "minus", "shots"]).loc[("progressive", "SFT only", 6)]
    assert gain["p"] > 0.3, "one of two seeds is right: no evidence that the next one is"
    assert gain["low"] < 0 < gain["mde"]
    of_trivial = found["minus"] == "best trivial"
    assert (found["p_holm"] >= found["p"])[~of_trivial].all()
    assert found["p_holm"].isna().equals(of_trivial), "they are not among the comparisons, which Holm counts"


def test_bars_and_differences_follow_from_the_stored_scores(swept):
    run, _ = swept
    sweep(run)
    folder = run.stage("sweep")
    scores = pd.read_csv(folder / "scores.csv", dtype={"id": str, "user": str})
    seeds = [f"{arm}-seed{seed}" for seed in (0, 1) for arm in ARMS]
    assert scores.columns.tolist() == [
        *("id", "user", "shots", "SFT only", *seeds, "best trivial", "best guess", "oracle"),
    ]
    bars = pd.read_csv(folder / "bars.csv").set_index(["arm", "shots"])["score"]
    for name in ("SFT only", "best trivial", "best guess", "oracle"):
        for k, mean in scores.groupby("shots")[name].mean().items():
            assert bars.loc[name, k] == pytest.approx(mean, abs=1e-4), (name, k)
    found = pd.read_csv(folder / "differences.csv").set_index(["arm", "minus", "shots"])["score"]
    of_6 = scores[scores["shots"] == 6]
    progressive = of_6[["progressive-seed0", "progressive-seed1"]].mean(axis=1)
    for minus in ("SFT only", "best trivial"):
        assert found["progressive", minus, 6] == pytest.approx((progressive - of_6[minus]).mean(), abs=1e-4)
    assert progressive.between(0.5, 1).all(), "seed 0 is right for every user, seed 1 is not"


def test_the_plan_is_written_before_the_first_trial_and_survives_a_kill(swept, new_run, monkeypatch):
    run, _ = swept
    train = ablation.train_rl

    def killed(run: Run, on_log: Any, stage_name: str, settings: RLSettings) -> None:
        assert (run.stage("sweep") / "plan.json").exists()
        if stage_name != "sweep/fixed-2-seed0":
            raise KeyboardInterrupt
        train(run, on_log, stage_name, settings)

    monkeypatch.setattr(ablation, "train_rl", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(run)
    before = (run.stage("sweep") / "plan.json").read_bytes()
    monkeypatch.setattr(ablation, "train_rl", train)
    sweep(run)
    assert (run.stage("sweep") / "plan.json").read_bytes() == before
    sweep(new_run({"sweep.seeds": [0, 1], "sweep.steps": 3, "sweep.eval_shots": [6], "rl.learning_rate": 0.5}))
    plan = json.loads((run.stage("sweep") / "provenance.json").read_text())["plan"]
    changed = plan["changes"][0]["changed"]
    assert changed.pop("comparisons").keys() == plan["plan"]["comparisons"].keys() - {"most items minus fewest"}
    assert changed == {"shots": [6]}
    assert plan["plan"]["shots"] == [2, 6]


def test_what_scoring_takes_is_stored_for_the_planning_of_a_larger_sweep(swept):
    run, _ = swept
    sweep(run)
    timing = json.loads((run.stage("sweep/sft/scores") / "timing.json").read_text())
    assert timing["examples"] == 4 * 2
    assert timing["seconds"] > 0


def test_the_curves_are_the_training_logs(swept):
    run, _ = swept
    sweep(run)
    curves = pd.read_csv(run.stage("sweep") / "curves.csv")
    assert curves.columns.tolist() == ["arm", "seed", "step", "reward", "shots"]
    assert len(curves) == 4 * 3
    chosen = curves[(curves["arm"] == "progressive") & (curves["seed"] == 1)]
    assert chosen["reward"].tolist() == [0.1, 0.2, 0.3]


def test_a_second_call_runs_nothing_and_a_new_seed_only_what_is_new(swept, new_run):
    run, calls = swept
    sweep(run)
    calls.clear()
    sweep(run)
    assert calls == []
    changed = {"sweep.seeds": [0, 1, 2], "sweep.steps": 3, "sweep.eval_shots": [2, 6], "rl.learning_rate": 0.5}
    sweep(new_run(changed))
    assert [call[0] for call in calls if call[0] != "loaded"] == [f"sweep/{arm}-seed2" for arm in ARMS]
    assert [call[1] for call in calls if call[0] == "loaded"] == [f"{arm}-seed2" for arm in ARMS]


def test_a_retrained_trial_is_scored_again(swept, new_run):
    run, calls = swept
    sweep(run)
    calls.clear()
    sweep(new_run({"sweep.seeds": [0], "sweep.steps": 4, "sweep.eval_shots": [2, 6], "rl.learning_rate": 0.5}))
    assert [call[1] for call in calls if call[0] == "loaded"] == [f"{arm}-seed0" for arm in ARMS], "and not sft"


def test_scores_are_stored_for_each_example_and_k(swept):
    run, _ = swept
    score_adapter(run, "sft", run.stage("sft") / "adapter")
    scores = pd.read_csv(run.stage("sweep/sft/scores") / "scores.csv", dtype=str)
    assert len(scores) == 4 * 2
    assert scores["user"].tolist()[:4] == [f"dev-{n}" for n in range(4)]


def test_scores_of_different_users_are_not_paired(swept, monkeypatch):
    run, _ = swept
    sweep(run)
    trials = [(arm, seed) for seed in run.preset.sweep.seeds for arm in run.preset.sweep.arms]
    assert Scores.of(run, trials).users

    def others(run: Run, name: str) -> pd.DataFrame:
        scores = read_scores(run, name)
        return scores if name == "sft" else scores.assign(user="someone else")

    monkeypatch.setattr("rpo_kit.study.sweep_tables.read_scores", others)
    with pytest.raises(KitError, match="scored on different users or numbers of items"):
        Scores.of(run, trials)


def test_the_numbers_carry_their_provenance_and_can_be_stored_with_the_code(swept, tmp_path, monkeypatch):
    run, _ = swept
    with pytest.raises(KitError, match=r"no finished sweep: run `python -m rpo_kit sweep --run r` first"):
        export_figure_data(run, tmp_path / "data", "long")
    sweep(run)
    paths = export_figure_data(run, tmp_path / "data", "long")
    assert [path.name for path in paths] == [f"long_{file}" for file in CSV_FILES]
    told = json.loads(paths[-1].read_text())
    assert told["preset"]["sweep"]["seeds"] == [0, 1]
    assert told.keys() == {"preset", "machine", "packages", "commit", "plan", "best_trivial"}
    assert told["plan"]["plan"]["seeds"] == [0, 1]
    assert str(tmp_path) not in told["machine"]
    before = told["commit"]
    monkeypatch.setattr(provenance, "git_commit", lambda: "later")
    sweep(run)
    told = json.loads((run.stage("sweep") / "provenance.json").read_text())
    assert told["commit"] == before, "every trial was skipped"


def test_before_sft_the_error_names_the_command_to_run_first(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize --run r`"):
        sweep(prepared())


def test_what_changes_the_prompts_of_a_trial_is_among_the_inputs_of_its_scores(swept):
    run, _ = swept
    sweep(run)
    inputs = json.loads((run.stage("sweep/progressive-seed0/scores") / "manifest.json").read_text())["inputs"]
    assert inputs.keys() >= {"data", "generic", "model", "prompts", "adapter", "shots", "users"}
