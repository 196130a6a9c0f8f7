"""Stage 3: the loss counts the completion only, and the adapter learns to write what the teacher wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.unsloth_loader import fast_language_model, load_unsloth_trainable
from rpo_kit.presets import ModelSettings, SFTSettings
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.rewriting.trajectory import parse
from rpo_kit.runs import Run, read_records
from rpo_kit.training import progress, running_sums, sft
from rpo_kit.training.checkpoints import seal
from rpo_kit.training.sft import lengths_of, make_trainer, sft_dataset, shares_of_step, train_sft, training_order
from rpo_kit.training.synthesis import synthesize


@pytest.fixture(autouse=True)
def unsloth_first() -> None:
    fast_language_model()


@pytest.fixture
def synthesized(prepared: Callable[..., Run]) -> Callable[..., Run]:
    def make(overrides: dict | None = None) -> Run:
        run = prepared(overrides)
        synthesize(run)
        return run

    return make


def test_a_row_asks_with_one_history_item_and_answers_with_the_trajectory(synthesized):
    run = synthesized({"synthesis.per_query": 3, "synthesis.shots": [1]})
    loaded = load_unsloth_trainable(run.preset.reflection, 0)
    rows, records = sft_dataset(run, loaded), read_records(run.stage("synthesize") / "trajectories.jsonl")
    examples = {example["id"]: example for example in load_prepared(run, "train")}
    assert len(rows) == len(records) > 12
    assert {record["first"] for record in records} == {1, 2, 3}, "items keep their rank as their number"
    for row, record in zip(rows, records, strict=True):
        example = examples[record["example"]]
        items = [item for item in example["profile"] if item["id"] in record["items"]]
        assert len(items) == 1
        assert row["prompt"] == reflection_messages(
            get_task("LaMP-3"), example["input"], example["generic"], items, record["first"]
        )
        assert parse(row["completion"][0]["content"]).trajectory.rewrite == example["output"]


def test_a_row_holds_the_sections_and_the_prompt_of_the_modules_form(synthesized):
    run = synthesized({"reflection.sections": ["plan", "rewrite"], "reflection.sees_generic": False})
    row = sft_dataset(run, load_unsloth_trainable(run.preset.reflection, 0))[0]
    record = read_records(run.stage("synthesize") / "trajectories.jsonl")[0]
    assert record["observe"], "the teacher writes it, the module does not"
    assert row["completion"][0]["content"].startswith(f"<plan>{record['plan']}</plan>\n<rewrite>")
    assert "<observe>" not in row["prompt"][0]["content"]
    assert "Generic answer" not in row["prompt"][1]["content"]


def test_the_loss_counts_the_completion_with_its_end_token_and_nothing_of_the_prompt(synthesized, tmp_path):
    run = synthesized()
    loaded = load_unsloth_trainable(run.preset.reflection, 0)
    rows = sft_dataset(run, loaded)
    settings = SFTSettings(steps=1, batch_size=2, accumulate=1)
    trainer = make_trainer(loaded, rows, settings, tmp_path, None)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(2)])
    rows = rows.select(training_order(lengths_of(rows), settings))
    for n in range(2):
        labels = batch["labels"][n]
        counted = labels[labels != -100].tolist()
        assert loaded.tokenizer.decode(counted).strip() == rows[n]["completion"][0]["content"] + "<|im_end|>"
        assert loaded.tokenizer.eos_token_id in counted, "else no rewrite ever ends"
        assert batch["input_ids"][n][labels != -100].tolist() == counted


def test_a_history_item_that_is_too_long_is_shortened_and_counted_and_the_trajectory_is_not(synthesized, capsys):
    run = synthesized()
    loaded = load_unsloth_trainable(run.preset.reflection, 0)
    full = sft_dataset(run, loaded)
    tokens = [
        len(loaded.tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)) for row in full
    ]
    limit = max(tokens) + 2
    assert "shortened" not in capsys.readouterr().out
    rows = sft_dataset(run, replace(loaded, max_seq_length=limit))
    cut = sum("…" in row["prompt"][1]["content"] for row in rows)
    assert f"{cut} of {len(rows)} prompts were shortened to fit {limit} tokens" in capsys.readouterr().out
    assert rows["completion"] == full["completion"]
    assert any("…" in row["prompt"][1]["content"] for row in rows)
    for row in rows:
        both = loaded.tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        assert len(both) <= limit


def test_training_lowers_the_loss_and_leaves_an_adapter_and_a_log(synthesized):
    run, seen = synthesized({"sft.steps": 12, "sft.learning_rate": 0.05, "sft.save_every": 6}), []
    train_sft(run, seen.append)
    work = run.stage("sft")
    log = pd.read_csv(work / "log.csv")
    assert log["step"].tolist() == list(range(1, 13))
    assert log["loss"][9:].mean() < log["loss"][:3].mean() - 0.02
    assert [len(rows) for rows in seen][:12] == list(range(1, 13)), "a live plot gets all rows so far"
    weights = load_file(work / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == set(run.preset.reflection.lora_targets)
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name), "B begins as zeros"
    assert not (work / "checkpoints").exists()
    assert (work / "adapter" / "tokenizer.json").exists()


def test_a_killed_training_goes_on_and_ends_where_an_uninterrupted_one_ends(synthesized, capsys):
    run = synthesized({"sft.steps": 4, "sft.learning_rate": 0.05})
    train_sft(run)
    run.stage("sft").rename(run.folder / "whole")

    def kill_in_step_3(rows: list[dict[str, float]]) -> None:
        if len(rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(run, kill_in_step_3)
    capsys.readouterr()
    train_sft(run)
    assert "resuming from checkpoint-2" in capsys.readouterr().out
    whole, resumed = (load_file(run.folder / n / "adapter/adapter_model.safetensors") for n in ("whole", "sft"))
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=0, rtol=0)
    logs = [pd.read_csv(run.folder / name / "log.csv") for name in ("whole", "sft")]
    assert logs[0]["loss"].tolist() == logs[1]["loss"].tolist()


def kill_after_checkpoint(number: int, patch: pytest.MonkeyPatch) -> None:
    """The process ends once this checkpoint is whole, before the next line of the log."""

    def kill(path: Path) -> None:
        seal(path)
        if path.name == f"checkpoint-{number}":
            raise KeyboardInterrupt

    patch.setattr(progress, "seal", kill)


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({"sft.steps": 4}, [2]),
        ({"sft.steps": 4}, [1, 3]),
        ({"sft.steps": 4}, [4]),  # all is trained: no step more
        ({"sft.steps": 90, "sft.save_every": 5}, [15, 45]),  # a line for two steps, and a checkpoint between them
        ({"sft.steps": 4, "sft.save_every": 2, "sft.accumulate": 2}, [2]),
    ],
)
def test_the_log_of_a_killed_training_is_that_of_an_unbroken_one(synthesized, monkeypatch, settings, kills):
    run = synthesized(settings)
    train_sft(run)
    run.stage("sft").rename(run.folder / "whole")
    for number in kills:
        kill_after_checkpoint(number, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            train_sft(run)
    monkeypatch.setattr(progress, "seal", seal)
    seen: list[list[dict[str, float]]] = []
    train_sft(run, seen.append)
    whole, resumed = ((run.folder / name / "log.csv").read_text() for name in ("whole", "sft"))
    assert resumed == whole, "each number, and the order of the columns"
    assert "num_tokens" in whole.splitlines()[0].split(",")
    assert all(pd.DataFrame(rows).to_csv(index=False) == whole for rows in seen[-1:]), "a live plot sees the same"
    weights = [load_file(run.folder / n / "adapter/adapter_model.safetensors") for n in ("whole", "sft")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=0, rtol=0)


def test_a_checkpoint_of_an_earlier_version_goes_on_counting_from_the_last_logged_tokens(synthesized, monkeypatch):
    run = synthesized({"sft.steps": 4})
    train_sft(run)
    run.stage("sft").rename(run.folder / "whole")
    kill_after_checkpoint(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(run)
    monkeypatch.setattr(progress, "seal", seal)
    checkpoint = run.stage("sft") / "checkpoints" / "checkpoint-2"
    (checkpoint / running_sums.FILE).unlink()
    seal(checkpoint)
    train_sft(run)
    logs = [pd.read_csv(run.folder / name / "log.csv") for name in ("whole", "sft")]
    assert logs[0]["num_tokens"].tolist() == logs[1]["num_tokens"].tolist()


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"])
def test_a_damaged_newest_checkpoint_is_skipped(synthesized, capsys, file):
    run = synthesized({"sft.steps": 4, "sft.learning_rate": 0.05})

    def kill_in_step_4(rows: list[dict[str, float]]) -> None:
        if len(rows) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(run, kill_in_step_4)
    newest = run.stage("sft") / "checkpoints" / "checkpoint-3" / file
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    capsys.readouterr()
    train_sft(run)
    said = capsys.readouterr().out
    assert f"checkpoint-3 is damaged ({file}: truncated, changed or missing) and skipped" in said
    assert "resuming from checkpoint-2" in said
    assert pd.read_csv(run.stage("sft") / "log.csv")["step"].tolist() == [1, 2, 3, 4]


def test_a_loss_of_nan_ends_the_training_without_a_finished_adapter(synthesized, monkeypatch):
    run = synthesized({"sft.steps": 4})
    load = sft.load_unsloth_trainable

    def spoiled(*arguments: object) -> LoadedModel:
        loaded = load(*arguments)
        loaded.model.get_input_embeddings().weight.data[5:] = float("nan")
        return loaded

    monkeypatch.setattr(sft, "load_unsloth_trainable", spoiled)
    with pytest.raises(KitError, match=r"Step 1: loss is not a number .* Lower sft\.learning_rate"):
        train_sft(run)
    assert not (run.stage("sft") / "adapter").exists()
    assert not (run.stage("sft") / "manifest.json").exists()


@pytest.mark.parametrize(("batch", "said"), [(4, "set sft.batch_size=2 and sft.accumulate=2, which"), (1, "lower r")])
def test_running_out_of_gpu_memory_names_the_settings_to_lower(synthesized, monkeypatch, batch, said):
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.4 GiB")

    monkeypatch.setattr(sft, "run_trainer", out_of_memory)
    with pytest.raises(KitError, match=f"memory for an SFT step: {said}"):
        train_sft(synthesized({"sft.batch_size": batch, "sft.accumulate": 1}))


def test_a_kill_after_the_adapter_was_put_in_place_does_not_train_again(synthesized, monkeypatch):
    run = synthesized()
    train_sft(run)
    (run.stage("sft") / "manifest.json").unlink()
    monkeypatch.setattr(sft, "load_unsloth_trainable", lambda *_, **__: pytest.fail("all steps are done"))
    train_sft(run)
    assert (run.stage("sft") / "manifest.json").exists()


def test_before_synthesize_it_says_what_to_run_first(prepared):
    with pytest.raises(KitError, match="first run `python -m rpo_kit synthesize --run r`"):
        train_sft(prepared())


@pytest.mark.slow
def test_4_bit_training_works_on_a_cpu_for_real(prepared, tmp_path):
    """The bundled SmolLM2-135M, quantised to 4 bits by bitsandbytes, one SFT step: the LoRA weights change."""
    import bitsandbytes

    settings = ModelSettings("smollm2", load_in_4bit=True, lora_rank=4, lora_alpha=8)
    run = prepared({"data.train_users": 4})
    synthesize(run)
    loaded = load_unsloth_trainable(settings, seed=0)
    linear = [m for m in loaded.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(linear) == 30 * 7, "all linear layers of the 30 blocks"
    assert linear[0].weight.dtype == torch.uint8
    assert linear[0].weight.quant_state is not None, "really quantised, not only named so"

    trainer = make_trainer(
        loaded, sft_dataset(run, loaded), SFTSettings(steps=1, batch_size=2, accumulate=1), tmp_path, None
    )
    # TRL has put the LoRA weights of a 4-bit model into bf16 by now
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert before
    assert all("lora" in name for name in before)
    trainer.train()
    after = dict(loaded.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name].detach())}
    assert changed == {name for name in before if "lora_B" in name}, "A follows from step 2 on, B begins as zeros"
    assert bundled_model().exists()


def test_the_rows_of_a_step_stand_in_order_of_length_and_every_row_is_read_before_one_is_read_again():
    lengths = [30, 10, 50, 20, 40, 60, 70]
    settings = SFTSettings(steps=3, batch_size=2, accumulate=2, seed=1)
    order = training_order(lengths, settings)
    assert len(order) == 3 * 4
    steps = [order[n : n + 4] for n in (0, 4, 8)]
    assert all([lengths[row] for row in step] == sorted(lengths[row] for row in step) for step in steps)
    seen = Counter(order)
    assert set(seen) == set(range(7))
    assert max(seen.values()) - min(seen.values()) <= 1
    assert training_order(lengths, settings) == order, "the same again, as a resumed training needs"
    assert training_order(lengths, replace(settings, seed=2)) != order


@pytest.mark.parametrize(
    ("batch", "passes", "processes", "shares"),
    [(2, 4, 1, (2, 4)), (2, 4, 2, (2, 2)), (2, 1, 2, (1, 1)), (4, 3, 2, (3, 2)), (8, 1, 4, (2, 1)), (2, 4, 8, (1, 1))],
)
def test_the_sequences_of_a_step_are_shared_out_to_the_processes(batch, passes, processes, shares):
    settings = SFTSettings(batch_size=batch, accumulate=passes)
    assert shares_of_step(settings, processes) == shares
    assert shares[0] * shares[1] * processes == batch * passes
    assert shares[0] <= batch, "no more memory than one process takes"


@pytest.mark.parametrize("processes", [3, 16])
def test_a_step_that_cannot_be_shared_out_evenly_is_refused(processes):
    with pytest.raises(KitError, match=rf"The 8 sequences of an SFT step .* evenly to {processes} processes: start"):
        shares_of_step(SFTSettings(batch_size=2, accumulate=4), processes)


def test_a_step_in_two_passes_learns_what_it_learns_in_one(synthesized):
    """Rows of a step count by their tokens, whichever pass they are in."""
    logs = []
    for batch, passes in ((4, 1), (2, 2)):
        run = synthesized({"sft.steps": 3, "sft.batch_size": batch, "sft.accumulate": passes})
        train_sft(run)
        logs.append(pd.read_csv(run.stage("sft") / "log.csv"))
    for column in ("loss", "grad_norm"):
        assert list(logs[1][column]) == pytest.approx(list(logs[0][column]), rel=2e-3)
