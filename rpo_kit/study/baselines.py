"""Other ways to personalise, for the same table: no RPO, no training.

    context-K      the K best-ranked items in the base model's prompt, LaMP's way (context injection); `context`: all k
    pag-K          the base model first summarises the profile, then answers with the summary and K items (PAG)
    majority       the user's most frequent label; for ratings the user's median
    copy-nearest   the output of the item that is ranked first

The last two ask no model. They are not defined everywhere: items of LaMP-1 and of the generation tasks have no label.
For LaMP-1, where a history holds no answers, copy-nearest takes the reference which shares more words with that item.
A user without history gets the generic answer. Left out: training the base model.

The first two ask for all questions at once and give records as they come, so that each can be stored; a question that
the base model leaves unanswered comes back as a record with `failure`.

    majority(get_task("LaMP-3"), example)      # '4.5' for a user who gave 4, 4, 5 and 5
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.context import lamp_prompt
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Chat, Completion, WindowedChat, reporting_cost, stream_completions
from rpo_kit.models.local import prompt_tokens
from rpo_kit.rewriting.base import answer_tokens, base_conversation, read_answer
from rpo_kit.rewriting.prompts import escape_tags, fill
from rpo_kit.runs import append_records, read_records

PAG_ITEMS = 16  # ours: the newest items are summarised
PAG_WORDS = 40  # ours: words of each field of them
# ours: (items, letters of each field) where a model in this process has less room
PAG_STEPS = ((PAG_ITEMS, None), (PAG_ITEMS, 200), (PAG_ITEMS, 100), (PAG_ITEMS, 50), (PAG_ITEMS, 25), (4, 25), (1, 25))
PAG_TOKENS = 96  # ours: length of the summary
Record = dict[str, Any]  # id, prediction; of a model also raw and finished; of the reflection module also complaint


def is_defined(name: str, task: Task) -> bool:
    """Whether the system can answer questions of this task."""
    return name != "majority" or task.items_have_labels


def shots_of(name: str, shots: int) -> int:
    """The K of "context-K" or "pag-K"; of "context" alone the given number."""
    kind, dash, number = name.partition("-")
    if dash and not number.isdecimal():
        raise KitError(f"There is no system {name!r}: write {kind}-K with K history items, such as {kind}-4.")
    return int(number) if dash else shots


# ---- without a model ----------------------------------------------------------------------------------------------


def majority(task: Task, example: Example) -> str:
    """The user's most frequent label, of equally frequent ones the better-ranked item's; of ratings the median."""
    labels = [item[task.gold_field] for item in top_k(example, example["ranking"], len(example["ranking"]))]
    if not labels:
        return str(example["generic"])
    if task.kind == "regression":
        return f"{median(float(label) for label in labels):g}"
    return Counter(labels).most_common(1)[0][0]  # most_common keeps the order of first appearance


def copy_nearest(task: Task, example: Example) -> str:
    """The output of the item ranked first; for LaMP-1 the reference which has more of its words in that item."""
    nearest = top_k(example, example["ranking"], 1)
    if not nearest:
        return str(example["generic"])
    if not task.label_parts:
        return nearest[0][task.gold_field]
    known = set(task.corpus_text(nearest[0]).lower().split())
    first, second = (_share(reference.lower().split(), known) for reference in task.references(example["input"]))
    return task.labels[0] if first >= second else task.labels[1]


def _share(words: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in words) / max(1, len(words))


def without_model(answer: Callable[[Task, Example], str], task: Task) -> Callable[[list[Example]], list[Record]]:
    return lambda chunk: [{"id": example["id"], "prediction": answer(task, example)} for example in chunk]


# ---- with the base model ------------------------------------------------------------------------------------------


def inject_context(base: Chat, task: Task, examples: list[Example], shots: int, tokens: int) -> Iterator[list[Record]]:
    """LaMP's own way to personalise: the k items in front of the query, in the base model's prompt."""
    tokenizer, limit = _window(base, tokens)
    prompts = [_with_items(task, example, shots, tokenizer, limit) for example in examples]
    yield from _answered(base, task, examples, prompts, tokens)


def answer_with_summary(
    base: Chat, task: Task, examples: list[Example], shots: int, tokens: int, kept: Path
) -> Iterator[list[Record]]:
    """Profile-augmented generation: a summary of the profile, which does not depend on the query, before the prompt.

    Summaries are stored in `kept`, and made once for every K.
    """
    yield from _summarise(base, task, examples, kept)
    summaries = {record["id"]: record["summary"] for record in read_records(kept)}
    told = [(example, summaries[example["id"]]) for example in examples if example["id"] in summaries]
    prompts = [_with_summary(base, task, example, shots, summary, tokens) for example, summary in told]
    for batch in _answered(base, task, [example for example, _ in told], prompts, tokens):
        yield [record | {"summary": summaries[record["id"]]} for record in batch]


def _summarise(base: Chat, task: Task, examples: list[Example], kept: Path) -> Iterator[list[Record]]:
    """Store the summaries that are missing; what comes out are the failures."""
    known = {record["id"] for record in read_records(kept)}
    missing = [example for example in examples if example["id"] not in known]
    prompts = [_summary_request(base, task, example) for example in missing]
    for batch in _asked(base, prompts, PAG_TOKENS):
        found = [(missing[place]["id"], answer) for place, answer in batch]
        append_records(kept, [{"id": id_, "summary": a.text.strip()} for id_, a in found if not a.failure])
        yield [{"id": id_, "failure": f"no summary: {a.failure}"} for id_, a in found if a.failure]


def _summary_request(base: Chat, task: Task, example: Example) -> str:
    """The request for a summary: fields are cut, then items left out, until it fits the model's window."""
    newest = top_k(example, rank(task, [example], "recency")[0], PAG_ITEMS)
    for items, letters in PAG_STEPS:
        cut = [item | {name: _cut(item[name], letters) for name in task.fields} for item in newest[:items]]
        lines = [f"- {escape_tags(task.item_line(item))}" for item in cut]
        request = fill("pag_summary", title=task.title, history="\n".join(lines) or "(empty)")
        if _passed(base, request, PAG_TOKENS) <= 0:
            return request
    raise KitError(
        f"The history of question {example['id']} cannot be summarised by {base.name} in a window of "
        "reflection.max_seq_length tokens, however it is cut: raise that setting, or leave pag-K out."
    )


