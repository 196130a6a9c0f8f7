"""The reflection module for SFT, loaded and patched by Unsloth. Importing Unsloth changes transformers and TRL in the
whole process, so only SFT does, in a process of its own.

    loaded = load_unsloth_trainable(run.preset.reflection, seed=0)
"""

from __future__ import annotations

from typing import Any

from rpo_kit.models.local import LoadedModel, cannot_be_loaded, checked, device, model_path, quiet
from rpo_kit.presets import ModelSettings


def load_unsloth_trainable(settings: ModelSettings, seed: int) -> LoadedModel:
    """The reflection module with a new trainable LoRA, loaded and patched by Unsloth: for SFT alone.

    Raises:
        KitError: as `load_model`.
    """
    unsloth = fast_language_model()
    with cannot_be_loaded(settings.name), quiet():
        model, tokenizer = unsloth.from_pretrained(
            model_path(settings.name),
            max_seq_length=settings.max_seq_length,
            load_in_4bit=settings.load_in_4bit,
            dtype=None,
            random_state=seed,
        )
    tokenizer.padding_side = "left"
    loaded = checked(model, tokenizer, settings)
    model = unsloth.get_peft_model(
        model,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(settings.lora_targets),
        use_gradient_checkpointing="unsloth" if device() != "cpu" else False,
        random_state=seed,
    )
    return LoadedModel(model, tokenizer, loaded.max_seq_length)


def fast_language_model() -> Any:
    """Unsloth's loader, imported without its banner; import it before trl, which it patches."""
    with quiet():
        from unsloth import FastLanguageModel
    return FastLanguageModel
