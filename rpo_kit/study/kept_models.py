"""Models that stay loaded between the questions of one notebook: asked again, or with another adapter, at once.

base = RememberingChat(lambda: open_chat_for(run, run.preset.base), {input: "the reply that prepare stored"})
module = KeptModule(run.preset.reflection, lambda stage: trained_adapter(run, stage))
module.at("sft"), module.at("rl"), module.at("untrained")     # one model in memory, three ways to generate with it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.machine import cpu_has_bf16, memory, memory_limit
from rpo_kit.memory import shape_of, weights
from rpo_kit.models.chat import Chat, Completion, Conversation
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.lora import load_lora
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.base import base_conversations
from rpo_kit.rewriting.reflection import load_reflection


class RememberingChat:
    """A base model that is opened when it is first needed and asked the same only once; greedy.

    `known` are answers from before: {LaMP's input: the reply}.
    """

    name = "the base model"

    def __init__(self, open_chat: Callable[[], Chat], known: Mapping[str, str]) -> None:
        self.open_chat = open_chat
        self.chat: Chat | None = None
        self.known = {input: Completion(text, True, 0, 0) for input, text in known.items()}

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        inputs = [messages[-1]["content"] for messages in conversations]
        missing = [input for input in dict.fromkeys(inputs) if input not in self.known]
        if missing:
            if self.chat is None:
                self.chat = self.open_chat()
            asked = base_conversations(self.chat, missing)
            answers = self.chat.complete(asked, max_new_tokens=max_new_tokens, temperature=temperature)
            self.known |= {i: a for i, a in zip(missing, answers, strict=True) if not a.failure}
            failed = {i: a for i, a in zip(missing, answers, strict=True) if a.failure}
            return [failed.get(input) or self.known[input] for input in inputs]
        return [self.known[input] for input in inputs]


class KeptModule:
    """The reflection module, loaded once, with the adapter of each stage that was asked for."""

    def __init__(self, settings: ModelSettings, adapter_of: Callable[[str], Path]) -> None:
        self.settings, self.adapter_of = settings, adapter_of
        self.loaded: LoadedModel | None = None
        self.names: set[str] = set()

    def at(self, stage: str) -> LoadedModel:
        """The module after this stage, or `untrained`. An adapter that was trained anew is loaded anew.

        Raises:
            KitError: the stage is not finished, or the model is missing or does not fit into memory.
        """
        folder = None if stage == "untrained" else self.adapter_of(stage)
        if self.loaded is None:
            check_fits(self.settings)
            self.loaded = load_reflection(self.settings)
        if folder is None:
            return replace(self.loaded, adapter=None)
        name = f"{stage}-{(folder / 'adapter_model.safetensors').stat().st_mtime_ns}"
        if name not in self.names:
            self.loaded = replace(self.loaded, model=load_lora(self.loaded.model, folder, name=name))
            self.names.add(name)
        return replace(self.loaded, adapter=name)


def check_fits(settings: ModelSettings) -> None:
    """Raise KitError if the weights alone are larger than the memory that is free; nothing is checked on a GPU, which
    says so itself, nor for a model whose shape is unknown.
    """
    import torch

    shape = shape_of(settings.name)
    if shape is None or torch.cuda.is_available():
        return
    wide = 1 if cpu_has_bf16() else 2  # fp32 instead of 16 bits
    needed, free = wide * weights(shape, settings.load_in_4bit), min(memory()[1], memory_limit())
    if needed > free:
        raise KitError(
            f"The model {settings.name} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: close "
            "other notebooks, or open a run with a smaller reflection.name."
        )
