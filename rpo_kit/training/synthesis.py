"""Stage 2, `synthesize`: a teacher writes Structured Rewriting Trajectories (Figure 2, left).

The teacher sees the query, the generic answer, a historical example and the user's true output, and makes explicit how
one gets from the one to the other. By default a trajectory rests on *one* historical example (paper), so that RL with
2→6 has something left to teach. What does not parse, cites items that do not exist, or does not end in the true output
is rejected, and kept with the reason.

Two teachers, one type: `llm_teacher` is any chat model; `persona_teacher` is a set of rules for the embedded benchmark.
It reads the hidden facts that `personas` stores beside the texts, draws its conclusion from the history items alone,
and is therefore wrong, and rejected, where the item does not show the user's habit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.retrieval import take
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.rewriting.chat import open_chat
from rpo_kit.rewriting.prepare import Example, load_prepared
from rpo_kit.rewriting.prompts import fill, harmless
from rpo_kit.rewriting.trajectory import Trajectory, complaint_about, parse, render
from rpo_kit.runs import Run, append_records, read_records, require, stage

_CHUNK = 64


@dataclass(frozen=True)
class Request:
    """What the teacher is asked about: one training query and the history items that its trajectory shall rest on."""

    id: str
    example: Example
    items: list[Item]
    first: int = 1  # an item is numbered by its place in the ranking

    @property
    def numbered(self) -> list[tuple[int, Item]]:
        return list(enumerate(self.items, self.first))


Teacher = Callable[[Task, list[Request]], list[str]]


def synthesize(run: Run, teacher: Teacher | None = None) -> None:
    """Write `synthesize/trajectories.jsonl` and `synthesize/rejected.jsonl`, one line for each request."""
    preset = run.preset
    data = require(run, "prepare") / "generic.jsonl"
    with stage(run, "synthesize", data=preset.data, generic=data, settings=preset.synthesis) as work:
        if work is None:
            return
        task = get_task(preset.data.task)
        requests = list(make_requests(load_prepared(run, "train"), preset.synthesis.shots, preset.synthesis.per_query))
        done = {
            record["id"] for name in ("trajectories", "rejected") for record in read_records(work / f"{name}.jsonl")
        }
        missing = [request for request in requests if request.id not in done]
        if missing:
            _write(task, teacher or open_teacher(preset.synthesis.teacher), missing, work)
        if not read_records(work / "trajectories.jsonl"):
            raise KitError(f"The teacher wrote no usable trajectory; the reasons are in {work / 'rejected.jsonl'}.")
        print(describe(work))


def make_requests(examples: list[Example], shots: int, per_query: int) -> Iterator[Request]:
    """For each query the best-ranked items, `shots` at a time, up to `per_query` requests. Empty profiles give none."""
    for example in examples:
        for n in range(per_query):
            items = take(example, example["ranking"][n * shots :], shots)
            if len(items) == shots:
                yield Request(f"{example['id']}/{n}", example, items, n * shots + 1)


def persona_teacher(task: Task, requests: list[Request]) -> list[str]:
    """The rule-based teacher of the personas: observes each item, takes the habit that most show, applies it."""
    rules = persona(task.name)
    written = []
    for request in requests:
        facts = request.example["facts"]
        if not facts:
            raise KitError(
                "The persona teacher reads the facts stored with `personas`; for other data set synthesis.teacher."
            )
        seen = [(n, item, facts["items"][item["id"]]) for n, item in request.numbered]
        habits = [habit for _, item, fact in seen if (habit := rules.shown_habit(item, fact))]
        if not habits:
            written.append("")  # nothing to be seen: counted as rejected ("no tags")
            continue
        habit = Counter(habits).most_common(1)[0][0]
        observe = "\n".join(f"[{n}] {rules.observe(item, fact)}" for n, item, fact in seen)
        plan = rules.plan(habit, facts["query"], request.example["generic"])
        written.append(render(Trajectory(observe, plan, rules.apply(habit, facts["query"]))))
    return written


def llm_teacher(spec: str) -> Teacher:
    """A chat model as teacher; see `rpo_kit.rewriting.chat` for the ways to name one."""
    chat = open_chat(spec)

    def write(task: Task, requests: list[Request]) -> list[str]:
        asked = [[{"role": "user", "content": teacher_prompt(task, request)}] for request in requests]
        return [completion.text for completion in chat.complete(asked, max_new_tokens=400)]

    return write


def teacher_prompt(task: Task, request: Request) -> str:
    example = request.example
    lines = [f"[{n}] {harmless(task.item_line(item))}" for n, item in request.numbered]
    return fill(
        "teacher",
        title=task.title,
        history="\n".join(lines),
        query=harmless(task.query_text(example["input"])),
        generic=harmless(example["generic"]),
        target=harmless(example["output"]),
    )


def open_teacher(spec: str) -> Teacher:
    """`persona`, or a chat model."""
    return persona_teacher if spec == "persona" else llm_teacher(spec)


def describe(work: Path) -> str:
    """One line: how many trajectories were accepted, and why the others were not."""
    good, bad = read_records(work / "trajectories.jsonl"), read_records(work / "rejected.jsonl")
    reasons = Counter(record["reason"] for record in bad).most_common()
    told = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none"
    return f"{len(good)} trajectories accepted, {len(bad)} rejected ({told})"


def _write(task: Task, teacher: Teacher, requests: list[Request], work: Path) -> None:
    for start in tqdm(range(0, len(requests), _CHUNK), desc="the teacher writes", unit="chunk"):
        chunk = requests[start : start + _CHUNK]
        judged = [_judge(request, text) for request, text in zip(chunk, teacher(task, chunk), strict=True)]
        append_records(work / "rejected.jsonl", [record for record in judged if "reason" in record])
        append_records(work / "trajectories.jsonl", [record for record in judged if "reason" not in record])


def _judge(request: Request, text: str) -> dict[str, Any]:
    """The record of one teacher's text: accepted with its parts, or rejected with a reason."""
    record = {"id": request.id, "example": request.example["id"], "first": request.first}
    record["items"] = [item["id"] for item in request.items]
    parsed = parse(text)
    reason = parsed.complaint
    if parsed.trajectory:
        reason = complaint_about(parsed.trajectory, dict(request.numbered), request.example["output"])
    if reason or parsed.trajectory is None:
        return record | {"text": text, "reason": reason}
    return record | asdict(parsed.trajectory)
