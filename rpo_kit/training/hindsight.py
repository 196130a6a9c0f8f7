"""The hindsight teacher: rules that write trajectories for LaMP's own texts, of any task, without a model or a key.

It sees the gold, and spells out how the generic answer becomes it, from facts that can be checked. An observation
states what is true of the cited item. The plan states in what the gold differs from the text to start from: first what
the items show too (`as shown`), then the rest (`besides`). The rewrite is the gold; of a tweet, with
`synthesis.teacher=hindsight-shown`, only as much of the gold as query, generic answer and items show of its words.

    LaMP-7  <observe>[1] so … lol: lower case, no end mark, lol</observe>
            <plan>start from the query, keep most words; as shown: lower case, lol; besides: ends !</plan>
    LaMP-3  <observe>[1] gave 2</observe> <plan>generic 5; as shown, lower: 3</plan>
    LaMP-2  <observe>[1] comedy; shares wedding, sister</observe> <plan>generic action; as shown: comedy</plan>

At test time the module has only the items, the query and the generic answer. So a trajectory is rejected if nothing of
what has to change can be seen in the items, or if most of the gold's words or a name in it come from nowhere: that
would teach the module to invent. If one change is shown, others that are not stay in the plan, under `besides`: to
reject them too would teach that the items decide everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rpo_kit.lamp.item import item_gold
from rpo_kit.lamp.metrics import example_score
from rpo_kit.lamp.tasks import Task
from rpo_kit.rewriting.trajectory import Trajectory, is_writable, render
from rpo_kit.training.hindsight_texts import (
    Traits,
    kept_share,
    names_of,
    read_traits,
    spellings_of,
    squashed,
    towards,
    words_of,
)
from rpo_kit.training.teachers import Draft, Judge, Request

UNSHOWN = "the items show none of the changes"
CONTRADICTED = "the items point to another answer"
INVENTED = "most of the gold's words are in neither query nor generic answer"
UNKNOWN_NAME = "the gold has a mention, hashtag or link that nothing shows"
_KEPT = 0.4  # ours: least share of a gold's words in query or generic answer. Measured: 25 % of LaMP-7 golds lack it
_MOST = 0.6  # ours: from which share on the gold keeps "most" of the words that it starts from
_LENGTH = 0.2  # ours: a text is longer or shorter if its number of words differs by more than this share
_NAMED = 3  # ours: how many shared words, or changes of one kind, are named at most
_LETTERS = 4  # ours: a shared word has at least so many letters
_STOP = """
about after also among because been before being between both could does each even from have having here into just
like made make many more most much must only other over same should some such than that their them then there these
they this those through under upon using very were what when where which while will with would your approach based
method methods paper results show study system systems
"""
_STOP_WORDS = frozenset(_STOP.split())
_IMPLIED = {"ends !": ("!",), "ends !!": ("!", "!!"), "ends ?!": ("!",), "ends ...": ("...",)}  # marks in an end mark

Written = tuple[Trajectory, str | None]  # and why it should not be trained on


@dataclass(frozen=True)
class HindsightTeacher:
    """The rules as a `Teacher`. Drafts that would teach the wrong thing carry the reason. `shown`: hindsight-shown."""

    shown: bool = False

    def write(
        self, task: Task, requests: list[Request], judge: Judge, chunk: int = 64
    ) -> Iterator[list[tuple[Request, Draft]]]:
        """A batch of drafts per `chunk` requests; deterministic, and each depends on its request alone."""
        for start in range(0, len(requests), chunk):
            yield [(request, hindsight_draft(task, request, self.shown)) for request in requests[start : start + chunk]]


def hindsight_draft(task: Task, request: Request, shown: bool = False) -> Draft:
    """The trajectory for one request as text, with the reason if it should be rejected."""
    shown = shown and task.is_paraphrase
    trajectory, reason = _shown_text(task, request) if shown else _rules_of(task)(task, request)
    if not is_writable(trajectory):
        return Draft("", reason="the gold is empty or contains tags")
    return Draft(render(trajectory), reason=reason, ends_in=trajectory.rewrite if shown else "")


def _rules_of(task: Task) -> Callable[[Task, Request], Written]:
    if task.kind == "generation":
        return _text
    if task.kind == "regression":
        return _rating
    return _reference if task.label_parts else _label


# ---- ratings ------------------------------------------------------------------------------------------------------


def _rating(task: Task, request: Request) -> Written:
    """What the items gave; the change is shown if the median of the items lies on the gold's side of the generic."""
    gold, generic = request.example["output"].strip(), request.example["generic"].strip()
    given = [(number, _number(item[task.gold_field])) for number, item in request.numbered]  # also 2.5, no label here
    ratings = [float(rating) for _, rating in given if rating]
    observe = "\n".join(f"[{number}] gave {rating or 'no rating'}" for number, rating in given)
    if gold == generic:
        return Trajectory(observe, f"generic {generic}; keep", gold), None
    middle = median(ratings) if ratings else None
    if generic not in task.labels:
        shown = middle is not None and abs(middle - float(gold)) < 1
        return Trajectory(observe, f"generic unclear; as shown: {gold}", gold), None if shown else UNSHOWN
    lower = float(gold) < float(generic)
    plan = f"generic {generic}; as shown, {'lower' if lower else 'higher'}: {gold}"
    shown = middle is not None and middle != float(generic) and (middle < float(generic)) == lower
    return Trajectory(observe, plan, gold), None if shown else UNSHOWN


