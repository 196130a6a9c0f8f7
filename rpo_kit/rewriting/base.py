"""The base model in the method (Figure 1, left): its prompt, and how its answer is read.

It sees LaMP's input and nothing else: no function in this module takes a profile, so none can leak. The result is the
generic answer, which `lamp/reading.py` extracts from a chatty reply. Prompts with history items are baselines
(`study/baselines.py`).

    base_conversation("What is the score … review: The lid leaks.")     # [{"role": "user", "content": "What is …"}]
    read_answer(get_task("LaMP-3"), "I would give it a 4.")             # '4'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.reading import read
from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Chat, Completion, Conversation, WindowedChat
from rpo_kit.text import break_special_tokens, replace_surrogates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def base_conversation(input: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Conversation:
    """The base model's prompt: LaMP's input as the only message.

    With a local model's tokenizer, special tokens in the input are broken up; a server does that itself.
    """
    text = replace_surrogates(input)
    return [{"role": "user", "content": break_special_tokens(text, tokenizer) if tokenizer else text}]


def base_conversations(base: Chat, inputs: Sequence[str]) -> list[Conversation]:
    """`base_conversation` of each input, for this model."""
    tokenizer = base.tokenizer if isinstance(base, WindowedChat) else None
    return [base_conversation(input, tokenizer) for input in inputs]


def answer_tokens(task: Task, tokens: int) -> int:
    """The token limit of an answer; a label needs no more than 12 (ours)."""
    return tokens if task.kind == "generation" else min(tokens, 12)


def base_answers(base: Chat, task: Task, inputs: list[str], tokens: int) -> list[Completion]:
    """The base model's raw answers, in the order of `inputs`.

    Raises:
        KitError: an answer is missing; the message gives the first reason.
    """
    conversations = base_conversations(base, inputs)
    answers = base.complete(conversations, max_new_tokens=answer_tokens(task, tokens))
    failures = [answer.failure for answer in answers if answer.failure]
    if failures:
        raise KitError(
            f"The model {base.name} did not answer {len(failures)} of {len(inputs)} queries; the first failure: "
            f"{failures[0]}. Run again; cached answers are not paid for twice."
        )
    return answers


def read_answer(task: Task, text: str) -> str:
    """The answer inside a chatty reply (see `lamp/reading.py`)."""
    return read(task, text).text


def generic_record(task: Task, id: str, answer: Completion) -> dict[str, object]:
    """The line of `generic.jsonl` for an answer: the text read from it, the raw text, and anything unusual about it."""
    reading = read(task, answer.text)
    record: dict[str, object] = {"id": id, "text": reading.text, "raw": answer.text}
    if not answer.finished:
        record["finished"] = False
    after = answer.text.rpartition(reading.text)[2] if reading.text and task.kind == "generation" else ""
    lines = ["lines"] if any(line.strip(' `~"') for line in after.splitlines()[1:]) else []
    if removed := [*reading.removed, *lines]:
        record["removed"] = removed
    if reading.refusal:
        record["refusal"] = True
    return record


def describe_oddities(records: Sequence[Mapping[str, Any]], tokens: int) -> str:
    """One line on preambles, thoughts, lines, empty answers, refusals and answers longer than the limit of `tokens`; ""
    if there are none.
    """
    removed = Counter(part for record in records for part in record.get("removed", []))
    counts = {
        "had a preamble, which was removed": removed["preamble"],
        "had thoughts, which were removed": removed["thoughts"],
        "had several lines, of which one is used": removed["lines"],
        "are empty": sum(not record["text"].strip() for record in records),
        "are refusals, which are kept as the answer": sum(record.get("refusal", False) for record in records),
        f"are longer than the limit of {tokens} tokens and are cut if a prompt has no room for them": sum(
            len(record["text"].split()) > tokens for record in records
        ),
    }
    oddities = "; ".join(f"{count} {oddity}" for oddity, count in counts.items() if count)
    return f"of {len(records)} generic answers {oddities}" if oddities else ""
