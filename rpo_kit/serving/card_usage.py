"""Code for the users of an export, in its model card: how to load it, what to send, how to read the answer.

The snippets run as they stand in the folder of the export; tests execute them. The example's user is invented, because
a card must not show anybody's texts.

    usage(export)            # Markdown with a Python block
    example_code(export)     # messages = [...] and how to read `text`
"""

from __future__ import annotations

import json

from rpo_kit.lamp.personas import MODULES, build
from rpo_kit.lamp.tasks import Item, Task, get_task
from rpo_kit.models.chat import Conversation
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.rewriting.trajectory import Form
from rpo_kit.serving.export_files import Export

_ITEMS = 2  # of the example
_ASK = """\
def complete(messages):
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = model.generate(**inputs, max_new_tokens={new_tokens}, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)"""
_LOAD = {
    "adapter": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}, dtype="auto"), ".")""",
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")""",
}
_LLAMA = """\
from llama_cpp import Llama  # pip install llama-cpp-python

model = Llama({file}, n_ctx={window}, verbose=False)


def complete(messages):
    reply = model.create_chat_completion(
        messages, temperature=0.0, top_k=1, repeat_penalty=1.0, max_tokens={new_tokens}
    )
    return reply["choices"][0]["message"]["content"]"""
_SERVED = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="none")


def complete(messages):
    reply = client.chat.completions.create(
        model="{name}", messages=messages, temperature=0, max_tokens={new_tokens}
    )
    return reply.choices[0].message.content"""
_KIT = """\
from pathlib import Path

from rpo_kit.lamp.tasks import get_task
from rpo_kit.models.open import open_chat
from rpo_kit.presets import ModelSettings
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.rewriting.reflection import load_reflection
from rpo_kit.rewriting.trajectory import Form

task, form = get_task("{task}"), {form}
module = load_reflection(ModelSettings({module}, max_seq_length={window}{bits}){adapter})
base = open_chat("local:smollm2")  # writes the generic answers; or openai:MODEL, or http://HOST:PORT/v1#MODEL
personalize = Personalizer(base, module, task, shots={shots}, new_tokens={new_tokens}, form=form)
# personalize(task.make_input(text="…"), profile).text"""
_KIT_SERVED = """\
from rpo_kit.lamp.tasks import get_task
from rpo_kit.rewriting.reflection import reflection_messages
from rpo_kit.rewriting.trajectory import Form, rewrite_or_generic

task, form = get_task("{task}"), {form}


def rewrite(input, generic, items):
    text = complete(reflection_messages(task, input, generic, items, form=form))
    return rewrite_or_generic(text, generic, form.sections)[0]"""
_COMMANDS = {
    "gguf": "As a server: `llama-server -m {file} -c {window} --jinja`.",
    "ollama": "```bash\nollama create {name} -f Modelfile\nollama run {name}\n```",
    "vllm": "```bash\nsh serve.sh\n```\n\n`sh serve.sh FOLDER` takes the base model from a folder.",
}


def usage(export: Export) -> str:
    """How to load it and ask it: a function `complete(messages)`, and commands before it."""
    preset = export.run.preset
    values = {
        "base": json.dumps(export.base),
        "name": export.name,
        "window": preset.reflection.max_seq_length,
        "new_tokens": preset.evaluation.max_new_tokens,
        "url": "http://localhost:11434/v1" if export.to == "ollama" else "http://localhost:8000/v1",
    }
    if export.to == "gguf":
        command, code = _COMMANDS["gguf"].format(file=export.gguf_name, **values), _LLAMA
        return f"{_python(code.format(file=json.dumps(export.gguf_name), **values))}\n\n{command}"
    if export.to in _LOAD:
        return _python("\n\n\n".join([_LOAD[export.to], _ASK]).format(**values))
    return f"{_COMMANDS[export.to].format(**values)}\n\n{_python(_SERVED.format(**values))}"


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def example_code(export: Export) -> str:
    """Messages of an invented user, and how the answer is read."""
    messages, generic = example_messages(export)
    sections = export.run.preset.reflection.sections
    pattern = r"\s*".join(
        f"<{name}>(.*?)</{name}>" if name == "rewrite" else f"<{name}>.+?</{name}>" for name in sections
    )
    return (
        f"import re\n\nmessages = {json.dumps(messages, indent=4, ensure_ascii=False)}\n"
        f'text = complete(messages)\nfound = re.fullmatch(r"\\s*{pattern}\\s*", text, re.DOTALL)\n'
        f"print(found[1].strip() if found else {json.dumps(generic, ensure_ascii=False)})  # else: the generic answer"
    )


def example_messages(export: Export) -> tuple[Conversation, str]:
    """The prompt of an invented user, and the generic answer in it."""
    preset = export.run.preset
    task = get_task(preset.data.task)
    input, items = _invented(task)
    generic = task.labels[-1] if task.labels else task.query_text(input)
    return reflection_messages(task, input, generic, items, form=Form.of(preset.reflection)), generic


def _invented(task: Task) -> tuple[str, list[Item]]:
    """An input and the first items of a persona; of a task without personas, placeholders."""
    if task.name in MODULES:
        (row,) = build(task.name, "train", 1, items_per_user=_ITEMS)
        return row["input"], list(row["profile"])[:_ITEMS]
    items = [
        {"id": str(n)} | {field: f"the {field} of item {n}" for field in task.fields} for n in range(1, _ITEMS + 1)
    ]
    return task.make_input(**{part: f"the {part} of the query" for part in task.parts}), items


def kit_code(export: Export) -> str:
    """The same with rpo_kit: a `Personalizer` on the module, or the prompt and the parser for a served one."""
    preset = export.run.preset
    settings, name = preset.reflection, "."
    if export.to == "adapter":
        name = settings.name if export.is_bundled else export.base
    values = {
        "task": preset.data.task,
        "form": f"Form({settings.sections!r}, sees_generic={settings.sees_generic})",
        "module": json.dumps(name),
        "window": settings.max_seq_length,
        "bits": ", load_in_4bit=True" if settings.load_in_4bit and export.to == "adapter" else "",
        "adapter": ', Path(".")' if export.to == "adapter" else "",
        "shots": preset.evaluation.shots,
        "new_tokens": preset.evaluation.max_new_tokens,
    }
    return (_KIT if export.to in _LOAD else _KIT_SERVED).format(**values)
