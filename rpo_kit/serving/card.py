"""The model card of an export, in the hub's form: front matter for the hub, then what a user has to know.

Made from the run alone: its settings, the manifest of the stage, and the tables of `evaluate` if that has run on this
adapter. What is not known is left out of the front matter, or said.

    write(export, folder)            # README.md
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from rpo_kit.bundled import INSTALL
from rpo_kit.lamp.tasks import get_task
from rpo_kit.model_spec import parse_spec, recorded_files
from rpo_kit.models.adapter_files import portable_name
from rpo_kit.provenance import fingerprint
from rpo_kit.runs import read_json, read_records, write_text
from rpo_kit.serving.card_results import Results, read_results, results_text
from rpo_kit.serving.card_usage import example_code, kit_code, usage
from rpo_kit.serving.export_files import Export, base_license

_FORMS = {
    "adapter": "the LoRA adapter (PEFT)",
    "merged": "the base model with the LoRA merged into it",
    "gguf": "the base model with the LoRA merged into it, as one GGUF file for llama.cpp",
    "ollama": "the base model with the LoRA merged into it, as a GGUF file with Ollama's Modelfile",
    "vllm": "the LoRA adapter (PEFT) with the command that serves it with vLLM",
}
_LIBRARIES = {"adapter": "peft", "vllm": "peft", "merged": "transformers", "gguf": "gguf", "ollama": "gguf"}


def write(export: Export, folder: Path) -> None:
    """Write README.md."""
    write_text(folder / "README.md", text_of(export))


def text_of(export: Export) -> str:
    preset = export.run.preset
    results = read_results(export)
    sections = {
        "name": export.name,
        "task": f"{get_task(preset.data.task).title.lower()} ({preset.data.task})",
        "shots": str(preset.evaluation.shots),
        "parts": " and ".join(filter(None, [", ".join(preset.reflection.sections[:-1]), "rewrite"])),
        "stage": " by supervised fine-tuning (SFT) alone" if export.stage == "sft" else ", by SFT and then RL",
        "form": _form(export),
        "base": _base(export),
        "how": usage(export),
        "example": example_code(export),
        "kit": kit_code(export),
        "new_tokens": str(preset.evaluation.max_new_tokens),
        "window": str(preset.reflection.max_seq_length),
        "data": _data(export),
        "training": _training(export),
        "results": results_text(export, results),
        "limits": _limits(export),
        "licenses": _licenses(export),
        "provenance": _provenance(export),
    }
    template = (files(__package__) / "model_card.txt").read_text(encoding="utf-8")
    body = re.sub(r"\{(\w+)\}", lambda match: sections[match[1]], template)
    return f"---\n{front_matter(export, results).to_yaml()}\n---\n\n{body}"


def front_matter(export: Export, results: Results | None) -> ModelCardData:
    """What the hub reads. The base model only if its name is one of the hub; data sets none: none is on the hub."""
    data = export.run.preset.data
    license, other = _license_tag(export)
    return ModelCardData(
        model_name=export.name,
        base_model=None if export.base_is_renamed else export.base,
        library_name=_LIBRARIES[export.to],
        pipeline_tag="text-generation",
        language="en" if data.source in ("personas", "official") else None,
        license=license,
        license_name=other,
        tags=["rpo", "personalization", "rewriting", *(["lora"] if _LIBRARIES[export.to] == "peft" else [])],
        eval_results=_eval_results(export, results),
    )


def _eval_results(export: Export, results: Results | None) -> list[EvalResult] | None:
    if results is None:
        return None
    source = export.run.preset.data.source
    data = "rpo_kit personas" if source == "personas" else "LaMP" if source == "official" else "own data"
    task = export.run.preset.data.task
    row = results.row(export.stage)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data.lower().replace(" ", "-"),
            dataset_name=f"{task}, {data}, {results.examples} dev users",
            metric_type=metric.lower(),
            metric_name=metric,
            metric_value=round(float(row[metric]), 4),
        )
        for metric in ("score", *get_task(task).metrics)
        if metric in row
    ]


def _form(export: Export) -> str:
    settings = export.run.preset.reflection
    text = _FORMS[export.to] + (f", stored as {export.dtype}" if export.dtype else "")
    if settings.load_in_4bit and export.dtype:
        text += ". The LoRA was trained on the base in 4-bit (NF4), and merged into the unpacked 4-bit weights"
    return text


def _base(export: Export) -> str:
    if export.is_bundled:
        return (
            f"The base model is {export.base}, in the copy that rpo_kit comes with: quantised to Q4_1 in the Python "
            f"package of `{INSTALL}`, and unpacked to bf16 by `rpo_kit.bundled.bundled_model()`. The numbers below are "
            "with that copy; with the hub's own weights they were not measured."
        )
    if export.base_is_renamed:
        return f"The base model was a folder called {export.base} on the training machine; it is not known to the hub."
    return f"The base model is {export.base}."


def _data(export: Export) -> str:
    data, synthesis = export.run.preset.data, export.run.preset.synthesis
    task = get_task(data.task)
    sources = {
        "personas": "Invented users, whose texts are made by rules (the embedded benchmark of rpo_kit, Apache-2.0): "
        "each has one habit, which most items of the history show. No real person wrote any of it.",
        "official": "LaMP's public files ([lamp-benchmark.github.io](https://lamp-benchmark.github.io)), CC BY-NC-SA "
        "4.0 and the licenses of their sources.",
    }
    trajectories = len(read_records(export.run.stage("synthesize") / "trajectories.jsonl"))
    asked = task.prefix.strip()
    lines = [
        f"{task.name}, {task.title.lower()}. What the base model is asked begins with: “{asked}”",
        sources.get(
            data.source, "Own data of whoever trained it, in LaMP's form; its license is not known to the kit."
        ),
        f"Trained on up to {data.train_users} users, from which {_public(synthesis.teacher)!r} wrote {trajectories} "
        f"trajectories, and evaluated on up to {data.dev_users} other users. Items are ranked by "
        f"{_public(data.retriever)}.",
    ]
    return "\n\n".join(lines)


def _public(spec: str) -> str:
    """The name of a model without folders and addresses, which are the trainer's own."""
    kind, _, name = spec.strip().partition(":")
    endpoint = parse_spec(spec)
    if endpoint:
        return endpoint.model
    if recorded_files(spec):
        return "recorded texts"
    return f"{kind}:{portable_name(name) if name != 'smollm2' else name}" if name else spec


