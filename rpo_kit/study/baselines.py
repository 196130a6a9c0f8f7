"""Other ways to personalize, for the same table: no RPO, no training.

    context-K      context injection, LaMP's way: the K best-ranked items in the base model's prompt; `context`: all k
    pag-K          profile-augmented generation: the base model summarizes the profile, then answers with the summary
                   and K items (Richardson et al., arXiv 2310.20081)
    echo           the query, unchanged
    lead-N         the first N words of the query; `lead`: as many as the median gold of the train split has
    constant       one label for everybody, the one that scores best on the train split
    majority       the user's most frequent label; for ratings the user's median
    copy-nearest   the gold of the item that is ranked first

The last five, the trivial ones, use no model; `Task.baselines` says which make sense for a task. `echo` is for queries
that are texts like the gold (LaMP-7), `lead` for golds that shorten the query, `constant` for golds that are labels,
and `majority` for items that have labels. LaMP-1's items contain no gold; there copy-nearest takes the reference that
shares more words with the first item. A user without history gets the generic answer from `majority` and
`copy-nearest`. No baseline trains the base model.

The first two send all requests at once and yield records as the answers arrive, so that each can be stored. An example
that the base model did not answer yields a record with `failure`.

    majority(get_task("LaMP-3"), example)      # '4.5' for a user who gave 4, 4, 5 and 5
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Required, TypedDict

from rpo_kit.errors import KitError
from rpo_kit.lamp.context import lamp_prompt
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.metrics import example_scores
from rpo_kit.lamp.retrieval import rank, top_k
from rpo_kit.lamp.tasks import Task
from rpo_kit.models.chat import Batch, Chat, Completion, WindowedChat, reporting_cost, stream_completions
from rpo_kit.models.local import prompt_tokens
from rpo_kit.rewriting.base import answer_tokens, base_conversation, base_conversations, read_answer
from rpo_kit.rewriting.prompts import escape_tags, fill
from rpo_kit.runs import append_records, read_records
from rpo_kit.setting_rules import TRIVIAL, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROM_TRAIN = ("lead", "constant")  # they read the golds of the train split
_WHY_UNDEFINED = {  # sentences begin with "majority left out, because"
    "echo": "queries of {} are not texts like the gold",
    "lead": "golds of {} do not shorten the query",
    "constant": "golds of {} are not labels",
    "majority": "items of {} have no label",
}
PAG_ITEMS = 16  # ours: the newest items are summarized
PAG_WORDS = 40  # ours: words of each of their fields
# ours: (items, characters of each field), tried in turn until the request fits the window of a model in this process
PAG_STEPS = ((PAG_ITEMS, None), (PAG_ITEMS, 200), (PAG_ITEMS, 100), (PAG_ITEMS, 50), (PAG_ITEMS, 25), (4, 25), (1, 25))
PAG_TOKENS = 96  # ours: length of the summary


class Record(TypedDict, total=False):
    """What one system answered for one example: a line of `evaluate/records/<system>.jsonl`."""

    id: Required[str]
    prediction: str
    raw: str  # the model's completion, from which `prediction` was read
    finished: bool  # False if the completion was cut off at the token limit
    tokens: int  # of the reflection module's completion
    complaint: str | None  # why the reflection module's completion is not a trajectory
    shortened: bool  # whether history items had to be shortened to fit the module's prompt
    summary: str  # of the profile, for pag-K
    failure: str  # why there is no prediction; such a record is not stored


def trivial_answers(task: Task, examples: list[Example], train_golds: Sequence[str]) -> dict[str, list[str]]:
    """The answers of each trivial baseline that the task and the data have."""
    names = [name for name in TRIVIAL if name in task.baselines and (train_golds or name not in FROM_TRAIN)]
    known = {name: answer_of(name, task, train_golds) for name in names}
    return {name: [answer(task, example) for example in examples] for name, answer in known.items()}


def why_undefined(name: str, task: Task) -> str:
    """Why the system cannot answer examples of this task; "" if it can."""
    kind = kind_of(name)
    if kind not in TRIVIAL or kind in task.baselines:
        return ""
    return _WHY_UNDEFINED.get(kind, "{} does not have it").format(task.name)


# ---- without a model ----------------------------------------------------------------------------------------------


Answer = Callable[[Task, Example], str]


def answer_of(system: str, task: Task, golds: Sequence[str]) -> Answer:
    """The function that answers for a trivial baseline, or for `base`, whose answers are stored; `golds` are those of
    train, for the baselines in FROM_TRAIN.
    """
    if kind_of(system) == "lead":
        return lead(system, golds)
    if system == "constant":
        return constant(task, golds)
    known: dict[str, Answer] = {"base": base_answer, "echo": echo, "majority": majority, "copy-nearest": copy_nearest}
    return known[system]


def base_answer(task: Task, example: Example) -> str:
    """The generic answer."""
    return str(example["generic"])


def echo(task: Task, example: Example) -> str:
    """The query, unchanged."""
    return task.query_text(example["input"])


def lead(name: str, golds: Sequence[str]) -> Callable[[Task, Example], str]:
    """The function that returns the query's first N words: the N of "lead-N", or that of the median gold of train."""
    number = name.removeprefix("lead").removeprefix("-")
    words = int(number) if number else max(1, median_low(len(gold.split()) for gold in golds))
    return lambda task, example: " ".join(task.query_text(example["input"]).split()[:words])


