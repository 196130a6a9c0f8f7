"""What a model is: the contents of its files, as inputs of the stages that load it.

A setting names a model, but the files in its folder can change. So a stage's inputs hold the sha256 of the
folder's weights, configuration and tokenizer. Of a model from the hub they hold the commit that lies in the local
cache; nothing is asked over the network. Of recorded texts they hold the sha256 of the files. What cannot be known is
left out and counts as unchanged (`stage_inputs.py`).

Contents are read once: `~/.cache/rpo_kit/model_files.json` keeps the hash of each file with its size and times.

    module_files(run)        # {"module_files": "9f2c…"}
    base_files(run)          # {} for an endpoint
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from rpo_kit.bundled import cache_folder, is_complete
from rpo_kit.machine import cache_root
from rpo_kit.model_spec import recorded_files
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import Run, read_json, write_json

_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken")
_OWN_NOTE = "source.json"  # of the bundled model's conversion; no loader reads it


def base_files(run: Run) -> dict[str, str]:
    return _files_of("base_files", run.preset.base)


def teacher_files(run: Run) -> dict[str, str]:
    return _files_of("teacher_files", run.preset.synthesis.teacher)


def retriever_files(run: Run) -> dict[str, str]:
    kind, _, encoder = run.preset.data.retriever.partition(":")
    return _as_input("retriever_files", encoder if kind == "dense" else "")


def module_files(run: Run) -> dict[str, str]:
    return _as_input("module_files", run.preset.reflection.name)


def all_files(run: Run) -> dict[str, str]:
    """Those of all models of a run."""
    return base_files(run) | teacher_files(run) | retriever_files(run) | module_files(run)


def _files_of(key: str, spec: str) -> dict[str, str]:
    recorded = recorded_files(spec)
    if recorded and all(path.is_file() for path in recorded):
        return {key: fingerprint([fingerprint(path) for path in recorded])}
    return _as_input(key, _local_name(spec))


def _local_name(spec: str) -> str:
    kind, _, name = spec.strip().partition(":")
    return name if kind == "local" else ""


def _as_input(key: str, name: str) -> dict[str, str]:
    version = model_version(name) if name else None
    return {key: version} if version else {}


def model_version(name: str) -> str | None:
    """What the model of this name, as in `reflection.name`, is made of; None if that is not known on this machine."""
    folder = cache_folder() if name == "smollm2" else Path(name)
    if name == "smollm2" and not is_complete(folder):
        return None
    return folder_version(folder) if folder.is_dir() else _cached_commit(name)


def folder_version(folder: Path) -> str:
    """One hash of the files that decide what the model in `folder` answers."""
    store = cache_root() / "model_files.json"
    stored = read_json(store)
    known = stored if isinstance(stored, dict) else {}
    new, hashes = {}, {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.name != _OWN_NOTE and path.is_file():
            stat, place = path.stat(), str(path.resolve())
            # the time of the last change of the inode too, because the other one can be set
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            entry = known.get(place)
            if not isinstance(entry, list) or entry[:-1] != state:
                new[place] = entry = [*state, fingerprint(path)]
            hashes[path.name] = entry[-1]
    if new:
        with suppress(OSError):  # a cache that cannot be written costs time, not a result
            write_json(store, known | new)
    return fingerprint(hashes)


def _cached_commit(name: str) -> str | None:
    """The commit of the hub's model `name` in the local cache."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    reference = cache.expanduser() / f"models--{name.replace('/', '--')}" / "refs" / "main"
    try:
        return reference.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
