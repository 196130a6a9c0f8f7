"""LaMP's prompt with context, shortened to a token budget by LaMP's own rule, with any tokenizer.

The baseline that the method is compared with (context injection): the k items precede the input, in one prompt. If that
is too long, LaMP gives each item an equal share of the budget, passes on what short items do not use, and truncates
only the item's long text; titles, tags and ratings are never cut. The input keeps up to 60 % of the budget; if the
items then do not fit, 50 %, 40 % and so on. Not reproduced: LaMP's final truncation of the full prompt by the tokenizer
of its encoder-decoder, which for a chat model would cut off the query.

    lamp_prompt(get_task("LaMP-3"), input, items, tokenizer, max_length=512)
    # '1 is the score for "Broke twi" , and 5 is the score for "Does" . What is the score of the following review …'

Re-implemented from the rules (Salemi et al., 2023, arXiv 2304.11406, and the code released with it). As in LaMP, a
tokenizer's end token counts.
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

INPUT_SHARE, STEP = 0.6, 0.1  # LaMP: the input's share of the budget, and by how much it shrinks


def lamp_prompt(
    task: Task,
    input: str,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 512,
    example_id: str = "",
) -> str:
    """The prompt with all items, their texts cut so that it has about `max_length` tokens; uncut without a tokenizer.

    Strings that the tokenizer would read as special tokens are broken up. If not even empty texts fit, the prompt is
    the bare input, as in LaMP, and a warning names the example.
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
    log.warning(
        "Example %s: its %d items do not fit into %d tokens and are left out.", example_id, len(items), max_length
    )
    return input


def shorten(task: Task, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, budget: int) -> list[Item] | None:
    """The items with their long texts cut to share `budget` tokens; None if the share of one would be negative.

    share = (budget - reserved - 2 (n - 1)) // n            two tokens for each ", and "
    text_i <= share + saved - frame_i                       frame: the item's line as LaMP measures it
    saved += share - len(text_i) - frame_i                  what it does not use goes to the items after it
    """
    reserved = task.reserved_tokens + (_count(tokenizer, task.reserved) if task.reserved else 0)
    share = (budget - reserved - 2 * (len(items) - 1)) // len(items)
    saved, shortened, end_tokens = 0, [], _count(tokenizer, "")
    for item in items:
        frame = task.frame_tokens
        if frame is None:
            frame = _count(tokenizer, task.frame.format(**item | {task.text_field: " "}))
        limit = share + saved - frame
        if limit < 0:
            return None
        # With a limit of 0, or below the number of tokens it adds itself, a tokenizer truncates nothing.
        fits = limit and limit >= end_tokens
        ids = tokenizer(item[task.text_field], max_length=limit, truncation=True).input_ids if fits else []
        saved += share - len(ids) - frame
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        shortened.append(item | {task.text_field: text})
    return shortened


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text).input_ids)