def constant(task: Task, golds: Sequence[str]) -> Callable[[Task, Example], str]:
    """The function that returns the label with the best mean score on the golds of train; in a tie the first one."""
    best = max(task.labels, key=lambda label: example_scores(task, golds, [label] * len(golds)).mean())
    return lambda task, example: best


def majority(task: Task, example: Example) -> str:
    """The user's most frequent label, in a tie the one of the better-ranked item; for ratings the median."""
    labels = [item[task.gold_field] for item in top_k(example, example["ranking"], len(example["ranking"]))]
    if not labels:
        return str(example["generic"])
    if task.kind == "regression":
        return f"{median(float(label) for label in labels):g}"
    return Counter(labels).most_common(1)[0][0]  # most_common keeps the order of first appearance


def copy_nearest(task: Task, example: Example) -> str:
    """The gold of the item ranked first; for LaMP-1 the reference with more of its words in that item."""
    nearest = top_k(example, example["ranking"], 1)
    if not nearest:
        return str(example["generic"])
    if not task.label_parts:
        return nearest[0][task.gold_field]
    known = set(task.corpus_text(nearest[0]).lower().split())
    references = [reference.lower().split() for reference in task.references(example["input"])]
    first, second = (sum(word in known for word in words) / max(1, len(words)) for words in references)
    return task.labels[0] if first >= second else task.labels[1]


def without_model(answer: Callable[[Task, Example], str], task: Task) -> Callable[[list[Example]], list[Record]]:
    """A function from examples to records for a baseline that answers example by example."""
    return lambda chunk: [{"id": example["id"], "prediction": answer(task, example)} for example in chunk]


# ---- with the base model ------------------------------------------------------------------------------------------


def inject_context(base: Chat, task: Task, examples: list[Example], shots: int, tokens: int) -> Iterator[list[Record]]:
    """Context injection, LaMP's own way to personalize: the k items before the query, in the base model's prompt."""
    tokenizer, limit = _window(base, tokens)
    prompts = [_prompt_with_items(task, example, shots, tokenizer, limit) for example in examples]
    yield from _answer(base, task, examples, prompts, tokens)


def answer_with_summary(
    base: Chat, task: Task, examples: list[Example], shots: int, tokens: int, path: Path
) -> Iterator[list[Record]]:
    """Profile-augmented generation: the prompt begins with a summary of the profile, written without the query.

    Summaries are stored in `path` and shared by all K. Failed ones are yielded as records with `failure`.
    """
    known = {record["id"] for record in read_records(path)}
    missing = [example for example in examples if example["id"] not in known]
    requests = [_summary_request(base, task, example) for example in missing]
    for batch in _complete(base, requests, PAG_TOKENS):
        answers = [(missing[index]["id"], answer) for index, answer in batch]
        append_records(path, [{"id": id_, "summary": a.text.strip()} for id_, a in answers if not a.failure])
        yield [{"id": id_, "failure": f"no summary: {a.failure}"} for id_, a in answers if a.failure]
    summaries = {record["id"]: record["summary"] for record in read_records(path)}
    summarized = [example for example in examples if example["id"] in summaries]
    prompts = [_prompt_with_summary(base, task, e, shots, summaries[e["id"]], tokens) for e in summarized]
    for records in _answer(base, task, summarized, prompts, tokens):
        yield [record | {"summary": summaries[record["id"]]} for record in records]