def _number(text: str) -> str:
    """The text if it is a number, else ""."""
    try:
        return text.strip() if math.isfinite(float(text)) else ""
    except ValueError:
        return ""


# ---- tags, categories, references ---------------------------------------------------------------------------------


def _label(task: Task, request: Request) -> Written:
    """What the items chose, and which words they share with the query; shown if most items chose the gold."""
    example, query = request.example, _topics(task.query_text(request.example["input"]))
    gold, generic = example["output"].strip(), example["generic"].strip()
    lines, chosen = [], Counter[str]()
    for number, item in request.numbered:
        label = item_gold(task, item) or "no label"
        chosen[label] += 1
        lines.append(f"[{number}] {label}; shares {_named(_shared(item[task.text_field], query))}")
    if gold == generic:
        return Trajectory("\n".join(lines), f"generic {generic}; keep", gold), None
    named = generic if generic in task.labels else "unclear"
    shown = chosen[gold] == max(chosen.values())
    return Trajectory("\n".join(lines), f"generic {named}; as shown: {gold}", gold), None if shown else UNSHOWN


def _reference(task: Task, request: Request) -> Written:
    """Which of the two references the user's papers share more words with (LaMP-1)."""
    first, second = (_topics(text) for text in task.references(request.example["input"]))
    lines, shares = [], [0, 0]
    for number, item in request.numbered:
        text = " ".join(item[name] for name in task.fields)
        common = [_shared(text, first - second), _shared(text, second - first)]  # words of both tell nothing
        shares = [total + len(words) for total, words in zip(shares, common, strict=True)]
        lines.append(f"[{number}] first: {_named(common[0])}; second: {_named(common[1])}")
    gold, generic = request.example["output"].strip(), request.example["generic"].strip()
    closer = "first" if shares[0] > shares[1] else "second" if shares[1] > shares[0] else "neither"
    wanted = dict(zip(task.labels, ("first", "second"), strict=True))[gold]
    named = generic if generic in task.labels else "unclear"
    if closer == wanted:
        return Trajectory("\n".join(lines), f"generic {named}; items closer to the {closer}: {gold}", gold), None
    plan = f"generic {named}; keep" if gold == generic else f"generic {named}; take the {wanted}: {gold}"
    reason = CONTRADICTED if closer != "neither" else None if gold == generic else UNSHOWN
    return Trajectory("\n".join(lines), plan, gold), reason


def _topics(text: str) -> set[str]:
    return {word for word in words_of(text) if len(word) >= _LETTERS and word not in _STOP_WORDS}


def _shared(text: str, wanted: set[str]) -> list[str]:
    """The words of the text that are wanted, in their order, each once."""
    return [word for word in dict.fromkeys(words_of(text)) if word in wanted]


def _named(words: Sequence[str]) -> str:
    return ", ".join(words[:_NAMED]) or "no word"


# ---- headlines, titles, tweets ------------------------------------------------------------------------------------


def _text(task: Task, request: Request) -> Written:
    """The items' traits, and those in which the gold differs from the query or the generic answer."""
    example = request.example
    gold, query, generic = example["output"].strip(), task.query_text(example["input"]), example["generic"].strip()
    trajectory, reason = _changed_text(task, request, *_start(task, request), gold)
    if kept_share(gold, query, generic) < _KEPT:
        return trajectory, INVENTED
    habits = names_of(" ".join(item[task.gold_field] for item in request.items))
    habits = {name for name in habits if not name.startswith("@")}  # whom a tweet answers is not a habit
    if names_of(gold) - names_of(f"{query} {generic}") - habits:
        return trajectory, UNKNOWN_NAME
    return trajectory, reason


