"""What `mine` says at the end: the fit on held-out texts over the best trivial baseline, one draft, what to do next.

print(fit_report(run, "sft"))
# Fit on 35 held-out passages of 33 texts: +0.112 (0.084 to 0.139) over the query, unchanged …
"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass

from rpo_kit.errors import KitError
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.runs import Run, read_records
from rpo_kit.stages import require
from rpo_kit.study.results import best_trivial, read_tables, system_name


@dataclass(frozen=True)
class Sample:
    """A held-out passage: the query, the base model's text, the module's, and what the person wrote."""

    query: str
    generic: str
    rewrite: str
    own: str


def fit_report(run: Run, system: str) -> str:
    """The gain over the best trivial baseline with its interval, and the passage with the median gain."""
    metrics, paired = read_tables(f"{require(run, 'evaluate')}/")
    best, examples = best_trivial(metrics) or "echo", load_prepared(run, "dev")
    rows = paired[(paired["system"] == system) & (paired["minus"] == best)]
    if rows.empty:
        raise KitError(f"Run {run.name!r} does not compare {system} with {best}: see evaluation.systems.")
    row = rows.iloc[0]
    score = metrics.set_index("system")["score"]
    texts = len({example["user_id"] for example in examples})
    resolved = "" if row["low"] > 0 or row["high"] < 0 else "; not resolved"
    lines = [
        f"Fit on {len(examples)} held-out passages of {texts} texts: {row['score']:+.3f} ({row['low']:.3f} to "
        f"{row['high']:.3f}{resolved}) over the best answer without a model ({best}: {system_name(best)}).",
        f"  Score, 0 to 1 (1: word for word what was written): {score[system]:.3f} against {score[best]:.3f}; the base "
        f"model alone {score['base']:.3f}.",
        "  The interval is over texts. The smallest true difference found in 80 of 100 such "
        f"evaluations: {row['mde']:.3f} (MDE).",
    ]
    return "\n".join([*lines, "", _shown(median_sample(run, system))])


def median_sample(run: Run, system: str) -> Sample:
    """The held-out passage whose rewrite gains as much over the neutral text as the middle one of all: not the best."""
    task, examples = get_task(run.preset.data.task), load_prepared(run, "dev")
    records = read_records(require(run, "evaluate") / "records" / f"{system}.jsonl")
    rewrites = {record["id"]: record["prediction"] for record in records}
    samples = [
        Sample(task.query_text(e["input"]), str(e["generic"]), rewrites[e["id"]], e["output"])
        for e in examples
        if e["id"] in rewrites
    ]
    own = [sample.own for sample in samples]
    gains = example_scores(task, own, [s.rewrite for s in samples]) - example_scores(
        task, own, [s.query for s in samples]
    )
    return samples[sorted(range(len(samples)), key=lambda n: gains[n])[len(samples) // 2]]


def _shown(sample: Sample) -> str:
    parts = {
        "neutral draft": sample.query,
        "base model": sample.generic,
        "your voice": sample.rewrite,
        "you wrote": sample.own,
    }
    wrapped = [
        textwrap.fill(text or "(nothing)", 110, initial_indent=f"  {label:14}", subsequent_indent=" " * 16)
        for label, text in parts.items()
    ]
    return "\n".join(["One held-out passage, the one with the median gain:", *wrapped])


def next_steps(run: Run, stage: str) -> str:
    """The commands and cells that follow."""
    name = shlex.quote(run.name)
    return "\n".join(
        [
            "Next:",
            f"  rewrite a draft   python -m rpo_kit rewrite draft.txt --run {name}",
            "  blind test        in a notebook: from rpo_kit.study.blind_widgets import blind_test",
            f"                    blind_test(existing_run({run.name!r}))",
            f"  serve             python -m rpo_kit serve --run {name} --stage {stage} --profiles "
            f"{shlex.quote(str(run.folder))}/own_texts/profiles",
            f"  delete all of it  python -m rpo_kit forget {name}",
        ]
    )
