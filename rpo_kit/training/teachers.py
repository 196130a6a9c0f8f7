"""Teachers: who writes the Structured Rewriting Trajectories (Figure 2, left).

A teacher sees the query, the generic answer, one or more history items and, if it is a chat model, the user's true
output, and makes explicit how one gets from the generic answer to the user's own. Two kinds:

`ChatTeacher` is any chat model. A text that cannot be used is sent back once with the complaint about it. It shows its
work as it comes, so that a kill loses nothing; what an endpoint does not answer is a failure of that request alone.

`persona_teacher` is a set of rules for the embedded benchmark. It reads the hidden facts that `personas` stores beside
the texts, draws its conclusion from the history items alone, and is therefore wrong, and rejected, where the items do
not show the user's habit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.models.chat import Chat, Completion, Conversation, reporting_cost, stream_completions
from rpo_kit.rewriting.prompts import escape_tags, fill, prompt_fingerprints
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.runs import Run

TOKENS = 400  # ours: a trajectory of 200 words and its tags fit


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


@dataclass(frozen=True)
class Written:
    """A teacher's text for a request, or why there is none; `first_error` is what was wrong with its first text."""

    text: str
    failure: str | None = None
    first_error: str | None = None


Rules = Callable[[Task, list[Request]], list[str]]  # a teacher in this process: one text a request, at once
Judge = Callable[[Request, str], str | None]  # why the text cannot be used


def prompt_inputs(run: Run) -> dict[str, Any]:
    """The prompts of a chat teacher, as inputs of `synthesize`; the rule-based teacher reads none."""
    chat = run.preset.synthesis.teacher != "persona"
    return {"prompts": prompt_fingerprints("teacher", "teacher_again")} if chat else {}


# ---- a chat model -------------------------------------------------------------------------------------------------


class ChatTeacher:
    """A chat model that writes trajectories."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Written]]]:
        """Texts as they come; those against which `judge` has a reason are asked for once more, at the end."""
        asked = [[{"role": "user", "content": teacher_prompt(task, request)}] for request in requests]
        returned: list[tuple[Request, Conversation, str]] = []
        with reporting_cost(self.chat, asked, TOKENS):
            for batch in stream_completions(self.chat, asked, max_new_tokens=TOKENS, chunk=chunk):
                useful = []
                for place, answer in batch:
                    complaint = None if answer.failure else judge(requests[place], answer.text)
                    if complaint:
                        returned.append((requests[place], sent_back(asked[place], answer.text, complaint), complaint))
                    else:
                        useful.append((requests[place], _written(answer)))
                yield useful
            again = [conversation for _, conversation, _ in returned]
            for batch in stream_completions(self.chat, again, max_new_tokens=TOKENS, chunk=chunk):
                yield [(returned[place][0], _written(answer, returned[place][2])) for place, answer in batch]


def sent_back(asked: Conversation, text: str, complaint: str) -> Conversation:
    """The conversation that asks once more, with the complaint about the first text."""
    again = fill("teacher_again", complaint=complaint)
    return [*asked, {"role": "assistant", "content": text}, {"role": "user", "content": again}]


def teacher_prompt(task: Task, request: Request) -> str:
    example = request.example
    lines = [f"[{n}] {escape_tags(task.item_line(item))}" for n, item in request.numbered]
    return fill(
        "teacher",
        title=task.title,
        history="\n".join(lines),
        query=escape_tags(task.query_text(example["input"])),
        generic=escape_tags(example["generic"]),
        target=escape_tags(example["output"]),
    )


def _written(answer: Completion, complaint: str | None = None) -> Written:
    return Written(answer.text, answer.failure, complaint)


# ---- the rules of the personas ------------------------------------------------------------------------------------


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
