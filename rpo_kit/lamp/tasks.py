"""What a LaMP task is: its instruction, its labels, its profile fields, and the texts made from them.

One `Task` a LaMP task, as data: everything which the method does differently from task to task stands in the tables
below. `TASKS` are the public ones (1, 2 movies, 3, 4, 5, 7), which the embedded personas imitate; `MORE_TASKS` are read
from files that somebody has: the deprecated news variant of LaMP-2, and LaMP-6, whose e-mails are licensed apart.
Figure 1 of the paper calls the question q and the profile U. Left out: shortening context prompts to a token budget (see
`context`). The wording of the instructions, of what is indexed and of the context lines is LaMP's.

>>> task = get_task("LaMP-3")
>>> task.make_input(text="Does what it should.")
'What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further explanation. review: Does what it should.'
>>> task.item_line({"id": "301", "text": "Broke  twice.", "score": "1"})
'"Broke twice." -> 1'
"""  # noqa: E501

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from rpo_kit.errors import KitError

Kind = Literal["classification", "regression", "generation"]
Item = dict[str, str]

# LaMP-1 is the only input with three varying parts; what stands between them is fixed.
_CITATION_MIDDLE = ", which reference is related? Just answer with [1] or [2] without explanation. "
_CITATION = re.compile(
    r'"(?P<title>.*)"' + re.escape(_CITATION_MIDDLE) + r'\[1\]: "(?P<ref1>.*)" \[2\]: "(?P<ref2>.*)"\s*', re.DOTALL
)


@dataclass(frozen=True)
class Task:
    """One LaMP task. Templates are filled from the fields of a profile item by `str.format`."""

    name: str  # "LaMP-3"
    title: str  # "Product rating"
    kind: Kind
    labels: tuple[str, ...]  # in the order of LaMP's evaluator; () for generation
    fields: tuple[str, ...]  # fields of a profile item beside its id
    text_field: str  # the field of an item which is of the same kind as the varying text of a question
    gold_field: str  # the field of an item which is of the same kind as the output
    prefix: str  # the official instruction before the varying text
    metrics: tuple[str, ...]  # the first one is the headline metric
    corpus: str  # template: what LaMP indexes for an item
    line: str  # template: one item in the reflection prompt (ours)
    context: str  # template: one item in LaMP's prompt with context, trailing space included
    context_end: str = ". "  # LaMP: between the joined context lines and the input
    reserved: str = ""  # LaMP: words for which its length rule keeps room (not quite those of `context_end`)

    @property
    def official_name(self) -> str:
        """The name inside LaMP's files: "LaMP_3"; movies and news are both "LaMP_2" there."""
        return "_".join(self.name.split("-")[:2])

    def make_input(self, **parts: str) -> str:
        """The official input from its parts: `text=…`, and for LaMP-1 `title=…, ref1=…, ref2=…`."""
        wanted = {"title", "ref1", "ref2"} if self.name == "LaMP-1" else {"text"}
        if set(parts) != wanted:
            raise KitError(
                f"An input of {self.name} is made from {sorted(wanted)}, not from {sorted(parts)}: pass exactly those."
            )
        if self.name != "LaMP-1":
            return self.prefix + parts["text"]
        title, ref1, ref2 = parts["title"], parts["ref1"], parts["ref2"]
        return f'{self.prefix}"{title}"{_CITATION_MIDDLE}[1]: "{ref1}" [2]: "{ref2}"'

    def is_official(self, input: str) -> bool:
        """Whether the input has this task's instruction, so that its varying part can be told."""
        if self.name == "LaMP-1":
            return input.startswith(self.prefix) and _CITATION.fullmatch(input, len(self.prefix)) is not None
        return input.startswith(self.prefix.rstrip())

    def query_text(self, input: str) -> str:
        """The varying part of the input only (what the user asks about), for prompts."""
        self._require_official(input)
        rest = input.removeprefix(self.prefix.rstrip()).strip()
        if self.name != "LaMP-1":
            return rest
        found = _CITATION.fullmatch(rest)
        assert found is not None  # is_official has seen this match
        return '"{title}" [1]: "{ref1}" [2]: "{ref2}"'.format(**found.groupdict())

    def references(self, input: str) -> tuple[str, str]:
        """The two references that a question of LaMP-1 asks about."""
        found = _CITATION.fullmatch(input, len(self.prefix)) if self.name == "LaMP-1" else None
        if found is None:
            raise KitError(f"Only questions of LaMP-1 have two references, and {input[:60]!r}… is none.")
        return found["ref1"], found["ref2"]

    def retrieval_query(self, input: str) -> str:
        """What LaMP asks BM25 with: the varying text; for LaMP-1 the two references and not the author's title."""
        if self.name != "LaMP-1":
            return self.query_text(input)
        self._require_official(input)
        # LaMP takes the second and third text between quotes, also where a title has quotes inside; so do we.
        quoted = input.split('"')[1:-1:2]
        return f"{quoted[1]} {quoted[2]}"

    def corpus_text(self, item: Item) -> str:
        """What LaMP indexes for an item, before the split into words."""
        return self.corpus.format(**item)

    def item_line(self, item: Item) -> str:
        """The item in one line, whitespace collapsed, for the reflection prompt."""
        return " ".join(self.line.format(**item).split())

    def context_line(self, item: Item) -> str:
        """LaMP's text for one item in a prompt with context (its trailing space included)."""
        return self.context.format(**item)

    def context_prompt(self, input: str, items: Sequence[Item]) -> str:
        """LaMP's whole prompt with context, not shortened; without items, the bare input."""
        if not items:
            return input
        joined = ", and ".join(self.context_line(item) for item in items)
        if self.name != "LaMP-1":
            return joined + self.context_end + input
        # LaMP puts the author's papers right behind the first "title" of the input.
        head, _, tail = input.partition("title")
        return f"{head}title, and {joined}{tail}"

    def _require_official(self, input: str) -> None:
        if not self.is_official(input):
            raise KitError(
                f"This is no input of {self.name}: {input[:60]!r}… It should begin with {self.prefix[:60]!r}…; "
                "check that file and task belong together, or make inputs with Task.make_input."
            )


