"""What survives a kill during training: the log, the newest whole checkpoint, the adapter."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from rpo_kit.errors import KitError
from rpo_kit.models import local
from rpo_kit.training import progress
from rpo_kit.training.checkpoints import newest_intact, seal
from rpo_kit.training.progress import ProgressLog, finish_training, is_trained, log_callback


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    if sealed:
        seal(path)
    return path


def test_training_goes_on_from_the_newest_checkpoint_and_says_so(tmp_path, capsys):
    for step in (5, 10, 9):
        checkpoint(tmp_path, step)
    assert newest_intact(tmp_path, "here") == tmp_path / "checkpoint-10", "ten comes after nine"
    assert capsys.readouterr().out == "resuming from checkpoint-10\n"


def test_without_a_checkpoint_training_begins(tmp_path, capsys):
    assert newest_intact(tmp_path / "none", "here") is None
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_was_being_written_when_the_process_was_killed_does_not_count(tmp_path, capsys):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, sealed=False)
    assert newest_intact(tmp_path, "here") == tmp_path / "checkpoint-5"
    assert "checkpoint-10 is damaged (checksums.json is missing" in capsys.readouterr().out
    (tmp_path / "checkpoint-5" / "checksums.json").write_text("{}")
    assert newest_intact(tmp_path, "here") is None, "a list of nothing promises nothing"
    assert "no checkpoint is intact: training starts again from here" in capsys.readouterr().out


def test_the_log_holds_each_logged_step_once_also_after_a_resume(tmp_path):
    seen = []
    log = log_callback(tmp_path / "log.csv", "loss", seen.append)
    state = SimpleNamespace(log_history=[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}])
    log.on_log(None, state, None)
    # a checkpoint carries the history of the steps before it
    resumed = log_callback(tmp_path / "log.csv", "loss")
    state.log_history += [{"loss": 0.5, "step": 3}, {"train_loss": 1.2, "step": 3}]
    resumed.on_log(None, state, None)
    assert pd.read_csv(tmp_path / "log.csv")["step"].tolist() == [1, 2, 3]
    assert seen == [[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}]]


def test_of_several_ranks_the_main_one_writes_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        seen: list[list[dict[str, float]]] = []
        with ProgressLog(tmp_path / "log.csv", "reward", 2, 0, seen.append) as log:
            log.update([{"step": 1, "reward": 0.5}])
        assert (tmp_path / "log.csv").exists() == bool(seen) == written


@pytest.mark.parametrize("column", ["loss", "grad_norm"])
def test_a_nan_in_sfts_log_ends_the_training_and_is_said(tmp_path, column):
    row = {"loss": 1.0, "grad_norm": 0.1, "step": 7} | {column: float("nan")}
    with pytest.raises(KitError, match=rf"Step 7: {column} is not a number .* Lower sft\.learning_rate"):
        log_callback(tmp_path / "log.csv", "loss").on_log(None, SimpleNamespace(log_history=[row]), None)
    assert not (tmp_path / "log.csv").exists()


def test_a_checkpoint_of_nan_is_not_sealed(tmp_path):
    model = torch.nn.Linear(2, 2)
    path = checkpoint(tmp_path, 4, sealed=False)
    arguments, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=4)
    log_callback(tmp_path / "log.csv", "loss").on_save(arguments, state, None, model=model)
    assert (path / "checksums.json").exists()
    (path / "checksums.json").unlink()
    model.weight.data[0, 0] = float("nan")
    with pytest.raises(KitError, match="weights of weight have become NaN"):
        log_callback(tmp_path / "log.csv", "loss").on_save(arguments, state, None, model=model)
    assert not (path / "checksums.json").exists()


class Saved(torch.nn.Module):
    """A model or tokenizer that writes one file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.weight = name, torch.nn.Parameter(torch.ones(2))

    def save_pretrained(self, folder: Path, selected_adapters: list[str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_text(json.dumps(selected_adapters))


def test_the_finished_adapter_is_put_in_place_whole_and_the_checkpoints_go(tmp_path):
    checkpoint(tmp_path / "checkpoints", 5)
    (tmp_path / "adapter.part").mkdir()  # of a call that was killed while it wrote
    finish_training(Saved("adapter_model.safetensors"), Saved("tokenizer.json"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((tmp_path / "adapter" / "adapter_model.safetensors").read_text()) == ["default"], "not `ref`"


def test_an_adapter_of_nan_is_not_put_in_place(tmp_path):
    model = Saved("adapter_model.safetensors")
    model.weight.data[1] = float("inf")
    checkpoint(tmp_path / "checkpoints", 5)
    with pytest.raises(KitError, match="have become NaN or infinite"):
        finish_training(model, Saved("tokenizer.json"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_kill_while_checkpoints_are_deleted_does_not_train_again(tmp_path, monkeypatch):
    checkpoint(tmp_path / "checkpoints", 5)
    removed = progress.shutil.rmtree

    def killed_half_way(path: Path, **settings: bool) -> None:
        weights = list(Path(path).rglob("adapter_model.safetensors"))
        if Path(path).name.startswith("checkpoints") and weights:
            weights[0].unlink()
            raise KeyboardInterrupt
        removed(path, **settings)

    monkeypatch.setattr(progress.shutil, "rmtree", killed_half_way)
    with pytest.raises(KeyboardInterrupt):
        finish_training(Saved("adapter_model.safetensors"), Saved("tokenizer.json"), tmp_path)
    monkeypatch.setattr(progress.shutil, "rmtree", removed)
    assert is_trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_training_without_an_adapter_in_place_has_not_ended(tmp_path):
    (tmp_path / "adapter.part").mkdir()
    assert not is_trained(tmp_path)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), (True, False)), ((7, 5), (False, True))])
def test_a_gpu_before_ampere_trains_in_fp16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert (progress.precision()["bf16"], progress.precision()["fp16"]) == expected
    assert local.compute_dtype() == (torch.bfloat16 if expected[0] else torch.float16)


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_trains_in_bf16_only_where_it_computes_in_it(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(local, "cpu_has_bf16", lambda: has)
    assert progress.precision() == {"bf16": has, "fp16": False}
    assert local.compute_dtype() == (torch.bfloat16 if has else torch.float32)


@pytest.mark.parametrize(("machine", "words", "has"), [
    ("x86_64", "flags : fpu avx512_bf16", True),
    ("x86_64", "flags : fpu amx_bf16", True),
    ("x86_64", "flags : fpu avx512f bf16", False),
    ("aarch64", "Features : fp asimd bf16", True),
    ("aarch64", "Features : fp asimd", False),
])  # fmt: skip
def test_a_cpu_says_itself_whether_it_has_bf16(monkeypatch, machine, words, has):
    monkeypatch.delenv("UNSLOTH_CPU_BF16", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: words)
    assert local.cpu_has_bf16() == has
    for value, forced in (("0", False), ("1", True)):
        monkeypatch.setenv("UNSLOTH_CPU_BF16", value)
        assert local.cpu_has_bf16() == forced


def test_sft_and_plain_loading_choose_the_same_type():
    import subprocess
    import sys

    values = ("", "0", "1")
    code = f"""
import unsloth, os
from unsloth_zoo.cpu.runtime import cpu_bf16_supported as has
for value in {values}:
    os.environ["UNSLOTH_CPU_BF16"] = value
    has.cache_clear()
    print(has())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for value, printed in zip(values, result.stdout.split()[-3:], strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNSLOTH_CPU_BF16", value)
            assert printed == str(local.cpu_has_bf16())
