"""LaMP's prompt with context, shortened to a token budget by LaMP's own rule, with any tokenizer.

The baseline that the method is compared with (context injection): the k items precede the input, in one prompt. If that
would be too long, LaMP gives each item an equal share of the room, passes on what short items leave over, and cuts only
the item's long text, at its end; titles, tags and ratings stay whole. The input keeps up to 60 % of the room; if the
items then do not fit, 50 %, 40 % and so on. Left out: the last cut of the whole prompt by LaMP's encoder-decoder
tokenizer, which would cut off the query where a chat model reads it.

    lamp_prompt(get_task("LaMP-3"), input, items, tokenizer, max_length=512)
    # '1 is the score for "Broke twi" , and 5 is the score for "Does" . What is the score of the following review …'

Re-implemented from the rules (Salemi et al., 2023, arXiv 2304.11406, and the code released with it). If a tokenizer
appends an end token, it counts, as in LaMP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.text import break_special_tokens

if TYPE_CHECKING:  # loading transformers takes seconds
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

INPUT_SHARE, STEP = 0.6, 0.1  # LaMP: the input's part of the room, and how it shrinks


def lamp_prompt(
    task: Task,
    input: str,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 512,
    name: str = "",
) -> str:
    """The prompt with all items, their texts cut so that it has about `max_length` tokens; whole without a tokenizer.

    What the tokenizer would read as a special token is written harmlessly. As in LaMP, the bare input if not even empty
    texts fit; a warning then names the example by `name`, its id.
    """
    if tokenizer is None:
        return task.context_prompt(input, items)
    input = break_special_tokens(input, tokenizer)
    items = [{name: break_special_tokens(text, tokenizer) for name, text in item.items()} for item in items]
    if not items:
        return input
    share, input_tokens = INPUT_SHARE, _count(tokenizer, input)
    while share >= 0:
        shortened = shorten(task, items, tokenizer, max_length - min(input_tokens, int(share * max_length)))
        if shortened is not None:
            return task.context_prompt(input, shortened)
        share -= STEP
    log.warning("Example %s: its %d items do not fit into %d tokens; they are left out.", name, len(items), max_length)
    return input


def shorten(task: Task, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, room: int) -> list[Item] | None:
    """The items with their long text cut to share `room` tokens; None if one of them would get less than nothing.

    share = (room - reserved - 2 (n - 1)) // n              two tokens for each ", and "
    text_i <= share + saved - frame_i                       frame: the item's line as LaMP measures it
    saved += share - len(text_i) - frame_i                  what is left over goes to the items after it
    """
    reserved = task.reserved_tokens + (_count(tokenizer, task.reserved) if task.reserved else 0)
    share = (room - reserved - 2 * (len(items) - 1)) // len(items)
    saved, shortened, end_tokens = 0, [], _count(tokenizer, "")
    for item in items:
        frame = task.frame_tokens
        if frame is None:
            frame = _count(tokenizer, task.frame.format(**item | {task.text_field: " "}))
        limit = share + saved - frame
        if limit < 0:
            return None
        # Asked for no tokens, or for fewer than it adds itself, a tokenizer would not cut anything.
        fits = limit and limit >= end_tokens
        ids = tokenizer(item[task.text_field], max_length=limit, truncation=True).input_ids if fits else []
        saved += share - len(ids) - frame
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        shortened.append(item | {task.text_field: text})
    return shortened


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text).input_ids)