def _shown_text(task: Task, request: Request) -> Written:
    """The same for a rewrite that takes from the gold what query, generic answer and items show of it."""
    example = request.example
    gold, query, generic = example["output"].strip(), task.query_text(example["input"]), example["generic"].strip()
    start, source = _start(task, request)
    known = {squashed(word) for word in f"{query} {generic}".split()}
    known = known.union(*(spellings_of(item[task.gold_field]) for item in request.items))
    trajectory, reason = _changed_text(task, request, start, source, towards(source, gold, known))
    return trajectory, INVENTED if kept_share(gold, query, generic) < _KEPT else reason


def _start(task: Task, request: Request) -> tuple[str, str]:
    """What a text starts from, and that text: of a tweet the query or the generic answer, whichever is closer."""
    gold, generic = request.example["output"], request.example["generic"].strip()
    query = task.query_text(request.example["input"])
    if task.is_paraphrase and example_score(task, gold, query) >= example_score(task, gold, generic):
        return "the query", query
    return "the generic answer", generic


def _changed_text(task: Task, request: Request, start: str, source: str, rewrite: str) -> Written:
    """The trajectory from the source to the rewrite, rejected if no item shows any of its changes."""
    kind = "tweet" if task.is_paraphrase else "title"
    items = [read_traits(item[task.gold_field], kind) for item in request.items]
    observe = "\n".join(f"[{n}] {describe(item)}" for (n, _), item in zip(request.numbered, items, strict=True))
    shown, besides = changes(read_traits(source, kind), read_traits(rewrite, kind), items)
    parts = [f"start from {start}, keep {'most' if kept_share(rewrite, source) >= _MOST else 'some'} words"]
    parts += [f"as shown: {', '.join(shown)}"] if shown else []
    parts += [f"besides: {', '.join(besides)}"] if besides else []
    return Trajectory(observe, "; ".join(parts), rewrite), UNSHOWN if besides and not shown else None


def describe(traits: Traits) -> str:
    """An item's first and last word, and its traits: "so … lol: lower case, no end mark, lol".

    Without these words, a small module's observations of real tweets were no truer of the item than of another user's
    (measured, docs/results.md): it learned which traits are frequent, not to read. It can copy a word, but not count
    words, so only a title's number of words is stated.
    """
    words = [f"{traits.words} words"] if traits.opens else []
    return f"{traits.quote}: {', '.join([traits.case, *words, traits.end, *_peculiar(traits)])}"


def _peculiar(traits: Traits) -> list[str]:
    """The most telling mark that the end mark does not imply, and the first spelling: all that an observation names.

    No more, because a list that may go on does: after SFT on up to three of each, half of the completions on LaMP-7's
    own texts repeated a mark until the limit (measured, docs/results.md).
    """
    marks = [mark for mark in traits.marks if mark not in _IMPLIED.get(traits.end, ())]
    return [*marks[:1], *traits.spellings[:1]]


def changes(source: Traits, gold: Traits, items: Sequence[Traits]) -> tuple[list[str], list[str]]:
    """In what the gold differs from the text to start from: what the items show too, and what they do not.

    At least half of the items must show a casing, an end mark or a title's length; one is enough for a spelling, a mark
    or the first word. Spellings and first words that no item shows are left out: nobody could guess them.
    """
    shown, besides = list[str](), list[str]()
    length = _length(source.words, gold.words) if gold.opens else ""
    for value, differs, holds in (
        (gold.case, gold.case != source.case, [item.case == gold.case for item in items]),
        (length, bool(length), [_length(source.words, item.words) == length for item in items]),
        (gold.end, gold.end != source.end, [item.end == gold.end for item in items]),
    ):
        if differs:
            (shown if sum(holds) * 2 >= len(holds) else besides).append(value)
    if gold.opens != source.opens and gold.opens in {item.opens for item in items}:
        shown.append(f"opens {gold.opens}")
    marks = [mark for mark in gold.marks if mark not in source.marks and mark not in _IMPLIED.get(gold.end, ())]
    seen = {name for item in items for name in _peculiar(item)}
    shown += [mark for mark in marks if mark in seen][:_NAMED]
    besides += [mark for mark in marks if mark not in seen][:_NAMED]
    shown += [word for word in gold.spellings if word not in source.spellings and word in seen][:_NAMED]
    return shown, besides


def _length(source: int, words: int) -> str:
    """How a text of so many words compares with its source: "shorter", "longer" or ""."""
    if abs(words - source) <= max(1, _LENGTH * source):
        return ""
    return "shorter" if words < source else "longer"
