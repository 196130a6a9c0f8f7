"""The files of each form of an export: adapter, merged model, GGUF, Ollama's Modelfile, vLLM's command.

Merging adds the LoRA to the base weights in fp32, so that a merged model in fp32 writes word for word what the kit
writes in fp32. Decoding is greedy by default in every form, as in the kit.

    write_merged(Export(run, "merged", "rl", adapter, "HuggingFaceTB/SmolLM2-135M-Instruct", "f32"), folder)
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rpo_kit.bundled import HUB_ID, INSTALL
from rpo_kit.errors import KitError
from rpo_kit.models.adapter_files import CARD, make_portable, portable_name
from rpo_kit.models.local import LoadedModel, chat_text, end_tokens, load_model
from rpo_kit.models.lora import load_lora, merge_lora
from rpo_kit.rewriting.reflection import reflection_system
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import Run, write_text
from rpo_kit.serving.gguf_model import check_convertible, write_gguf

_TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
_SHARD = "5GB"


@dataclass(frozen=True)
class Export:
    """What is exported, and how."""

    run: Run
    to: str
    stage: str
    adapter: Path
    base: str  # the base model's name on other machines
    dtype: str | None

    @property
    def name(self) -> str:
        """What servers call it: "rpo-lamp-7"."""
        return f"rpo-{self.run.preset.data.task}".lower()

    @property
    def is_bundled(self) -> bool:
        return self.run.preset.reflection.name == "smollm2"

    @property
    def base_is_renamed(self) -> bool:
        """Whether the base is a folder of this machine that was given the last part of its path as its name."""
        name = self.run.preset.reflection.name
        return not self.is_bundled and self.base == portable_name(name) != name

    @property
    def gguf_name(self) -> str:
        return f"{self.name}-{self.dtype}.gguf"

    @property
    def system_prompt(self) -> str:
        return reflection_system(Form.of(self.run.preset.reflection))


# ---- weights ------------------------------------------------------------------------------------------------------


def write_adapter(export: Export, folder: Path) -> None:
    """Copy the adapter with its tokenizer, and name its base for other machines. Needs no base model."""
    for path in sorted(export.adapter.iterdir()):
        if path.is_file() and path.name != CARD:
            shutil.copyfile(path, folder / path.name)
    make_portable(folder, export.base)


def write_merged(export: Export, folder: Path) -> None:
    """Base model and LoRA in one, with tokenizer, chat template and greedy generation settings."""
    merged = merged_module(export)
    merged.model.to(_TORCH[str(export.dtype)])  # type: ignore[arg-type]
    merged.model.save_pretrained(folder, max_shard_size=_SHARD)
    merged.tokenizer.save_pretrained(folder)


def write_gguf_file(export: Export, folder: Path) -> LoadedModel:
    """One file for llama.cpp; returns the merged model that is in it."""
    merged = merged_module(export)
    path = folder / export.gguf_name
    write_gguf(merged.model, merged.tokenizer, path, str(export.dtype), export.name, base_license(export))
    return merged


def merged_module(export: Export) -> LoadedModel:
    """The base model with the LoRA merged into it, in fp32, as a plain model.

    Raises:
        KitError: the base model is not on this machine; the message says what to install.
    """
    settings = export.run.preset.reflection
    try:
        loaded = load_model(settings, None if settings.load_in_4bit else torch.float32)
    except KitError as error:
        raise KitError(f"{error} {_how_to_get(export)}") from error
    if export.to != "merged":
        check_convertible(loaded.model, loaded.tokenizer)  # before the work
    model = merge_lora(load_lora(loaded.model, export.adapter))
    model.config.name_or_path = export.base
    ends = end_tokens(loaded)
    model.generation_config = GenerationConfig(
        bos_token_id=loaded.tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    return LoadedModel(model, loaded.tokenizer, loaded.max_seq_length, adapter=None)


def _how_to_get(export: Export) -> str:
    settings = export.run.preset.reflection
    if export.is_bundled:
        way = f"install the bundled model ({INSTALL})"
    elif export.base_is_renamed:
        way = f"put the folder {settings.name} back"
    else:
        way = f"fetch it where there is a network (hf download {settings.name})"
    return (
        f"--to {export.to} merges the LoRA into its base model, which is not on this machine: {way}, or use --to "
        "adapter, which needs no base model."
    )


def base_license(export: Export) -> str:
    """The license that the base model's card states, as the hub abbreviates it; "" if there is no card here."""
    from huggingface_hub import try_to_load_from_cache

    if export.is_bundled:
        return "apache-2.0"
    name = export.run.preset.reflection.name
    path = Path(name) / CARD if Path(name).is_dir() else try_to_load_from_cache(name, CARD)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return ""
    front = re.match(r"---\n(.*?)^---$", Path(path).read_text("utf-8", "replace"), re.DOTALL | re.MULTILINE)
    found = re.search(r"^license: *[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


# ---- Ollama -------------------------------------------------------------------------------------------------------


def write_ollama(export: Export, folder: Path) -> None:
    """A GGUF with the Modelfile from which `ollama create` makes a model."""
    merged = write_gguf_file(export, folder)
    stops = [str(token) for token in merged.tokenizer.convert_ids_to_tokens(end_tokens(merged))]
    write_text(folder / "Modelfile", modelfile(export, ollama_template(merged.tokenizer), stops))


def modelfile(export: Export, template: str, stops: list[str]) -> str:
    """Ollama's description of the model: greedy, without its default penalty of repetitions."""
    preset = export.run.preset
    parameters = {
        "temperature": 0,
        "repeat_penalty": 1,
        "num_ctx": preset.reflection.max_seq_length,
        "num_predict": preset.evaluation.max_new_tokens,
    }
    lines = [f"FROM ./{export.gguf_name}"]
    lines += [f'TEMPLATE """{template}"""'] if template else []
    lines += [f'SYSTEM """{export.system_prompt}"""']
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def ollama_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template for a system and a user message in Ollama's language; "" if it does more than insert the two.

    Found by rendering two conversations: only what is the same around their messages belongs to the template. Ollama
    reads the template inside the GGUF where the Modelfile has none.
    """
    fields = {"system": "{{ .System }}", "user": "{{ .Prompt }}"}
    first, second = ({role: f"{mark}{role}{mark}" for role in fields} for mark in ("Ab1", "Xy2"))
    texts = [chat_text(tokenizer, [{"role": r, "content": c} for r, c in m.items()]) for m in (first, second)]
    for role in fields:
        if texts[0].count(first[role]) != 1 or texts[1].count(second[role]) != 1:
            return ""
    literal = "{{" in texts[0] or '"""' in texts[0]
    templates = []
    for text, messages in zip(texts, (first, second), strict=True):
        for role, field in fields.items():
            text = text.replace(messages[role], field)
        templates.append(text)
    return templates[0] if templates[0] == templates[1] and not literal else ""


# ---- vLLM ---------------------------------------------------------------------------------------------------------


def write_vllm(export: Export, folder: Path) -> None:
    """The adapter, and the command that serves it on its base model."""
    write_adapter(export, folder)
    write_text(folder / "serve.sh", vllm_script(export))


def vllm_script(export: Export) -> str:
    """A shell script that starts vLLM.

    Raises:
        KitError: vLLM has no room for a LoRA of this rank.
    """
    settings = export.run.preset.reflection
    rank = next((rank for rank in _VLLM_RANKS if rank >= settings.lora_rank), None)
    if rank is None:
        raise KitError(
            f"vLLM serves LoRA adapters up to rank {_VLLM_RANKS[-1]}, and this one has {settings.lora_rank}: export it "
            "with --to merged, and serve that folder."
        )
    options = [
        f"--served-model-name {export.name}-base",
        "--enable-lora",
        f"--max-lora-rank {rank}",
        f'--lora-modules {export.name}="$HERE"',
        f"--max-model-len {settings.max_seq_length}",
        "--generation-config vllm",  # else the base model's own sampling and penalties
        *(["--quantization bitsandbytes"] if settings.load_in_4bit else []),
    ]
    about = f"# vLLM serves the reflection module as {export.name!r} on port 8000, on top of its base model.\n"
    if export.base == HUB_ID and export.is_bundled:
        about += "# The adapter was trained on a quantised copy of this base: README.md says how to get exactly that.\n"
    return (
        f"#!/bin/sh\n{about}# sh serve.sh [BASE [OPTION …]]: another base or its folder, options of vllm serve\n"
        f'HERE="$(cd "$(dirname "$0")" && pwd)"\nBASE="${{1:-{export.base}}}"\n[ $# -eq 0 ] || shift\n'
        + " \\\n    ".join(['exec vllm serve "$BASE"', *options, '"$@"'])
        + "\n"
    )
