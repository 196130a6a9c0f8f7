"""An export: what each form holds, that it appears whole, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rpo_kit.__main__ import main
from rpo_kit.bundled import HUB_ID, INSTALL, cache_folder
from rpo_kit.errors import KitError
from rpo_kit.models.adapter_files import make_portable, portable_name
from rpo_kit.models.local import LoadedModel, chat_text, generate, load_model
from rpo_kit.models.lora import LoraLayer, frozen_weight, load_lora, merge_lora
from rpo_kit.presets import as_dict
from rpo_kit.runs import Run, write_json
from rpo_kit.serving import export as export_module
from rpo_kit.serving import export_files
from rpo_kit.serving.export import DTYPES, export
from rpo_kit.serving.export_files import Export, merged_module, modelfile, ollama_template, vllm_script

FORMS = tuple(DTYPES)
PROMPTS = [[{"role": "user", "content": text}] for text in ("It leaks.", "What is the score of it?", "3", "a b c d e")]


@pytest.fixture
def run(trained_run: Run, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    shutil.copytree(trained_run.folder, tmp_path / "runs" / "r")
    return replace(trained_run, folder=tmp_path / "runs" / "r")


def written(model: torch.nn.Module, tokenizer, **more) -> list[str]:
    return [c.text for c in generate(LoadedModel(model, tokenizer, 2048, **more), PROMPTS, max_new_tokens=16)]


def as_kit(run: Run, stage: str | None = "rl") -> list[str]:
    """What the kit's module writes in fp32."""
    loaded = load_model(run.preset.reflection, torch.float32)
    model = load_lora(loaded.model, run.stage(stage) / "adapter") if stage else loaded.model
    return written(model, loaded.tokenizer)


def planned(run: Run, to: str, dtype: str | None = None) -> Export:
    return Export(run, to, "rl", run.stage("rl") / "adapter", "org/base", dtype)


# ---- forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_no_file_of_an_export_holds_a_path_of_this_machine(form, run, tiny_llama, capsys, monkeypatch):
    monkeypatch.chdir(run.folder.parent.parent)
    folder = export(run, form)
    assert str(folder) not in capsys.readouterr().out, "the way from here is shorter"
    paths = [str(run.folder), str(run.folder.parent.parent), str(tiny_llama), str(tiny_llama.parent), os.getcwd()]
    if Path.home() != Path("/"):
        paths.append(str(Path.home()))
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not [path for path in paths if path.encode() in content], file.name
        assert stat.S_IMODE(file.stat().st_mode) == (0o755 if file.suffix == ".sh" else 0o644)


@pytest.mark.parametrize("form", ["adapter", "vllm"])
def test_an_exported_adapter_writes_what_the_kit_writes(form, run, tiny_llama):
    folder = export(run, form, base="org/base")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    assert written(PeftModel.from_pretrained(base, folder).eval(), tokenizer) == as_kit(run)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_merged_model_in_fp32_writes_word_for_word_what_the_kit_writes(stage, run):
    folder = export(run, "merged", stage)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    assert written(model, tokenizer) == as_kit(run, stage) != as_kit(run, None)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not model.generation_config.do_sample
    assert tokenizer.chat_template


