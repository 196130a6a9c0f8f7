"""One RL step of the trainer class that Unsloth makes for GPUs, generated on a CPU; run by test_reinforce.py.

Writes what the step saw to FOLDER/seen.pt. Unsloth rewrites TRL's source and puts its class in TRL's place for the
whole process, so this has one of its own, started with UNSLOTH_ALLOW_CPU=1 in a folder where Unsloth may keep it.
"""

import sys
from pathlib import Path

import torch


def main(llama: str, folder: Path) -> None:
    import unsloth  # noqa: F401  before everything that imports TRL
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from unsloth.models.rl import _patch_trl_rl_trainers

    _patch_trl_rl_trainers("grpo_trainer")
    from one_step import adapter_of, train_one_step

    from rpo_kit.models.local import LoadedModel
    from rpo_kit.training import reinforce

    reinforce.shares_prefix = lambda model: False  # as on a GPU
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora)
    model.for_training = model.for_inference = lambda *args, **kwargs: None  # what Unsloth's own models have
    before = adapter_of(model)
    trainer, seen = train_one_step(
        LoadedModel(model, AutoTokenizer.from_pretrained(llama, padding_side="left"), 2048), folder
    )
    after = adapter_of(model)
    bases = [base.__name__ for base in type(trainer).__mro__]
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    torch.save(seen | {"moved": moved, "kl": trainer.state.log_history[0]["kl"], "bases": bases}, folder / "seen.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
