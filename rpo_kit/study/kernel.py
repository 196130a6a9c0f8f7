"""How a notebook shows an error that the user can fix: one sentence that names the notebook to run.

Without this, IPython prints a screenful of traceback around the message of a `KitError`, and the message names a
command although a reader of notebooks needs a notebook. Other errors keep their traceback; `%tb` shows that of a
KitError.

    >>> name_notebooks("The stage 'sft' is not finished: first run `python -m rpo_kit sft --run a`.")
    "The stage 'sft' is not finished: first run notebook 03_sft_unsloth_4bit (or `python -m rpo_kit sft --run a`)."
"""

from __future__ import annotations

import re
import sys
from types import TracebackType

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell

from rpo_kit.errors import KitError
from rpo_kit.pipeline import STAGES

_COMMAND = re.compile(rf"`python -m rpo_kit ({'|'.join(STAGES)})( --run [^ `]+)?`")


def explain_errors() -> None:
    """From now on this kernel shows a KitError as one sentence; outside of IPython nothing happens.

    `widgets`, which each notebook's first line imports, calls it.
    """
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((KitError,), _show_sentence)


def name_notebooks(message: str) -> str:
    """The message with the notebook of each stage whose command it names."""
    return _COMMAND.sub(lambda found: f"notebook {STAGES[found[1]].notebook} (or {found[0]})", message)


def _show_sentence(
    shell: InteractiveShell,
    kind: type[KitError],
    error: KitError,
    traceback: TracebackType,
    tb_offset: int | None = None,
) -> list[str]:
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback  # for %tb and %debug
    sentence = name_notebooks(str(error))
    lines = [f"\x1b[1;31m{kind.__name__}\x1b[0m: {sentence}"]
    shell._showtraceback(kind, sentence, lines)  # as an error of the cell, so that execution stops
    return lines
