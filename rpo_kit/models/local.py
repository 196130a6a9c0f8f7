"""A model in this process: loading it with its tokenizer, sampling from it, and the `Chat` around it.

Everything that loads or runs a model in this process passes through here, and through Unsloth, on a GPU as on a CPU.

    model = load_base("smollm2")
    generate(model, [[{"role": "user", "content": "Say hello."}]], max_new_tokens=8)[0].text
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.presets import ModelSettings


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

    return load_model(ModelSettings(name, load_in_4bit=torch.cuda.is_available(), max_seq_length=max_seq_length))


def load_trainable(settings: ModelSettings, adapter: Path | None, seed: int) -> LoadedModel:
    """The reflection module with a trainable LoRA: a new one, or the one stored in `adapter`."""
    loaded = load_model(settings, seed)
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

        # without is_trainable the optimiser would be empty and nothing would change (huggingface/trl#6700)
        model = PeftModel.from_pretrained(loaded.model, adapter, is_trainable=True)
    return LoadedModel(model, loaded.tokenizer, loaded.max_seq_length)


def load_model(settings: ModelSettings, seed: int = 0) -> LoadedModel:
    """The model that `settings` names, without an adapter."""
    name = settings.name
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

    from rpo_kit.models.sampling import sample_groups, shares_prefix, until_end

    model, ends = loaded.model, end_tokens(loaded)
    if shares_prefix(model):
        new = sample_groups(model, batch["input_ids"], batch["attention_mask"], 1, limit, temperature, ends)[:, 0]
    else:
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with torch.no_grad(), _quiet():
            out = model.generate(**batch, max_new_tokens=limit, pad_token_id=loaded.tokenizer.pad_token_id, **sampling)
        new = out[:, batch["input_ids"].shape[1] :]
    return [until_end(tokens, ends) for tokens in new.tolist()]


def prompt_tokens(tokenizer: Any, messages: Conversation) -> int:
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


class LocalChat:
    """A model in this process, as a `Chat`; its context window is known."""

    def __init__(self, model: LoadedModel, name: str = "local") -> None:
        self.model, self.name = model, name

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        return self.model.max_seq_length

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        return generate(self.model, conversations, max_new_tokens=max_new_tokens, temperature=temperature)
