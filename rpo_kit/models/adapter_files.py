"""The files of a LoRA adapter: what they say about the base model, without a path of the machine that trained it.

PEFT writes the path from which the base model was loaded into adapter_config.json and into a model card of blanks. An
adapter that shall be read elsewhere names its base in a way that other machines understand.

    portable_name("smollm2")                            # 'HuggingFaceTB/SmolLM2-135M-Instruct'
    portable_name("unsloth/Qwen2.5-1.5B-Instruct")      # the same: a hub id
    portable_name("/home/ann/models/my-llama")          # 'my-llama'
    make_portable(folder)                               # of an adapter, as PEFT's save_pretrained left it
"""

from __future__ import annotations

from pathlib import Path

from rpo_kit.bundled import HUB_ID, cache_folder
from rpo_kit.runs import read_json, write_json, write_text

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
---

The LoRA adapter of a reflection module, as a training stage of rpo_kit wrote it. `python -m rpo_kit export` makes a
copy with a model card of the run.
"""


def portable_name(name: str) -> str:
    """The base model's name for other machines: a hub id as it is, of a folder its last part.

    `name` is what `reflection.name` or a loaded model's config calls it.
    """
    if name in ("smollm2", str(cache_folder())):
        return HUB_ID
    is_folder = bool(name) and (name.startswith((".", "/", "~")) or Path(name).is_dir())
    return Path(name).expanduser().resolve().name if is_folder else name


def make_portable(folder: Path, base: str | None = None) -> None:
    """Let the adapter in `folder` name its base model as `base`, or else as `portable_name` does, in its configuration
    and in its card.
    """
    config = read_json(folder / CONFIG)
    name = base or portable_name((config or {}).get("base_model_name_or_path") or "")
    if not config or not name:
        return
    config["base_model_name_or_path"] = name
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, _CARD.format(base=name))
