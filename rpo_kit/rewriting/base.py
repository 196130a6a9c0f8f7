"""The base model in the method (Figure 1, left): what the black box is asked, and how its answer is read.

It sees LaMP's input and nothing else: no function in this module takes a profile, so none can leak. The answer that
comes out is the generic answer. Left out: prompts with history items, which are baselines (`study/baselines.py`).

    base_conversation("What is the score … review: The lid leaks.")     # [{"role": "user", "content": "What is …"}]
    read_answer(get_task("LaMP-3"), "I would give it a 4.")             # '4'
"""

from __future__ import annotations

import re

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Chat, Completion, Conversation
from rpo_kit.text import replace_surrogates


def base_conversation(input: str) -> Conversation:
    """What the base model is sent: LaMP's whole input as the only message."""
    return [{"role": "user", "content": replace_surrogates(input)}]


def answer_tokens(task: Task, tokens: int) -> int:
    """How many tokens an answer may have: a label needs no more than 12 (ours)."""
    return tokens if task.kind == "generation" else min(tokens, 12)


def base_answers(base: Chat, task: Task, inputs: list[str], tokens: int) -> list[Completion]:
    """The base model's raw answers, in the order of `inputs`.

    Raises:
        KitError: an answer is missing; the message holds the first reason.
    """
    conversations = [base_conversation(input) for input in inputs]
    answers = base.complete(conversations, max_new_tokens=answer_tokens(task, tokens))
    failures = [answer.failure for answer in answers if answer.failure]
    if failures:
        raise KitError(
            f"The model {base.name} did not answer {len(failures)} of {len(inputs)} queries; the first failure: "
            f"{failures[0]}. Run again; cached answers are not paid for twice."
        )
    return answers


def read_answer(task: Task, text: str) -> str:
    """The answer inside a chatty reply: the first label that it names; for generation tasks the first line. (ours)"""
    if task.kind == "generation":
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        # small models repeat the word of the instruction, and put quotes around a title
        return first.removeprefix("Title:").removeprefix("Headline:").strip().strip('"').strip()
    mentions = []  # the first label wins, and of two that begin together the longer one
    for label in task.labels or ("1", "2", "3", "4", "5"):
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE)
        if match:
            mentions.append((match.start(), -len(label), label))
    return min(mentions)[2] if mentions else text.strip()
