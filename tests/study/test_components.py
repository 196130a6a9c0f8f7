"""Stage 7: an arm differs from the run in its settings only, and takes over what these do not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.models.open import ACCOUNT, ANSWERS, open_chat_for
from rpo_kit.pipeline import inputs_of
from rpo_kit.presets import RLSettings, get_preset
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import Run, write_text
from rpo_kit.setting_rules import ARM_NAMES
from rpo_kit.stages import stage
from rpo_kit.study import components as module
from rpo_kit.study.arms import ARMS, arm_of, arm_preset, check_arms, chosen_arms
from rpo_kit.study.component_figure import components_figure, export, gain_over_trivial, read_table, resolved
from rpo_kit.study.components import Study, arm_run, components
from rpo_kit.study.style import UNRESOLVED_COLOR

SHARED = {"components.arms": ["no-rl", "grpo"], "components.seeds": [0, 1], "components.steps": 3}


def adapter(work: Path, text: str) -> None:
    write_text(work / "adapter" / "adapter_model.safetensors", text)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training and scoring replaced: an adapter is a text, its answers are known; what is computed is listed."""
    calls: list[Any] = []

    def rl(run: Run, on_log: Any, stage_name: str, settings: RLSettings) -> None:
        with stage(run, stage_name, **inputs_of(run, "rl") | {"settings": settings}) as work:
            if work:
                calls.append((run.folder.name, stage_name, settings))
                adapter(work, f"{settings.algorithm}-{settings.seed}")

    def sft(run: Run, *_: Any) -> None:
        with stage(run, "sft", **inputs_of(run, "sft")) as work:
            if work:
                calls.append((run.folder.name, "sft", run.preset))
                adapter(work, f"sft of {run.folder.name}")

    def answers(loaded: str, task: Any, examples: list[Any], shots: int, *rest: Any) -> list[dict[str, Any]]:
        """Right after RL with GRPO and seed 0, otherwise 3; what SFT alone wrote does not parse."""
        right = loaded == "grpo-0"
        calls.append(("answers", loaded, rest[-1]))
        complaint = "no tags" if loaded.startswith("sft") else None
        return [{"id": e["id"], "prediction": e["output"] if right else "3", "complaint": complaint} for e in examples]

    def load(settings: Any, folder: Path) -> str:
        return (folder / "adapter_model.safetensors").read_text()

    replaced = {"train_rl": rl, "train_sft": sft, "rewrite": answers, "load_reflection": load}
    replaced["in_own_process"] = lambda run, name, on_log: sft(run)
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    return calls


def trained_arms(calls: list[Any]) -> list[tuple[str, str]]:
    return [(call[0], call[1]) for call in calls if call[0] != "answers"]


def test_the_named_arms_are_those_that_settings_allow():
    assert tuple(ARMS) == ARM_NAMES
    for name, arm in ARMS.items():
        preset = arm_preset(get_preset("cpu"), arm)
        changed = {key for key in arm.overrides if "." in key}
        assert changed == set(arm.overrides), name
        assert (preset.rl.steps, preset.rl.prompts_per_step) == (2, 2), "components.steps, for every arm"


def test_all_stands_for_every_named_arm_and_full_comes_first():
    preset = get_preset("cpu", {"components.arms": ["rl.beta=0", "all"]})
    assert [arm.name for arm in chosen_arms(preset)] == [*ARM_NAMES, "rl.beta=0"]
    assert [arm.name for arm in chosen_arms(get_preset("cpu", {"components.arms": ["grpo", "full"]}))] == [
        "full",
        "grpo",
    ]


