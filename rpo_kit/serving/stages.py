"""The models that a run offers: the module after each finished stage, untrained, and the base model alone.

models_of(existing_run("demo"), "rl")
# {'rpo': …, 'rpo-rl': …, 'rpo-sft': …, 'rpo-untrained': …, 'base': …}; `rpo` is the stage that is asked for
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Item, Task
from rpo_kit.models.chat import Chat, answers_at_once
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.rewriting.base import base_answers, read_answer
from rpo_kit.rewriting.personalizer import Pair, Personalizer, Rewrite, trained_adapter
from rpo_kit.rewriting.reflection import load_reflection
from rpo_kit.runs import Run

STAGES = ("rl", "sft", "untrained")
BASE = "base"


class BaseAlone:
    """The base model's generic answers, without a rewrite: what the others begin with. It reads no history."""

    def __init__(self, base: Chat, task: Task, base_tokens: int, lock: threading.Lock) -> None:
        self.base, self.task, self.base_tokens, self.lock = base, task, base_tokens, lock

    def __call__(self, input: str, profile: Sequence[Item] = ()) -> Rewrite:
        return self.batch([(input, profile)])[0]

    def batch(self, pairs: Sequence[Pair]) -> list[Rewrite]:
        """One answer per pair, in order. Raises KitError if one is missing."""
        started = time.perf_counter()
        with nullcontext() if answers_at_once(self.base) else self.lock:
            answers = base_answers(self.base, self.task, [input for input, _ in pairs], self.base_tokens)
        seconds = {"base": (time.perf_counter() - started) / len(pairs)}
        texts = [read_answer(self.task, answer.text) for answer in answers]
        return [
            Rewrite(text, text, [], None, None, seconds, {"base": (answer.prompt_tokens, answer.new_tokens)})
            for text, answer in zip(texts, answers, strict=True)
        ]


def models_of(run: Run, stage: str, base: str | None = None) -> dict[str, Personalizer | BaseAlone]:
    """The run's models by name, first `rpo`, which is that of `stage`; `base` names another base model than the run's.

    The module is loaded once and its adapters beside each other; all models share one lock.

    Raises:
        KitError: `stage` is not finished or was made from other inputs, or a model cannot be loaded.
    """
    folders = _adapters(run, stage)
    chat = open_chat_for(run, base or run.preset.base)
    loaded = _with_adapters(load_reflection(run.preset.reflection), folders)
    personalizers = {name: Personalizer.with_models(run, chat, replace(loaded, adapter=name)) for name in folders}
    personalizers["untrained"] = Personalizer.with_models(run, chat, replace(loaded, adapter=None))
    first = personalizers[stage]
    for other in personalizers.values():
        other.lock = first.lock
    alone = BaseAlone(chat, first.task, first.base_tokens, first.lock)
    return (
        {"rpo": first}
        | {f"rpo-{name}": personalizers[name] for name in STAGES if name in personalizers}
        | {BASE: alone}
    )


def _adapters(run: Run, stage: str) -> dict[str, Path]:
    """The adapters of the finished stages. Raises KitError if that of `stage` is missing."""
    folders = {}
    for name in STAGES[:-1]:
        try:
            folders[name] = trained_adapter(run, name)
        except KitError:
            if name == stage:
                raise
    return folders


def _with_adapters(loaded: LoadedModel, folders: dict[str, Path]) -> LoadedModel:
    if not folders:
        return loaded
    from rpo_kit.models.lora import load_lora  # peft takes seconds to import

    for name, folder in folders.items():
        loaded = replace(loaded, model=load_lora(loaded.model, folder, name=name))
    return loaded
