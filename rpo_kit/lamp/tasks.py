"""The LaMP tasks as data: one row per task, with everything that differs from task to task.

No other module branches on a task's name. `TASKS` are the public ones (1, 2 movies, 3, 4, 5, 7), which the embedded
personas imitate; `MORE_TASKS` are read from files that you provide: the deprecated news variant of LaMP-2, and LaMP-6,
whose e-mails are licensed separately. `OWN_TASKS` are not LaMP's: `mine` makes their data. The wording of the
instructions, of what is indexed and of the context lines is LaMP's (Salemi et al., 2023, arXiv 2304.11406). The fields
are explained in `task`.

>>> task = get_task("LaMP-3")
>>> task.make_input(text="Does what it should.")
'What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further explanation. review: Does what it should.'
>>> task.item_line({"id": "301", "text": "Broke  twice.", "score": "1"})
'"Broke twice." -> 1'
"""  # noqa: E501

import re
from difflib import get_close_matches

from rpo_kit.errors import KitError
from rpo_kit.lamp.task import Item, Task

__all__ = ["MORE_TASKS", "MOVIE_TAGS", "NEWS_CATEGORIES", "OWN_TASKS", "TASKS", "Item", "Task", "get_task"]

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
    answer_names=("reference", "citation", "paper"),
    metrics=("accuracy", "f1"),
    baselines=("constant", "copy-nearest"),
    corpus="{title} {abstract}",
    line='"{title}"',
    context='"{title}"',
    label_parts=("ref1", "ref2"),
    gold_is_distinctive=False,
    query=(
        '"{title}", which reference is related? Just answer with [1] or [2] without explanation. '
        '[1]: "{ref1}" [2]: "{ref2}"'
    ),
    query_shown='"{title}" [1]: "{ref1}" [2]: "{ref2}"',
    retrieval_quotes=(1, 2),
    context_after="title",
    reserved_tokens=0,
    frame_tokens=2,
    no_leave_one_out="an item is a paper with its abstract, and which papers it cites is not in the data",
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
    answer_names=("tag", "genre"),
    metrics=("accuracy", "f1"),
    baselines=("constant", "majority", "copy-nearest"),
    corpus="{description}",
    line='"{description}" -> {tag}',
    context='the tag for the movie: "{description}" is "{tag}" ',
    shares_official_name=True,
    download_subfolder="/new",
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
    answer_names=("rating", "score", "stars", "star rating"),
    metrics=("MAE", "RMSE"),
    baselines=("constant", "majority", "copy-nearest"),
    corpus="{text}",
    line='"{text}" -> {score}',
    context='{score} is the score for "{text}" ',
    gold_is_distinctive=False,
)
_HEADLINES = Task(
    name="LaMP-4",
    title="News headline",
    kind="generation",
    fields=("text", "title"),
    text_field="text",
    gold_field="title",
    prefix="Generate a headline for the following article: ",
    answer_names=("headline", "title"),
    metrics=("rouge-1", "rouge-L"),
    baselines=("lead", "copy-nearest"),
    corpus="{title} {text}",
    line='"{text}" -> {title}',
    context='"{title}" is the title for "{text}" ',
)
_TITLES = Task(
    name="LaMP-5",
    title="Paper title",
    kind="generation",
    fields=("title", "abstract"),
    text_field="abstract",
    gold_field="title",
    prefix="Generate a title for the following abstract of a paper: ",
    answer_names=("title",),
    metrics=("rouge-1", "rouge-L"),
    baselines=("lead", "copy-nearest"),
    corpus="{title} {abstract}",
    line='"{abstract}" -> {title}',
    context='"{title}" is a title for "{abstract}" ',
    measured='"{title}" is a title "{abstract}" ',
    context_end=". Following the given patterns ",
    reserved="Following the given patterns",
)
_TWEETS = Task(
    name="LaMP-7",
    title="Tweet paraphrase",
    kind="generation",
    fields=("text",),
    text_field="text",
    gold_field="text",
    prefix="Paraphrase the following tweet without any explanation before or after it: ",
    answer_names=("tweet", "paraphrase", "paraphrased", "paraphrased tweet", "rephrased", "rewritten"),
    metrics=("rouge-1", "rouge-L"),
    baselines=("echo", "copy-nearest"),
    corpus="{text}",
    line='"{text}"',
    context='"{text}" ',
    measured='"" ',
    context_end=" are written by a person. Following the given patterns ",
    reserved="are written by user. Following the given patterns",
    no_leave_one_out="an item is only a tweet, and a query is a paraphrase of one that LaMP had a model write",
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
    answer_names=("category",),
    metrics=("accuracy", "f1"),
    baselines=("constant", "majority", "copy-nearest"),
    corpus="{title} {text}",
    line='"{text}" -> {category}',
    context='the category for the article: "{text}" is "{category}" ',
    shares_official_name=True,
)
_EMAILS = Task(
    name="LaMP-6",
    title="Email subject",
    kind="generation",
    fields=("text", "title"),
    text_field="text",
    gold_field="title",
    prefix="Generate a subject for the following email: ",
    answer_names=("subject", "subject line", "title"),
    metrics=("rouge-1", "rouge-L"),
    baselines=("lead", "copy-nearest"),
    corpus="{text}",
    line='"{text}" -> {title}',
    context='"{title}" is the title for "{text}" ',
    placeholder=r"\d+-\d+-EM(\.txt)?",
    placeholder_help=(
        "LaMP-6 is distributed with file names in place of the e-mails, which are in the Avocado Research Email "
        "Collection (LDC2015T03) of the Linguistic Data Consortium, under license. With that collection, LaMP's "
        "create_avocado_dataset.py fills in the texts: give the folder it wrote with --data FOLDER."
    ),
)

