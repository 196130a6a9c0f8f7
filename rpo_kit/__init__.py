"""rpo_kit: Reflective Personalization Optimization, step by step, in notebooks and thin helpers.

The names that most notebooks and scripts need first can be imported from here. They are loaded on first use, so
`import rpo_kit` stays fast.

    from rpo_kit import Personalizer, existing_run

    personalize = Personalizer.of(existing_run("demo"))
"""

import importlib as _importlib
import logging as _logging
import os as _os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpo_kit.errors import KitError
    from rpo_kit.lamp.tasks import get_task
    from rpo_kit.rewriting.personalizer import Personalizer
    from rpo_kit.rewriting.prepare import load_prepared
    from rpo_kit.runs import existing_run, open_run
    from rpo_kit.study.html import show_table
    from rpo_kit.study.widgets import introduce, show

__version__ = "0.1.0"

__all__ = [
    "KitError", "Personalizer", "existing_run", "get_task", "introduce", "load_prepared", "open_run", "show",
    "show_table",
]  # fmt: skip

_HOMES = {
    "KitError": "rpo_kit.errors",
    "Personalizer": "rpo_kit.rewriting.personalizer",
    "existing_run": "rpo_kit.runs",
    "get_task": "rpo_kit.lamp.tasks",
    "introduce": "rpo_kit.study.widgets",
    "load_prepared": "rpo_kit.rewriting.prepare",
    "open_run": "rpo_kit.runs",
    "show": "rpo_kit.study.widgets",
    "show_table": "rpo_kit.study.html",
}

# Libraries read these when they are imported: our own progress bars say more than theirs.
_os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Large pages for large tensors on Linux: an RL step on a CPU becomes 1.1 times faster (docs/benchmarks.md).
_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# On some CPUs bitsandbytes asks at import for a package that would download code from the hub; it works without.
_logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(_logging.ERROR)
# Nothing is sent home: TRL and huggingface_hub report usage, Unsloth counts starts and looks for updates.
_os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")


def __getattr__(name: str) -> object:
    """Load one of the names above on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(_importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
