"""What makes a LaMP task: the fields in which tasks differ, and the texts that are made from them.

Figure 1 of the paper calls the query q, the varying part of LaMP's `input`; the rest of the input is the instruction.
The tasks themselves are rows in `tasks`; `context` shortens context prompts to a token budget.

In: an item of LaMP-3, `{"id": "301", "text": "Broke  twice.", "score": "1"}`. Out of
`item_line`: `"Broke twice." -> 1`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rpo_kit.errors import KitError

Kind = Literal["classification", "regression", "generation"]
Item = dict[str, str]


@dataclass(frozen=True)
class Task:
    """One LaMP task. `str.format` fills the templates: those of the query from its parts, the others from an item."""

    name: str  # "LaMP-3"
    title: str  # "Product rating"
    kind: Kind
    fields: tuple[str, ...]  # fields of a profile item besides its id
    text_field: str  # the item field that corresponds to the query
    gold_field: str  # the item field that corresponds to the gold
    prefix: str  # the official instruction, with which every input begins
    metrics: tuple[str, ...]  # the first one is the headline metric
    corpus: str  # template: what LaMP indexes for an item
    line: str  # template: one item in the reflection prompt (ours)
    context: str  # template: one item in LaMP's prompt with context, trailing space included

    labels: tuple[str, ...] = ()  # in the order of LaMP's evaluator; () for generation
    answer_names: tuple[str, ...] = ()  # what chatty replies call the answer, in lower case: "rating: 4" (ours)
    label_parts: tuple[str, ...] = ()  # LaMP-1: the part of the query that each label stands for
    gold_is_distinctive: bool = True  # False: "4" or "[1]" in a text may mean something other than the gold
    baselines: tuple[str, ...] = ("copy-nearest",)  # those without a model that make sense here (study/baselines.py)

    query: str = "{text}"  # template: what follows the instruction
    query_shown: str = "{text}"  # template: the query in prompts
    retrieval_quotes: tuple[int, ...] = ()  # indices of the quoted texts that LaMP searches with; (): the query

    context_end: str = ". "  # LaMP: between the joined context lines and the input
    context_after: str = ""  # LaMP-1: the context lines follow the first such word of the input instead
    reserved: str = ""  # LaMP's length rule reserves tokens for these words (not quite those of `context_end`) …
    reserved_tokens: int = 1  # … and for this many tokens besides
    frame_tokens: int | None = None  # LaMP's length rule: tokens of an item's line without its text; None: counted
    measured: str = ""  # … in this template, with a blank for the text; "": in `context`

    shares_official_name: bool = False  # movies and news are both "LaMP_2" in LaMP's files
    no_leave_one_out: str = ""  # why items contain no query; "" if they do
    download_subfolder: str = ""  # below the task's folder on LaMP's server
    placeholder: str = ""  # regular expression: what LaMP's files have in place of a text that may not be distributed
    placeholder_help: str = ""  # how to get the texts

    @property
    def official_name(self) -> str:
        """The name inside LaMP's files: "LaMP_3"."""
        return "_".join(self.name.split("-")[:2])

    @property
    def frame(self) -> str:
        """The template with which LaMP measures an item's line; for LaMP-5 and LaMP-7 not quite `context`."""
        return self.measured or self.context

    @property
    def items_have_labels(self) -> bool:
        """Whether a profile item holds a label (a tag, a category, a rating) in its `gold_field`."""
        return bool(self.labels) and not self.label_parts

    @property
    def is_paraphrase(self) -> bool:
        """Whether an answer says all that the query says, so that the query, unchanged, would be an answer."""
        return "echo" in self.baselines

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the query's parts: ("text",), or ("title", "ref1", "ref2") for LaMP-1."""
        return tuple(self._pattern.groupindex)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches an official input, one group per part. Blanks around the query may differ from the template's."""
        pieces = re.split(r"\{(\w+)\}", self.prefix + self.query)  # literal, part, literal, part, …, literal
        pieces[0] = pieces[0].rstrip()
        groups = (f"(?P<{piece}>.*)" if n % 2 else re.escape(piece) for n, piece in enumerate(pieces))
        return re.compile("".join(groups) + r"\s*", re.DOTALL)

    def make_input(self, **parts: str) -> str:
        """The official input from the query's parts: `text=…`, and for LaMP-1 `title=…, ref1=…, ref2=…`."""
        if set(parts) != set(self.parts):
            raise KitError(
                f"An input of {self.name} is made from {sorted(self.parts)}, not from {sorted(parts)}: pass exactly "
                "those."
            )
        return self.prefix + self.query.format(**parts)

    def is_official(self, input: str) -> bool:
        """Whether the input has this task's instruction, so that the query can be found in it."""
        return self._pattern.fullmatch(input) is not None

    def query_parts(self, input: str) -> dict[str, str]:
        """The parts of the query, {"text": …}. Raises KitError for an input without this task's instruction."""
        match = self._pattern.fullmatch(input)
        if match is None:
            raise KitError(
                f"This is not an input of {self.name}: {input[:60]!r}… It should begin with {self.prefix[:60]!r}…: "
                "check that file and task match, or make inputs with Task.make_input."
            )
        return match.groupdict()

    def query_text(self, input: str) -> str:
        """The query (the varying part of the input), for prompts."""
        return self.query_shown.format(**self.query_parts(input)).strip()

    def references(self, input: str) -> tuple[str, ...]:
        """The texts that the labels stand for, in the order of the labels: LaMP-1's two references."""
        if not self.label_parts:
            raise KitError(
                f"Queries of {self.name} have no references to choose from: use a task whose queries have them."
            )
        parts = self.query_parts(input)
        return tuple(parts[name] for name in self.label_parts)

    def retrieval_query(self, input: str) -> str:
        """What LaMP searches the profile with: the query; for LaMP-1 the two references without the author's title."""
        query = self.query_text(input)
        if not self.retrieval_quotes:
            return query
        # LaMP counts quotation marks, so a title with quotes inside shifts the texts it finds; so do we.
        quoted = input.split('"')[1:-1:2]
        return " ".join(quoted[n] for n in self.retrieval_quotes)

    def corpus_text(self, item: Item) -> str:
        """What LaMP indexes for an item, before the split into words. Raises KitError if the item lacks a field."""
        return self._filled(self.corpus, item)

    def item_line(self, item: Item) -> str:
        """The item in one line, whitespace collapsed, for the reflection prompt."""
        return " ".join(self._filled(self.line, item).split())

    def context_line(self, item: Item) -> str:
        """LaMP's text for one item in a prompt with context (its trailing space included)."""
        return self._filled(self.context, item)

    def _filled(self, template: str, item: Item) -> str:
        try:
            return template.format(**item)
        except (KeyError, TypeError):
            fields = ", ".join(("id", *self.fields))
            missing = [name for name in self.fields if not isinstance(item, dict) or name not in item]
            raise KitError(
                f"A history item lacks {', '.join(missing)}: items of {self.name} ({self.title}) are JSON objects with "
                f"{fields}."
            ) from None

    def context_prompt(self, input: str, items: Sequence[Item]) -> str:
        """LaMP's full prompt with context, not shortened; without items, the bare input."""
        if not items:
            return input
        joined = ", and ".join(self.context_line(item) for item in items)
        if not self.context_after:
            return joined + self.context_end + input
        head, _, tail = input.partition(self.context_after)
        return f"{head}{self.context_after}, and {joined}{tail}"
