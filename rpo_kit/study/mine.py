"""`mine`: from a person's own texts to a reflection module that writes like them, in one command.

Reads and cleans the files, cuts them into passages, holds out the newest, has neutral versions written, and runs the
ordinary stages (`prepare`, `synthesize`, `sft`, if asked `rl`, `evaluate`) on the folder that it wrote. So the result
is a run like any other: `runs/NAME`, with its texts in `runs/NAME/own_texts`, and `forget NAME` deletes all of it.

    mine([Path("sent.mbox")], "mine", Wanted())       # python -m rpo_kit mine sent.mbox
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.own_texts.cleaning import Choice, cleaned
from rpo_kit.lamp.own_texts.files import Options, read_own
from rpo_kit.lamp.own_texts.lamp_files import TASK, write_examples
from rpo_kit.lamp.own_texts.passages import Passage, cut_texts
from rpo_kit.lamp.own_texts.split import by_time, without_overlap
from rpo_kit.lamp.own_texts.text import Notes
from rpo_kit.model_files import base_files
from rpo_kit.model_spec import on_this_machine, parse_spec, recorded_files
from rpo_kit.models.open import check_spec, open_chat_for
from rpo_kit.own_process import run_stage
from rpo_kit.pipeline import stage_function
from rpo_kit.presets import Preset
from rpo_kit.rewriting.neutral import describe_neutral, write_neutral, writer_for
from rpo_kit.rewriting.own_voice import FOLDER, is_own
from rpo_kit.rewriting.prompts import prompt_fingerprints
from rpo_kit.runs import Run, open_run, planned_run, read_records, run_file, write_text
from rpo_kit.setting_rules import kind_of
from rpo_kit.stages import stage
from rpo_kit.study.mine_report import fit_report, next_steps

# Sizes for a mailbox of some hundred mails in a quarter of an hour on two cores; all ours, measured (docs/own-texts.md)
MINE: Mapping[str, Any] = {
    "data.task": TASK,
    "base_max_new_tokens": 64,  # a passage has up to 40 words
    "synthesis.shots": [1, 3],
    "synthesis.per_query": 2,
    "sft.steps": 60,
    "rl.steps": 4,
    "evaluation.shots": 3,  # as many as trajectories rest on
    "evaluation.max_new_tokens": 256,  # with 200 and four items, 6 of 50 completions were cut off
    "evaluation.systems": ["base", "echo", "copy-nearest", "sft"],
    "endpoint.cache": False,  # nothing of the person stays in the store that all runs share
}
MOST_HISTORY, MOST_HELD_OUT = 320, 60  # ours: passages, the newest


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; "" is the default."""

    options: Options = field(default_factory=Options)
    choice: Choice = field(default_factory=Choice)
    base: str = ""
    neutral: str = "auto"
    held_out: float = 0.2
    preset: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rl: bool = False


def read_passages(files: Sequence[Path], wanted: Wanted, notes: Notes) -> tuple[list[Passage], list[Passage]]:
    """(the history, what is held out) of the chosen author's texts in all files; nothing is written.

    Raises:
        KitError: a file cannot be read, or too little is left.
    """
    texts = [text for path in files for text in read_own(path, wanted.options, notes)]
    history, held_out = by_time(cleaned(texts, wanted.choice, notes), wanted.held_out, notes)
    older = cut_texts(history, notes)
    notes.counts[f"older passages beyond {MOST_HISTORY} (left out)"] += max(0, len(older) - MOST_HISTORY)
    # what is left out is in no profile; in a large mailbox nearly all passages share words with some of it
    older = older[-MOST_HISTORY:]
    newer = without_overlap(older, cut_texts(held_out, notes), notes)
    notes.counts[f"held-out passages beyond {MOST_HELD_OUT} (left out)"] += max(0, len(newer) - MOST_HELD_OUT)
    newer = newer[-MOST_HELD_OUT:]
    notes.say(f"passages of up to 40 words: {len(older)} to train on, {len(newer)} held out")
    return older, newer


def mine(files: Sequence[Path], name: str, wanted: Wanted, look: bool = False) -> None:
    """Read, train, evaluate and report; with `look` only read and show.

    Raises:
        KitError: the texts, the settings or the run cannot be used; no run is made then.
    """
    started = time.perf_counter()
    notes = Notes()
    older, newer = read_passages(files, wanted, notes)
    print(notes.report())
    if look:
        print(f"\nFirst held-out passage: {newer[0].text}")
        print("Nothing was written. Without --look, a module is trained on these texts.")
        return
    run = _opened(name, wanted)
    print(what_goes_out(run.preset, wanted.neutral))
    minutes = {"reading": _minutes(started)}
    for step in ("own_texts", "prepare", "synthesize", "sft", *(["rl"] if wanted.rl else []), "evaluate"):
        begun = time.perf_counter()
        if step == "own_texts":
            write_own(run, older, newer, wanted.neutral, notes)
        elif step in ("sft", "rl"):
            run_stage(run, step)  # on a GPU in a process of its own, because SFT's patches whatever comes after it
        else:
            stage_function(step)(run)
        minutes[step] = _minutes(begun)
    print("\nminutes  " + ", ".join(f"{step} {spent:.1f}" for step, spent in minutes.items()), end="")
    print(f"; in all {_minutes(started):.1f}\n")
    last = "rl" if wanted.rl else "sft"
    print(fit_report(run, last), next_steps(run, last), sep="\n\n")


