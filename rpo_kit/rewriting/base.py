"""The base model in the method (Figure 1): what the black box is asked, and how its answer is read.

It sees the official LaMP input and nothing else: `base_conversation` takes no profile, so none can leak.

    base_conversation("What is the score … review: The lid leaks.")     # [{"role": "user", "content": "What is …"}]
    read_answer(get_task("LaMP-3"), "I would give it a 4.")             # '4'
"""

from __future__ import annotations

import re

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Chat, Completion, Conversation
from rpo_kit.text import replace_surrogates


def base_conversation(query: str) -> Conversation:
    """What the base model sees: the query. No profile can be passed."""
    return [{"role": "user", "content": replace_surrogates(query)}]


def read_answer(task: Task, text: str) -> str:
    """The answer inside a chatty reply: the first label that it names; for generation tasks the first line. (ours)"""
    if task.kind == "generation":
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return first.removeprefix("Title:").removeprefix("Headline:").strip().strip('"').strip()
    labels = task.labels or ("1", "2", "3", "4", "5")
    places = [
        (m.start(), -len(label), label) for label in labels if (m := re.search(_whole(label), text, re.IGNORECASE))
    ]
    return min(places)[2] if places else text.strip()


def _whole(label: str) -> str:
    return rf"(?<!\w){re.escape(label)}(?!\w)"


def answer_tokens(task: Task, tokens: int) -> int:
    """How many tokens an answer may have: a label needs no more than 12 (ours)."""
    return tokens if task.kind == "generation" else min(tokens, 12)


def base_answers(base: Chat, task: Task, prompts: list[str], tokens: int) -> list[Completion]:
    """The base model's answers as they came, in order. KitError where one is missing."""
    conversations = [base_conversation(prompt) for prompt in prompts]
    answers = base.complete(conversations, max_new_tokens=answer_tokens(task, tokens))
    failed = [answer.failure for answer in answers if answer.failure]
    if failed:
        raise KitError(
            f"The model {base.name} left {len(failed)} of {len(prompts)} questions unanswered, the first one with: "
            f"{failed[0]}. Run again; answers that are in the cache are not paid for twice."
        )
    return answers
