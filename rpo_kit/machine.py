"""The machine that the kit runs on: where it keeps what it can make again."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Folder for what can be made or fetched again: $RPO_CACHE, else ~/.cache/rpo_kit."""
    return Path(os.environ.get("RPO_CACHE") or "~/.cache/rpo_kit").expanduser().absolute()