def _minutes(since: float) -> float:
    return (time.perf_counter() - since) / 60


def _opened(name: str, wanted: Wanted) -> Run:
    """The run, new or one that `mine` made; checked before anything is stored."""
    folder = run_file(name, None).parent
    if folder.exists() and any(folder.iterdir()) and not is_own(folder):
        raise KitError(f"The run {name!r} is not of own texts: name another one with --run.")
    systems = [*MINE["evaluation.systems"], *(["rl"] if wanted.rl else [])]
    settings = {**MINE, "evaluation.systems": systems, "data.source": str(folder / FOLDER)}
    settings |= ({"base": wanted.base} if wanted.base else {}) | dict(wanted.settings)
    if settings["data.source"] != str(folder / FOLDER) or settings["data.task"] != TASK:
        raise KitError("data.source and data.task are the command's own: leave them out of --set.")
    planned = planned_run(name, wanted.preset, settings)
    if lacking := {"base", "echo", systems[-1]} - {*planned.preset.evaluation.systems}:
        raise KitError(f"evaluation.systems lacks {' and '.join(sorted(lacking))}, which the report needs.")
    if recorded_files(planned.preset.base):
        raise KitError(f"--base {planned.preset.base} holds recorded answers: name a model.")
    check_spec(planned.preset.base, planned.preset.endpoint)
    writer_for(wanted.neutral, planned.preset.base)
    run = open_run(name, wanted.preset, settings)
    run.folder.chmod(0o700)  # a person's texts
    return run


def write_own(run: Run, older: Sequence[Passage], newer: Sequence[Passage], neutral: str, notes: Notes) -> None:
    """Write the run's folder `own_texts`: passages, neutral versions, LaMP's files and the notes."""
    writer = writer_for(neutral, run.preset.base)
    inputs: dict[str, Any] = {"passages": [asdict(passage) for passage in (*older, *newer)], "held_out": len(newer)}
    if writer == "base":
        inputs |= {"base": run.preset.base, "prompts": prompt_fingerprints("neutral")} | base_files(run)
    with stage(run, FOLDER, writer=writer, **inputs) as folder:
        if folder:
            path = folder / "neutral.jsonl"
            chat = open_chat_for(run, run.preset.base) if writer == "base" and _lacks(path, older, newer) else None
            versions = write_neutral(chat, [*older, *newer], path)
            counts = write_examples(folder, older, newer, versions, run.preset.data.seed)
            notes.say(describe_neutral(path))
            notes.say(f"examples: {counts['train']} to train on, {counts['dev']} held out")
            write_text(folder / "notes.txt", notes.report() + "\n")
            print("\n".join(notes.lines[-2:]))


def _lacks(path: Path, older: Sequence[Passage], newer: Sequence[Passage]) -> bool:
    done = {record["id"] for record in read_records(path)}
    return any(passage.id not in done for passage in (*older, *newer))


def what_goes_out(preset: Preset, neutral: str) -> str:
    """A sentence on what leaves the machine with these models, and for each server what it is sent."""
    sent = []
    if server := _elsewhere(preset.base):
        once = "each passage once, held-out ones too (to write it in neutral words), then " * (
            writer_for(neutral, preset.base) == "base"
        )
        sent.append(f"{server} is sent {once}the neutral versions as queries; later each draft that is rewritten.")
        if shown := [name for name in preset.evaluation.systems if kind_of(name) in ("context", "pag")]:
            sent.append(f"{server} is also sent passages of the history, for {' and '.join(shown)}.")
    if server := _elsewhere(preset.synthesis.teacher):
        sent.append(f"{server}, the teacher, is sent the passages of the history with their neutral versions.")
    return " ".join([*sent, "Everything else stays on this machine."] if sent else ["Nothing leaves this machine."])


def _elsewhere(spec: str) -> str:
    """The server that the spec names, "" for a model on this machine."""
    endpoint = parse_spec(spec)
    if endpoint is None or (endpoint.url and on_this_machine(endpoint.url)):
        return ""
    return endpoint.url or "OpenAI"
