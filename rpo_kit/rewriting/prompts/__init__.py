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

from rpo_kit.text import JOINER, LOOK_ALIKES, replace_surrogates

_BRACKETED = (  # special tokens of Mistral, BERT, GLM and their kin; other words in brackets are left alone
    "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|TOOL_CALL|ARGS|CALL_ID|MODEL_SETTINGS|"
    "IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX|THINK|"
    "CLS|SEP|MASK|PAD|UNK|BOS|EOS|gMASK|sMASK|sop|eop"
)


def _starts(angle: str, bracket: str, closing: str) -> re.Pattern[str]:
    """Where a tag of the grammar or a special token begins, written with these three characters."""
    return re.compile(
        rf"{angle}(?=\s*+/?+\s*+(?:observe|plan|rewrite)\b"  # the grammar's own tags, whether they end or not
        r"|[|｜]"  # <|im_start|>, <｜User｜>
        r"|/?[\w▁][^\s<>‹›]{0,62}[>›])"  # <s>, </s>, <start_of_turn>, <file_sep>; Gemma even has <b>
        rf"|{bracket}(?=/?(?:{_BRACKETED})\])"  # [INST], [/INST]
        rf"|{closing}(?=>[A-Z_]{{2,20}}<<)",  # Falcon's >>TITLE<<
        re.IGNORECASE,
    )


_POWERFUL = _starts("<", r"\[", ">")
_HARMLESS = _starts(*LOOK_ALIKES.values())
_ORIGINALS = {look_alike: original for original, look_alike in LOOK_ALIKES.items()}


def escape_tags(text: str) -> str:
    """The text as one that can open or close neither a trajectory tag nor a chat turn, and that can be encoded.

    It knows the forms that special tokens have; `text.break_special_tokens` knows those of a loaded tokenizer.
    """
    return _POWERFUL.sub(lambda match: LOOK_ALIKES[match[0]], replace_surrogates(text))


def restore_tags(text: str) -> str:
    """What a model wrote, with the characters back that `escape_tags` and `break_special_tokens` replaced."""
    return _HARMLESS.sub(lambda match: _ORIGINALS[match[0]], text).replace(JOINER, "")


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