def test_a_merged_model_can_be_stored_in_16_bit_and_in_parts(run, monkeypatch):
    monkeypatch.setattr(export_files, "_SHARD", "10KB")
    folder = export(run, "merged", dtype="bf16")
    assert folder.name == "rl-merged-bf16"
    assert (folder / "model.safetensors.index.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16


def test_a_4_bit_base_is_unpacked_and_then_merged(make_trained, capsys):
    run = make_trained({"reflection.load_in_4bit": True})
    loaded = load_model(run.preset.reflection)
    model = load_lora(loaded.model, run.stage("rl") / "adapter")
    layer = next(layer for layer in model.modules() if isinstance(layer, LoraLayer))
    a, b = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
    wanted = frozen_weight(layer.base_layer, torch.float32) + layer.scaling["default"] * (b @ a)
    folder = export(run, "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight.data, wanted)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert "merged into its unpacked 4-bit weights" in capsys.readouterr().out
    assert "in 4-bit (NF4), and merged into the unpacked" in (folder / "README.md").read_text()


def test_merging_the_output_layer_unties_it_from_the_embeddings(tiny_llama, tiny_model):
    from rpo_kit.models.lora import add_lora

    settings = replace(tiny_model, lora_targets=("q_proj", "lm_head"))
    loaded = load_model(settings, torch.float32)
    loaded.model.config.tie_word_embeddings = True
    loaded.model.tie_weights()
    model = add_lora(loaded.model, settings)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    plain = merge_lora(model)
    torch.testing.assert_close(plain(ids).logits, before)
    assert not plain.config.tie_word_embeddings


# ---- Ollama and vLLM ----------------------------------------------------------------------------------------------

# https://github.com/ollama/ollama/blob/main/docs/modelfile.md
INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
PARAMETERS = {"temperature": float, "repeat_penalty": float, "num_ctx": int, "num_predict": int, "stop": json.loads}


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """The instructions with their arguments, as Ollama's documentation describes the file."""
    pattern = re.compile(r'([A-Z]+) (?:"""(.*?)"""|([^\n]*))\n', re.DOTALL)
    found, at = [], 0
    while at < len(text):
        match = pattern.match(text, at)
        assert match, text[at : at + 40]
        assert match[1] in INSTRUCTIONS
        found.append((match[1], match[3] if match[2] is None else match[2]))
        at = match.end()
    return found


def test_ollamas_modelfile_has_the_template_the_stops_and_greedy_decoding(run):
    folder = export(run, "ollama")
    lines = read_modelfile((folder / "Modelfile").read_text(encoding="utf-8"))
    (model,) = [value for key, value in lines if key == "FROM"]
    assert (folder / model).read_bytes()[:4] == b"GGUF"
    pairs = [value.split(" ", 1) for key, value in lines if key == "PARAMETER"]
    values = [(name, PARAMETERS[name](value)) for name, value in pairs]
    assert ("temperature", 0.0) in values
    assert ("repeat_penalty", 1.0) in values, "1.1 is Ollama's default"
    assert ("num_ctx", 2048) in values
    assert ("stop", "<|im_end|>") in values
    (template,) = [value for key, value in lines if key == "TEMPLATE"]
    (system,) = [value for key, value in lines if key == "SYSTEM"]
    filled = template.replace("{{ .System }}", system).replace("{{ .Prompt }}", "History: ")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "History: "}]
    tokenizer = AutoTokenizer.from_pretrained(run.preset.reflection.name)
    assert filled == chat_text(tokenizer, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",  # changes what it inserts
        "{{ messages[1]['content'] }}",  # leaves the system message out
        "{% for m in messages %}{{ m['content'] }}{{ '{{ .X }}' }}{% endfor %}",  # Ollama would read it as a field
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] | length }} {{ m['content'][:1] }}{% endfor %}",
    ],
)
def test_a_chat_template_that_does_more_than_insert_gives_no_template_for_ollama(template, run):
    tokenizer = AutoTokenizer.from_pretrained(run.preset.reflection.name)
    tokenizer.chat_template = template
    assert ollama_template(tokenizer) == ""
    assert "TEMPLATE" not in [key for key, _ in read_modelfile(modelfile(planned(run, "ollama", "f16"), "", ["x"]))]