_OWN_TEXTS = Task(  # not LaMP's: a person's own texts, which the command `mine` reads (ours)
    name="own-texts",
    title="A text in one's own words",
    kind="generation",
    fields=("text",),
    text_field="text",
    gold_field="text",
    prefix="Paraphrase the following text without any explanation before or after it: ",
    answer_names=("text", "paraphrase", "paraphrased", "paraphrased text", "rephrased", "rewritten", "message"),
    metrics=("rouge-1", "rouge-L"),
    baselines=("echo", "copy-nearest"),
    corpus="{text}",
    line='"{text}"',
    context='"{text}" ',
    measured='"" ',
    context_end=" are written by a person. Following the given patterns ",
    no_leave_one_out="an item is only a text, and `mine` has made an example of each already",
)

TASKS: dict[str, Task] = {task.name: task for task in (_CITATIONS, _MOVIES, _RATINGS, _HEADLINES, _TITLES, _TWEETS)}
MORE_TASKS: dict[str, Task] = {task.name: task for task in (_NEWS, _EMAILS)}
OWN_TASKS: dict[str, Task] = {task.name: task for task in (_OWN_TEXTS,)}
_ALIASES = {"LaMP-2-old": "LaMP-2-news", "LaMP-2N": "LaMP-2-news", "LaMP-2M": "LaMP-2", "LaMP-2-movies": "LaMP-2"}


def get_task(name: str) -> Task:
    """The task of this name. "LaMP_3" and the names that papers use for the two variants of LaMP-2 work as well."""
    known = TASKS | MORE_TASKS
    plain = name.replace("_", "-")
    task = (known | OWN_TASKS).get(_ALIASES.get(plain, plain))
    if task is None:
        raise KitError(f"There is no task {name!r}: choose one of {', '.join(known)}.{_suggestion(name)}")
    return task


def _suggestion(name: str) -> str:
    """ " Did you mean LaMP-2-news?" for "2-news" or "LaMP2N"; "" if the name is not close to any."""

    def bare(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("lamp")

    names = {bare(alias): key for alias, key in _ALIASES.items()} | {bare(key): key for key in TASKS | MORE_TASKS}
    close = get_close_matches(bare(name), names, n=1, cutoff=0.8)
    return f" Did you mean {names[close[0]]}?" if close else ""
