"""The SFT step on a CPU, with attention by blocks and with torch's own: `python tests/benchmarks/sft_step.py`.

The bundled model learns from rows as long as the demo's (tweets of personas with 1, 3 and 6 items). Every forward and
backward pass is taken both ways, first the one, then the other, and next time the other way round; the passes of the
first step, which warms up, are left out. Prints seconds and their ratio. Not a timed test.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset

from rpo_kit.lamp.personas import build
from rpo_kit.lamp.tasks import get_task
from rpo_kit.machine import describe_machine
from rpo_kit.models.attention import attention, causal_lm
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.unsloth_loader import load_unsloth_trainable
from rpo_kit.presets import SFTSettings, get_preset
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.training.progress import skip_peft_input_cast

WAYS = {"blocks": "rpo_rows", "torch": "sdpa"}


def rows(count: int) -> Dataset:
    """Prompts of the demo's kind; as completion an observation per item, plan and rewrite."""
    task, made = get_task("LaMP-7"), []
    for n, example in enumerate(build("LaMP-7", "train", count)):
        items = list(example["profile"])[: (1, 3, 6)[n % 3]]
        prompt = reflection_messages(task, example["input"], task.query_text(example["input"]), items)
        lines = [f"[{number}] starts with lol and ends with haha" for number in range(1, len(items) + 1)]
        text = "\n".join([*lines, "write it the same way", example["output"]])
        made.append({"prompt": prompt, "completion": [{"role": "assistant", "content": text}]})
    return Dataset.from_list(made)


def measure(loaded: LoadedModel, data: Dataset, settings: SFTSettings) -> dict[str, float]:
    """Seconds of all passes after the first step, by way."""
    from rpo_kit.training.sft import make_trainer  # after Unsloth, which `loaded` has imported

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(loaded, data, settings, Path(folder), None)
        step, seconds = trainer.training_step, []

        def both(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            order = list(WAYS) if len(seconds) % 2 else list(WAYS)[::-1]
            spent = {}
            for way in order:
                start = time.perf_counter()
                with attention(causal_lm(model), WAYS[way]):
                    loss = step(model, dict(inputs), *rest)
                spent[way] = time.perf_counter() - start
            seconds.append(spent)
            return loss

        trainer.training_step = both
        with skip_peft_input_cast(trainer.model):
            trainer.train()
    return {way: sum(spent[way] for spent in seconds[settings.accumulate :]) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="after the one that warms up")
    steps = parser.parse_args().steps
    preset = get_preset("cpu", {"sft.steps": steps + 1})
    loaded = load_unsloth_trainable(preset.reflection, 0)
    seconds = measure(loaded, rows(64), preset.sft)
    print(describe_machine())
    for way, spent in seconds.items():
        print(f"{way:6} {spent / steps:6.2f} s a step")
    print(f"torch / blocks: {seconds['torch'] / seconds['blocks']:.2f}")


if __name__ == "__main__":
    main()
