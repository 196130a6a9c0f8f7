"""Stage 2, `synthesize`: a teacher writes Structured Rewriting Trajectories (Figure 2, left).

By default a trajectory rests on *one* historical example (paper), so that RL with 2→6 has something left to teach. What
does not parse or does not pass the quality filters (`filters.py`) is rejected, and kept with the reason. The setting
by `synthesis.teacher`: `persona`, or any chat model (`teachers.py`).

    synthesize(run)
    read_records(run.stage("synthesize") / "trajectories.jsonl")[0]["plan"]       # 'reads 3, harsh: give 2'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.open import open_chat_for
from rpo_kit.pipeline import inputs_of
from rpo_kit.rewriting import failures
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.trajectory import Trajectory, is_writable, parse
from rpo_kit.runs import Run, append_records, read_records, sort_records, stage
from rpo_kit.training.filters import RULES, Filters, rejection_reason
from rpo_kit.training.teachers import ChatTeacher, Request, Rules, Written, persona_teacher

_CHUNK = 64


def synthesize(run: Run, teacher: Rules | ChatTeacher | None = None) -> None:
    """Write `synthesize/trajectories.jsonl` and `synthesize/rejected.jsonl`, one line for each request."""
    preset = run.preset
    inputs = inputs_of(run, "synthesize")
    failures.reopen(run, "synthesize")
    with stage(run, "synthesize", **inputs) as work:
        if work is None:
            return
        task = get_task(preset.data.task)
        requests = list(make_requests(load_prepared(run, "train"), preset.synthesis.shots, preset.synthesis.per_query))
        done = {record["id"] for name in ("trajectories", "rejected") for record in _records(work, name)}
        missing = [request for request in requests if request.id not in done]
        if missing:
            failures.forget(work)
            _write(task, teacher or open_teacher(run), missing, work, filters_for(run))
        failures.conclude(work, len(requests), preset.endpoint.tolerate)
        for name in ("trajectories", "rejected"):
            sort_records(work / f"{name}.jsonl", [request.id for request in requests])
        if not _records(work, "trajectories"):
            raise KitError(f"The teacher wrote no usable trajectory; the reasons are in {work / 'rejected.jsonl'}.")
        print(describe(work))


def make_requests(examples: list[Example], shots: int, per_query: int) -> Iterator[Request]:
    """For each query the best-ranked items, `shots` at a time, up to `per_query` requests. Empty profiles give none."""
    for example in examples:
        for n in range(per_query):
            items = top_k(example, example["ranking"][n * shots :], shots)
            if len(items) == shots:
                yield Request(f"{example['id']}/{n}", example, items, n * shots + 1)


def open_teacher(run: Run) -> Rules | ChatTeacher:
    """`persona`, or a chat model with the run's settings and on its account."""
    spec = run.preset.synthesis.teacher
    return persona_teacher if spec == "persona" else ChatTeacher(open_chat_for(run, spec))


def filters_for(run: Run) -> Filters:
    settings = run.preset.synthesis
    return RULES if settings.teacher == "persona" else Filters(settings.match_text, settings.max_words)


def describe(work: Path) -> str:
    """One line: how many trajectories were accepted, and why the others were not."""
    good, bad = _records(work, "trajectories"), _records(work, "rejected")
    reasons = Counter(record["reason"] for record in bad).most_common()
    told = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none"
    saved = sum("complaint" in record for record in good)
    again = f"; {saved} of the accepted ones at the second attempt" if saved else ""
    return f"{len(good)} trajectories accepted, {len(bad)} rejected ({told}){again}"


def examine(task: Task, request: Request, text: str, filters: Filters) -> tuple[Trajectory | None, str | None]:
    """The trajectory in a teacher's text, if there is one, and the reason against it, if there is one."""
    parsed = parse(text)
    if parsed.trajectory is None:
        return None, parsed.error
    return parsed.trajectory, rejection_reason(task, request.example, request.numbered, parsed.trajectory, filters)


def _write(task: Task, teacher: Rules | ChatTeacher, requests: list[Request], work: Path, filters: Filters) -> None:
    """Ask for all requests and store what is written, chunk by chunk or as it comes."""
    with tqdm(total=len(requests), desc="the teacher writes", unit="trajectory") as bar:
        for batch in _batches(task, teacher, requests, filters):
            judged = [_record(task, request, written, filters) for request, written in batch if not written.failure]
            append_records(work / "rejected.jsonl", [record for record in judged if "reason" in record])
            append_records(work / "trajectories.jsonl", [record for record in judged if "reason" not in record])
            failures.note(work, {request.id: written.failure for request, written in batch if written.failure})
            bar.update(len(batch))


def _batches(
    task: Task, teacher: Rules | ChatTeacher, requests: list[Request], filters: Filters
) -> Iterator[list[tuple[Request, Written]]]:
    if isinstance(teacher, ChatTeacher):
        yield from teacher.write(task, requests, lambda request, text: examine(task, request, text, filters)[1], _CHUNK)
        return
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        yield [(request, Written(text)) for request, text in zip(chunk, teacher(task, chunk), strict=True)]


def _record(task: Task, request: Request, written: Written, filters: Filters) -> dict[str, Any]:
    """The record of one teacher's text: accepted with its parts, or rejected with a reason.

    `complaint` is there where the text is the second attempt; `wrote` where the rewrite came close to the user's own
    text, which stands in its place.
    """
    record = {"id": request.id, "example": request.example["id"], "first": request.first}
    record["items"] = [item["id"] for item in request.items]
    trajectory, reason = examine(task, request, written.text, filters)
    if written.first_error:
        record["complaint"] = written.first_error
    if reason or trajectory is None:
        return record | {"text": written.text, "reason": reason}
    corrected = replace(trajectory, rewrite=request.example["output"].strip())
    if corrected != trajectory and is_writable(corrected):
        return record | {"wrote": trajectory.rewrite} | asdict(corrected)
    return record | asdict(trajectory)


def _records(work: Path, name: str) -> list[dict[str, Any]]:
    return read_records(work / f"{name}.jsonl")