def test_the_script_for_vllm_serves_the_folder_it_lies_in(run, tmp_path):
    folder = export(run, "vllm", base="org/base", out=tmp_path / "my export")
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}

    def asked(*arguments: str) -> list[str]:
        command = ["sh", str(folder / "serve.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    words = asked()
    assert words[:2] == ["serve", "org/base"]
    options = dict(pairwise(words))
    assert options["--lora-modules"] == f"rpo-lamp-3={folder}"
    assert (options["--max-lora-rank"], options["--max-model-len"]) == ("8", "2048"), "the next rank that vLLM has"
    assert options["--generation-config"] == "vllm", "not the base model's sampling"
    assert "--quantization" not in words
    assert asked("/models/base", "--port", "9000")[1] == "/models/base"
    assert asked("/models/base", "--port", "9000")[-2:] == ["--port", "9000"]


def test_vllm_unpacks_a_4_bit_base_and_takes_ranks_up_to_512(run):
    preset = run.preset
    in_4bit = replace(run, preset=replace(preset, reflection=replace(preset.reflection, load_in_4bit=True)))
    assert "--quantization bitsandbytes" in vllm_script(planned(in_4bit, "vllm"))
    large = replace(run, preset=replace(preset, reflection=replace(preset.reflection, lora_rank=600)))
    with pytest.raises(KitError, match="up to rank 512, and this one has 600: export it with --to merged"):
        vllm_script(planned(large, "vllm"))


# ---- names --------------------------------------------------------------------------------------------------------


def test_a_base_model_gets_a_name_for_other_machines(tiny_llama):
    assert portable_name("smollm2") == portable_name(str(cache_folder())) == HUB_ID
    assert portable_name("org/model-1B") == "org/model-1B"
    assert portable_name(str(tiny_llama)) == tiny_llama.name
    assert portable_name("") == ""


def test_training_names_the_base_model_for_other_machines(trained_run, tiny_llama):
    adapter = trained_run.stage("rl") / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_llama.name
    card = (adapter / "README.md").read_text()
    assert f"base_model: {tiny_llama.name}\n" in card
    assert "More Information Needed" not in card


def test_no_hub_is_asked_for_the_base_that_an_adapter_names(run, tmp_path, monkeypatch):
    def ask(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    model = load_lora(load_model(run.preset.reflection).model, export(run, "adapter", base="org/base"))
    model.save_pretrained(str(tmp_path / "again"))


def test_an_adapter_that_names_no_base_is_left_as_it_is(tmp_path):
    make_portable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": None})
    make_portable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_a_folder_as_base_is_named_and_the_remedy_too(run, tiny_llama, capsys):
    export(run, "adapter")
    said = capsys.readouterr().out
    assert f"the export calls it {tiny_llama.name!r}" in said
    assert "--base-name ORGANIZATION/MODEL" in said
    export(run, "adapter", base="org/base", force=True)
    assert "--base-name" not in capsys.readouterr().out


# ---- in one step --------------------------------------------------------------------------------------------------


def test_an_export_is_not_made_twice(run, capsys):
    folder = export(run, "adapter")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert export(run, "adapter") == folder
    assert capsys.readouterr().out.startswith("export: done already, in ")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["file", "stage"])
def test_a_changed_export_or_another_one_is_replaced_only_by_force(change, run, tmp_path):
    out = tmp_path / "out"
    export(run, "adapter", out=out)
    stage = "rl"
    if change == "file":
        (out / "README.md").write_text("mine")
    else:
        stage = "sft"
    with pytest.raises(KitError, match="was made from something else, or was changed since: add --force"):
        export(run, "adapter", stage, out=out)
    export(run, "adapter", stage, out=out, force=True)
    assert (out / "README.md").read_text().startswith("---\n")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_else_is_never_replaced(run, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(KitError, match="exists and is not an export: choose another folder with --out"):
            export(run, "adapter", out=tmp_path / "home", force=force)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    export(run, "adapter", out=tmp_path / "empty")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_export_leaves_nothing_and_the_old_one_stays(error, run, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fail(planned: Export, folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"0" * 100)
        raise error

    def try_it(**more: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(export_module._WRITERS, "adapter", fail)
            with pytest.raises((KeyboardInterrupt, KitError)) as raised:
                export(run, "adapter", out=out, **more)
        assert isinstance(error, KeyboardInterrupt) or "could not be written: the disk is full" in str(raised.value)

    try_it()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    export(run, "adapter", "sft", out=out)
    try_it(force=True)
    assert "(SFT) alone" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_an_export_that_cannot_take_its_place_leaves_the_old_one_there(run, tmp_path, monkeypatch):
    out, rename = export(run, "adapter", "sft", out=tmp_path / "out"), Path.rename

    def refuse_the_new(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises((KitError, OSError)):
        export(run, "adapter", out=out, force=True)
    assert "(SFT) alone" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_what_a_killed_export_left_is_cleared_away(run, tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half.bin").touch()
    folder = export(run, "adapter", out=tmp_path / "out")
    assert not (folder / "half.bin").exists()
    assert not (tmp_path / ".out.part").exists()


def test_a_place_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match=r"file cannot be written \(.*\): choose another folder with --out"):
        export(run, "adapter", out=tmp_path / "file" / "out")


# ---- what is missing ----------------------------------------------------------------------------------------------


def test_a_stage_that_is_not_finished_is_named(prepared):
    with pytest.raises(KitError, match="The stage 'rl' of run 'r' is not finished: first run `python -m rpo_kit rl"):
        export(prepared(), "adapter")


def test_a_damaged_adapter_is_not_exported(run):
    weights = run.stage("rl") / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(KitError, match=r"adapter in .* is not as the stage wrote it: run `python -m rpo_kit rl"):
        export(run, "adapter")


def of_base(run: Run, name: str) -> Run:
    return replace(run, preset=replace(run.preset, reflection=replace(run.preset.reflection, name=name)))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("smollm2", re.escape(INSTALL)),
        ("nobody/nothing-1B", "hf download nobody/nothing-1B"),
        ("/nowhere/llama", "put the folder /nowhere/llama back"),
    ],
)
def test_without_the_base_model_an_export_says_what_to_install(name, remedy, run, monkeypatch):
    def missing(*_: object) -> None:
        raise KitError("The model cannot be loaded.")

    monkeypatch.setattr(export_files, "load_model", missing)
    plan = replace(planned(of_base(run, name), "gguf", "f16"), base=portable_name(name))
    with pytest.raises(KitError, match=f"cannot be loaded.*--to gguf merges .*{remedy}.*use --to adapter"):
        merged_module(plan)


def test_an_adapter_is_exported_without_its_base_model(run, monkeypatch):
    monkeypatch.setattr(export_files, "load_model", None)
    for form in ("adapter", "vllm"):
        assert (export(run, form) / "adapter_model.safetensors").exists()


def test_a_dtype_that_the_form_does_not_have_is_refused(run):
    with pytest.raises(KitError, match="--to merged takes --dtype f32, bf16, f16; 'q8_0' is not possible"):
        export(run, "merged", dtype="q8_0")
    with pytest.raises(KitError, match="--to adapter copies the weights as they are: leave --dtype out"):
        export(run, "adapter", dtype="f16")


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_the_export_and_says_where(run, monkeypatch, capsys, tmp_path):
    write_json(run.folder / "run.json", {"name": "r", "preset": as_dict(run.preset)})
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--run", "r", "--to", "gguf", "--dtype", "q8_0", "--base-name", "org/base"]) == 0
    said = capsys.readouterr().out
    folder = Path("runs/r/exports/rl-gguf-q8_0")
    assert f"run 'r', stage rl, as gguf, in {folder} (2 files, " in said
    assert f"Read {folder}/README.md" in said
    assert (folder / "rpo-lamp-3-q8_0.gguf").exists()
    assert main(["export", "--run", "r", "--to", "adapter", "--out", "runs"]) == 2
    assert "is not an export" in capsys.readouterr().err


def test_options_of_the_module_are_refused_for_verl(run, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(run.folder.parent))
    assert main(["export", "--run", "r", "--to", "verl", "--base-name", "org/base"]) == 2
    assert "--base-name has no effect on --to verl: leave it out." in capsys.readouterr().err
