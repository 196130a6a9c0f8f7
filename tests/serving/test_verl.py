"""The export for verl holds the kit's own prompts in its own order, its reward, and its settings under verl's names."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import load_model, load_trainable
from rpo_kit.models.lora import load_lora
from rpo_kit.pipeline import inputs_of
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.runs import Run
from rpo_kit.serving.verl import ESTIMATORS, dev_prompts, export_verl, launch_script, reward_file
from rpo_kit.setting_rules import ALGORITHMS
from rpo_kit.stages import stage
from rpo_kit.training.reinforce import training_prompts
from rpo_kit.training.rewards import judge
from rpo_kit.training.synthesis import synthesize

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_SFT = {"rl.start": "untrained", "rl.steps": 5, "rl.prompts_per_step": 3, "data.dev_users": 4}


@pytest.fixture
def exported(prepared: Callable[..., Run], tmp_path: Path) -> Callable[..., tuple[Run, Path]]:
    def export(overrides: dict[str, Any] | None = None) -> tuple[Run, Path]:
        run, folder = prepared(WITHOUT_SFT | (overrides or {})), tmp_path / "out"
        export_verl(run, folder)
        return run, folder

    return export


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def test_the_rows_are_rls_prompts_in_its_order_with_k_as_planned(exported):
    run, folder = exported()
    rows = rows_of(folder / "train.parquet")
    prompts = training_prompts(run, load_model(run.preset.reflection), run.preset.rl)
    assert [row["prompt"] for row in rows] == [prompt.messages for prompt in prompts]
    assert [row["reward_model"] for row in rows] == [{"style": "rule", "ground_truth": p.gold} for p in prompts]
    extra = [row["extra_info"] for row in rows]
    assert [one["step"] for one in extra] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    assert [one["items"] for one in extra] == [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    assert [one["index"] for one in extra] == list(range(15))
    assert {row["data_source"] for row in rows} == {"rpo_kit/LaMP-3"}


def test_the_dev_rows_show_what_the_evaluation_shows(exported):
    run, folder = exported({"evaluation.shots": 4})
    rows = rows_of(folder / "dev.parquet")
    assert len({row["extra_info"]["example"] for row in rows}) == len(rows) > 3
    assert {row["extra_info"]["items"] for row in rows} == {4}
    assert [row["prompt"] for row in rows] == [
        prompt.messages for prompt in dev_prompts(run, load_model(run.preset.reflection))
    ]


def test_an_export_appears_whole_and_replaces_nothing_else(exported, tmp_path, monkeypatch):
    run, folder = exported()
    with pytest.raises(KitError, match="add --force"):
        export_verl(run, folder)
    (folder / "reward.py").unlink()
    monkeypatch.setattr("rpo_kit.serving.verl.launch_script", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_verl(run, folder, force=True)
    assert not (folder / "reward.py").exists(), "the old one, as it was"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(KitError, match="is not an export"):
        export_verl(run, tmp_path / "home", force=True)


# ---- the reward ---------------------------------------------------------------------------------------------------


def reward_of(folder: Path) -> Callable[..., dict[str, float]]:
    spec = importlib.util.spec_from_file_location("reward", folder / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., dict[str, float]] = module.compute_score
    return function


def completions(gold: str, generic: str) -> list[str]:
    """Good and bad ones, and some that do not parse."""
    good = "<observe>[1] short\n[2] friendly</observe>\n<plan>shorten it</plan>\n<rewrite>{}</rewrite>"
    return [
        *(good.format(text) for text in (gold, generic, "", "about 4", f"{gold} and more", "4")),
        good.format(gold).replace("[2]", "[9]"),  # an item that is not shown
        good.format(gold).replace("[1] short\n[2] friendly", "short"),
        good.format(gold)[:-12],  # cut off
        *("", gold, "<rewrite>", "<plan>x</plan>", f"{good.format(gold)} {good.format(gold)}", "\ud800 <observe>"),
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.task": "LaMP-3"},
        {"data.task": "LaMP-7", "rl.format_weight": 0.25, "rl.content_weight": 0.2},
        {"data.task": "LaMP-5", "reflection.sections": ["rewrite"], "rl.format_weight": 0.0},
    ],
)
def test_the_reward_file_gives_the_kits_reward_for_every_completion(exported, overrides):
    run, folder = exported(overrides)
    compute_score, task, settings = reward_of(folder), get_task(run.preset.data.task), run.preset.rl
    seen = set()
    for row in rows_of(folder / "train.parquet")[:6]:
        gold, extra = row["reward_model"]["ground_truth"], row["extra_info"]
        texts = [*completions(gold, extra["generic"]), *real_texts(run)]
        for text in texts:
            weights = (settings.format_weight, settings.content_weight)
            sections = run.preset.reflection.sections
            own = judge(task, text, gold, extra["items"], *weights, extra["generic"], extra["query"], sections)
            result = compute_score(row["data_source"], text, gold, extra_info=extra | {"num_turns": 2}, unknown=1)
            assert result["score"] == own.reward
            assert (result["metric"], result["parsed"]) == (own.score, float(own.rewrite is not None))
            assert all(isinstance(value, float) for value in result.values()), "verl averages what it logs"
            seen.add(round(own.reward, 3))
    assert len(seen) > 4, "the completions differ in their reward"


def real_texts(run: Run) -> list[str]:
    """What the teacher writes for this run."""
    synthesize(run)
    lines = (run.stage("synthesize") / "trajectories.jsonl").read_text().splitlines()[:10]
    records = [json.loads(line) for line in lines]
    sections = run.preset.reflection.sections
    return [render(Trajectory(r["observe"], r["plan"], r["rewrite"]), sections) for r in records]


def test_the_reward_file_needs_no_torch(prepared, tmp_path):
    (tmp_path / "reward.py").write_text(reward_file(prepared(WITHOUT_SFT)))
    code = "import sys, reward; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# ---- the model and the settings -----------------------------------------------------------------------------------


def test_the_model_is_the_policy_that_rl_starts_from(prepared, tmp_path):
    run = prepared({"rl.steps": 1})
    synthesize(run)
    trainable = load_trainable(run.preset.reflection, None, 0)
    with torch.no_grad():
        for name, weights in trainable.model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.5)
    with stage(run, "sft", **inputs_of(run, "sft")) as work:
        trainable.model.save_pretrained(work / "adapter")
    export_verl(run, tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    settings = run.preset.reflection
    merged = load_model(type(settings)(str(tmp_path / "out/model"))).model
    adapted = load_lora(load_model(settings).model, run.stage("sft") / "adapter")
    base = load_model(settings).model
    with torch.no_grad():
        logits = [model.float()(ids).logits for model in (merged, adapted, base)]
    torch.testing.assert_close(logits[0], logits[1], atol=0.02, rtol=0.02)
    assert (logits[0] - logits[2]).abs().max() > 0.1


def test_before_sft_it_says_what_to_run_first(prepared, tmp_path):
    with pytest.raises(KitError, match="The stage 'synthesize' of run 'r' is not finished: first run"):
        export_verl(prepared({}), tmp_path / "out")


def options_of(script: str, folder: Path) -> dict[str, str]:
    """What bash hands to verl."""
    file = folder / "print.sh"
    file.write_text(script.replace("exec python3 -m verl.trainer.main_ppo", "printf '%s\\n'"))
    said = subprocess.run(["bash", file, "trainer.nnodes=2"], capture_output=True, text=True, check=True).stdout
    options = dict(line.partition("=")[::2] for line in said.splitlines())
    assert len(options) + 1 == len(said.splitlines()), "the same key twice only where the user adds it"
    return options


def test_the_script_names_the_runs_settings_as_verl_does(new_run, tmp_path):
    settings = {"rl.group_size": 6, "rl.beta": 0.05, "rl.clip": 0.3, "rl.learning_rate": 1e-5, "rl.prompts_per_step": 7}
    options = options_of(launch_script(new_run(settings), 2048), tmp_path)
    assert options["algorithm.adv_estimator"] == "reinforce_plus_plus_baseline"
    assert options["data.train_files"] == f"{tmp_path}/train.parquet"
    assert options["data.shuffle"] == "False"
    assert int(options["data.max_prompt_length"]) + int(options["data.max_response_length"]) == 2048
    actor = "actor_rollout_ref.actor."
    assert options["data.train_batch_size"] == options[f"{actor}ppo_mini_batch_size"] == "7"
    assert options["actor_rollout_ref.rollout.n"] == "6"
    assert (options[f"{actor}use_kl_loss"], options[f"{actor}kl_loss_coef"]) == ("True", "0.05")
    assert options[f"{actor}kl_loss_type"] == "k2"
    assert options[f"{actor}clip_ratio_high"] == "0.3"
    assert float(options[f"{actor}optim.lr"]) == 1e-5
    assert options["actor_rollout_ref.model.target_modules"].startswith("[q_proj,")
    assert options["trainer.nnodes"] == "2", "the user's options come last"


def test_every_algorithm_has_a_name_in_verl_and_without_beta_there_is_no_kl(new_run, tmp_path):
    assert tuple(ESTIMATORS) == ALGORITHMS
    options = options_of(launch_script(new_run({"rl.beta": 0, "rl.algorithm": "rloo"}), 2048), tmp_path)
    assert options["actor_rollout_ref.actor.use_kl_loss"] == "False"
    assert options["algorithm.adv_estimator"] == "rloo"


# ---- verl itself --------------------------------------------------------------------------------------------------


@pytest.mark.interop
def test_verl_loads_the_rows_the_settings_and_the_reward(exported, tmp_path):
    """With verl, which cannot be installed beside the kit's transformers, on PYTHONPATH (docs/scale.md)."""
    verl = pytest.importorskip("verl")
    hydra = pytest.importorskip("hydra")
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset

    run, folder = exported()
    options = options_of((folder / "launch.sh").read_text(), folder)
    configs = str(Path(verl.__file__).parent / "trainer" / "config")
    with hydra.initialize_config_dir(configs, version_base=None):
        config = hydra.compose("ppo_trainer", [f"{key}={value}" for key, value in options.items()])
        with pytest.raises(hydra.errors.ConfigCompositionException):
            hydra.compose("ppo_trainer", ["algorithm.no_such_setting=1"])
    loaded = load_model(run.preset.reflection)
    rows = RLHFDataset(config.data.train_files, loaded.tokenizer, config.data)
    prompts = training_prompts(run, loaded, run.preset.rl)
    assert len(rows) == len(prompts)
    for row, prompt in zip((rows[n] for n in range(len(rows))), prompts, strict=True):
        text = loaded.tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False)
        assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == prompt.ids
    compute_score = get_custom_reward_fn(config)
    text = completions(prompts[0].gold, "3")[0]
    result = compute_score(
        data_source=rows[0]["data_source"],
        solution_str=text,
        ground_truth=rows[0]["reward_model"]["ground_truth"],
        extra_info=rows[0]["extra_info"],
    )
    assert result["score"] == 1.0
    assert get_adv_estimator_fn(config.algorithm.adv_estimator)
