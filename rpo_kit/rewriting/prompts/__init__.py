"""Every prompt of the kit as a text file; this module loads them, fills them and fingerprints them.

User text is data: what goes into a prompt is stripped of anything that could act as a tag of the trajectory grammar or
as a chat template's special token. Nothing is deleted; the angle bracket is replaced by a look-alike that has no power.

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
_POWERFUL = re.compile(rf"<(?=\s*+/?+\s*+(?:{_TAGS})\b|\|)", re.IGNORECASE)


def escape_tags(text: str) -> str:
    """Text which can neither open or close a trajectory tag nor a chat turn, and which every tokenizer can read."""
    return _POWERFUL.sub("‹", replace_surrogates(text))


@cache
def load(name: str) -> str:
    """The prompt file `name`.txt, without its final newline."""
    return (files(__package__) / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def fill(name: str, **parts: str) -> str:
    """The prompt with its {parts} filled in; values are inserted as they are, never read as a template again."""
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], load(name))


def prompt_fingerprints(*names: str) -> dict[str, str]:
    """The first 12 hex digits of each prompt file's sha256; a stage's manifest holds those of the files it uses."""
    return {name: hashlib.sha256(load(name).encode()).hexdigest()[:12] for name in names}
