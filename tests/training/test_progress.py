"""What survives a kill during training: the log, the newest whole checkpoint, the adapter."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from rpo_kit.training import progress
from rpo_kit.training.progress import finish_training, is_trained, last_checkpoint, log_callback


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_training_goes_on_from_the_newest_checkpoint_and_says_so(tmp_path, capsys):
    for step in (5, 10, 9):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10"), "ten comes after nine"
    assert capsys.readouterr().out == "going on from checkpoint-10\n"


def test_without_a_checkpoint_training_begins(tmp_path, capsys):
    assert last_checkpoint(tmp_path / "none") is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("torn", [None, "", '{"log_history": [{"loss"'])
def test_a_checkpoint_that_was_being_written_when_the_process_was_killed_does_not_count(tmp_path, torn):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, torn)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")


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


class Saved:
    """A model or tokenizer that writes one file."""

    def __init__(self, name: str) -> None:
        self.name = name

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
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert (progress.precision()["bf16"], progress.precision()["fp16"]) == expected


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_trains_in_bf16_only_where_it_computes_in_it(monkeypatch, has):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(progress, "_cpu_has_bf16", lambda: has)
    assert progress.precision() == {"bf16": has, "fp16": False}
