"""What a later stage would refuse is told before the first model is asked; what needs no training stays possible."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.lamp import personas
from rpo_kit.pipeline import refusals
from rpo_kit.presets import PRESETS
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.runs import existing_run, open_run
from rpo_kit.stages import require
from rpo_kit.study.evaluation import evaluate
from rpo_kit.training.sft import train_sft
from rpo_kit.training.synthesis import synthesize

FORMS = "local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL"


@pytest.fixture
def lamp_files(tmp_path: Path) -> Path:
    """A folder as LaMP's users have it: questions and golds, and nothing of what the personas know."""
    folder = tmp_path / "files"
    personas.write(folder, "LaMP-3", {"train": 4, "dev": 3})
    for path in folder.glob("*_facts.json"):
        path.unlink()
    return folder


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_would_be_refused_with_the_key_that_it_names(name, tmp_path, monkeypatch):
    run = open_run("r", name, root=tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "anything")
    assert refusals(run) == {}
    monkeypatch.delenv("OPENAI_API_KEY")
    assert list(refusals(run)) == (["synthesize"] if run.preset.synthesis.teacher.startswith("openai:") else [])


@pytest.mark.parametrize(
    ("settings", "stage", "told"),
    [
        (
            {"synthesis.shots": 8},
            "synthesize",
            "synthesis.shots asks for trajectories on 8 items, but a user has 7 history items: lower",
        ),
        (
            {"data.task": "LaMP-5", "data.leave_one_out": 2},
            "synthesize",
            f"set data.leave_one_out=0, .* to hindsight, {FORMS}",
        ),
        ({"synthesis.teacher": "openai:m"}, "synthesize", "OPENAI_API_KEY"),
        ({"synthesis.teacher": "http://localhost:1/v1#m@A_KEY"}, "synthesize", "A_KEY"),
        ({"synthesis.teacher": "local:/no/model"}, "synthesize", "/no/model does not contain a model"),
        ({"synthesis.teacher": "http://localhost:1/v1#m", "endpoint.max_cost": 1}, "synthesize", "m has no price"),
        (
            {"synthesis.teacher": "http://localhost:1/v1#m", "endpoint.prices": ["m"]},
            "synthesize",
            "'m' is not a price",
        ),
        ({"reflection.name": "/no/model"}, "synthesize", "/no/model does not contain a model"),
        (
            {"reflection.lora_targets": ["q_proj", "query"]},
            "sft",
            "names query, which .* choose among .*k_proj, o_proj",
        ),
        ({"reflection.max_seq_length": 9000, "rl.max_new_tokens": 4096}, "rl", "no room for a prompt in the 4096"),
        ({"reflection.max_seq_length": 9000, "evaluation.max_new_tokens": 5000}, "evaluate", "=5000 leaves no room"),
        ({"data.task": "LaMP-7", "evaluation.systems": ["majority"]}, "evaluate", "add base to evaluation.systems"),
        ({"evaluation.systems": ["echo", "lead-3"]}, "evaluate", "add base to evaluation.systems"),
    ],
)
def test_prepare_warns_of_what_a_later_stage_will_refuse_and_answers_all_the_same(
    new_run, recording_chat, capsys, monkeypatch, settings, stage, told
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = new_run(settings)
    before = []

    def open_base(spec):
        before.append(capsys.readouterr().out)
        return recording_chat()

    prepare(run, open_base)
    assert next(iter(refusals(run))) == stage
    (warning,) = [line for line in before[0].splitlines() if "will refuse" in line]
    assert warning.startswith(f"prepare: {stage} will refuse these settings: ")
    assert re.search(told, warning)
    assert len(load_prepared(run, "dev")) == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data.task": "LaMP-2-news"}, "no personas for the task 'LaMP-2-news'"),
        ({"data.task": "LaMP-6"}, "no personas for the task 'LaMP-6'"),
        ({"data.task": "LaMP-1", "data.leave_one_out": 1}, "data.leave_one_out must be 0"),
        ({"data.source": "nowhere"}, "is not an existing folder"),
        ({"base": "openai:m"}, "OPENAI_API_KEY"),
        ({"base": "local:/no/model"}, "does not contain a model"),
    ],
)
def test_what_prepare_itself_refuses_moves_no_result_and_stores_no_setting(
    prepared, capsys, monkeypatch, settings, told
):
    run = prepared()
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["prepare", "--run", "r", *words]) == 2
    assert told in capsys.readouterr().err
    assert existing_run("r", run.folder.parent) == run
    assert not list(run.folder.glob("*.kept-*"))


