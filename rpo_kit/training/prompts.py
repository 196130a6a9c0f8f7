"""The prompts of RL, made before training: one per slot, in training order, with k as the curriculum plans it.

training_prompts(run, loaded, run.preset.rl)          # [Prompt(example="12", messages=[…], ids=[…], gold="2", …), …]
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rpo_kit.errors import KitError
from rpo_kit.lamp.example import Example
from rpo_kit.lamp.retrieval import top_k
from rpo_kit.lamp.tasks import Task, get_task
from rpo_kit.models.local import LoadedModel, prompt_ids
from rpo_kit.presets import RLSettings
from rpo_kit.rewriting.faithfulness import truth_of
from rpo_kit.rewriting.prepare import load_prepared
from rpo_kit.rewriting.reflection import fitting_messages, unfitting
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.runs import Run
from rpo_kit.training.curriculum import prompt_order, shots_plan
from rpo_kit.training.rollouts import Prompt


def training_prompts(run: Run, loaded: LoadedModel, settings: RLSettings) -> list[Prompt]:
    """One prompt per slot, in training order, with as many items as the curriculum plans.

    Raises:
        KitError: there is no room for a prompt, or no example fits.
    """
    task, limit = get_task(run.preset.data.task), loaded.max_seq_length - settings.max_new_tokens
    form = Form.of(run.preset.reflection)
    if limit < 1:
        raise KitError(
            f"rl.max_new_tokens={settings.max_new_tokens} leaves no room for a prompt in {loaded.max_seq_length} "
            "tokens: lower it, or raise reflection.max_seq_length."
        )
    plan = shots_plan(settings.curriculum, settings.steps, settings.shots_from, settings.shots_to, settings.seed)
    pool = load_prepared(run, "train")
    too_long = unfitting(loaded.tokenizer, limit, task, pool, max(plan), form)
    if too_long:
        why = next(iter(too_long.values()))
        print(f"{len(too_long)} of {len(pool)} examples are left out, the first because of this: {why}")
        pool = [example for example in pool if example["id"] not in too_long]
        if not pool:
            raise KitError(f"No training example fits into the context window; the first reason: {why}")
    examples = prompt_order(pool, settings.steps * settings.prompts_per_step, settings.seed)
    prompts, shortened, fewer = [], 0, 0
    for slot, example in enumerate(examples):
        shots = plan[slot // settings.prompts_per_step]
        prompt, cut = prompt_of(loaded.tokenizer, limit, task, example, shots, form)
        prompts.append(prompt)
        shortened += cut
        fewer += prompt.shots < shots
    if fewer:
        print(f"{fewer} of {len(prompts)} prompts show fewer items than planned: the profiles have no more")
    if shortened:
        print(
            f"{shortened} of {len(prompts)} prompts were longer than {limit} tokens: their history items were shortened"
        )
    return prompts


def prompt_of(
    tokenizer: PreTrainedTokenizerBase, limit: int, task: Task, example: Example, shots: int, form: Form
) -> tuple[Prompt, bool]:
    """The prompt with the first `shots` items of the ranking, and whether something was shortened to `limit` tokens."""
    items = top_k(example, example["ranking"], shots)
    messages, cut = fitting_messages(tokenizer, limit, task, example, items, form=form)
    ids, history = prompt_ids(tokenizer, messages), [item[task.gold_field] for item in items]
    query, truth = task.query_text(example["input"]), truth_of(task, example, items)
    texts = (example["output"], example["generic"], history, query)
    return Prompt(example["id"], messages, ids, *texts, truth, form.sections), cut
