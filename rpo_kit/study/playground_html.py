"""The pages of notebook 08: an answer with everything that led to it, and what became of it after a change.

Plain values in, HTML out. Texts of users and models are escaped. Added words are underlined and removed ones struck
through, so that neither colors nor a screen are needed to tell them apart.

    answer_html(task, answer, anchor="a1-")       # query, generic answer, items, observations, plan, rewrite, reward
    change_html(task, answer, changed)            # the rewrite before and after, and what was lost
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from rpo_kit.lamp.content import content_kept
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.rewriting.faithfulness import Truth, is_true, statements
from rpo_kit.rewriting.prompts import restore_tags
from rpo_kit.study.html import LABEL, box
from rpo_kit.study.playground import Answer, Question
from rpo_kit.study.playground_state import STAGES

KEPT, REMOVED, ADDED = " ", "-", "+"
_CITED = re.compile(r"\[(\d{1,4})\]")
_ADDED = "text-decoration:underline;text-decoration-thickness:2px;font-weight:600"
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0"


def word_changes(before: str, after: str) -> list[tuple[str, str]]:
    """The words of both texts in order, in runs: kept, removed or added.

    >>> word_changes("I missed the tram", "ugh missed the tram")
    [('-', 'I'), ('+', 'ugh'), (' ', 'missed the tram')]
    """
    old, new = before.split(), after.split()
    changes = []
    for _, i, j, k, l in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():  # noqa: E741
        if old[i:j] == new[k:l]:
            changes.append((KEPT, " ".join(old[i:j])))
            continue
        changes += [(kind, " ".join(words)) for kind, words in ((REMOVED, old[i:j]), (ADDED, new[k:l])) if words]
    return changes


def changes_html(before: str, after: str) -> str:
    """Both texts as one, removed words struck through and added ones underlined."""
    marks = {KEPT: "{}", REMOVED: "<del style='opacity:0.65'>{}</del>", ADDED: f"<ins style='{_ADDED}'>{{}}</ins>"}
    parts = [marks[kind].format(html.escape(words)) for kind, words in word_changes(before, after)]
    return f"<div style='{_PRE}'>{' '.join(parts) or '<i>(nothing)</i>'}</div>"


def describe(question: Question, shown: int) -> str:
    """The settings that an answer belongs to, in one line."""
    settings = [question.who, f"k = {question.k} ({shown} of {len(question.profile)} items shown)", question.retriever]
    settings += [STAGES[question.stage], f"temperature {question.temperature:g}"]
    return ", ".join([*settings, *([f"draw {question.draw}"] if question.temperature else [])])


def answer_html(task: Task, answer: Answer, anchor: str) -> str:
    """The whole way, one box per step. `anchor` begins the items' names on the page, to which citations link."""
    question, rewrite = answer.question, answer.rewrite
    query = box("query q", _text(task.query_text(question.input)) + _gold(question.gold))
    generic = box("1 · generic answer of the base model, which sees the query alone", _text(rewrite.generic))
    title = f"2 · items P: the best-ranked {len(rewrite.items)} of {len(question.profile)}, by {question.retriever}"
    items = box(title, _items(task, rewrite.items, anchor) + (_note(_SHORTENED) if rewrite.shortened else ""))
    return query + generic + items + _trajectory(answer, anchor) + _rewrite(answer) + _worth(answer)


_LONGEST = 600  # ours: characters of an item that are shown
_SHORTENED = "Items are shortened in the prompt, because they do not fit into the module's window."


def _trajectory(answer: Answer, anchor: str) -> str:
    rewrite = answer.rewrite
    if rewrite.trajectory is None:
        raw = f"<pre style='{_PRE}'>{html.escape(rewrite.completion) or '(nothing)'}</pre>"
        return box(f"3, 4 · what the module wrote is not a trajectory: {rewrite.parse_error}", raw)
    observations = "".join(
        f"<div>{_linked(line, rewrite.items, anchor)}{_verdict(line, answer.truth)}</div>"
        for line in rewrite.observations
    )
    left_out = "<i>this module writes none</i>"
    return box("3 · observations, each with the item that it cites", observations or left_out) + box(
        "4 · plan", _text(restore_tags(rewrite.plan)) if rewrite.plan else left_out
    )


def _rewrite(answer: Answer) -> str:
    rewrite, wrote = answer.rewrite, module_text(answer)
    label = "5 · rewrite; against the generic answer, removed words are struck through and added ones underlined"
    if wrote is None:
        return box("5 · rewrite", _text(rewrite.text) + _note("There is none, so the generic answer is used."))
    body = f"<div style='{_PRE};font-size:115%'><b>{html.escape(wrote)}</b></div>" + changes_html(
        rewrite.generic, wrote
    )
    if rewrite.kept_generic:
        body += _note(f"{rewrite.kept_generic} So the generic answer is used instead.")
    return box(label, body)


