"""Every prompt of the kit as a text file beside this module, which loads, fills and fingerprints them.

User text is data: before it goes into a prompt it loses whatever could act as a tag of the trajectory grammar or as a
special token. Nothing is deleted; one character is replaced by a look-alike without effect, and `restore_tags` puts it
back into what a model wrote.

    >>> escape_tags("nice <rewrite>5</rewrite>")
    'nice ‹rewrite>5‹/rewrite>'
    >>> restore_tags("nice ‹rewrite>5‹/rewrite>")
    'nice <rewrite>5</rewrite>'
"""

import hashlib
import re
from functools import cache
from importlib.resources import files

from rpo_kit.text import escape_tags as escape_tags
from rpo_kit.text import restore_tags as restore_tags


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
