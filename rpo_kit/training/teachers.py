"""Teachers: who writes the Structured Rewriting Trajectories (Figure 2, left).

A teacher sees the query, the generic answer, one or more history items and, if it is a chat model, the gold, and makes
explicit how one gets from the generic answer to the gold. There are two kinds:

`ChatTeacher` is any chat model. A text that cannot be used is sent back once, with the reason. Texts are handed out as
they arrive, so a kill loses nothing; a request that an endpoint does not answer fails alone.

`persona_teacher` is a set of rules for the embedded benchmark. It reads the hidden facts that `personas` stores beside
the texts and draws its conclusion from the history items alone. So it is wrong, and rejected, if the items do not show
the user's habit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.personas import persona
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.models.chat import Chat, Completion, Conversation, reporting_cost, stream_completions
from rpo_kit.rewriting.prompts import escape_tags, fill, prompt_fingerprints
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.runs import Run

TOKENS = 400  # ours: enough for a trajectory of 200 words and its tags
_MAX_RETURNED = 4_000  # ours: characters of a useless text that are sent back; TOKENS make about half as many


@dataclass(frozen=True)
class Request:
    """What the teacher is asked: one training example, and the history items on which its trajectory should rest."""

    id: str
    example: Example
    items: list[Item]
    first: int = 1  # an item's number is its rank; this is the first item's

    @property
    def numbered(self) -> list[tuple[int, Item]]:
        return list(enumerate(self.items, self.first))


@dataclass(frozen=True)
class Draft:
    """A teacher's text for a request, or the reason why there is none; `first_error` is what was wrong with its first
    text, if this is the second.
    """

    text: str
    failure: str | None = None
    first_error: str | None = None


Rules = Callable[[Task, list[Request]], list[str]]  # a teacher in this process: one text per request, at once
Judge = Callable[[Request, str], str | None]  # why the text cannot be used, or None


@runtime_checkable
class Teacher(Protocol):
    """Writes one draft per request."""

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Draft]]]:
        """Batches of drafts as they are ready; `judge` says why a text cannot be used."""
        ...


def prompt_inputs(run: Run) -> dict[str, dict[str, str]]:
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
    ) -> Iterator[list[tuple[Request, Draft]]]:
        """Drafts as they arrive; those that `judge` rejects are asked for once more, at the end."""
        prompts: list[Conversation] = [[{"role": "user", "content": teacher_prompt(task, r)}] for r in requests]
        retries: list[tuple[Request, Conversation, str]] = []
        with reporting_cost(self.chat, prompts, TOKENS):
            for batch in stream_completions(self.chat, prompts, max_new_tokens=TOKENS, chunk=chunk):
                drafts = []
                for index, answer in batch:
                    error = None if answer.failure else judge(requests[index], answer.text)
                    if error:
                        retries.append((requests[index], retry_conversation(prompts[index], answer.text, error), error))
                    else:
                        drafts.append((requests[index], _draft(answer)))
                yield drafts
            again = [conversation for _, conversation, _ in retries]
            for batch in stream_completions(self.chat, again, max_new_tokens=TOKENS, chunk=chunk):
                yield [(retries[index][0], _draft(answer, retries[index][2])) for index, answer in batch]


def retry_conversation(prompt: Conversation, text: str, error: str) -> Conversation:
    """The conversation that asks once more, and says what was wrong with the first text (cut if it is very long)."""
    if len(text) > _MAX_RETURNED:  # a server that ignores the limit of tokens; the request would be refused, or paid
        text = f"{text[:_MAX_RETURNED]} …"
    again = fill("teacher_again", complaint=error)
    return [*prompt, {"role": "assistant", "content": text}, {"role": "user", "content": again}]


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


def _draft(answer: Completion, first_error: str | None = None) -> Draft:
    return Draft(answer.text, answer.failure, first_error)


# ---- rules --------------------------------------------------------------------------------------------------------


class RuleTeacher:
    """Rules as a `Teacher`: a chunk of requests at a time, no second attempt."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Draft]]]:
        for start in range(0, len(requests), chunk):
            batch = requests[start : start + chunk]
            yield [(request, Draft(text)) for request, text in zip(batch, self.rules(task, batch), strict=True)]


def persona_teacher(task: Task, requests: list[Request]) -> list[str]:
    """The rules of the personas: observe each item, take the habit that most of them show, apply it to the query.

    Raises:
        KitError: the examples carry no facts, because they are not from the embedded benchmark.
    """
    rules = persona(task.name)
    texts = []
    for request in requests:
        facts = request.example["facts"]
        if not facts:
            raise KitError(
                "The persona teacher reads the facts stored with `personas`; for other data set synthesis.teacher."
            )
        read = [(n, item, facts["items"][item["id"]]) for n, item in request.numbered]
        habits = [habit for _, item, fact in read if (habit := rules.shown_habit(item, fact))]
        if not habits:
            texts.append("")  # nothing to observe: counted as rejected ("no tags")
            continue
        habit = Counter(habits).most_common(1)[0][0]
        observe = "\n".join(f"[{n}] {rules.observe(item, fact)}" for n, item, fact in read)
        plan = rules.plan(habit, facts["query"], request.example["generic"])
        texts.append(render(Trajectory(observe, plan, rules.apply(habit, facts["query"]))))
    return texts
