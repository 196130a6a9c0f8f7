"""Extract the answer from a chatty reply: thoughts, preambles, fences, labels and scales are removed.

Used for whatever the base model writes (Figure 1, left). Models think aloud, say "Sure! Here is a headline:", repeat
the scale ("On a scale of 1 to 5 …") or put quotes around a title; none of that is the answer, which itself is not
changed. The rules are tables of patterns, in the order in which they apply. Removed thoughts and preambles, and
refusals, are reported, because they say something about the model. The reflection module's own texts are parsed
strictly, by `trajectory`.

    read(get_task("LaMP-4"), 'Sure! Here is a headline:\\n\\n"Rain returns"')
    # Reading(text='Rain returns', removed=('preamble',), refusal=False)
    read(get_task("LaMP-3"), "<think>It runs from 1 to 5.</think> I would give it a 2.").text        # '2'
    read(get_task("LaMP-3"), "4.5 out of 5").text           # '4.5': LaMP scores ratings between two labels unrounded
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache

from rpo_kit.lamp.labels import find_label
from rpo_kit.lamp.tasks import Task
from rpo_kit.text import restore_tags


@dataclass(frozen=True)
class Reading:
    """The answer in a reply, what was removed from the reply, and whether it is a refusal."""

    text: str
    removed: tuple[str, ...] = ()  # of "thoughts" and "preamble"
    refusal: bool = False  # the reply declines, so `text` is not an answer


def read(task: Task, reply: str) -> Reading:
    """The answer: for classification and ratings the label if one is named, for texts the first line. Never raises."""
    without = without_thoughts(reply)
    thoughts = ("thoughts",) if without != reply.strip() else ()
    answer = restore_tags(_unwrapped(task, without))
    if task.kind == "generation":
        text, preamble = _first_line(task, answer)
        return Reading(text, thoughts + (("preamble",) if preamble else ()), bool(_REFUSAL.match(text)))
    label = find_label(task, answer)
    return Reading(answer if label is None else label, thoughts, label is None and bool(_REFUSAL.match(answer)))


# ---- thoughts and wrappers ----------------------------------------------------------------------------------------

_THOUGHT = (
    "think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|rationale|inner_monologue|antthinking"
)
_THOUGHT_TAG = re.compile(
    rf"<(?P<a>/?)(?:\w{{1,12}}:)?(?:{_THOUGHT})(?:\s[^<>]{{0,80}})?>"  # <think>, </thinking>, <seed:think>
    r"|\[(?P<b>/?)(?:think|thinking|reasoning)\]"  # Mistral
    r"|◁(?P<c>/?)think▷"  # Kimi
    rf"|<\|(?P<d>/|end_(?:of_)?)?(?:start_|begin_(?:of_)?)?(?:{_THOUGHT})\|>",  # <|begin_of_thought|>, <|END_THINKING|>
    re.IGNORECASE,
)
_FINAL_CHANNEL = re.compile(  # gpt-oss, with its special tokens or with those dropped by the decoder
    r"<\|channel\|>\s*final\s*(?:<\|constrain\|>\s*\w*\s*)?<\|message\|>|assistantfinal"
)
_CHANNEL = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_WRAPPER = re.compile(r"<(final_answer|answer|final|response|output|result|solution)>", re.IGNORECASE)
_FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~)[\w.+-]*[ \t]*$", re.MULTILINE)


def without_thoughts(text: str) -> str:
    """The text without what a model thought aloud.

    A closing tag alone ends thoughts that the chat template began; an opening tag alone begins thoughts that were cut
    off.
    """
    final = list(_FINAL_CHANNEL.finditer(text))
    if final:
        text = text[final[-1].end() :].partition("<|")[0]
    elif _CHANNEL.match(text):
        return ""
    parts: list[str] = []
    start, inside = 0, False
    for tag in _THOUGHT_TAG.finditer(text):
        if any(tag.groups()):
            if not inside:
                parts.clear()
            start, inside = tag.end(), False
        elif not inside:
            parts.append(text[start : tag.start()])
            inside = True
    return "".join([*parts, "" if inside else text[start:]]).strip()


def _unwrapped(task: Task, text: str) -> str:
    """The content of <answer>…</answer>, of a code fence around everything, or of a JSON object with one answer."""
    opening = _WRAPPER.search(text)
    if opening:
        rest = text[opening.end() :]
        end = rest.lower().find(f"</{opening[1].lower()}>")
        text = rest if end < 0 else rest[:end]
    text = _FENCE_LINE.sub("", text).strip()
    if text.startswith("{") and text.endswith("}"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return text
        values = [value for value in content.values() if isinstance(value, str | int | float)]
        named = [v for k, v in content.items() if k.lower() in (*task.answer_names, "answer") and v in values]
        if named or len(values) == 1:
            return str((named or values)[0]).strip()
    return text


# ---- refusals -----------------------------------------------------------------------------------------------------

_DECLINED = (  # what a model declines to do; a tweet's "I can't help it" or "I can't wait" is not a refusal
    r"(?:(?:assist|help)(?: you| with|[.!]|$)|(?:provide|generate|create|produce|paraphrase|rephrase|rewrite|fulfill?|"
    r"comply|classify|determine|identify|summari[sz]e|engage|access|rate|tag|assign)\b|"
    r"(?:answer|complete|write|give|offer|choose|predict|continue|process) (?:a|an|any|you|this|that|the|your|with)\b)"
)
_REFUSAL = re.compile(
    r"(?:(?:(?:i['’]m|i am)? ?(?:very |so |really )?sorry|i apologi[sz]e|unfortunately)\b[,.;]? ?(?:but )?)?"
    r"(?:as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?: am|['’]m) (?:just |only )?an? (?:ai|(?:large )?language model)\b"
    r"|i (?:must|have to) (?:decline|refuse)\b"
    r"|i (?:do not|don['’]?t) (?:feel comfortable|have (?:enough|sufficient|access|the ability|personal)\b)"
    r"|i(?: can['’]?t| cannot| can not| won['’]t| will not|(?: am|['’]m) (?:unable|not able) to"
    rf"| (?:won['’]t|will not) be able to) (?:\w+ )?{_DECLINED})",
    re.IGNORECASE,
)


# ---- texts --------------------------------------------------------------------------------------------------------

_KINDS = (
    "title|headline|tweet|subject(?: line)?|paraphrase[ds]?|rephrased|reworded|rewritten|version|rephrasing|rewording|"
    "rewrite|suggestion|option|answer"
)
_MADE = (
    "suggested|possible|proposed|potential|generated|new|final|paraphrased|rephrased|reworded|rewritten|revised|"
    "alternative|catchy|concise|short|paper|article|news|e-?mail"
)
_SURE = (  # what a model says before it complies
    "(?:(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|all ?right|got it|understood|no problem|"
    r"great|yes|(?:i['’]m |i am )?(?:happy|glad) to help|i(?:['’]d| would) be (?:happy|glad) to\b[^.!:\n]{0,60})"
    r"[\s!,.;–—-]+)"
)
_HERE = (
    r"(?:here(?:['’]s| is| are| you go)|below (?:is|are)|the following (?:is|are)|"
    r"i(?:['’]d| would)? (?:suggest|propose)|my (?:suggestion|attempt)|how about)\b"
)
_NAMED = rf"(?:an? |the |one |my |your )?(?:(?:{_MADE}) ){{0,3}}(?:{_KINDS})s?"
_FOR_WHAT = r"(?: (?:for|of|based on) (?:the|this|that|your|an?)\b[^:\n]{0,80})?"
_IS = r"(?: (?:is|are|could be|might be|may be|would be|can be))?\s*"
_PREAMBLES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_SURE}?{_HERE}(?=[^:\n]{{0,120}}\b(?:{_KINDS})s?\b)[^:\n]{{0,160}}[:：](?!\d)",  # Here is a headline:
        rf"{_SURE}?{_NAMED}{_FOR_WHAT}{_IS}[:：](?!\d)",  # A title for this paper could be:
    )
)
_PREAMBLE_LINE = re.compile(  # a whole line, if others follow
    rf"{_SURE}|{_SURE}?{_HERE}[^\n]{{0,160}}[:：]|{_SURE}{_HERE}[^\n]{{0,160}}[.!]", re.IGNORECASE
)
_IN_QUOTES = re.compile(  # A good headline would be "Rain returns".
    rf"(?=[^\"“\n]{{0,160}}\b(?:{_KINDS})\b){_SURE}?(?:an?|the|one|my|{_HERE})\b[^\"“\n]{{0,160}}"
    r"\b(?:is|be|suggest|propose)\b[^\"“\n]{0,40}?([\"“].+[\"”])[.!]?",
    re.IGNORECASE,
)
_LINE_END = re.compile("[\r\n\u2028\u2029]+")  # no other control characters, which tweets contain by accident
_ITEM = re.compile(r"(?:[-*•–]|\(?\d{1,2}[.)])\s+(?=\S)")  # of a list
_HEADING = re.compile(r"(?:#{1,6}\s+(?=[^#\n]*$)(?=\D)|>\s+)")
_LABEL = r"[*_]{{0,3}}(?:{names})(?: ?\d{{1,2}})?[*_]{{0,3}}\s*[:：]\s*(?:[*_]{{1,3}}(?=\s|$))?\s*"
_NESTED = 20  # levels of nested marks; without a limit a line of nothing but quotes would take quadratic time
_PAIRS = (
    *(("```", "```"), ("`", "`"), ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ('"', '"'), ("“", "”")),
    *(("„", "“"), ("„", "”"), ("«", "»"), ("‘", "’"), ("「", "」"), ("『", "』")),
)


def _first_line(task: Task, text: str) -> tuple[str, bool]:
    """The first line that is not a preamble, without its marks; and whether there was a preamble."""
    lines = [line.strip() for line in _LINE_END.split(text) if line.strip()]
    items = sum(bool(_ITEM.match(line)) for line in lines[:10])
    preamble = False
    for number, line in enumerate(lines[:5]):
        cleaned = _without_marks(task, line)
        rest = _after_preamble(cleaned)
        if rest is None and number < len(lines) - 1 and _PREAMBLE_LINE.fullmatch(cleaned):
            rest = ""
        preamble = preamble or rest is not None
        answer = cleaned if rest is None else _without_marks(task, rest)
        if items > 1 or (preamble and items):
            answer = _without_marks(task, _ITEM.sub("", answer, count=1) if _ITEM.match(answer) else answer)
        if answer:
            return answer, preamble
    return (_without_marks(task, lines[0]) or lines[0]) if lines else "", False


def _after_preamble(line: str) -> str | None:
    """What follows a preamble in its line, possibly ""; None if the line has no preamble."""
    quoted = _IN_QUOTES.fullmatch(line)
    if quoted:
        return quoted[1]
    matches = (pattern.match(line) for pattern in _PREAMBLES)
    return next((line[match.end() :].strip() for match in matches if match), None)


def _without_marks(task: Task, line: str) -> str:
    """Without heading marks, label ("Title:"), emphasis and quotes around the whole, however they are nested."""
    label = _label_pattern(task.answer_names)
    for _ in range(_NESTED):
        before = line
        line = label.sub("", _HEADING.sub("", line, count=1) if _HEADING.match(line) else line, count=1).strip()
        for opening, closing in _PAIRS:
            inner = _inside(line, opening, closing)
            if inner is not None:
                line = inner.strip()
        if line == before:
            break
    return line


@cache
def _label_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    words = sorted(map(re.escape, {*names, "title", "headline", "answer", "final answer", "output", "option"}), key=len)
    named = rf"(?:(?:{_MADE}) ){{0,3}}(?:{'|'.join(reversed(words))})"
    return re.compile("^" + _LABEL.format(names=named), re.IGNORECASE)


def _inside(line: str, opening: str, closing: str) -> str | None:
    """The text inside a pair of marks that encloses the whole line; None if the marks belong to parts of it.

    `"A" and "B"` begins and ends with quotes that are not a pair; a full stop after the closing quote is removed too.
    """
    end = len(line) - (line.endswith(closing + ".") and opening not in "`*_")
    inner = line[len(opening) : end - len(closing)]
    if not (line.startswith(opening) and line[:end].endswith(closing) and inner.strip() and len(inner) < end - 1):
        return None
    if opening != closing:
        return inner if opening not in inner and (closing not in inner or closing == "’") else None
    first = inner.find(opening)
    if first < 0:
        return inner
    quoted_inside = opening == '"' and (first == 0 or inner[first - 1].isspace())  # "He said "no""
    return inner if quoted_inside and inner.count(opening) % 2 == 0 else None