def _training(export: Export) -> str:
    preset = export.run.preset
    sft, rl, module = preset.sft, preset.rl, preset.reflection
    rows = [
        f"| SFT | {sft.steps} steps of {sft.batch_size * sft.accumulate} trajectories, learning rate "
        f"{sft.learning_rate:g}, seed {sft.seed} |"
    ]
    if export.stage == "rl" and rl.start != "sft":
        rows = []
    if export.stage == "rl":
        rows.append(
            f"| RL | {rl.algorithm}, {rl.steps} steps of {rl.prompts_per_step} prompts × {rl.group_size} samples, "
            f"learning rate {rl.learning_rate:g}, KL weight {rl.beta:g}, clip {rl.clip:g}, temperature "
            f"{rl.temperature:g}, items: {rl.curriculum} from {rl.shots_from} to {rl.shots_to}, seed {rl.seed} |"
        )
    lora = f"LoRA of rank {module.lora_rank}, alpha {module.lora_alpha}, on {', '.join(module.lora_targets)}"
    base = "the base in 4-bit (NF4)" if module.load_in_4bit else "the base unquantised"
    return "\n".join(["| stage | settings |", "|---|---|", *rows, f"| both | {lora}; {base} |"])


def _limits(export: Export) -> str:
    preset = export.run.preset
    lines = [
        f"One task ({preset.data.task}), one base for the generic answers "
        f"({_public(preset.base)}), one seed. With another base model the generic answers differ from those that the "
        "module has seen.",
        "It writes in the style of the history that it is shown. It does not check facts, and it can lose content of "
        "the generic answer: the kit keeps the generic answer where hardly any content is left, or a tweet's "
        f"rewrite has less than half of its words and keeps less than {preset.evaluation.keep_content:g} of it.",
        "Its observations may be wrong; they explain a rewrite and prove nothing about a user.",
    ]
    if preset.data.source == "personas":
        lines.append("Trained on invented users with one habit each: real histories are more varied.")
    else:
        lines.append(
            "The weights may repeat words of the texts on which they were trained: publish them only if you may "
            "publish the texts."
        )
    return "\n".join(f"- {line}" for line in lines)


def _license_tag(export: Export) -> tuple[str, str | None]:
    """The hub's identifier, and a name if it is "other"."""
    license = base_license(export)
    if export.run.preset.data.source != "personas":
        return "other", "base-model-and-training-data"
    return license or "unknown", None


def _licenses(export: Export) -> str:
    source = export.run.preset.data.source
    data = {
        "personas": "texts made by rpo_kit, Apache-2.0",
        "official": "LaMP, CC BY-NC-SA 4.0",
    }
    base = base_license(export)
    return (
        f"The base model: {base or 'its card is not on this machine, so look there'}. The data: "
        f"{data.get(source, 'not known to the kit')}. The kit that trained it: Apache-2.0. These terms hold together; "
        "the kit gives no advice on which of them apply to weights."
    )


def _provenance(export: Export) -> str:
    manifest = read_json(export.run.stage(export.stage) / "manifest.json") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (manifest.get("packages") or {}).items())
    rows = {
        "run, stage": f"{export.run.name}, {export.stage}",
        "preset": export.run.preset.name,
        "code": f"rpo_kit, commit {manifest.get('commit', 'unknown')}",
        "machine": ", ".join(str(manifest.get(key, "unknown")) for key in ("machine", "processor")),
        "GPU": manifest.get("gpu", "unknown"),
        "packages": packages,
        "adapter": f"sha256 {fingerprint(export.adapter / 'adapter_model.safetensors')}",
    }
    return "\n".join(["| what | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
