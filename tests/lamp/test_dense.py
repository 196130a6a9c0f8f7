"""Dense retrieval with a random encoder of a few thousand weights: pooling, order, and what is not computed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from rpo_kit.errors import KitError
from rpo_kit.lamp import dense
from rpo_kit.lamp.dense import encode, load_encoder, rank_dense
from rpo_kit.lamp.retrieval import rank
from rpo_kit.lamp.tasks import get_task

TWEETS = get_task("LaMP-7")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    from tests.conftest import make_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("encoder"), make_tokenizer()
    tokenizer.model_max_length = 32
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that the model encoded."""
    asked: list[str] = []
    real: Callable[..., np.ndarray] = dense._mean_pooled
    monkeypatch.setattr(dense, "_mean_pooled", lambda encoder, texts: asked.extend(texts) or real(encoder, texts))
    return asked


def rows(*profiles: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": str(n), "input": TWEETS.make_input(text="rain again"), "profile": [{"id": t, "text": t} for t in texts]}
        for n, texts in enumerate(profiles)
    ]


def test_a_text_is_the_mean_of_its_tokens_whatever_else_is_in_the_batch(encoder_folder: Path) -> None:
    import torch

    encoder = load_encoder(str(encoder_folder))
    texts = ["rain again", "a much longer text about the sun that never comes out"]
    together = encode(encoder, texts)
    for text, vector in zip(texts, together, strict=True):
        ids = torch.tensor([encoder.tokenizer(text).input_ids])
        alone = encoder.model(ids).last_hidden_state[0].mean(0)
        assert vector == pytest.approx(alone.detach().numpy(), abs=1e-5)
    assert encode(encoder, [""]).tolist() == [[0.0] * 16], "no token, no direction"


def test_a_long_text_is_cut_at_the_encoders_length(encoder_folder: Path) -> None:
    encoder = load_encoder(str(encoder_folder))
    ids = encoder.tokenizer("rain and sun " * 50).input_ids[:32]
    assert encode(encoder, ["rain and sun " * 50])[0] == pytest.approx(
        encode(encoder, [encoder.tokenizer.decode(ids)])[0], abs=1e-5
    )


def test_items_are_ranked_by_descending_dot_product_and_equal_ones_stay_in_order(
    encoder_folder: Path, tmp_path: Path
) -> None:
    examples = rows(["sun", "rain", "sun", "tea at noon"], [], ["hi"])
    ranked = rank_dense(TWEETS, examples, str(encoder_folder), tmp_path)
    encoder = load_encoder(str(encoder_folder))
    query, *items = encode(encoder, ["rain again", "sun", "rain", "sun", "tea at noon"])
    scores = [float(item @ query) for item in items]
    assert ranked == [sorted(range(4), key=lambda n: -scores[n]), [], [0]]
    assert ranked[0].index(0) + 1 == ranked[0].index(2), "the two suns"


def test_each_text_is_encoded_once_and_a_second_ranking_runs_no_model(
    encoder_folder: Path, tmp_path: Path, counted: list[str]
) -> None:
    examples = rows(["sun", "rain", "sun"], ["rain", "hi"])
    first = rank_dense(TWEETS, examples, str(encoder_folder), tmp_path)
    assert sorted(counted) == ["hi", "rain", "rain again", "sun"]
    assert rank_dense(TWEETS, examples, str(encoder_folder), tmp_path) == first
    assert len(counted) == 4


def test_a_killed_ranking_resumes_with_the_missing_texts(
    encoder_folder: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "BATCH", 1)
    real = dense._mean_pooled

    def dies(encoder: Any, texts: list[str]) -> np.ndarray:
        if len(counted) == 2:
            raise KeyboardInterrupt
        return real(encoder, texts)

    with monkeypatch.context() as patch:
        patch.setattr(dense, "_mean_pooled", dies)
        with pytest.raises(KeyboardInterrupt):
            rank_dense(TWEETS, rows(["sun", "rain", "hi"]), str(encoder_folder), tmp_path)
    rank_dense(TWEETS, rows(["sun", "rain", "hi"]), str(encoder_folder), tmp_path)
    assert sorted(counted) == ["hi", "rain", "rain again", "sun"], "each of them once"


def test_rank_takes_an_encoder_by_name_and_a_dataset_is_ranked_like_a_list(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPO_CACHE", str(tmp_path))
    examples = rows(["sun", "rain"], ["rain", "hi", "tea"])
    method = f"dense:{encoder_folder}"
    assert rank(TWEETS, Dataset.from_list(examples), method) == rank(TWEETS, examples, method)
    assert [path.suffix for path in (tmp_path / "dense").iterdir()] == [".sqlite"]


def test_another_encoder_has_another_cache(encoder_folder: Path, tmp_path: Path, counted: list[str]) -> None:
    rank_dense(TWEETS, rows(["sun"]), str(encoder_folder), tmp_path / "cache")
    other = tmp_path / "other"
    other.mkdir()
    for path in encoder_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "note.txt").write_text("trained further")
    rank_dense(TWEETS, rows(["sun"]), str(other), tmp_path / "cache")
    assert len(counted) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pickled_weights_are_rejected_with_a_conversion_that_works(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoder_folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    weights = load_encoder(str(encoder_folder)).model.state_dict()
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(KitError, match=r"'old' has no model.safetensors, .*use dense:encoder: python -c") as caught:
        load_encoder("old")
    exec(str(caught.value).partition("python -c ")[2].strip('"'), {})
    converted = load_encoder("encoder").model.state_dict()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)


def test_a_broken_encoder_and_a_broken_cache_are_named(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(KitError, match=r"encoder '.*empty' cannot be loaded .*model.safetensors"):
        load_encoder(str(tmp_path / "empty"))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KitError, match=r"cache of vectors .*set RPO_CACHE"):
        rank_dense(TWEETS, rows(["sun"]), str(encoder_folder), tmp_path / "cache")
