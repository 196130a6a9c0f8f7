"""The result begins with the gain over the best answer that needs no model, and names systems as the README does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rpo_kit.__main__ import main
from rpo_kit.setting_rules import TRIVIAL
from rpo_kit.study.evaluation import evaluate
from rpo_kit.study.figures import results_figure
from rpo_kit.study.results import (
    SYSTEM_NAMES,
    best_trivial,
    content_table,
    gain_by_history,
    gain_over_trivial,
    named,
    read_tables,
    reads_other_k,
    result_text,
    system_name,
)

DATA = Path(__file__).parents[2] / "figures" / "data"


def metrics(**scores: float) -> pd.DataFrame:
    names = [name.replace("_", "-") for name in scores]
    table = pd.DataFrame({"system": names, "score": list(scores.values()), "low": 0.1, "high": 0.9})
    return table.assign(task="LaMP-3", shots=6, examples=40)


def paired(*pairs: tuple[str, str], mde: float | None = 0.04) -> pd.DataFrame:
    """The difference of row n is n tenths."""
    rows = [{"system": s, "minus": m, "score": n / 10, "low": n / 20, "high": n / 5} for n, (s, m) in enumerate(pairs)]
    return pd.DataFrame(rows) if mde is None else pd.DataFrame(rows).assign(mde=mde)


def test_the_best_trivial_baseline_has_the_best_score_on_dev_whatever_the_models_score() -> None:
    assert best_trivial(metrics(base=0.9, constant=0.5, majority=0.7, copy_nearest=0.6, rl=0.8)) == "majority"
    assert best_trivial(metrics(base=0.9, lead=0.5, lead_3=0.6, copy_nearest=0.6)) == "lead-3", "in a tie the first"
    assert best_trivial(metrics(base=0.9, context=0.8)) is None


def test_the_gain_is_that_of_the_last_step_over_the_best_trivial_baseline() -> None:
    table = metrics(base=0.4, majority=0.5, copy_nearest=0.3, sft=0.6, rl=0.8)
    pairs = paired(("sft", "base"), ("rl", "base"), ("rl", "copy-nearest"), ("rl", "majority"))
    assert gain_over_trivial(table, pairs) == (
        "Gain over the best trivial baseline: +0.300 (0.150 to 0.600), reflection module after SFT + RL minus majority "
        "label of the user (the best by its score on these dev users). Smallest true difference found in 80 of 100 "
        "such evaluations: 0.040 (MDE)."
    )
    before = paired(*zip(pairs["system"], pairs["minus"], strict=True), mde=None)
    assert gain_over_trivial(table, before).endswith("(the best by its score on these dev users).")


def test_the_last_step_is_that_of_the_method_whatever_the_order_of_the_table() -> None:
    table = metrics(majority=0.5, rl=0.8, sft=0.6)
    pairs = paired(("rl", "majority"), ("sft", "majority"))
    assert "reflection module after SFT + RL minus" in gain_over_trivial(table, pairs)
    fewer = paired(("rl", "rl-1"), ("sft", "sft-1"), ("lead", "lead-12"))
    (told,) = gain_by_history(metrics(lead=0.5, rl=0.8, sft=0.6), fewer)
    assert told == (
        "Gain by history: +0.000 (0.000 to 0.000; not resolved), reflection module after SFT + RL with 6 items minus "
        "the same with 1. MDE: 0.040."
    )


def test_one_user_has_no_interval_and_the_sentences_say_so() -> None:
    pairs = paired(("rl", "base"), ("rl", "majority"), ("rl", "rl-1")).assign(low=np.nan, high=np.nan, mde=np.nan)
    table = metrics(majority=0.5, rl=0.8)
    assert gain_over_trivial(table, pairs).startswith(
        "Gain over the best trivial baseline: +0.100 (no interval: one user), reflection module"
    )
    assert gain_by_history(table, pairs)[0].startswith("Gain by history: +0.200 (no interval: one user), reflection")
    assert "nan" not in result_text(table, pairs)


def test_without_a_module_or_a_trivial_baseline_there_is_no_such_gain() -> None:
    assert gain_over_trivial(metrics(base=0.4, majority=0.5), paired(("majority", "base"), ("base", "majority"))) == ""
    assert gain_over_trivial(metrics(base=0.4, rl=0.5), paired(("rl", "base"))) == ""
    assert result_text(metrics(base=0.4), paired(("rl", "base"))[:0]).startswith("Result (LaMP-3, 40 dev examples")
    assert result_text(metrics(base=0.4, rl=0.5), paired(("rl", "base"))).startswith(
        "No trivial baseline was evaluated"
    )


def test_one_user_or_equal_answers_have_no_smallest_difference() -> None:
    table = metrics(base=0.4, majority=0.5, rl=0.6)
    for mde in (0.0, float("nan")):
        assert "MDE" not in gain_over_trivial(table, paired(("rl", "majority"), mde=mde))


def test_tables_name_systems_as_the_readme_does_and_leave_other_columns_alone() -> None:
    assert set(TRIVIAL) < set(SYSTEM_NAMES)
    assert [system_name(name) for name in ("lead", "lead-12", "context-4", "pag-0", "copy-nearest", "oracle")] == [
        "first words of the query", "first 12 words of the query", "context injection, k = 4",
        "profile summary (PAG), k = 0", "best-ranked item, copied", "oracle",
    ]  # fmt: skip
    table = named(paired(("rl", "echo")))
    assert table[["system", "minus"]].values.tolist() == [["reflection module after SFT + RL", "query, unchanged"]]
    assert table["mde"].tolist() == [0.04]


@pytest.mark.parametrize("name", sorted(path.name.removesuffix("metrics.csv") for path in DATA.glob("*_metrics.csv")))
def test_stored_numbers_are_still_shown_and_drawn(name: str) -> None:
    table, pairs = read_tables(f"{DATA}/{name}")
    text = result_text(table, pairs)
    assert text.startswith(("Gain over the best trivial baseline: +", "Gain over the best trivial baseline: -"))
    assert "Smallest true difference" in text.splitlines()[0], "also where none was stored"
    content = content_table(table)
    rows = 3 + len(table) + len(gain_by_history(table, pairs)) + (2 + len(content) if len(content) else 0)
    assert len(text.splitlines()) == rows, "one line per gain and system"
    shown = [name for name in table["system"] if not reads_other_k(name) and name not in ("best guess", "oracle")]
    assert len(results_figure(table).axes[0].get_yticklabels()) == len(shown)


def test_an_evaluation_of_one_system_is_read_whichever_version_stored_it(tmp_path: Path) -> None:
    metrics(base=0.4).to_csv(tmp_path / "metrics.csv", index=False)
    for stored in ("\n", "system,minus,score,low,high,mde\n"):
        (tmp_path / "paired.csv").write_text(stored)
        table, pairs = read_tables(f"{tmp_path}/")
        assert (len(table), len(pairs), list(pairs)[-1]) == (1, 0, "mde")
        assert gain_over_trivial(table, pairs) == ""


def test_the_command_prints_the_table_and_draws_the_figure(prepared, tmp_path, monkeypatch, capsys) -> None:
    run = prepared()
    evaluate(run, ["base", "constant", "majority"])
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    capsys.readouterr()
    assert main(["results", "--run", "r"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Result (LaMP-3, 6 dev examples")
    assert said.index("one label for everybody") < said.index("majority label of the user") < said.index("drawn: ")
    assert (run.folder / "figures" / "results.png").exists()
