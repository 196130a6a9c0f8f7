"""Teachers: who writes the Structured Rewriting Trajectories (Figure 2, top).

A teacher sees the query, the generic answer, one or more history items and, if it is a chat model, the gold, and spells
out how to get from the generic answer to the gold. Two kinds are here; `hindsight.py` has rules for LaMP's own texts,
and `imported.py` reads trajectories that were written elsewhere.

`ChatTeacher` is any chat model. A rejected text is sent back once, with the reason. Texts are yielded as they come, so
that a killed process loses none; a request that an endpoint does not answer fails alone.

`persona_teacher` is a set of rules for the embedded benchmark. It reads the hidden facts that are stored beside the
texts and concludes from the history items alone. So it is wrong, and rejected, if the items do not show the user's
habit.
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
from rpo_kit.model_spec import recorded_files
from rpo_kit.models.chat import Chat, Completion, Conversation, reporting_cost, stream_completions
from rpo_kit.rewriting.prompts import escape_tags, fill, prompt_fingerprints
from rpo_kit.rewriting.trajectory import Trajectory, render
from rpo_kit.runs import Run
from rpo_kit.setting_rules import MODEL_FORMS, RULE_TEACHERS

TOKENS = 400  # ours: enough for a trajectory of 200 words and its tags
_MAX_RETURNED = 4_000  # ours: characters of a rejected text that are sent back; TOKENS are about half as many


@dataclass(frozen=True)
class Request:
    """One request to a teacher: a training example, and the history items that its trajectory should cite."""

    id: str
    example: Example
    items: list[Item]
    first: int = 1  # the number of the first item; an item's number is its rank

    @property
    def numbered(self) -> list[tuple[int, Item]]:
        return list(enumerate(self.items, self.first))


@dataclass(frozen=True)
class Draft:
    """A teacher's text for a request, or the reason why there is none. If it is a second text, `first_error` says what
    was wrong with the first. `reason` is why the teacher itself would not train on its text. `ends_in` is the rewrite
    that it aims at, if not at the gold.
    """

    text: str
    failure: str | None = None
    first_error: str | None = None
    reason: str | None = None
    ends_in: str = ""


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
    """The prompts of a chat teacher, as inputs of `synthesize`; rules and imported trajectories need none."""
    named = run.preset.synthesis.teacher
    chat = named not in RULE_TEACHERS and not recorded_files(named)
    return {"prompts": prompt_fingerprints("teacher", "teacher_again")} if chat else {}


# ---- a chat model -------------------------------------------------------------------------------------------------


class ChatTeacher:
    """A chat model that writes trajectories."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Draft]]]:
        """Drafts as they arrive; what `judge` rejects is requested once more, at the end."""
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
    """The conversation that asks again, with the first text (cut if it is very long) and what was wrong with it."""
    if len(text) > _MAX_RETURNED:  # from a server that ignores the token limit; the retry would fail, or be expensive
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
                "The rule-based teacher `persona` needs facts that only the embedded benchmark stores: for other data, "
                f"set synthesis.teacher to hindsight, {MODEL_FORMS}."
            )
        read = [(n, item, facts["items"][item["id"]]) for n, item in request.numbered]
        habits = [habit for _, item, fact in read if (habit := rules.shown_habit(item, fact))]
        if not habits:
            texts.append("")  # nothing to observe: rejected with "no tags"
            continue
        habit = Counter(habits).most_common(1)[0][0]
        observe = "\n".join(f"[{n}] {rules.observe(item, fact)}" for n, item, fact in read)
        plan = rules.plan(habit, facts["query"], request.example["generic"])
        texts.append(render(Trajectory(observe, plan, rules.apply(habit, facts["query"]))))
    return texts