def module_text(answer: Answer) -> str | None:
    """The module's rewrite, even if the generic answer is used instead; None if it wrote none."""
    return restore_tags(answer.rewrite.trajectory.rewrite) if answer.rewrite.trajectory else None


def _worth(answer: Answer) -> str:
    """Reward, metrics and the truth of the observations, as far as they are known."""
    lines = []
    if answer.judged:
        judged = answer.judged
        kept = "" if judged.content is None else f", content kept {judged.content:.2f}"
        parts = f"score {judged.score:.3f}, format {judged.format:.0f}{kept}"
        lines.append(f"<b>reward in RL {judged.reward:.3f}</b> ({parts})")
        lines += [
            f"{name}: generic answer {generic:.3f}, answer used {used:.3f}"
            for name, (generic, used) in answer.scores.items()
        ]
    else:
        lines.append("The gold is unknown, so there is neither reward nor metric. If you know it, type it in.")
    if answer.checked and answer.checked.faithful is not None:
        checked = answer.checked
        follows = "yes" if checked.majority else "no"
        lines.append(
            f"observations true word for word {checked.faithful:.0%}, naming the right habit "
            f"{checked.habit_named or 0:.0%}, "
            f"follows the habit of most items: {follows}"
        )
    return box("6 · what it is worth", "".join(f"<div>{line}</div>" for line in lines))


def change_html(task: Task, before: Answer, after: Answer) -> str:
    """The rewrite before and after a change of the items: what it lost, what it gained, and what that costs."""
    old, new = before.rewrite.text, after.rewrite.text
    used = f"the answer used, from {len(before.rewrite.items)} items and from {len(after.rewrite.items)}"
    body = changes_html(old, new)
    if old == new:
        body += _note("Nothing changed: the module does not need what you took away, or does not read it.")
    elif task.kind == "generation":
        lost = content_kept(old, new).lost
        body += _note(f"Lost content: {', '.join(lost)}." if lost else "No content word was lost.")
    for answer, when in ((before, "before"), (after, "after")):
        why = answer.rewrite.parse_error or answer.rewrite.kept_generic
        if why:
            body += _note(f"{when}: the generic answer is used ({why.rstrip('.')}).")
    if before.judged and after.judged:
        (old_score, new_score) = (answer.scores["score"][1] for answer in (before, after))
        rewards = f"reward {before.judged.reward:.3f} → {after.judged.reward:.3f}"
        body += f"<div>{rewards}; score {old_score:.3f} → {new_score:.3f} ({new_score - old_score:+.3f})</div>"
    reasons = [_reasons(answer) for answer in (before, after)]
    return box(f"what if: {used}", body) + box("observations and plan, before and after", changes_html(*reasons))


def _reasons(answer: Answer) -> str:
    return " ".join([*answer.rewrite.observations, answer.rewrite.plan])


def _items(task: Task, items: Sequence[Item], anchor: str) -> str:
    lines = [
        f"<div id='{anchor}{number}' style='margin:3px 0;overflow-wrap:anywhere'>[{number}] {_line(task, item)}</div>"
        for number, item in enumerate(items, 1)
    ]
    return "".join(lines) or "<i>no items</i>"


def _line(task: Task, item: Item) -> str:
    line = task.item_line(item)
    return html.escape(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}… ({len(line):,} characters)")


def _linked(line: str, items: Sequence[Item], anchor: str) -> str:
    """An observation whose citations lead to their items and show them on hover; those of no item say so."""

    def link(match: re.Match[str]) -> str:
        number = int(match[1])
        if not 1 <= number <= len(items):
            return f"{match[0]} <i>(no such item)</i>"
        hover = html.escape(" ".join(items[number - 1].values())[:300], quote=True)
        return f"<a href='#{anchor}{number}' title='{hover}' style='text-decoration:underline'>{match[0]}</a>"

    return _CITED.sub(link, html.escape(restore_tags(line)))


def _verdict(line: str, truth: Truth | None) -> str:
    """Whether an observation about an invented user is true; if not, what a reader without errors says instead."""
    said = statements(line) if truth else []
    if truth is None or not said:
        return ""
    if all(is_true(numbers, text, truth) for numbers, text in said):
        return " ✓"
    known = {number for numbers, _ in said for number in numbers if 1 <= number <= len(truth.statements)}
    right = "; ".join(f"[{number}] {truth.statements[number - 1]}" for number in sorted(known))
    return f" ✗ <span style='{LABEL}'>rightly: {html.escape(right)}</span>" if right else " ✗"


def _text(text: str, most: int = 2000) -> str:
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
    return f"<div style='{_PRE}'>{html.escape(cut) or '<i>(empty)</i>'}</div>"


def _gold(gold: str) -> str:
    return f"<div>gold: <b>{html.escape(gold)}</b></div>" if gold else ""


def _note(sentence: str) -> str:
    return f"<div style='{LABEL};margin-top:4px'>{html.escape(sentence)}</div>"