def _cut(text: str, letters: int | None) -> str:
    return " ".join(text.split()[:PAG_WORDS])[:letters]


def _with_summary(base: Chat, task: Task, example: Example, shots: int, summary: str, tokens: int) -> str:
    """The question with items and summary; items give way until all of it fits the model's window."""
    tokenizer, limit = _window(base, tokens)
    while True:
        question = _with_items(task, example, shots, tokenizer, limit)
        prompt = fill("pag_answer", summary=summary, prompt=question)
        passed = _passed(base, prompt, tokens)
        if passed <= 0:
            return prompt
        if question == example["input"]:
            raise KitError(
                f"Question {example['id']} and its summary pass the window of {base.name} by {passed} tokens, without "
                "any item: raise reflection.max_seq_length, or leave pag-K out."
            )
        limit -= passed


def _with_items(task: Task, example: Example, shots: int, tokenizer: Any, limit: int) -> str:
    items = top_k(example, example["ranking"], shots)
    return lamp_prompt(task, example["input"], items, tokenizer, limit, name=example["id"])


def _answered(
    base: Chat, task: Task, examples: list[Example], prompts: list[str], tokens: int
) -> Iterator[list[Record]]:
    """Records as the answers come: `prediction`, `raw` as it came and whether it was `finished`; or `failure`."""

    def record(answer: Completion) -> Record:
        if answer.failure:
            return {"failure": answer.failure}
        return {"prediction": read_answer(task, answer.text), "raw": answer.text, "finished": answer.finished}

    for batch in _asked(base, prompts, answer_tokens(task, tokens)):
        yield [{"id": examples[place]["id"]} | record(answer) for place, answer in batch]


def _asked(base: Chat, prompts: list[str], tokens: int) -> Iterator[list[tuple[int, Completion]]]:
    asked = [base_conversation(prompt) for prompt in prompts]
    if not asked:
        return
    with reporting_cost(base, asked, tokens):
        yield from stream_completions(base, asked, max_new_tokens=tokens)


def _passed(base: Chat, prompt: str, tokens: int) -> int:
    """By how many tokens prompt and answer pass the window of a model in this process; 0 for an endpoint, as below."""
    if not isinstance(base, WindowedChat):
        return 0
    return prompt_tokens(base.tokenizer, base_conversation(prompt)) + tokens - base.max_seq_length


def _window(base: Chat, tokens: int) -> tuple[Any, int]:
    """Tokenizer and room for a prompt of a model in this process; an endpoint cuts nothing and says so if it must."""
    if not isinstance(base, WindowedChat):
        return None, 0
    tokenizer = base.tokenizer
    frame = tokenizer.apply_chat_template(base_conversation(""), add_generation_prompt=True, return_dict=False)
    return tokenizer, base.max_seq_length - len(frame) - tokens
