"""The reflection module at inference time (Figure 1): read k history items and rewrite the generic answer.

`personalizer.py` puts the base model and retrieval in front of it.

    model = load_reflection(preset.reflection, adapter=run.stage("rl") / "adapter")
    reflect(model, task, examples, [items], max_new_tokens=80)[0][0].text
    # '<observe>[1] reads 2, gave 1: harsh</observe>\\n<plan>reads 2, harsh: give 1</plan>\\n<rewrite>1</rewrite>'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.models.local import LoadedModel, generate, load_model, prompt_tokens
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.prompts import escape_tags, fill, load, prompt_fingerprints
from rpo_kit.runs import Run

_WORD_LIMITS = (None, 200, 100, 50, 25, 12, 6)  # ours: how far history items are shortened to make a prompt fit
_WORD_LENGTH = 20  # ours: characters kept of a word in an item that has to be shortened
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


def load_reflection(settings: ModelSettings, adapter: Path | None = None) -> LoadedModel:
    """The reflection module: the small model with the LoRA adapter in `adapter`, or untrained without one."""
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        raise KitError(f"{adapter} holds no LoRA adapter (adapter_config.json is missing); train that stage first.")
    loaded = load_model(settings)
    if adapter is None:
        return loaded
    from peft import PeftModel

    return LoadedModel(PeftModel.from_pretrained(loaded.model, adapter), loaded.tokenizer, loaded.max_seq_length)


def reflection_messages(
    task: Task, query: str, generic: str, items: Sequence[Item], first: int = 1, words: int | None = None
) -> Conversation:
    """The conversation which asks for a rewrite. `query` is the official LaMP input.

    Items are numbered by their place in the ranking, from `first` on; `words` cuts each field of them.
    """
    cut = [item | {name: _cut(item[name], words) for name in task.fields} for item in items]
    lines = [f"[{n}] {escape_tags(task.item_line(item))}" for n, item in enumerate(cut, first)]
    user = fill(
        "reflection_user",
        title=task.title,
        history="\n".join(lines) or "(empty)",
        query=escape_tags(" ".join(task.query_text(query).split())),
        generic=escape_tags(" ".join(generic.split())) or "(empty)",
    )
    return [{"role": "system", "content": load("reflection_system")}, {"role": "user", "content": user}]


def fitting_messages(
    tokenizer: Any, limit: int, task: Task, example: Mapping[str, Any], items: Sequence[Item], first: int = 1
) -> tuple[Conversation, bool]:
    """The same for an example (its `id`, `input` and `generic`), with history items cut at sentence or word ends until
    the prompt has at most `limit` tokens; says whether it cut. The query is never cut: KitError where it does not fit.
    """
    query, generic = example["input"], example["generic"]
    for words in _WORD_LIMITS:
        messages = reflection_messages(task, query, generic, items, first, words)
        if prompt_tokens(tokenizer, messages) <= limit:
            return messages, words is not None
    raise KitError(
        f"Question {example['id']} with its {len(query):,} characters does not fit into {limit} tokens beside "
        f"{len(items)} history items: raise reflection.max_seq_length, or leave this question out of the data."
    )


def _cut(text: str, words: int | None) -> str:
    """The first `words` words, or fewer where a sentence ends in their second half, and "…" where some are left out."""
    if words is None:
        return text
    # Not every script puts spaces between words, and some texts have none at all.
    parts = [part if len(part) <= _WORD_LENGTH else f"{part[:_WORD_LENGTH]}…" for part in text.split()]
    if len(parts) <= words:
        return " ".join(parts)
    ends = [n for n in range(words, words // 2, -1) if parts[n - 1].rstrip("\"')”’»").endswith(_SENTENCE_ENDS)]
    return " ".join([*parts[: ends[0] if ends else words], "…"])


def reflect(
    loaded: LoadedModel,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    shown: Sequence[Sequence[Item]],
    max_new_tokens: int,
    batch_size: int = 32,
) -> tuple[list[Completion], list[bool]]:
    """The module's greedy completion for each example with these items, and whether the items had to be shortened."""
    limit = loaded.max_seq_length - max_new_tokens
    fitted = [fitting_messages(loaded.tokenizer, limit, task, *pair) for pair in zip(examples, shown, strict=True)]
    prompts, cut = [prompt for prompt, _ in fitted], [cut for _, cut in fitted]
    return generate(loaded, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size), cut


def module_inputs(run: Run) -> dict[str, Any]:
    """What the module is besides its adapter, as inputs of the stages that load it."""
    prompts = prompt_fingerprints("reflection_system", "reflection_user")
    return {"model": run.preset.reflection, "prompts": prompts}
