"""The model card of an export: valid for the hub, true about the run, and its snippets run."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from fakes import RecordingChat
from huggingface_hub import ModelCard

from rpo_kit.lamp.tasks import MORE_TASKS, TASKS, get_task
from rpo_kit.models.lora import LoraLayer
from rpo_kit.runs import Run
from rpo_kit.serving.card import _public, text_of
from rpo_kit.serving.card_usage import example_messages
from rpo_kit.serving.export import DTYPES, export
from rpo_kit.serving.export_files import Export, base_license


def planned(run: Run, to: str = "adapter", stage: str = "rl", base: str = "org/base") -> Export:
    return Export(run, to, stage, run.stage(stage) / "adapter", base, next(iter(DTYPES[to]), None))


def with_setting(run: Run, group: str, **values: Any) -> Run:
    return replace(run, preset=replace(run.preset, **{group: replace(getattr(run.preset, group), **values)}))


def prose(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("form", DTYPES)
def test_the_front_matter_is_valid_and_nothing_is_left_to_fill_in(form, evaluated_run):
    text = text_of(planned(evaluated_run, form))
    data = ModelCard(text).data
    assert data.base_model == "org/base"
    assert data.library_name == {"adapter": "peft", "vllm": "peft", "merged": "transformers"}.get(form, "gguf")
    assert data.pipeline_tag == "text-generation"
    assert data.language == "en"
    assert data.license == "unknown", "the random base has no card"
    assert not re.search(r"More Information Needed|\{\w+\}|\bnan\b|None", text)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {title}"
        for title in (*("How to use it", "Task and data", "Training", "Results", "Limits", "Licenses", "Provenance"),)
    ]


def test_the_results_are_the_runs_with_intervals_over_the_best_trivial_baseline(evaluated_run):
    text = text_of(planned(evaluated_run))
    assert "Score: 0.812 (95 % interval 0.750 to 0.870), 12 dev users, 6 items" in prose(text)
    assert (
        "Gain over the best trivial baseline: +0.112 (0.050 to 0.170), reflection module after SFT + RL minus majority "
        "label of the user"
    ) in prose(text)
    assert "Smallest true difference found in 80 of 100 such evaluations: 0.090" in prose(text)
    assert "| reflection module after SFT + RL | 0.812 | 0.750 | 0.870 | 0.400 | 0.600 | 0.250 |" in text
    (result,) = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {"score": 0.8123, "MAE": 0.4, "RMSE": 0.6}
    assert "personas" in result["dataset"]["name"]


def test_a_stage_that_was_not_evaluated_has_no_numbers(evaluated_run, trained_run):
    for run, stage in ((evaluated_run, "sft"), (trained_run, "rl")):
        text = text_of(planned(run, stage=stage))
        assert "Not evaluated: the run holds no evaluation of this adapter (`python -m rpo_kit evaluate" in prose(text)
        assert "model-index" not in text


def test_an_evaluation_of_other_settings_is_not_shown(evaluated_run):
    other = with_setting(evaluated_run, "evaluation", shots=3)
    assert "Not evaluated" in text_of(planned(other))


def test_a_gain_that_is_not_resolved_or_not_compared_is_said(evaluated_run, tmp_path, monkeypatch):
    from rpo_kit.serving import card_results

    results = card_results.read_results(planned(evaluated_run))
    worse = results.paired.assign(low=-0.01)
    unresolved = card_results._gain(planned(evaluated_run), replace(results, paired=worse))
    assert "(-0.010 to 0.170; not resolved)" in unresolved
    none = replace(results, paired=worse[:0])
    assert "does not compare this stage with the best trivial" in card_results._gain(planned(evaluated_run), none)
    alone = replace(results, metrics=results.metrics[results.metrics["system"] == "rl"])
    assert "has no trivial baseline" in card_results._gain(planned(evaluated_run), alone)


def test_training_data_and_origin_are_said(trained_run, tiny_llama):
    text = prose(text_of(planned(trained_run, base=tiny_llama.name)))
    rl = trained_run.preset.rl
    assert f"| RL | reinforce++-baseline, {rl.steps} steps of {rl.prompts_per_step} prompts" in text
    assert "LoRA of rank 4" in text
    assert "Invented users" in text
    assert "the base unquantised" in text
    assert "is not known to the hub" in text
    assert "base_model" not in text.split("---")[1]
    assert "(SFT) alone" in text_of(planned(trained_run, stage="sft"))
    assert "| RL |" not in text_of(planned(trained_run, stage="sft"))
    assert re.search(r"\| code \| rpo_kit, commit [0-9a-f]{12}", text)
    assert re.search(r"\| adapter \| sha256 [0-9a-f]{64} \|", text)


def test_other_data_than_personas_makes_no_claim_on_the_license(trained_run):
    official = text_of(planned(with_setting(trained_run, "data", source="official")))
    assert "CC BY-NC-SA 4.0" in official
    own = text_of(planned(with_setting(trained_run, "data", source="/data")))
    assert "not known to the kit" in prose(own)
    assert "language" not in own.split("---")[1]
    for text in (official, own):
        assert ModelCard(text).data.license == "other"
    assert "/data" not in own


def test_the_license_of_the_base_is_read_from_its_card(trained_run, tmp_path):
    def of(name: str) -> str:
        return base_license(planned(with_setting(trained_run, "reflection", name=name)))

    assert of("smollm2") == "apache-2.0"
    assert of(str(tmp_path)) == of("nobody/nothing-1B") == ""
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    assert of(str(tmp_path)) == "llama3.2"
    (tmp_path / "README.md").write_text("---\n: [\n---\nlicense: mit\n")
    assert of(str(tmp_path)) == ""


@pytest.mark.parametrize("task", [*TASKS, *MORE_TASKS])
def test_the_example_is_an_invented_user_in_the_modules_own_prompt(task, trained_run):
    run = with_setting(trained_run, "data", task=task)
    messages, generic = example_messages(planned(run))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"].startswith(f"{get_task(task).title}\nHistory:\n[1] ")
    assert generic


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("local:smollm2", "local:smollm2"),
        ("local:org/model", "local:org/model"),
        ("local:/home/ann/model", "local:model"),
        ("dense:/home/ann/encoder", "dense:encoder"),
        ("http://10.0.0.7:8000/v1#my-model@MY_KEY", "my-model"),
        ("file:/home/ann/answers.json", "recorded texts"),
        ("rules", "rules"),
    ],
)
def test_a_card_names_models_without_folders_and_addresses(spec, shown):
    assert _public(spec) == shown


# ---- snippets -----------------------------------------------------------------------------------------------------


def snippets(run: Run, form: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", text_of(planned(run, form)), re.DOTALL)


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_snippets_run_in_the_folder_of_the_export(form, trained_run, tmp_path, monkeypatch, capsys):
    folder = export(trained_run, form, out=tmp_path / "out")
    (folder / "base").symlink_to(trained_run.preset.reflection.name)
    code = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    base = f'"{planned(trained_run).run.preset.reflection.name.rpartition("/")[2]}"'
    for snippet in code:
        runnable = snippet.replace(base, '"./base"').replace("max_new_tokens=", "max_new_tokens=8 or ")
        runnable = runnable.replace('open_chat("local:smollm2")', "chat")
        names["chat"] = RecordingChat()
        exec(compile(runnable, "README.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "5", "random weights write no trajectory: the generic answer"
    has_lora = any(isinstance(module, LoraLayer) for module in names["module"].model.modules())
    assert has_lora == (form == "adapter")
    task = names["task"]
    assert names["personalize"](task.make_input(text="It leaks."), [{"id": "1", "text": "a", "score": "1"}]).text == "3"


@pytest.mark.parametrize("form", ["gguf", "ollama", "vllm"])
def test_the_snippets_for_servers_read_an_answer(form, trained_run, capsys):
    for written, shown in (
        ("<observe>[1] harsh</observe>\n<plan>lower</plan>\n<rewrite>2</rewrite>", "2"),
        ("I say 2.", "5"),
    ):
        load, example, kit = snippets(trained_run, form)
        compile(load, "README.md", "exec")
        names: dict[str, Any] = {"complete": lambda messages, text=written: text}
        exec(example, names)
        assert capsys.readouterr().out.strip() == shown
        exec(kit, names)
        input = names["task"].make_input(text="It leaks.")
        assert names["rewrite"](input, "5", [{"id": "1", "text": "a", "score": "1"}]) == shown


def test_a_module_without_observations_is_read_without_them(trained_run, capsys):
    run = with_setting(trained_run, "reflection", sections=("plan", "rewrite"), sees_generic=False)
    _, example, kit = snippets(run, "vllm")
    names: dict[str, Any] = {"complete": lambda messages: "<plan>lower</plan><rewrite>2</rewrite>"}
    exec(example, names)
    assert capsys.readouterr().out.strip() == "2"
    assert "<observe>" not in example
    exec(kit, names)
    assert names["form"].sections == ("plan", "rewrite")
    assert not names["form"].sees_generic
