"""What must never leave: the profile towards the base model, and a key towards anything that is stored or shown."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path

import nbformat
import pytest
from fakes import completion, error, last
from transformers import AutoTokenizer

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import TASKS, get_task
from rpo_kit.models.chat import Completion
from rpo_kit.models.local import LoadedModel
from rpo_kit.models.open import open_chat_for
from rpo_kit.rewriting import reflection
from rpo_kit.rewriting.personalizer import Personalizer
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.runs import read_records
from rpo_kit.study import demo
from rpo_kit.training.synthesis import synthesize

KEY = "sk-planted-0123456789abcdef"


def texts_of(task, item):
    """The texts of an item that would be recognized: its line, its id, and each field of more than four words."""
    return [task.item_line(item), item["id"], *(item[name] for name in task.fields if len(item[name].split()) > 4)]


@pytest.mark.parametrize("name", TASKS)
def test_no_request_to_the_base_model_contains_profile_text(new_run, endpoint, tiny_llama, monkeypatch, name):
    """Over HTTP, in `prepare` and in the personalizer: the base model's server sees queries and nothing else."""
    task = get_task(name)
    sizes = {"data.task": name, "data.train_users": 4, "data.dev_users": 3}
    run = new_run(sizes | {"base": f"{endpoint.url}#base", "endpoint.cache": False})
    prepare(run)
    examples = load_prepared(run, "train") + load_prepared(run, "dev")
    module = LoadedModel(None, AutoTokenizer.from_pretrained(tiny_llama), 4096)
    monkeypatch.setattr(reflection, "generate", lambda m, asked, **_: [Completion("", True, 1, 1)] * len(asked))
    whole = Personalizer(open_chat_for(run, run.preset.base), module, task)
    for _ in whole.each((example["input"], example["profile"]) for example in examples):
        pass
    asked = [body["messages"] for body in endpoint.requests]
    queries = [[{"role": "user", "content": example["input"]}] for example in examples]
    assert sorted(map(str, asked)) == sorted(map(str, queries * 2))
    sent = json.dumps(endpoint.requests, ensure_ascii=False)
    for item in (item for example in examples for item in example["profile"]):
        for text in texts_of(task, item):
            assert json.dumps(text, ensure_ascii=False)[1:-1] not in sent


def test_with_leave_one_out_the_base_model_reads_the_items_inputs_and_none_of_the_users_answers(new_run, endpoint):
    run = new_run({"data.train_users": 3, "data.leave_one_out": 2, "base": f"{endpoint.url}#base"})
    prepare(run)
    train, dev = load_prepared(run, "train"), load_prepared(run, "dev")
    assert len(train) == 3 + 3 * 2
    asked = sorted(last(body) for body in endpoint.requests)
    assert asked == sorted(example["input"] for example in train + dev)
    chosen = {example["input"] for example in train}
    for example in train:
        for item in example["profile"]:
            assert (TASKS["LaMP-3"].make_input(text=item["text"]) in chosen) or all(
                item["text"] not in a for a in asked
            )


def everything_under(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def repeats_the_key(endpoint):
    """A server that puts the key wherever it can: into headers, answers and refusals; it answers base and teacher."""
    endpoint.headers = {"X-Your-Key": KEY}

    def reply(body):
        if last(body) == "refuse":
            return error(401, f"Incorrect API key provided: {KEY}.")
        if "user's own answer" not in last(body):
            return (
                error(400, f"{KEY} may not ask this") if len(endpoint.requests) == 2 else (200, completion(f"3 {KEY}"))
            )
        target = last(body).split("The user's own answer: ")[1].splitlines()[0]
        seen = f"<observe>[1] seen by {KEY}</observe><plan>{KEY}</plan><rewrite>{target}</rewrite>"
        return 200, completion(seen)

    endpoint.reply = reply


def test_a_planted_key_is_in_no_artefact(new_run, endpoint, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    repeats_the_key(endpoint)
    run = new_run({"base": "openai:m", "synthesis.teacher": "openai:m", "endpoint.tolerate": 0.1})
    prepare(run)
    synthesize(run)
    assert set(endpoint.keys) == {f"Bearer {KEY}"}, "it was really used"
    good = read_records(run.stage("synthesize") / "trajectories.jsonl")
    assert good[0]["plan"] == "…"
    assert "may not ask this" in read_records(run.stage("prepare") / "failed.jsonl")[0]["reason"]
    stored = sqlite3.connect(tmp_path / "answers.sqlite").execute("SELECT answer FROM answers").fetchall()
    assert len(stored) > 20
    shown = capfd.readouterr()
    artefacts = everything_under(tmp_path) + (shown.out + shown.err + caplog.text).encode() + str(stored).encode()
    assert KEY.encode() not in artefacts
    assert b"0123456789abcdef" not in artefacts


CELLS = """
import logging
from rpo_kit.runs import open_run
logging.basicConfig(level=logging.DEBUG)
run = open_run(run_name, preset, overrides)
run
# ---
from rpo_kit.rewriting.prepare import load_prepared, prepare
from rpo_kit.training.synthesis import synthesize
prepare(run)
synthesize(run)
load_prepared(run, "dev")[0]
# ---
from rpo_kit.models.open import open_chat_for
open_chat_for(run, run.preset.base).complete([[{"role": "user", "content": "refuse"}]], max_new_tokens=2)
"""


def test_a_planted_key_is_in_no_executed_notebook(new_run, endpoint, tmp_path, monkeypatch, capfd):
    """Executed as `demo` does it, with all logs on; its last cell stops with a refusal in which the key stands."""
    first = nbformat.v4.new_code_cell("run_name = preset = overrides = None", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, CELLS.split("# ---"))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, tmp_path / "keys.ipynb")
    monkeypatch.setattr(demo, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    repeats_the_key(endpoint)
    model = f"{endpoint.url}#m@MY_KEY"
    run = new_run({"base": model, "synthesis.teacher": model, "endpoint.tolerate": 0.1})
    with pytest.raises(KitError, match=r"Notebook keys stopped: EndpointError: .*the key was rejected") as caught:
        demo.execute(run, "keys")
    assert set(endpoint.keys) == {f"Bearer {KEY}"}, "it was really used"
    executed = nbformat.read(run.folder / "notebooks" / "keys.ipynb", as_version=4)
    assert executed.metadata["papermill"]["parameters"]["overrides"]["base"] == model
    outputs = str([cell.get("outputs") for cell in executed.cells])
    for part in ("Incorrect API key provided: ….", "trajectories accepted", "'generic': '3'", "DEBUG:openai"):
        assert part in outputs
    shown = capfd.readouterr()
    artefacts = everything_under(tmp_path) + (shown.out + shown.err + str(caught.value)).encode()
    assert b"0123456789abcdef" not in artefacts
