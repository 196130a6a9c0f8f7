"""The inputs of a stage as fingerprints, and when two of them are the same.

Older runs did not record their models' files, and those of a model that is not on this machine cannot be read. Such an
input is unknown and counts as unchanged.

    changes({"settings": "1f0…"}, {"settings": "1f0…", "base_files": "9f2…"})     # []
    changes({"base_files": "77a…"}, {"base_files": "9f2…"})                       # ["base_files"]
"""

from __future__ import annotations

Inputs = dict[str, str]  # name of the input: its fingerprint
MODELS = {  # see model_files.py; as messages call them
    "base_files": "files of the base model",
    "teacher_files": "files of the teacher",
    "retriever_files": "files of the retriever",
    "module_files": "files of the reflection module",
}


def equal(stored: Inputs | None, wanted: Inputs) -> bool:
    return stored is not None and not changes(stored, wanted)


def changes(stored: Inputs, wanted: Inputs) -> list[str]:
    """The names of the inputs that differ."""
    keys = sorted(stored.keys() | wanted)
    known = [key for key in keys if key not in MODELS or (key in stored and key in wanted)]
    return [key for key in known if stored.get(key) != wanted.get(key)]


def named(inputs: list[str]) -> str:
    """The inputs for a message.

    >>> named(["base_files", "settings"])
    'files of the base model, settings'
    """
    return ", ".join(MODELS.get(name, name) for name in inputs)


def without_models(inputs: Inputs) -> Inputs:
    """The inputs without the models' files, as older runs recorded them."""
    return {key: value for key, value in inputs.items() if key not in MODELS}
