"""Stage 2, `synthesize`: a teacher writes Structured Rewriting Trajectories (Figure 2, top).

In the paper a trajectory rests on *one* historical example. By default it rests on one, three or six here: otherwise
the module never writes a second observation, and RL with 2→6 items has nothing to reinforce. What does not parse or
does not pass the quality filters (`filters.py`) is rejected and kept with the reason.
The setting `synthesis.teacher` names the teacher: rules (`persona` in `teachers.py`; `hindsight.py` for LaMP's own
texts), any chat model, or a file of trajectories (`imported.py`).

    synthesize(run)
    read_records(run.stage("synthesize") / "trajectories.jsonl")[0]["plan"]       # 'reads 3, harsh: give 2'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.model_spec import recorded_files
from rpo_kit.models.local import load_tokenizer
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import inputs_of, refuse
from rpo_kit.presets import teacher_of
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import Trajectory, is_writable, parse_teacher
from rpo_kit.runs import Run, append_records, read_records, sort_records
from rpo_kit.stages import stage
from rpo_kit.training.filters import RULES, Filters, rejection_reason
from rpo_kit.training.hindsight import HindsightTeacher
from rpo_kit.training.imported import ImportedTeacher
from rpo_kit.training.limits import report_lengths
from rpo_kit.training.teachers import ChatTeacher, Draft, Request, Rules, RuleTeacher, Teacher, persona_teacher

_CHUNK = 64  # ours: requests per chunk; a killed process loses at most one
_TOLD = 3  # reasons for rejecting trajectories, if none was usable


def synthesize(run: Run, teacher: Rules | Teacher | None = None) -> None:
    """Write `synthesize/trajectories.jsonl` and `synthesize/rejected.jsonl`, one line per request."""
    preset = run.preset
    if teacher is None:
        refuse(run, "synthesize")
    inputs = inputs_of(run, "synthesize")
    retry = failures.pending(run, "synthesize")
    with stage(run, "synthesize", retry=retry, **inputs) as folder:
        if folder is None:
            return
        task = get_task(preset.data.task)
        examples = load_prepared(run, "train")
        requests = list(make_requests(examples, preset.synthesis.shots, preset.synthesis.per_query))
        if teacher is None and recorded_files(preset.synthesis.teacher):
            teacher = ImportedTeacher(recorded_files(preset.synthesis.teacher), task)
            requests = teacher.requests(examples)
        if not requests:
            raise KitError(
                f"No train example has as many history items as synthesis.shots={list(preset.synthesis.shots)} asks "
                "for, so there is nothing to write trajectories about: lower it. If the data folder has no train "
                "files, set data.dev_share=0.2 and run `prepare` again."
            )
        done = {record["id"] for name in ("trajectories", "rejected") for record in _records(folder, name)}
        missing = [request for request in requests if request.id not in done]
        if missing:
            load_tokenizer(preset.reflection)  # a module that cannot be trained is refused before the teacher is paid
            failures.clear(folder)
            teacher = teacher or open_teacher(run)
            writer = teacher if isinstance(teacher, Teacher) else RuleTeacher(teacher)
            _write(task, writer, missing, folder, filters_for(run))
        failures.report(folder, len(requests), preset.endpoint.tolerate)
        for name in ("trajectories", "rejected"):
            sort_records(folder / f"{name}.jsonl", [request.id for request in requests])
        if not _records(folder, "trajectories"):
            reasons = Counter(str(record["reason"]) for record in _records(folder, "rejected")).most_common(_TOLD)
            told = "; ".join(f"{count} × {reason}" for reason, count in reasons)
            whose = "file holds" if recorded_files(run.preset.synthesis.teacher) else "teacher wrote"
            raise KitError(
                f"The {whose} no usable trajectory ({told}); all are in {folder / 'rejected.jsonl'}. "
                "Take another synthesis.teacher or, if few words differ from the gold, a lower synthesis.match_text."
            )
        print(describe(folder))
        report_lengths(run, _records(folder, "trajectories"))


def make_requests(examples: Sequence[Example], shots: Sequence[int], per_query: int) -> Iterator[Request]:
    """Up to `per_query` requests per query, each about the next items of its ranking, as many as `shots` says in turn.

    With `shots` (1, 2): item 1; items 2 and 3; item 4; and so on. What the profile has no items for is left out.
    """
    for example in examples:
        first = 0
        for n, count in zip(range(per_query), cycle(shots)):
            items = top_k(example, example["ranking"][first:], count)
            if len(items) == count:
                yield Request(f"{example['id']}/{n}", example, items, first + 1)
            first += count


def open_teacher(run: Run) -> Rules | Teacher:
    """Rules, or a chat model with the run's settings; its cost is charged to the run."""
    spec = teacher_of(run.preset)
    if spec in ("hindsight", "hindsight-shown"):
        return HindsightTeacher(spec == "hindsight-shown")
    return persona_teacher if spec == "persona" else ChatTeacher(open_chat_for(run, spec))