def test_a_single_setting_is_an_arm_too():
    arm = arm_of("rl.beta=0")
    assert arm_preset(get_preset("cpu"), arm).rl.beta == 0
    assert arm_of("data.retriever=dense:org/encoder").folder == "data.retriever=dense-org-encoder"


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ("rl.speed=2", "There is no setting 'rl.speed'"),
        ("synthesis.shots=[13]", "a user has 12 history items"),
        ("rl.temperature=0", "must be above 0"),
        ("base=openai:some-model", "OPENAI_API_KEY"),
        ("base=file:nowhere.json", "nowhere.json"),
        ("synthesis.teacher=openai:some-model", "OPENAI_API_KEY"),
        ("synthesis.teacher=file:nowhere.jsonl", "nowhere.jsonl"),
        ("reflection.name=./no/folder", "config.json is missing"),
    ],
)
def test_an_arm_that_cannot_run_is_refused_before_the_first_one_is_trained(arm, reason, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    told = check_arms(get_preset("cpu", {"components.arms": ["grpo", arm]}))
    assert told.startswith(f"The arm '{arm}' of components.arms cannot run: ")
    assert reason in told
    assert check_arms(get_preset("cpu")) == ""


@pytest.mark.parametrize("arm", ["data.seed=1", "data.items_per_user=20", "rl.seed=5", "components.steps=9"])
def test_an_arm_of_other_users_or_of_the_study_itself_is_refused(arm):
    told = check_arms(get_preset("cpu", {"components.arms": [arm]}))
    assert told == (
        f"The arm '{arm}' of components.arms cannot run, because all arms have the same users and seeds: change "
        f"{arm.partition('=')[0]} in a run of its own."
    )
    allowed = ["data.retriever=recency", "data.train_users=50", "sft.seed=1"]
    assert check_arms(get_preset("cpu", {"components.arms": allowed})) == ""


@pytest.mark.parametrize("arm", ["sft-1-item", "recency", "synthesis.per_query=2"])
def test_an_arm_that_asks_the_teacher_again_is_refused_without_a_key_although_the_run_is_finished(arm, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    changes = {"synthesis.teacher": "openai:some-model"}
    told = check_arms(get_preset("cpu", changes | {"components.arms": ["grpo", arm]}))
    assert told.startswith(f"The arm '{arm}' of components.arms cannot run: ")
    assert "OPENAI_API_KEY" in told
    assert check_arms(get_preset("cpu", changes | {"components.arms": ["grpo", "no-plan", "no-rl"]})) == ""


@pytest.mark.parametrize(
    ("arms", "same"),
    [
        (["grpo", "rl.algorithm=grpo"], "grpo"),
        (["rl.beta=0", "rl.beta=0.0"], "rl.beta=0"),
        (["evaluation.keep_content=0"], "full"),
        (["endpoint.cache=false"], "full"),
        (["rl.save_every=5"], "full"),
        ([f"rl.beta={get_preset('cpu').rl.beta}"], "full"),
    ],
)
def test_an_arm_whose_score_nothing_can_move_is_refused(arms, same):
    told = check_arms(get_preset("cpu", {"components.arms": arms}))
    assert told.startswith(f"The arm '{arms[-1]}' of components.arms would score the same as '{same}', because ")


def test_all_arms_are_those_that_change_something_in_this_run():
    names = {"synthesis.shots": [1], "rl.algorithm": "grpo", "components.arms": ["all"]}
    chosen = [arm.name for arm in chosen_arms(get_preset("cpu", names))]
    assert set(ARMS) - set(chosen) == {"sft-1-item", "grpo"}
    assert "reinforce++" in chosen
    grpo = get_preset("cpu", {"rl.algorithm": "grpo"})
    assert "grpo" in grpo.components.arms
    assert check_arms(grpo) == "", "the preset's own arms are no reason to refuse a run"
    assert "grpo" not in [arm.name for arm in chosen_arms(grpo)]
    assert [arm.name for arm in chosen_arms(get_preset("cpu", {"components.arms": ["all"]}))] == list(ARMS)


def test_two_arms_that_would_share_a_folder_are_refused():
    arms = ["reflection.name=org/model-a", "reflection.name=org-model/a"]
    told = check_arms(get_preset("cpu", {"components.arms": arms}))
    assert told == f"The arms '{arms[0]}' and '{arms[1]}' of components.arms would share a folder: leave one out."


def test_an_unknown_arm_is_refused_with_the_names_there_are():
    with pytest.raises(KitError, match=r"There is no arm 'no-plans' for components.arms: choose from full, no-sft"):
        get_preset("cpu", {"components.arms": ["no-plans"]})


def test_arms_of_rl_take_over_data_trajectories_and_sft_and_train_rl_alone(trained, calls):
    run = trained(SHARED)
    components(run)
    seeds = [f"rl-seed{seed}" for seed in (0, 1)]
    assert trained_arms(calls) == [("full", seeds[0]), ("full", seeds[1]), ("grpo", seeds[0]), ("grpo", seeds[1])]
    settings = {(name, stage_name): rest for name, stage_name, rest in calls if name != "answers"}
    assert {s.steps for s in settings.values()} == {3}
    assert settings["grpo", seeds[1]].algorithm == "grpo"
    assert settings["full", seeds[1]].seed == 1
    for arm in ("full", "grpo", "no-rl"):
        folder = run.stage(f"components/{arm}")
        assert (folder / "sft/adapter/adapter_model.safetensors").read_text() == "sft", "the run's own"
        assert (folder / "prepare/manifest.json").read_bytes() == (run.stage("prepare") / "manifest.json").read_bytes()


def test_a_second_call_computes_nothing_and_another_arm_only_itself(trained, new_run, calls):
    run = trained(SHARED)
    components(run)
    seconds = read_minutes(run)
    calls.clear()
    components(run)
    assert calls == []
    assert read_minutes(run) == seconds, "a call that finds all done adds no time"
    components(new_run(SHARED | {"components.arms": ["no-rl", "grpo", "rloo"]}))
    assert trained_arms(calls) == [("rloo", "rl-seed0"), ("rloo", "rl-seed1")]


def read_minutes(run: Run) -> list[float]:
    table = read_table(str(run.stage("components") / "components"))
    return list(table["minutes"].dropna())


def test_the_runs_own_rl_is_taken_over_where_it_was_trained_with_the_same_settings(trained, new_run, calls):
    run = trained(SHARED)
    rl = run.preset.rl
    same = {"components.steps": rl.steps, "components.prompts_per_step": rl.prompts_per_step}
    components(new_run(SHARED | same | {"components.seeds": [rl.seed]}))
    assert trained_arms(calls) == [("grpo", "rl-seed0")]
    assert ("answers", "rl", Form()) in calls


def test_an_arm_without_a_plan_trains_sft_on_the_runs_trajectories_and_is_read_in_its_own_form(trained, calls):
    run = trained(SHARED | {"components.arms": ["no-plan"], "components.seeds": [0]})
    components(run)
    assert trained_arms(calls) == [("full", "rl-seed0"), ("no-plan", "sft"), ("no-plan", "rl-seed0")]
    written = [run.stage(f"{folder}synthesize") / "trajectories.jsonl" for folder in ("", "components/no-plan/")]
    assert written[0].read_bytes() == written[1].read_bytes()
    forms = [call[2] for call in calls if call[0] == "answers"]
    assert forms == [Form(), Form(("observe", "rewrite"))]


def test_an_arm_without_sft_starts_rl_from_an_untrained_module(trained, calls):
    run = trained(SHARED | {"components.arms": ["no-sft"], "components.seeds": [0]})
    components(run)
    assert trained_arms(calls) == [("full", "rl-seed0"), ("no-sft", "rl-seed0")]
    manifest = json.loads((run.stage("components/no-sft/rl-seed0") / "manifest.json").read_text())
    assert "sft" not in manifest["inputs"]
    assert not run.stage("components/no-sft/sft").exists()


def test_another_retriever_asks_the_base_model_nothing_again(trained, calls, monkeypatch):
    run = trained(SHARED | {"components.arms": ["random"], "components.seeds": [0]})
    monkeypatch.setattr("rpo_kit.rewriting.prepare.open_chat_for", lambda *_: pytest.fail("the base model is asked"))
    components(run)
    assert ("random", "sft") in trained_arms(calls)
    own = arm_run(run, arm_of("random"))
    rankings = [[e["ranking"] for e in load_prepared(r, "dev")] for r in (run, own)]
    assert rankings[0] != rankings[1]
    assert [e["generic"] for e in load_prepared(own, "dev")] == [e["generic"] for e in load_prepared(run, "dev")]


def test_changed_settings_make_an_arm_stale(trained, new_run, calls):
    components(trained(SHARED))
    calls.clear()
    components(new_run(SHARED | {"components.steps": 4}))
    assert len(trained_arms(calls)) == 4


def test_an_arm_is_charged_to_its_run_and_named_by_it(trained):
    run = trained()
    own = arm_run(run, arm_of("grpo"))
    assert own.name == run.name
    assert own.part_of == run
    assert own.folder == run.folder / "components" / "grpo"
    open_chat_for(own, "http://127.0.0.1:9/v1#model")
    assert (run.folder / ACCOUNT).exists()
    assert not own.folder.exists()
    assert (run.folder.parent / ANSWERS).exists(), "answers that other runs have paid for are used"


def test_without_rl_the_sft_adapter_is_scored_also_where_rl_starts_untrained(trained, calls):
    run = trained({"components.arms": ["no-rl"], "rl.start": "untrained"})
    components(run)
    assert "sft" in [call[1] for call in calls if call[0] == "answers"]


def test_an_arm_that_scores_the_same_adapters_otherwise_shares_what_their_seeds_move():
    generator = np.random.default_rng(0)
    users, seeds = [f"u{n}" for n in range(200)], generator.normal(0, 0.05, (3, 1))
    full = 0.7 + seeds + generator.normal(0, 0.1, (3, 200))
    values = {"full": full, "evaluation.shots=1": full - 0.02 + generator.normal(0, 0.01, (3, 200))}
    settings = get_preset("cpu").evaluation
    apart, shared = (
        Study(users, values, 3, settings, rescored).compared("evaluation.shots=1")
        for rescored in ((), ["evaluation.shots=1"])
    )
    assert shared["difference"] == apart["difference"]
    assert apart["difference_low"] < -0.05, "as if other seeds had trained them"
    assert -0.03 < shared["difference_low"] < shared["difference_high"] < -0.01


def test_the_table_compares_each_arm_with_the_full_method_on_the_same_users(trained, calls):
    run = trained(SHARED)
    components(run)
    table = read_table(str(run.stage("components") / "components")).set_index("system")
    examples = load_prepared(run, "dev")[:4]
    three = np.mean([1 - abs(int(e["output"]) - 3) / 4 for e in examples])
    assert list(table.index[:3]) == ["full", "no-rl", "grpo"]
    assert {"base", "majority", "constant"} <= set(table.index[3:]), "what needs no training stands beside it"
    assert table.score["full"] == pytest.approx(three)
    assert table.score["grpo"] == pytest.approx((1 + three) / 2), "seed 0 is right, seed 1 is not"
    assert table.difference["grpo"] == pytest.approx(table.score["grpo"] - table.score["full"])
    assert np.isnan(table.difference["full"])
    assert table.difference["no-rl"] == 0, "the same answers"
    assert table.difference_low["no-rl"] < 0 < table.difference_high["no-rl"], "seeds vary, as GRPO's show"
    assert table.p_holm["no-rl"] == 1
    assert table.difference_low["grpo"] <= table.difference["grpo"] <= table.difference_high["grpo"]
    assert table.mde["grpo"] > 0
    assert table.users.eq(4).all()
    assert dict(table.seeds[:4]) == {"full": 2, "no-rl": 1, "grpo": 2, "base": 0}
    assert (table.unparsed["no-rl"], table.unparsed["grpo"]) == (1, 0)
    assert table.minutes[["full", "no-rl", "grpo"]].gt(0).all()
    best = max(["constant", "majority", "copy-nearest"], key=lambda name: table.score[name])
    gain = f"{table.score['full'] - table.score[best]:+.3f} ("
    assert gain_over_trivial(table.reset_index()).startswith(f"Gain over the best trivial baseline: {gain}")
    assert f"full method minus {table.name[best]}" in gain_over_trivial(table.reset_index())


def study(**values: Any) -> Study:
    """One value per seed for each system, the same for all 50 users."""
    rows = {name: np.repeat(np.array(own, float)[:, None], 50, axis=1) for name, own in values.items()}
    return Study([f"user {n}" for n in range(50)], rows, 2, get_preset("cpu").evaluation)


def test_the_interval_covers_seeds_as_well_as_users():
    both = study(full=[0.2, 0.8], arm=[0.3, 0.5], fixed=[0.4])
    assert both.compared("full")["low"] < 0.4 < 0.6 < both.compared("full")["high"], "no user differs, the seeds do"
    arm, fixed = both.compared("arm"), both.compared("fixed")
    assert (fixed["score"], fixed["low"], fixed["high"]) == pytest.approx((0.4, 0.4, 0.4))
    assert fixed["difference"] == pytest.approx(-0.1)
    assert arm["mde"] > fixed["mde"] > 0, "two adapters vary in the one, one in the other"


def test_p_values_are_adjusted_for_the_number_of_arms_and_references_are_not_among_them(trained, calls):
    run = trained(SHARED)
    components(run)
    table = read_table(str(run.stage("components") / "components")).set_index("system")
    assert table.p_holm["grpo"] == pytest.approx(min(1, 2 * min(table.p["grpo"], table.p["no-rl"])), abs=1e-6)
    assert table.p_holm[["full", "base", "majority"]].isna().all()


def test_an_arm_scored_on_other_examples_is_refused(trained, calls):
    run = trained(SHARED | {"components.seeds": [0]})
    components(run)
    scores = run.stage("components/grpo/scores-seed0") / "scores.csv"
    table = pd.read_csv(scores)
    write_text(scores, table.iloc[1:].to_csv(index=False))
    with pytest.raises(KitError, match=r"scores.csv was cut, or changed .* not as its stage wrote it"):
        module.table(run, [arm_of("full"), arm_of("grpo")])
    (scores.parent / "manifest.json").unlink()
    with pytest.raises(KitError, match="grpo was scored on other examples than the full method"):
        module.table(run, [arm_of("full"), arm_of("grpo")])


def test_a_failing_arm_is_named_and_the_others_are_kept(trained, calls, monkeypatch):
    run, whole = trained(SHARED), module.train_rl

    def fails(own: Run, *rest: Any, **named: Any) -> None:
        if own.folder.name == "grpo":
            raise KitError("a loss is not a number")
        whole(own, *rest, **named)

    monkeypatch.setattr(module, "train_rl", fails)
    with pytest.raises(KitError, match="Arm 'grpo': a loss is not a number"):
        components(run)
    monkeypatch.setattr(module, "train_rl", whole)
    calls.clear()
    components(run)
    assert trained_arms(calls) == [("grpo", "rl-seed0"), ("grpo", "rl-seed1")]


def test_the_comparisons_are_written_down_before_the_first_arm_and_a_change_is_told(
    trained, new_run, calls, monkeypatch, capsys
):
    run = trained(SHARED)
    file, scoring = run.stage("components") / "plan.json", module.score

    def score(own: Run, *more: Any) -> None:
        assert file.exists()
        if own.folder.name == "grpo":
            raise KeyboardInterrupt
        scoring(own, *more)

    monkeypatch.setattr(module, "score", score)
    with pytest.raises(KeyboardInterrupt):
        components(run)
    before = file.read_bytes()
    plan = json.loads(before)["plan"]
    assert plan["comparisons"] == {"arms minus full": [["no-rl", "full"], ["grpo", "full"]]}
    assert (plan["users"], plan["seeds"], plan["steps"], plan["shots"]) == (4, [0, 1], 3, [6])
    assert plan["correction"] == "Holm over all arms, at 0.05"
    monkeypatch.setattr(module, "score", scoring)
    components(run)
    assert file.read_bytes() == before
    capsys.readouterr()
    components(new_run(SHARED | {"components.arms": ["no-rl", "grpo", "rloo"]}))
    told = "Comparisons changed after the first trial: arms full, no-rl, grpo → full, no-rl, grpo, rloo."
    assert told in capsys.readouterr().out
    stored = json.loads((run.stage("components") / "provenance.json").read_text())["plan"]
    assert stored["plan"] == plan
    assert len(stored["changes"]) == 1


def test_the_numbers_can_be_stored_with_the_code_and_say_what_they_were_made_with(trained, calls, tmp_path):
    run = trained(SHARED)
    with pytest.raises(KitError, match=r"run `python -m rpo_kit sweep --grid components --run NAME` first"):
        export(run, tmp_path / "data", "x")
    components(run)
    written = run.stage("components") / "provenance.json"
    text = written.read_text()
    written.unlink()
    with pytest.raises(KitError, match=r"provenance\.json is missing"):
        export(run, tmp_path / "data", "x")
    assert not (tmp_path / "data").exists()
    written.write_text(text)
    written.write_text(written.read_text().replace('"base": "', '"base": "file:/home/ann/dev.json", "was": "'))
    paths = export(run, tmp_path / "data", "x")
    assert [path.name for path in paths] == ["components_x.csv", "components_x.json"]
    told = json.loads(paths[1].read_text())
    assert told.keys() == {"preset", "arms", "plan", "machine", "packages", "commit"}
    assert told["plan"]["before_first_trial"]
    assert told["arms"]["grpo"] == {"rl.algorithm": "grpo"}
    assert str(tmp_path) not in told["machine"]
    assert told["preset"]["base"] == "file:dev.json", "no folder of the machine is stored"
    read_table(str(tmp_path / "data" / "components_x"))


def test_the_figure_greys_what_it_cannot_resolve(trained, calls):
    rows: list[dict[str, Any]] = [
        {"system": "full", "name": "full method", "score": 0.6, "users": 9, "seeds": 2},
        {"system": "a", "name": "A", "score": 0.4, "difference": -0.2, "difference_low": -0.3, "difference_high": -0.1},
        {"system": "b", "name": "B", "score": 0.61, "difference": 0.01, "difference_low": -0.1, "difference_high": 0.1},
        {"system": "base", "name": "base", "difference": -0.1, "difference_low": -0.2, "difference_high": -0.05},
    ]
    rows[1] |= {"seeds": 2}
    rows[2] |= {"seeds": 2}
    rows[3] |= {"seeds": 0, "score": 0.5}
    for row, p_holm, mde in zip(rows, (np.nan, 0.01, 0.2, np.nan), (np.nan, 0.14, 0.15, 0.1), strict=True):
        row |= {"p_holm": p_holm, "mde": mde}
    (ax,) = components_figure(pd.DataFrame(rows)).axes
    colors = [container.lines[0].get_color() for container in ax.containers]
    assert colors[1] == UNRESOLVED_COLOR
    assert resolved(pd.DataFrame(rows)) == [True, True, False, True]
    assert colors[0] == colors[2] != colors[1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B", "base"]
    assert "MDE 0.140 to 0.150" in ax.get_xlabel(), "that of the arms"


def test_sweep_with_the_grid_components_is_this_stage(trained, monkeypatch):
    run, called = trained(), []
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    monkeypatch.setattr(module, "components", lambda run: called.append(run.name))
    assert main(["sweep", "--grid", "components", "--run", run.name]) == 0
    assert main(["components", "--run", run.name]) == 0
    assert called == [run.name] * 2


def test_the_command_prints_and_draws_the_table(trained, calls, monkeypatch, capsys):
    run = trained(SHARED)
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    components(run)
    capsys.readouterr()
    assert main(["results", "--components", "--run", run.name]) == 0
    printed = capsys.readouterr().out
    assert "without RL" in printed
    assert (run.folder / "figures" / "components.png").exists()
