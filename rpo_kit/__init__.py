"""rpo_kit: Reflective Personalization Optimization, step by step, in notebooks and thin helpers."""

__version__ = "0.1.0"

import os as _os

# Libraries read these when they are imported: our own progress bars tell more than theirs.
_os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
_os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing is sent home: TRL and huggingface_hub report usage, Unsloth counts starts and looks for updates.
_os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