def filters_for(run: Run) -> Filters:
    """Rules must match the gold word for word; for a chat teacher and imported trajectories, the settings decide."""
    settings, spec = run.preset.synthesis, teacher_of(run.preset)
    if spec == "persona":
        return RULES
    return Filters(1.0 if spec.startswith("hindsight") else settings.match_text, settings.max_words)


def describe(folder: Path) -> str:
    """One line: how many trajectories were accepted, and why the others were not."""
    good, bad = _records(folder, "trajectories"), _records(folder, "rejected")
    reasons = Counter(record["reason"] for record in bad).most_common()
    counts = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none"
    second = sum("complaint" in record for record in good)
    again = f"; {second} of the accepted ones at the second attempt" if second else ""
    return f"{len(good)} trajectories accepted, {len(bad)} rejected ({counts}){again}"


def examine(task: Task, request: Request, text: str, filters: Filters) -> tuple[Trajectory | None, str | None]:
    """The trajectory in a teacher's text, or None, and the reason to reject it, or None."""
    parsed = parse_teacher(text)
    if parsed.trajectory is None:
        return None, parsed.error
    return parsed.trajectory, rejection_reason(task, request.example, request.numbered, parsed.trajectory, filters)


def _write(task: Task, teacher: Teacher, requests: list[Request], folder: Path, filters: Filters) -> None:
    """Send all requests to the teacher and store each batch as it arrives."""

    def judge(request: Request, text: str) -> str | None:
        return examine(task, request, text, filters)[1]

    with tqdm(total=len(requests), desc="the teacher writes", unit="trajectory") as bar:
        for batch in teacher.write(task, requests, judge, _CHUNK):
            records = [_record(task, request, draft, filters) for request, draft in batch if not draft.failure]
            append_records(folder / "rejected.jsonl", [record for record in records if "reason" in record])
            append_records(folder / "trajectories.jsonl", [record for record in records if "reason" not in record])
            failures.record(folder, {request.id: draft.failure for request, draft in batch if draft.failure})
            bar.update(len(batch))


def _record(task: Task, request: Request, draft: Draft, filters: Filters) -> dict[str, Any]:
    """The record of one teacher's text: accepted with its parts, or rejected with a reason.

    If the text is a second attempt, `complaint` is what was wrong with the first. If the rewrite was close to the gold,
    which replaces it, `wrote` is the rewrite.
    """
    record: dict[str, Any] = {"id": request.id, "example": request.example["id"], "first": request.first}
    record["items"] = [item["id"] for item in request.items]
    if draft.ends_in:
        request = replace(request, example=request.example | {"output": draft.ends_in})
    trajectory, reason = examine(task, request, draft.text, filters)
    reason = draft.reason or reason
    if draft.first_error:
        record["complaint"] = draft.first_error
    if reason or trajectory is None:
        return record | {"text": draft.text, "reason": reason}
    corrected = replace(trajectory, rewrite=request.example["output"].strip())
    if corrected != trajectory and is_writable(corrected):
        return record | {"wrote": trajectory.rewrite} | asdict(corrected)
    return record | asdict(trajectory)


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_records(folder / f"{name}.jsonl")
