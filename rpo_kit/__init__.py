"""rpo_kit: Reflective Personalization Optimization, step by step, in notebooks and thin helpers."""

__version__ = "0.1.0"

import os as _os

# Libraries read these when they are imported: our own progress bars tell more than theirs.
_os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
