"""What a model is belongs to the inputs of the stages that load it; runs that do not say it go on as they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rpo_kit import bundled, model_files
from rpo_kit.errors import KitError
from rpo_kit.model_files import all_files, folder_version, model_version
from rpo_kit.pipeline import current, inputs_of
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.rewriting.prepare import prepare
from rpo_kit.runs import Run, open_run, write_text
from rpo_kit.stage_inputs import MODELS, changes, equal
from rpo_kit.stages import damaged, require, stage
from rpo_kit.study.evaluation import evaluate


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "cache_root", lambda: tmp_path / "cache")


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def flip(path: Path) -> None:
    """One other byte at the same size, with the time of change that it had."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# ---- what a model is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_flipped_byte_in_any_file_that_decides_an_answer_is_another_model(model, name):
    before = folder_version(model)
    assert folder_version(model) == before
    time.sleep(0.01)
    flip(model / name)
    assert folder_version(model) != before


def test_files_that_come_or_go_count_and_readmes_do_not(model):
    versions = [folder_version(model)]
    for name in ("chat_template.jinja", "tokenizer.model", "merges.txt"):
        (model / name).write_text("x")
        versions.append(folder_version(model))
    (model / "merges.txt").unlink()
    assert folder_version(model) == versions[-2]
    assert len(set(versions)) == 4
    (model / "README.md").write_text("x")
    assert folder_version(model) == versions[-2]


def test_the_same_files_elsewhere_are_the_same_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    assert folder_version(Path(copy)) == folder_version(model)


def test_contents_are_read_once(model, monkeypatch, tmp_path):
    before, read = folder_version(model), []
    real = model_files.fingerprint
    monkeypatch.setattr(
        model_files, "fingerprint", lambda value: read.append(value) if isinstance(value, Path) else real(value)
    )
    assert folder_version(model) == before
    assert read == []
    monkeypatch.setattr(model_files, "fingerprint", real)
    for text in ("", "[]", "{", '{"%s": 3}' % (model / "config.json")):
        (tmp_path / "cache" / "model_files.json").write_text(text)
        assert folder_version(model) == before, "a damaged cache is no answer"


def test_a_cache_that_cannot_be_written_costs_time_alone(model, monkeypatch, tmp_path):
    before = folder_version(model)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(model_files, "cache_root", lambda: tmp_path / "file")
    assert folder_version(model) == before


def test_a_model_of_the_hub_is_known_by_the_commit_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_version("org/name") is None
    write_text(tmp_path / "models--org--name" / "refs" / "main", "0123abc\n")
    assert model_version("org/name") == "0123abc"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_text(tmp_path / "home" / "hub" / "models--org--name" / "refs" / "main", "fed")
    assert model_version("org/name") == "fed"


def test_the_bundled_model_is_known_once_it_is_converted(monkeypatch, tmp_path, model):
    monkeypatch.setattr(model_files, "cache_folder", lambda: model)
    assert model_version("smollm2") is None
    bundled.seal(model)
    assert model_version("smollm2") == folder_version(model)


def test_each_model_of_a_run_has_its_input_and_an_endpoint_has_none(new_run, model):
    run = new_run({"synthesis.teacher": f"local:{model}", "data.retriever": f"dense:{model}"})
    assert list(all_files(run)) == list(MODELS)
    assert tuple(all_files(new_run({"base": "http://localhost:1/v1#m"}, "b"))) == ("module_files",)


# ---- in a run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_with(trained: Callable[..., Run], model: Path) -> Callable[..., Run]:
    return lambda role: trained({role: f"local:{model}" if role == "base" else str(model)})


def test_other_weights_of_the_base_model_are_prepared_anew_and_come_back_with_the_old_ones(
    run_with, model, capsys, recording_chat
):
    run = run_with("base")
    weights = (model / "model.safetensors").read_bytes()
    time.sleep(0.01)
    flip(model / "model.safetensors")
    with pytest.raises(KitError, match=r"'prepare' .* was made from other inputs \(files of the base model changed\)"):
        current(run, "synthesize")
    chat = recording_chat()
    prepare(run, lambda spec: chat)
    assert "prepare: files of the base model changed; the old result is in prepare.kept-" in capsys.readouterr().out
    assert len(chat.asked) == 18
    (model / "model.safetensors").write_bytes(weights)
    prepare(run, lambda spec: recording_chat(asked=None))
    assert "done before with these settings; restored" in capsys.readouterr().out


