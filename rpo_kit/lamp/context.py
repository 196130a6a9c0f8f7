"""LaMP's prompt with context, shortened to a token budget by LaMP's own rule, with any tokenizer.

The baseline that the method is compared with (context injection): the k items stand in front of the question, in one
prompt. Where that would be too long, LaMP gives each item an equal share of the room, hands on what short items leave
over, and cuts only the item's long text, at its end; titles, tags and ratings stay whole. The question keeps up to 60 %
of the room; if the items then do not fit, 50 %, 40 % and so on. Left out: the last cut of the whole prompt by LaMP's
encoder-decoder tokenizer, which would cut the question off where a chat model reads it.

    lamp_prompt(get_task("LaMP-3"), input, items, tokenizer, max_length=512)
    # '1 is the score for "Broke twi" , and 5 is the score for "Does" . What is the score of the following review …'

Re-implemented from the rules; the tokens of an end mark, where a tokenizer adds one, count as in LaMP.
"""

import logging
from collections.abc import Sequence
from typing import Any

from rpo_kit.lamp.tasks import Item, Task

log = logging.getLogger(__name__)

QUESTION_SHARE, STEP = 0.6, 0.1  # LaMP: the question's part of the room, and how it shrinks


def lamp_prompt(
    task: Task, input: str, items: Sequence[Item], tokenizer: Any = None, max_length: int = 512, name: str = ""
) -> str:
    """The prompt with all items, their texts cut so that it has about `max_length` tokens; whole without a tokenizer.

    As in LaMP the bare input where not even empty texts fit; that is said with `name`, the id of the question. Any
    Hugging Face tokenizer will do: it is called on a text, and it decodes ids.
    """
    if not items or tokenizer is None:
        return task.context_prompt(input, items)
    share, question = QUESTION_SHARE, _length(tokenizer, input)
    while share >= 0:
        shortened = shorten(task, items, tokenizer, max_length - min(question, int(share * max_length)))
        if shortened is not None:
            return task.context_prompt(input, shortened)
        share -= STEP
    log.warning(
        "Question %s: %d items do not fit into %d tokens; it is asked without them.", name, len(items), max_length
    )
    return input


def shorten(task: Task, items: Sequence[Item], tokenizer: Any, room: int) -> list[Item] | None:
    """The items with their long text cut to share `room` tokens; None where one of them gets less than nothing.

    share = (room - reserved - 2 (n - 1)) // n              two tokens for each ", and "
    text_i <= share + saved - frame_i                       frame: the item's words around its text
    saved += share - len(text_i) - frame_i                  what is left over goes to the items after it
    """
    share = (room - _reserved(task, tokenizer) - 2 * (len(items) - 1)) // len(items)
    saved, shortened, marks = 0, [], _length(tokenizer, "")  # marks: a tokenizer asked for fewer tokens cuts nothing
    for item in items:
        frame = _frame(task, item, tokenizer)
        limit = share + saved - frame
        if limit < 0:
            return None
        fits = limit and limit >= marks
        ids = tokenizer(item[task.text_field], max_length=limit, truncation=True).input_ids if fits else []
        saved += share - len(ids) - frame
        shortened.append(item | {task.text_field: tokenizer.decode(ids, skip_special_tokens=True)})
    return shortened


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text).input_ids)


def _reserved(task: Task, tokenizer: Any) -> int:
    if task.name == "LaMP-1":
        return 0
    return 1 + (_length(tokenizer, task.reserved) if task.reserved else 0)


def _frame(task: Task, item: Item, tokenizer: Any) -> int:
    """Tokens of the item's line around its text: two quotes in LaMP-1, else the line with a blank for the text."""
    return 2 if task.name == "LaMP-1" else _length(tokenizer, task.context_line(item | {task.text_field: " "}))