def _summary_request(base: Chat, task: Task, example: Example) -> str:
    """The request for a summary: fields are shortened, then items left out, until it fits the model's window."""
    newest = top_k(example, rank(task, [example], "recency")[0], PAG_ITEMS)
    for count, characters in PAG_STEPS:
        lines = []
        for item in newest[:count]:
            fields = {name: " ".join(item[name].split()[:PAG_WORDS])[:characters] for name in task.fields}
            lines.append(f"- {escape_tags(task.item_line(item | fields))}")
        request = fill("pag_summary", title=task.title, history="\n".join(lines) or "(empty)")
        if _excess_tokens(base, request, PAG_TOKENS) <= 0:
            return request
    raise KitError(
        f"The history of example {example['id']} cannot be summarized by {base.name}: even one shortened item does not "
        "fit into a window of reflection.max_seq_length tokens. Raise that setting, or remove pag-K from the systems."
    )


def _prompt_with_summary(base: Chat, task: Task, example: Example, shots: int, summary: str, tokens: int) -> str:
    """The prompt with items and summary; items are shortened, then left out, until it fits the model's window."""
    tokenizer, limit = _window(base, tokens)
    while True:
        with_items = _prompt_with_items(task, example, shots, tokenizer, limit)
        prompt = fill("pag_answer", summary=summary, prompt=with_items)
        excess = _excess_tokens(base, prompt, tokens)
        if excess <= 0:
            return prompt
        if with_items == example["input"]:
            raise KitError(
                f"Example {example['id']} with its summary is {excess} tokens too long for the window of {base.name}, "
                "even without items: raise reflection.max_seq_length, or remove pag-K from the systems."
            )
        limit -= excess


def _prompt_with_items(
    task: Task, example: Example, shots: int, tokenizer: PreTrainedTokenizerBase | None, limit: int
) -> str:
    items = top_k(example, example["ranking"], shots)
    return lamp_prompt(task, example["input"], items, tokenizer, limit, example_id=example["id"])


def _answer(base: Chat, task: Task, examples: list[Example], prompts: list[str], tokens: int) -> Iterator[list[Record]]:
    """Records as the answers arrive: `prediction`, `raw` and `finished`, or `failure`."""

    def record(example: Example, answer: Completion) -> Record:
        if answer.failure:
            return {"id": example["id"], "failure": answer.failure}
        prediction = read_answer(task, answer.text)
        return {"id": example["id"], "prediction": prediction, "raw": answer.text, "finished": answer.finished}

    for batch in _complete(base, prompts, answer_tokens(task, tokens)):
        yield [record(examples[index], answer) for index, answer in batch]


def _complete(base: Chat, prompts: list[str], tokens: int) -> Iterator[Batch]:
    """The base model's completions, in batches as they arrive; the cost is reported."""
    conversations = base_conversations(base, prompts)
    if not conversations:
        return
    with reporting_cost(base, conversations, tokens):
        yield from stream_completions(base, conversations, max_new_tokens=tokens)


def _excess_tokens(base: Chat, prompt: str, tokens: int) -> int:
    """Tokens by which prompt and answer exceed the window of a model in this process.

    0 for an endpoint: its window is unknown here, and it rejects what is too long.
    """
    if not isinstance(base, WindowedChat):
        return 0
    return prompt_tokens(base.tokenizer, base_conversation(prompt, base.tokenizer)) + tokens - base.max_seq_length


def _window(base: Chat, tokens: int) -> tuple[PreTrainedTokenizerBase | None, int]:
    """The tokenizer of a model in this process and the tokens left for a prompt; (None, 0) for an endpoint."""
    if not isinstance(base, WindowedChat):
        return None, 0
    return base.tokenizer, base.max_seq_length - prompt_tokens(base.tokenizer, base_conversation("")) - tokens
