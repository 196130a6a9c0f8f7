"""The reflection module at inference time (Figure 1, right): its prompt and its completions.

It reads the query q, the generic answer g and k history items P, and writes a trajectory (`trajectory.py`) that ends in
the rewrite. `personalizer.py` puts the base model and retrieval in front of it. Completions are greedy by default; RL
samples several per prompt (`training/reinforce.py`).

    module = load_reflection(preset.reflection, adapter=run.stage("rl") / "adapter")
    completions, shortened = reflect(module, task, examples, items, max_new_tokens=80)
    completions[0].text
    # '<observe>[1] reads 2, gave 1: harsh</observe> <plan>reads 2, harsh: give 1</plan> <rewrite>1</rewrite>'
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.item import read_item
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.model_files import module_files
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.models.local import LoadedModel, generate, load_model, prompt_tokens
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.prompts import escape_tags, fill, load, prompt_fingerprints
from rpo_kit.rewriting.trajectory import FULL, Form
from rpo_kit.runs import Run
from rpo_kit.setting_rules import SECTIONS
from rpo_kit.text import break_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD_LIMITS = (None, 200, 100, 50, 25, 12, 6)  # ours: words per field of an item, tried in turn until the prompt fits
_GENERIC_LIMITS = (400, 200, 100, 50, 25, 12, 6)  # ours: words of the generic answer, tried after the shortest items
_WORD_LENGTH = 20  # ours: characters kept at least of a word in an item that has to be shortened
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


class DoesNotFitError(KitError):
    """One example's query is too long for the module's window; the other examples are not affected."""


def reflection_messages(
    task: Task,
    input: str,
    generic: str,
    items: Sequence[Item],
    first: int = 1,
    words: int | None = None,
    form: Form = FULL,
) -> Conversation:
    """The module's prompt. Of LaMP's `input` it shows the query, without the instruction.

    Items are numbered by their rank, from `first` on. `words` limits each field of an item.
    """
    _, user_prompt = prompt_names(form)
    lines = []
    for number, item in enumerate(items, first):
        texts = read_item(task, item, f"History item {number}")
        short = texts | {name: _shorten(texts[name], words) for name in task.fields}
        lines.append(f"[{number}] {escape_tags(task.item_line(short))}")
    user = fill(
        user_prompt,
        title=task.title,
        history="\n".join(lines) or "(empty)",
        query=escape_tags(" ".join(task.query_text(input).split())),
        generic=escape_tags(" ".join(generic.split())) or "(empty)",
    )
    return [{"role": "system", "content": reflection_system(form)}, {"role": "user", "content": user}]


def reflection_system(form: Form) -> str:
    """The system message of the module's prompt, which is the same for all users."""
    left_out = tuple(f"<{name}>" for name in SECTIONS if name not in form.sections)
    return "\n".join(line for line in load(prompt_names(form)[0]).splitlines() if not line.startswith(left_out))


def prompt_names(form: Form) -> tuple[str, str]:
    """The prompt files of a form: system and user."""
    names = ("reflection_system", "reflection_user")
    return names if form.sees_generic else (f"{names[0]}_query", f"{names[1]}_query")


def fitting_messages(
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    task: Task,
    example: Example,
    items: Sequence[Item],
    first: int = 1,
    form: Form = FULL,
) -> tuple[Conversation, bool]:
    """`reflection_messages` in at most `limit` tokens, and whether anything had to be shortened.

    Items are shortened first, then the generic answer, the query never. The tokenizer's special tokens are broken up.

    Raises:
        DoesNotFitError: the query leaves too little room for the shortest items and generic answer.
    """
    input, generic = example["input"], example["generic"]
    cuts = [(words, generic) for words in _WORD_LIMITS]
    cuts += [(_WORD_LIMITS[-1], _shorten(generic, words)) for words in _GENERIC_LIMITS]
    for words, text in dict.fromkeys(cuts):
        messages = [
            message | {"content": break_special_tokens(message["content"], tokenizer)}
            for message in reflection_messages(task, input, text, items, first, words, form)
        ]
        if prompt_tokens(tokenizer, messages) <= limit:
            return messages, words is not None
    raise DoesNotFitError(
        f"The input of example {example['id']} ({len(input):,} characters) does not fit into {limit} tokens together "
        f"with {len(items)} history items: raise reflection.max_seq_length, or remove this example from the data."
    )


def unfitting(
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    task: Task,
    examples: Sequence[Example],
    shots: int,
    form: Form = FULL,
) -> dict[str, str]:
    """{example id: reason} for each query that leaves no room for `shots` items in `limit` tokens, however short."""
    reasons = {}
    for example in examples:
        try:
            fitting_messages(tokenizer, limit, task, example, top_k(example, example["ranking"], shots), form=form)
        except DoesNotFitError as error:
            reasons[example["id"]] = str(error)
    return reasons


def _shorten(text: str, words: int | None) -> str:
    """The first `words` words, or fewer if a sentence ends in their second half, and "…" for the rest."""
    if words is None:
        return text
    # Some scripts have no spaces between words, so a "word" may be the whole text.
    longest = max(_WORD_LENGTH, 2 * words)
    parts = [part if len(part) <= longest else f"{part[:longest]}…" for part in text.split()]
    if len(parts) <= words:
        return " ".join(parts)
    ends = [n for n in range(words, words // 2, -1) if parts[n - 1].rstrip("\"')”’»").endswith(_SENTENCE_ENDS)]
    return " ".join([*parts[: ends[0] if ends else words], "…"])


def load_reflection(settings: ModelSettings, adapter: Path | None = None) -> LoadedModel:
    """The reflection module: the small model with the LoRA adapter in the folder `adapter`, or untrained without one.

    Raises:
        KitError: the folder has no adapter, or one that is damaged or belongs to another model.
    """
    loaded = load_model(settings)
    if adapter is None:
        return loaded
    from rpo_kit.models.lora import load_lora  # peft takes seconds to import

    return LoadedModel(load_lora(loaded.model, adapter), loaded.tokenizer, loaded.max_seq_length)


def reflect(
    module: LoadedModel,
    task: Task,
    examples: Sequence[Example],
    items: Sequence[Sequence[Item]],
    max_new_tokens: int,
    batch_size: int = 32,
    *,
    skip_unfitting: bool = False,
    form: Form = FULL,
    temperature: float = 0.0,
) -> tuple[list[Completion], list[bool]]:
    """The module's completion for each example with its items, and whether its prompt had to be shortened; greedy at
    temperature 0.

    With `skip_unfitting`, an example whose query does not fit gets a completion with `failure` set.

    Raises:
        DoesNotFitError: a query does not fit, and `skip_unfitting` is not set.
    """
    limit = module.max_seq_length - max_new_tokens
    prompts, shortened, failures = [], [], {}
    for number, (example, own_items) in enumerate(zip(examples, items, strict=True)):
        try:
            messages, cut = fitting_messages(module.tokenizer, limit, task, example, own_items, form=form)
        except DoesNotFitError as error:
            if not skip_unfitting:
                raise
            failures[number] = Completion("", True, 0, 0, str(error))
            shortened.append(False)
            continue
        prompts.append(messages)
        shortened.append(cut)
    written = generate(module, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature)
    completions = iter(written)
    return [failures[n] if n in failures else next(completions) for n in range(len(examples))], shortened


def module_inputs(run: Run) -> dict[str, object]:
    """The module's settings and prompts, as inputs of the stages that load it (its adapter is another input)."""
    settings = run.preset.reflection
    return {"model": settings, "prompts": prompt_fingerprints(*prompt_names(Form.of(settings)))} | module_files(run)
