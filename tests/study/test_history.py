"""Score × k: the module with fewer items beside itself, in the table, the sentence and the figure."""

from __future__ import annotations

import pandas as pd
import pytest

from rpo_kit.errors import KitError
from rpo_kit.study import evaluation
from rpo_kit.study.alt_text import alt_text
from rpo_kit.study.figures import results_figure
from rpo_kit.study.history import history_figure, history_table
from rpo_kit.study.results import gain_by_history, read_tables, system_name
from rpo_kit.study.statistics import compared


def metrics(**scores: float) -> pd.DataFrame:
    names = [name.replace("_", "-") for name in scores]
    table = pd.DataFrame({"system": names, "score": list(scores.values()), "low": 0.1, "high": 0.9})
    return table.assign(task="LaMP-7", shots=6, examples=40)


def test_a_system_is_in_the_table_once_per_k_and_only_if_it_was_evaluated_at_several() -> None:
    table = history_table(metrics(base=0.4, sft=0.7, sft_1=0.6, rl=0.8, oracle=0.98, oracle_1=0.83, context_4=0.3))
    assert table[["system", "k", "score"]].to_numpy().tolist() == [
        ["oracle", 1, 0.83],
        ["oracle", 6, 0.98],
        ["sft", 1, 0.6],
        ["sft", 6, 0.7],
    ]


def test_the_figure_has_a_curve_per_system_and_says_what_to_add_if_there_is_none() -> None:
    figure = history_figure(metrics(sft=0.7, sft_1=0.6, rl=0.8, rl_1=0.7, rl_3=0.75))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [system_name("rl"), system_name("sft")]
    assert list(figure.axes[0].get_xticks()) == [1, 3, 6]
    with pytest.raises(KitError, match=r"add sft-1 and rl-1 to evaluation\.systems"):
        history_figure(metrics(sft=0.7, rl=0.8))


def test_the_best_trivial_baseline_is_a_line_across_the_figure() -> None:
    figure = history_figure(metrics(base=0.2, echo=0.57, copy_nearest=0.3, sft=0.7, sft_1=0.6))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {system_name("sft"), system_name("echo")}
    (across,) = [line for line in figure.axes[0].lines if line.get_label() == system_name("echo")]
    assert list(across.get_ydata()) == [0.57, 0.57]
    assert "query, unchanged: 0.570 with any k" in alt_text(figure)


def test_other_k_is_compared_with_itself_alone_and_left_out_of_the_figure_of_systems() -> None:
    pairs = compared(["base", "sft", "sft-1", "rl", "rl-1"])
    assert [pair for pair in pairs if "1" in "".join(pair)] == [("sft", "sft-1"), ("rl", "rl-1")]
    assert compared(["base", "rl-1"]) == []
    labels = results_figure(metrics(base=0.4, rl=0.8, rl_1=0.7, oracle=0.98, oracle_1=0.83)).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["base model", "reflection module after SFT + RL"]


def test_the_sentence_is_about_the_last_step_of_the_method() -> None:
    columns = {"score": [0.1, 0.2, 0.3], "low": 0.05, "high": 0.4}
    paired = pd.DataFrame({"system": ["sft", "rl", "rl"], "minus": ["sft-1", "sft", "rl-1"]} | columns)
    assert gain_by_history(metrics(rl=0.8), paired) == [
        "Gain by history: +0.300 (0.050 to 0.400), reflection module after SFT + RL with 6 items minus the same with 1."
    ]
    assert gain_by_history(metrics(rl=0.8), paired.iloc[[1]]) == []


def test_an_evaluation_at_two_k_reads_as_many_items_as_the_system_says(trained, monkeypatch) -> None:
    """The module itself is replaced; everything else, from the systems' names to the tables, is as always."""
    read: list[tuple[str, int]] = []

    def answers(adapter, task, examples, shots, *_):
        read.append((adapter.parent.name, shots))
        return [{"id": example["id"], "prediction": "3"} for example in examples]

    monkeypatch.setattr(evaluation, "load_reflection", lambda settings, adapter: adapter)
    monkeypatch.setattr(evaluation, "rewrite", answers)
    run = trained()
    evaluation.evaluate(run, ["base", "sft", "sft-1", "rl-2"])
    assert read == [("sft", 6), ("sft", 1), ("rl", 2)]
    table, paired = read_tables(f"{run.stage('evaluate')}/")
    assert list(table["system"]) == ["base", "sft", "sft-1", "rl-2", "best guess", "oracle", "oracle-1", "oracle-2"]
    assert list(history_table(table)["system"]) == ["oracle"] * 3 + ["sft"] * 2
    assert ("sft", "sft-1") in set(zip(paired["system"], paired["minus"], strict=True))
