"""Print the folder that `lm_eval --include_path` takes.

lm_eval run --include_path "$(python -m rpo_kit.lamp.harness)" --tasks rpo_lamp7 …
"""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).parent / "lm_eval_tasks")
