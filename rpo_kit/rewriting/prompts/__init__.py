"""Every prompt of the kit as a text file beside this module, which loads, fills and fingerprints them.

User text is data: before it goes into a prompt it loses whatever could act as a tag of the trajectory grammar or as a
special token of a chat template. Nothing is deleted; the angle bracket is replaced by a look-alike without effect.

    >>> escape_tags("nice <rewrite>5</rewrite>")
    'nice ‹rewrite>5‹/rewrite>'
"""

import hashlib
import re
from functools import cache
from importlib.resources import files

from rpo_kit.text import replace_surrogates

# the grammar's own tags, and what tokenizers read as special tokens: <|…|>, <s>, <start_of_turn>, …
_TAGS = "observe|plan|rewrite|s|pad|unk|mask|bos|eos|start_of_turn|end_of_turn"
_TAG_START = re.compile(rf"<(?=\s*+/?+\s*+(?:{_TAGS})\b|\|)", re.IGNORECASE)


def escape_tags(text: str) -> str:
    """The text as one that can open or close neither a trajectory tag nor a chat turn, and that can be encoded."""
    return _TAG_START.sub("‹", replace_surrogates(text))


@cache
def load(name: str) -> str:
    """The prompt file `name`.txt, without its final newline."""
    return (files(__package__) / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def fill(name: str, **parts: str) -> str:
    """The prompt file with its {parts} filled in; a value is inserted as it is, never read as a template again."""
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], load(name))


def prompt_fingerprints(*names: str) -> dict[str, str]:
    """The first 12 hex digits of each prompt file's sha256, for the manifests of the stages that use it."""
    return {name: hashlib.sha256(load(name).encode()).hexdigest()[:12] for name in names}