MOVIE_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology",
    "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip

_CITATIONS = Task(
    name="LaMP-1",
    title="Citation identification",
    kind="classification",
    labels=("[1]", "[2]"),
    fields=("title", "abstract"),
    text_field="title",
    gold_field="title",
    prefix="For an author who has written the paper with the title ",
    metrics=("accuracy", "f1"),
    corpus="{title} {abstract}",
    line='"{title}"',
    context='"{title}"',
)
_MOVIES = Task(
    name="LaMP-2",
    title="Movie tagging",
    kind="classification",
    labels=MOVIE_TAGS,
    fields=("description", "tag"),
    text_field="description",
    gold_field="tag",
    prefix=(
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        f"explanation. tags: [{', '.join(MOVIE_TAGS)}] description: "
    ),
    metrics=("accuracy", "f1"),
    corpus="{description}",
    line='"{description}" -> {tag}',
    context='the tag for the movie: "{description}" is "{tag}" ',
)
_RATINGS = Task(
    name="LaMP-3",
    title="Product rating",
    kind="regression",
    labels=("1", "2", "3", "4", "5"),
    fields=("text", "score"),
    text_field="text",
    gold_field="score",
    prefix=(
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: "
    ),
    metrics=("MAE", "RMSE"),
    corpus="{text}",
    line='"{text}" -> {score}',
    context='{score} is the score for "{text}" ',
)
_HEADLINES = Task(
    name="LaMP-4",
    title="News headline",
    kind="generation",
    labels=(),
    fields=("text", "title"),
    text_field="text",
    gold_field="title",
    prefix="Generate a headline for the following article: ",
    metrics=("rouge-1", "rouge-L"),
    corpus="{title} {text}",
    line='"{text}" -> {title}',
    context='"{title}" is the title for "{text}" ',
)
_TITLES = Task(
    name="LaMP-5",
    title="Paper title",
    kind="generation",
    labels=(),
    fields=("title", "abstract"),
    text_field="abstract",
    gold_field="title",
    prefix="Generate a title for the following abstract of a paper: ",
    metrics=("rouge-1", "rouge-L"),
    corpus="{title} {abstract}",
    line='"{abstract}" -> {title}',
    context='"{title}" is a title for "{abstract}" ',
    context_end=". Following the given patterns ",
    reserved="Following the given patterns",
)
_TWEETS = Task(
    name="LaMP-7",
    title="Tweet paraphrase",
    kind="generation",
    labels=(),
    fields=("text",),
    text_field="text",
    gold_field="text",
    prefix="Paraphrase the following tweet without any explanation before or after it: ",
    metrics=("rouge-1", "rouge-L"),
    corpus="{text}",
    line='"{text}"',
    context='"{text}" ',
    context_end=" are written by a person. Following the given patterns ",
    reserved="are written by user. Following the given patterns",
)

