"""What the demo says in words: the score so far after each notebook, and at the end a legend and a verdict.

score_so_far(run, "04_rl_reinforce_pp")  # "reward first .628 at k = 2, last .839 at k = 6"
verdict(metrics, paired)                 # SFT + RL beats the best trivial baseline by +0.206 (0.164 to 0.247) …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import pandas as pd

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES
from rpo_kit.runs import Run, read_records
from rpo_kit.study.results import best_trivial, system_name
from rpo_kit.study.stored import read_table

LEGEND = {  # columns of the result table
    "score": "what the rows are compared by, 0 to 1: mean of ROUGE-1 and ROUGE-L, accuracy, or closeness of the rating",
    "low": "to high: the 95 % interval of the score over users (bootstrap)",
    "unparsed": "share of completions that are no valid trajectory; the generic answer is used instead",
    "words": "mean length of the answers",
    "copied": "share of answers that repeat a history item",
}
REFERENCES = {  # rows of it that no model wrote
    "best guess": "reference: what a perfect reader scores who does not know the user",
    "oracle": "reference: what a perfect reader of the same items scores",
}
SHORT = {"base": "generic", "sft": "SFT", "rl": "SFT + RL"}
_BROKEN = 0.9  # ours: from this share of unparsed completions on, a row is the base model's in disguise


# ---- after each notebook ------------------------------------------------------------------------------------------


def score_so_far(run: Run, chapter: str) -> str:
    """What the notebook's stage came to, in a few words; "" if there is nothing to tell."""
    for row in STAGES.values():
        if row.notebook == chapter and row.name in _OUTCOMES:
            with suppress(KitError, OSError, ValueError, KeyError, IndexError):  # no result, or one of an older form
                return _OUTCOMES[row.name](run)
    return ""


def short(value: float) -> str:
    """.785 for 0.785."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"


def _generic(run: Run) -> str:
    from rpo_kit.lamp.metrics import example_scores
    from rpo_kit.lamp.tasks import get_task
    from rpo_kit.rewriting.prepare import load_prepared

    examples, task = load_prepared(run, "dev"), get_task(run.preset.data.task)
    golds = [example["output"] for example in examples]
    scores = example_scores(task, golds, [example["generic"] for example in examples])
    return f"score: generic {short(sum(scores) / len(scores))}"


def _trajectories(run: Run) -> str:
    accepted, rejected = (
        len(read_records(run.stage("synthesize") / f"{name}.jsonl")) for name in ("trajectories", "rejected")
    )
    return f"{accepted} accepted, {rejected} rejected"


def _loss(run: Run) -> str:
    log = read_table(run.stage("sft") / "log.csv", ("loss",))
    return f"loss {log['loss'].iloc[0]:.2f} to {log['loss'].iloc[-1]:.2f}"


def _reward(run: Run) -> str:
    log = read_table(run.stage("rl") / "log.csv", ("reward", "shots"))
    first, last = (f"{short(log['reward'].iloc[n])} at k = {log['shots'].iloc[n]:.0f}" for n in (0, -1))
    return f"reward first {first}, last {last}"


def _systems(run: Run) -> str:
    table = read_table(run.stage("evaluate") / "metrics.csv", ("score",), ("system",)).set_index("system")
    return _scores((SHORT[name], table.loc[name, "score"]) for name in SHORT if name in table.index)


def _sweep(run: Run) -> str:
    table = read_table(run.stage("sweep") / "bars.csv", ("seeds", "shots", "score"), ("arm",))
    rows = table[(table["seeds"] > 0) & (table["shots"] == table["shots"].max())]
    return _scores(zip(rows["arm"], rows["score"], strict=True))


def _components(run: Run) -> str:
    table = read_table(run.stage("components") / "components.csv", ("seeds", "score"), ("system",))
    rows = table[table["seeds"] > 0]
    return _scores(zip(rows["system"], rows["score"], strict=True))


def _scores(pairs: Iterable[tuple[str, float]]) -> str:
    return "score: " + ", ".join(f"{name} {short(score)}" for name, score in pairs)


_OUTCOMES: dict[str, Callable[[Run], str]] = {
    "prepare": _generic,
    "synthesize": _trajectories,
    "sft": _loss,
    "rl": _reward,
    "evaluate": _systems,
    "sweep": _sweep,
    "components": _components,
}


# ---- at the end ---------------------------------------------------------------------------------------------------


def legend(metrics: pd.DataFrame) -> str:
    """What the columns of the result table mean."""
    lines = [f"  {column:10} {about}" for column, about in LEGEND.items() if column in metrics]
    lines += [f"  {system:10} {about}" for system, about in REFERENCES.items() if system in set(metrics["system"])]
    return "\n".join(["Legend:", *lines])


def verdict(metrics: pd.DataFrame, paired: pd.DataFrame) -> list[str]:
    """What the differences show, each with its interval."""
    lines = []
    module = next((name for name in ("rl", "sft") if name in set(metrics["system"])), "")
    for minus in dict.fromkeys([best_trivial(metrics) or "base", "base", "sft"]):
        rows = paired[(paired["system"] == module) & (paired["minus"] == minus)]
        if len(rows):
            lines.append(_compared(module, minus, *rows.iloc[0][["score", "low", "high"]]))
    return lines


def _compared(system: str, minus: str, score: float, low: float, high: float) -> str:
    what = "beats" if low > 0 else "falls behind" if high < 0 else "cannot be told apart from"
    interval = "no interval: one user" if pd.isna(low) else f"{low:.3f} to {high:.3f}"
    return f"{system_name(system)} {what} {system_name(minus)}: {score:+.3f} ({interval})"


def not_learned(metrics: pd.DataFrame) -> str:
    """A warning if hardly any completion of the trained module parses: its rows then repeat the base model's."""
    if "unparsed" not in metrics:
        return ""
    rows = metrics[metrics["system"].isin(["sft", "rl"]) & (metrics["unparsed"] >= _BROKEN)]
    if rows.empty:
        return ""
    names = " and ".join(SHORT[name] for name in rows["system"])
    return (
        f"Warning: {rows['unparsed'].min():.0%} of the completions after {names} are no valid trajectory, and the "
        "generic answer is used instead: these rows repeat the base model's. The training was too short to teach "
        "anything, as it always is with the preset tiny; the run only shows that every part works."
    )


def final_words(metrics: pd.DataFrame, paired: pd.DataFrame) -> str:
    """Legend, verdict and, if it is so, the warning that the module has not learned."""
    lines = verdict(metrics, paired) or ["these systems are not compared"]
    verdict_text = "\n".join(["Verdict (differences of scores, with 95 % intervals):", *lines])
    return "\n\n".join(filter(None, [legend(metrics), verdict_text, not_learned(metrics)]))