def test_a_teacher_that_cannot_work_with_lamps_files_is_told_at_once_and_baselines_can_be_evaluated(
    new_run, recording_chat, capsys, lamp_files
):
    systems = ["base", "majority", "copy-nearest"]
    run = new_run({"data.source": str(lamp_files), "synthesis.teacher": "persona", "evaluation.systems": systems})
    prepare(run, lambda spec: recording_chat())
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("prepare: synthesize will refuse these settings: synthesis.teacher=persona")
    assert FORMS in said
    with pytest.raises(
        KitError, match=r"synthesis.teacher=persona reads hidden facts.* set synthesis.teacher to hindsight, local:"
    ):
        synthesize(run)
    assert not run.stage("synthesize").exists()
    evaluate(run)
    assert set(pd.read_csv(run.stage("evaluate") / "metrics.csv")["system"]) >= {"base", "majority", "copy-nearest"}
    changed = open_run("r", None, {"synthesis.teacher": "http://localhost:1/v1#m"}, root=run.folder.parent)
    assert refusals(changed) == {}


def test_users_of_dev_alone_are_told_that_nothing_can_be_trained(new_run, recording_chat, capsys, lamp_files):
    for path in lamp_files.glob("train_*"):
        path.unlink()
    run = new_run({"data.source": str(lamp_files), "synthesis.teacher": "http://localhost:1/v1#m"})
    assert "set data.dev_share=0.2" in refusals(run)["synthesize"]
    prepare(run, lambda spec: recording_chat())
    assert len(load_prepared(run, "dev")) == 3


def test_a_finished_stage_is_not_asked(prepared, monkeypatch, capsys):
    """Its key may be gone by then, or a teacher of one's own has written."""
    run = prepared({"synthesis.shots": 7})
    synthesize(run)
    changed = open_run("r", None, {"synthesis.teacher": "openai:m"}, root=run.folder.parent)
    monkeypatch.setenv("OPENAI_API_KEY", "anything")
    text = "<observe>[1] x</observe>\n<plan>x</plan>\n<rewrite>{}</rewrite>"
    synthesize(changed, lambda task, requests: [text.format(r.example["output"]) for r in requests])
    monkeypatch.delenv("OPENAI_API_KEY")
    assert refusals(changed) == {}
    capsys.readouterr()
    synthesize(changed)
    assert "synthesize: done already" in capsys.readouterr().out
    (require(changed, "synthesize") / "manifest.json").unlink()
    assert list(refusals(changed)) == ["synthesize"]


def test_a_module_without_the_layers_is_refused_before_sft_moves_what_it_has(prepared, as_trained, capsys, monkeypatch):
    run = as_trained(prepared())
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    assert main(["sft", "--run", "r", "--set", 'reflection.lora_targets=["gate"]']) == 2
    assert "reflection.lora_targets names gate" in capsys.readouterr().err
    assert existing_run("r", run.folder.parent) == run
    with pytest.raises(KitError, match="names gate"):
        train_sft(open_run("r", None, {"reflection.lora_targets": ["gate"]}, root=run.folder.parent))
    assert (run.stage("sft") / "manifest.json").exists()


def test_targets_may_name_a_layer_in_full_and_a_damaged_file_is_left_to_the_loader(new_run, tiny_llama, tmp_path):
    assert refusals(new_run({"reflection.lora_targets": ["self_attn.q_proj"]}, "a")) == {}
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(b"\x08")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": None}))
    assert refusals(new_run({"reflection.name": str(folder)}, "b")) == {}


def test_a_module_without_a_chat_template_is_refused_before_the_teacher_is_asked(prepared, tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    run = prepared({"reflection.name": str(folder)})
    with pytest.raises(KitError, match="has no chat template"):
        synthesize(run, lambda task, requests: pytest.fail("asked"))