NEWS_CATEGORIES = (
    "women", "religion", "politics", "style & beauty", "entertainment", "culture & arts", "sports",
    "science & technology", "travel", "business", "crime", "education", "healthy living", "parents", "food & drink",
)  # fmt: skip

_NEWS = Task(
    name="LaMP-2-news",
    title="News categorization",
    kind="classification",
    labels=NEWS_CATEGORIES,
    fields=("text", "title", "category"),
    text_field="text",
    gold_field="category",
    prefix=(
        "Which category does this article relate to among the following categories? Just answer with the category name "
        f"without further explanation. categories: [{', '.join(NEWS_CATEGORIES)}] article: "
    ),
    metrics=("accuracy", "f1"),
    corpus="{title} {text}",
    line='"{text}" -> {category}',
    context='the category for the article: "{text}" is "{category}" ',
)
_EMAILS = Task(
    name="LaMP-6",
    title="Email subject",
    kind="generation",
    labels=(),
    fields=("text", "title"),
    text_field="text",
    gold_field="title",
    prefix="Generate a subject for the following email: ",
    metrics=("rouge-1", "rouge-L"),
    corpus="{text}",
    line='"{text}" -> {title}',
    context='"{title}" is the title for "{text}" ',
)

TASKS: dict[str, Task] = {task.name: task for task in (_CITATIONS, _MOVIES, _RATINGS, _HEADLINES, _TITLES, _TWEETS)}
MORE_TASKS: dict[str, Task] = {task.name: task for task in (_NEWS, _EMAILS)}
_OTHER_NAMES = {"LaMP-2-old": "LaMP-2-news", "LaMP-2N": "LaMP-2-news", "LaMP-2M": "LaMP-2", "LaMP-2-movies": "LaMP-2"}


def get_task(name: str) -> Task:
    """The task of this name; "LaMP_3" is understood as well, and what papers call the two tasks that are LaMP-2."""
    known = TASKS | MORE_TASKS
    plain = name.replace("_", "-")
    task = known.get(_OTHER_NAMES.get(plain, plain))
    if task is None:
        raise KitError(f"There is no task {name!r} here; the known ones are {', '.join(known)}.{_meant(name)}")
    return task


def _meant(name: str) -> str:
    """ " Did you mean LaMP-2-news?" for "2-news", "LaMP2N" and the like; "" for what is like no name."""

    def bare(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("lamp")

    names = {bare(key): known for key, known in _OTHER_NAMES.items()} | {bare(key): key for key in TASKS | MORE_TASKS}
    close = get_close_matches(bare(name), names, n=1, cutoff=0.8)
    return f" Did you mean {names[close[0]]}?" if close else ""
