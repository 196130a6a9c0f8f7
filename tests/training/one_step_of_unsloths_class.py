"""One RL step of the trainer class that Unsloth makes for GPUs, generated on a CPU; run by test_reinforce.py.

Writes what the step saw to FOLDER/seen.pt. Unsloth rewrites TRL's source and puts its class in TRL's place for the
whole process, so this has one of its own, started with UNSLOTH_ALLOW_CPU=1 in a folder where Unsloth may keep it.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset


def main(llama: str, folder: Path) -> None:
    import unsloth  # noqa: F401  before everything that imports TRL
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from unsloth.models.rl import _patch_trl_rl_trainers

    from rpo_kit.lamp.tasks import get_task
    from rpo_kit.presets import RLSettings
    from rpo_kit.rewriting.reflection import LoadedModel
    from rpo_kit.training import progress, reinforce

    _patch_trl_rl_trainers("grpo_trainer")
    rewards: list[float] = []

    def reward(task: object, text: str, gold: str, items: int, weight: float) -> float:
        rewards.append((sum(text.encode()) % 17) / 16)
        return rewards[-1]

    reinforce.reward, reinforce.shares_prefix = reward, lambda model: False  # as on a GPU
    progress.precision = lambda: {"bf16": False, "fp16": False}
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model.generation_config.eos_token_id = list(range(2, 400, 12))  # completions of different lengths
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora)
    model.for_training = model.for_inference = lambda *args, **kwargs: None  # what Unsloth's own models have
    tokenizer = AutoTokenizer.from_pretrained(llama, padding_side="left")
    loaded = LoadedModel(model, tokenizer, 2048)
    rows = [{"role": "user", "content": text} for text in ("a short one", "a prompt which is quite a bit longer")]
    made = [{"prompt": [row], "gold": "1", "k": 2, "generic": "3", "history": ["1"]} for row in rows]
    settings = RLSettings(steps=1, prompts_per_step=2, group_size=3, micro_batch=3, max_new_tokens=12, beta=0.1)
    trainer = reinforce.make_trainer(loaded, get_task("LaMP-3"), Dataset.from_list(made), settings, folder, None)
    batch, generate = {}, trainer._generate_and_score_completions

    def remember(inputs: object) -> dict[str, torch.Tensor]:
        batch.update(generate(inputs))
        return batch

    trainer._generate_and_score_completions = remember
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}
    trainer.train()
    moved = any(not torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)
    seen = {"advantages": batch["advantages"], "lengths": batch["completion_mask"].sum(1)}
    kl = trainer.state.log_history[0]["kl"]
    bases = [base.__name__ for base in type(trainer).__mro__]
    torch.save(seen | {"rewards": torch.tensor(rewards), "moved": moved, "kl": kl, "bases": bases}, folder / "seen.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