@pytest.mark.parametrize("stage_name", ["sft", "rl"])
def test_other_weights_of_the_module_make_its_adapters_old(run_with, model, stage_name):
    run = run_with("reflection.name")
    assert current(run, stage_name)
    time.sleep(0.01)
    flip(model / "tokenizer.json")
    with pytest.raises(KitError, match=r"'sft' .* \(files of the reflection module changed\)"):
        current(run, stage_name)
    with pytest.raises(KitError, match="files of the reflection module changed"):
        Personalizer.of(run, stage_name)
    assert current(run, "synthesize"), "the teacher reads nothing of the module"


def as_before(run: Run, *stages: str) -> None:
    """Take out of a run what earlier versions did not write."""
    for name in stages:
        for file in ("manifest.json", "started.json"):
            path = run.stage(name) / file
            stored = json.loads(path.read_text())
            stored["inputs"] = {key: value for key, value in stored["inputs"].items() if key not in MODELS}
            write_text(path, json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def test_a_run_of_before_goes_on_and_its_models_are_noted_from_then_on(run_with, model, capsys, recording_chat):
    run = run_with("base")
    as_before(run, "prepare", "synthesize", "sft", "rl")
    manifest = (run.stage("prepare") / "manifest.json").read_bytes()
    capsys.readouterr()
    assert current(run, "rl")
    prepare(run, lambda spec: recording_chat(asked=None))
    assert capsys.readouterr().out.startswith("prepare: done already")
    assert (run.stage("prepare") / "manifest.json").read_bytes() == manifest, "what a demo remembers of it holds"
    assert not damaged(run.stage("prepare"))
    time.sleep(0.01)
    flip(model / "model.safetensors")
    with pytest.raises(KitError, match="files of the base model changed"):
        current(run, "prepare")


def test_work_begun_and_results_kept_by_earlier_versions_are_found(tmp_path, model):
    run = open_run("r", "tiny", root=tmp_path)
    for seed in (1, 2):
        with stage(run, "sft", seed=seed) as work:
            write_text(work / "a", str(seed))
    with stage(run, "sft", seed=1, module_files="x") as work:
        assert work is None, "restored from where the earlier version kept it"
    assert (run.stage("sft") / "a").read_text() == "1"
    with suppress(KeyboardInterrupt), stage(run, "rl", seed=1) as work:
        write_text(work / "a", "begun")
        raise KeyboardInterrupt
    with stage(run, "rl", seed=1, module_files="x") as work:
        assert (work / "a").read_text() == "begun"
    assert json.loads((run.stage("rl") / "manifest.json").read_text())["inputs"].keys() == {"seed", "module_files"}


def test_failed_items_of_an_earlier_version_are_asked_again_where_it_began(tmp_path):
    run = open_run("r", "tiny", root=tmp_path)
    with stage(run, "prepare", seed=1) as work:
        write_text(work / "a", "1")
    with suppress(KeyboardInterrupt), stage(run, "prepare", retry=True, seed=1) as work:
        write_text(work / "a.jsonl", "begun")
        raise KeyboardInterrupt
    with stage(run, "prepare", retry=True, seed=1, base_files="x") as work:
        assert (work / "a.jsonl").read_text() == "begun"
    assert require(run, "prepare", seed=1, base_files="x")
    assert not list(run.folder.glob("prepare.retry-*"))


def test_what_is_unknown_on_one_side_is_no_change():
    assert equal({"a": "1"}, {"a": "1", "base_files": "2"})
    assert equal({"a": "1", "base_files": "2"}, {"a": "1"})
    assert not equal(None, {})
    assert changes({"a": "1"}, {"a": "1", "prompts": "2"}) == ["prompts"], "any other input that is missing counts"
    assert changes({"module_files": "1"}, {"module_files": "2"}) == ["module_files"]


def test_evaluate_names_the_models_it_loads(run_with, monkeypatch):
    run = run_with("base")
    assert "base_files" in inputs_of(run, "evaluate")
    evaluate(run, ["base"])
    stored = json.loads((run.stage("evaluate") / "manifest.json").read_text())["inputs"]
    assert {"base_files"} == set(MODELS) & set(stored)


def test_looking_at_the_bundled_model_takes_a_blink():
    if model_version("smollm2") is None:
        pytest.skip("the bundled model was not converted on this machine")
    begun = time.perf_counter()
    model_version("smollm2")
    assert time.perf_counter() - begun < 0.1
