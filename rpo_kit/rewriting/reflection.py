"""The reflection module at inference time (Figure 1): read k history items and rewrite the generic answer.

Everything that loads or runs a model in this process passes through here, and through Unsloth, on a GPU as on a CPU.
`personalizer.py` puts base model and retrieval in front of it.

    >>> model = load_reflection(preset.reflection, adapter=run.stage("rl") / "adapter")
    >>> generate(model, [reflection_messages(task, query, generic, items)], max_new_tokens=80)[0].text
    '<observe>[1] reads 2, gave 1: harsh</observe>\n<plan>reads 2, harsh: give 1</plan>\n<rewrite>1</rewrite>'
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.chat import Completion, Conversation
from rpo_kit.rewriting.prompts import fill, harmless, load, prompt_fingerprints

_WORD_LIMITS = (None, 200, 100, 50, 25, 12, 6)  # ours: how far history items are shortened to make a prompt fit
_WORD_LENGTH = 20  # ours: characters kept of a word in an item that has to be shortened
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer (left padding), ready to generate."""

    model: Any
    tokenizer: Any
    max_seq_length: int


# ---- loading ------------------------------------------------------------------------------------------------------


def load_base(name: str, max_seq_length: int = 1024) -> LoadedModel:
    """The black-box model, in this process: never trained; 4-bit where there is a GPU."""
    import torch

    return _load(ModelSettings(name, load_in_4bit=torch.cuda.is_available(), max_seq_length=max_seq_length), name, 0)


def load_reflection(settings: ModelSettings, adapter: Path | None = None) -> LoadedModel:
    """The reflection module: the small model with the LoRA adapter in `adapter`, or untrained without one."""
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        raise KitError(f"{adapter} holds no LoRA adapter (adapter_config.json is missing); train that stage first.")
    loaded = _load(settings, settings.name, 0)
    if adapter is None:
        return loaded
    from peft import PeftModel

    return LoadedModel(PeftModel.from_pretrained(loaded.model, adapter), loaded.tokenizer, loaded.max_seq_length)


def load_trainable(settings: ModelSettings, adapter: Path | None, seed: int) -> LoadedModel:
    """The reflection module with a trainable LoRA: a new one, or the one stored in `adapter`."""
    loaded = _load(settings, settings.name, seed)
    if adapter is None:
        model = _unsloth().get_peft_model(
            loaded.model,
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(settings.lora_targets),
            use_gradient_checkpointing="unsloth" if _on_gpu() else False,
            random_state=seed,
        )
    else:
        from peft import PeftModel

        # without is_trainable the optimiser would be empty and nothing would change (facts: trl#6700)
        model = PeftModel.from_pretrained(loaded.model, adapter, is_trainable=True)
    return LoadedModel(model, loaded.tokenizer, loaded.max_seq_length)


def _load(settings: ModelSettings, name: str, seed: int) -> LoadedModel:
    path = str(bundled_model()) if name == "smollm2" else name
    if path.startswith((".", "/", "~")) and not (Path(path) / "config.json").is_file():
        raise KitError(f"{path} holds no model (config.json is missing): name the folder of one, or a hub id.")
    try:
        with _quiet():
            model, tokenizer = _unsloth().from_pretrained(
                path,
                max_seq_length=settings.max_seq_length,
                load_in_4bit=settings.load_in_4bit,
                dtype=None,
                random_state=seed,
            )
    except OSError as error:  # no such hub id, no network, no room on the disk
        raise KitError(
            f"The model {name} cannot be loaded ({' '.join(str(error).split())[:300]}): look at the name, the network "
            "and the disk, and run again."
        ) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise KitError(
            f"{name}: the pad token must differ from the end token, or the end of a rewrite is never learned."
        )
    return LoadedModel(model, tokenizer, settings.max_seq_length)


def _unsloth() -> Any:
    """Unsloth's loader, imported before trl (which it patches); its banner is left to `doctor`."""
    with _quiet():
        from unsloth import FastLanguageModel
    return FastLanguageModel


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide banners; errors still raise."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# ---- prompting ----------------------------------------------------------------------------------------------------


def reflection_messages(
    task: Task, query: str, generic: str, items: Sequence[Item], first: int = 1, words: int | None = None
) -> Conversation:
    """The conversation which asks for a rewrite. `query` is the official LaMP input.

    Items are numbered by their place in the ranking, from `first` on; `words` cuts each field of them.
    """
    cut = [item | {name: _cut(item[name], words) for name in task.fields} for item in items]
    lines = [f"[{n}] {harmless(task.item_line(item))}" for n, item in enumerate(cut, first)]
    user = fill(
        "reflection_user",
        title=task.title,
        history="\n".join(lines) or "(empty)",
        query=harmless(" ".join(task.query_text(query).split())),
        generic=harmless(" ".join(generic.split())) or "(empty)",
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


def prompt_tokens(tokenizer: Any, messages: Conversation) -> int:
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


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


def module_inputs(settings: ModelSettings) -> dict[str, Any]:
    """What the module is beside its adapter, as inputs of the stages that load it."""
    return {"model": settings, "prompts": prompt_fingerprints("reflection_system", "reflection_user")}


# ---- generating ---------------------------------------------------------------------------------------------------


def generate(
    loaded: LoadedModel,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> list[Completion]:
    """One completion for each conversation, in the same order; batches hold prompts of like length."""
    tokenizer = loaded.tokenizer
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, Completion] = {}
    _unsloth().for_inference(loaded.model)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found |= zip(
            chosen, _generate_batch(loaded, [texts[i] for i in chosen], max_new_tokens, temperature), strict=True
        )
    return [found[i] for i in range(len(texts))]


def _generate_batch(loaded: LoadedModel, texts: list[str], max_new_tokens: int, temperature: float) -> list[Completion]:
    tokenizer = loaded.tokenizer
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(loaded.model.device)
    new = _new_tokens(loaded, batch, max_new_tokens, temperature)
    prompts, decoded = batch["attention_mask"].sum(1).tolist(), tokenizer.batch_decode(new, skip_special_tokens=True)
    ended = [bool(tokens) and tokens[-1] in end_tokens(loaded) for tokens in new]
    return [Completion(t.strip(), e, p, len(n)) for t, e, p, n in zip(decoded, ended, prompts, new, strict=True)]


def end_tokens(loaded: LoadedModel) -> list[int]:
    """The tokenizer's end token and those which the model's own settings name beside it."""
    named = loaded.model.generation_config.eos_token_id
    return sorted({loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


def _new_tokens(loaded: LoadedModel, batch: Any, limit: int, temperature: float) -> list[list[int]]:
    """What each row of the batch goes on with, up to its end token."""
    import torch

    from rpo_kit.rewriting.sampling import sample_groups, shares_prefix, until_end

    model, ends = loaded.model, end_tokens(loaded)
    if shares_prefix(model):
        new = sample_groups(model, batch["input_ids"], batch["attention_mask"], 1, limit, temperature, ends)[:, 0]
    else:
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with torch.no_grad(), _quiet():
            out = model.generate(**batch, max_new_tokens=limit, pad_token_id=loaded.tokenizer.pad_token_id, **sampling)
        new = out[:, batch["input_ids"].shape[1] :]
    return [until_end(tokens, ends) for tokens in new.tolist()]
