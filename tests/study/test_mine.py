"""`mine` takes a mailbox to a trained module and a report; `forget` deletes all of it, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_mailbox import ME, write_mailbox

from rpo_kit import own_process
from rpo_kit.__main__ import main
from rpo_kit.errors import KitError
from rpo_kit.fork import fork
from rpo_kit.models.cache import open_answers
from rpo_kit.pipeline import inputs_of
from rpo_kit.presets import get_preset
from rpo_kit.rewriting.own_voice import OwnVoice, is_own, last_trained, why_left
from rpo_kit.runs import existing_run, open_run, read_records
from rpo_kit.stages import stage
from rpo_kit.study import mine
from rpo_kit.study.blind import BlindTest
from rpo_kit.study.forget import forget
from rpo_kit.study.mine import what_goes_out


@pytest.fixture(scope="module")
def tiny_settings(tiny_llama: Path) -> list[str]:
    """Options with which the whole command takes seconds: a random model in all roles, and few steps."""
    settings = {
        "base": f"local:{tiny_llama}", "reflection.name": tiny_llama, "reflection.max_seq_length": 2048,
        "reflection.lora_rank": 4, "base_max_new_tokens": 4, "sft.steps": 1, "sft.batch_size": 1, "sft.accumulate": 1,
        "evaluation.max_new_tokens": 4, "evaluation.bootstrap": 50, "synthesis.per_query": 1,
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [*options, "--neutral", "rules", "--preset", "tiny"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_settings: list[str]) -> tuple[Path, str]:
    """(the folder of the runs with a run `mine` of 40 mails, what the command printed)."""
    root = tmp_path_factory.mktemp("runs")
    box = write_mailbox(root / "sent.mbox", 60)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setenv("RPO_RUNS", str(root))
        assert main(["mine", str(box), *tiny_settings]) == 0
    return root, said.getvalue()


@pytest.fixture
def runs(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the runs, which is as it was after the test. (A copy would have its data elsewhere.)"""
    root, backup = finished[0], tmp_path / "backup"
    shutil.copytree(root, backup)
    monkeypatch.setenv("RPO_RUNS", str(root))
    yield root
    shutil.rmtree(root)
    shutil.copytree(backup, root)


def test_a_mailbox_becomes_a_trained_module_with_its_fit_and_a_draft(finished):
    root, said = finished
    for part in (
        f"author: {ME} (who wrote most", "mails with quoted mail (removed)", "Nothing leaves this machine.",
        "by rules", "Fit on ", "held-out passages of ", "The smallest true difference found in 80",
        "the one with the median gain", "your voice", "rewrite a draft", "forget mine",
    ):  # fmt: skip
        assert part in said, part
    assert (root / "mine" / "sft" / "adapter" / "adapter_model.safetensors").exists()


def test_held_out_texts_are_newer_and_not_in_any_profile(finished):
    folder = finished[0] / "mine" / "own_texts"
    train, dev = (json.loads((folder / f"{split}_questions.json").read_text()) for split in ("train", "dev"))
    golds = {row["output"] for row in json.loads((folder / "dev_outputs.json").read_text())["golds"]}
    shown = {item["text"] for row in (*train, *dev) for item in row["profile"]}
    assert golds
    assert not golds & shown
    newest = max(item["date"] for row in dev for item in row["profile"])
    number = {row["id"]: int(row["id"].rpartition(":")[2].partition("/")[0]) for row in dev}
    trained = [int(row["id"].rpartition(":")[2].partition("/")[0]) for row in train]
    assert min(number.values()) > max(trained)
    assert newest < "2023"


def test_a_training_passage_is_never_shown_with_passages_of_its_own_text(finished):
    rows = json.loads((finished[0] / "mine" / "own_texts" / "train_questions.json").read_text())
    for row in rows:
        own = row["id"].removeprefix("me-").rpartition("/")[0]
        assert own not in {item["id"].rpartition("/")[0] for item in row["profile"]}
        assert all("neutral" not in item for item in row["profile"]), "the module sees the person's own words alone"


def test_the_base_model_is_asked_neutral_versions_alone(finished):
    """What the base model is sent in `prepare` holds none of the author's own spellings."""
    folder = finished[0] / "mine" / "own_texts"
    inputs = [
        row["input"]
        for split in ("train", "dev")
        for row in json.loads((folder / f"{split}_questions.json").read_text())
    ]
    assert inputs
    for text in inputs:
        assert not {"gonna", "cos", "tmrw", "thx", "pls"} & set(
            text.lower().replace(",", " ").replace(".", " ").split()
        )


def test_a_second_call_takes_up_what_is_done(finished, tiny_settings, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(finished[0]))
    trained = []
    monkeypatch.setattr(mine, "run_stage", lambda run, step: trained.append(step) or own_process.run_stage(run, step))
    assert main(["mine", str(finished[0] / "sent.mbox"), *tiny_settings]) == 0
    said = capsys.readouterr().out
    for name in ("own_texts", "prepare", "synthesize", "sft", "evaluate"):
        assert f"{name}: done already" in said
    assert trained == ["sft"], "it goes where Unsloth's patches stay away from evaluate"


def test_a_run_of_something_else_is_not_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    open_run("demo", "tiny")
    box = write_mailbox(tmp_path / "sent.mbox", 60)
    assert main(["mine", str(box), "--run", "demo"]) == 2
    assert "The run 'demo' is not of own texts: name another" in capsys.readouterr().err
    with pytest.raises(KitError, match="is not of own texts, so it is not deleted"):
        forget("demo", yes=True)
    assert existing_run("demo").preset.data.source == "personas"


@pytest.mark.parametrize("command", ["mine", "rewrite", "forget"])
def test_each_command_has_help(command, capsys):
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "data.source=personas"], "data.source and data.task are the command's own"),
        (["--set", "sft.stepz=1"], "There is no setting 'sft.stepz'"),
        (["--set", 'evaluation.systems=["base", "sft"]'], "evaluation.systems lacks echo"),
        (["--rl", "--set", 'evaluation.systems=["echo", "sft"]'], "evaluation.systems lacks base and rl"),
        (["--base", "file:x.json"], "holds recorded answers: name a model"),
        (["--base", "nothing"], "does not name a model"),
        (["--held-out", "2"], "must be a share"),
        (["--author", "nobody"], "--author nobody is none of the authors"),
        (["--language", "Klingon"], "--language Klingon: there are English, German"),
    ],
)
def test_a_refused_call_makes_no_run(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    box = write_mailbox(tmp_path / "sent.mbox", 60)
    assert main(["mine", str(box), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs" / "mine").exists()


def test_looking_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path / "runs"))
    assert main(["mine", str(write_mailbox(tmp_path / "sent.mbox", 60)), "--look"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_served_base_is_sent_what_is_said_and_its_replies_stay_out_of_the_shared_store(
    endpoint, tmp_path, tiny_settings, capsys
):
    spec = f"{endpoint.url}#m"
    options = [part for part in tiny_settings if part not in ("--neutral", "rules")]
    box = write_mailbox(tmp_path / "sent.mbox", 60)
    base = options.index(next(part for part in options if part.startswith("base=")))
    options[base] = f"base={spec}"
    assert main(["mine", str(box), *options]) == 0
    said = capsys.readouterr().out
    assert "Nothing leaves this machine." in said, "the server is on this machine"
    sent = [request["messages"][0]["content"] for request in endpoint.requests]
    neutral = [text for text in sent if text.startswith("Rewrite the following text in plain, neutral words")]
    queries = [text for text in sent if text.startswith("Paraphrase the following text")]
    assert len(neutral) + len(queries) == len(sent)
    assert len(neutral) == len(read_records(tmp_path / "mine" / "own_texts" / "neutral.jsonl")), "each passage once"
    store = open_answers(tmp_path / "answers.sqlite")
    assert store.execute("SELECT count(*) FROM answers").fetchone()[0] == 0


def test_another_server_is_named_before_anything_is_sent():
    said = {
        ("local:smollm2", "rules", "auto"): "Nothing leaves this machine.",
        ("local:smollm2", "rules", "base"): "Nothing leaves this machine.",
        ("openai:gpt", "rules", "auto"): "OpenAI is sent each passage once, held-out ones too",
        ("openai:gpt", "rules", "rules"): "OpenAI is sent the neutral versions as queries",
        (
            "local:smollm2",
            "https://llm.example.org/v1#m",
            "auto",
        ): "https://llm.example.org/v1, the teacher, is sent the",
    }
    for (base, teacher, neutral), sentence in said.items():
        preset = get_preset("cpu", {"base": base, "synthesis.teacher": teacher})
        assert what_goes_out(preset, neutral).startswith(sentence)


def test_baselines_that_show_the_history_to_a_served_base_are_named():
    for systems, words in (
        (["base", "context-2", "pag-4"], "history, for context-2 and pag-4."),
        (["base", "echo"], ""),
    ):
        preset = get_preset("cpu", {"base": "openai:gpt", "evaluation.systems": systems})
        assert (f"OpenAI is also sent passages of the {words}" in what_goes_out(preset, "rules")) == bool(words)


# ---- use ----------------------------------------------------------------------------------------------------------


def test_a_draft_is_rewritten_passage_by_passage(runs, capsys, tmp_path, monkeypatch):
    draft = tmp_path / "draft.txt"
    draft.write_bytes(
        "I am going to be late tomorrow. Please start.\r\n\r\nThe größte Karte is missing, so bring yours.".encode(
            "cp1252"
        )
    )
    assert main(["rewrite", str(draft)]) == 0
    alone = capsys.readouterr().out
    piped = io.TextIOWrapper(io.BytesIO(draft.read_bytes()))
    monkeypatch.setattr("sys.stdin", piped)
    assert main(["rewrite", "-", "--generic"]) == 0
    assert alone.strip()
    assert alone.strip() in capsys.readouterr().out, "the same draft, with the base model's text above it"
    voice = OwnVoice.of(existing_run("mine"))
    assert len(voice.rewrite(draft.read_text("cp1252")).passages) == 2
    assert voice.profile
    assert all(item["text"] for item in voice.profile)
    with pytest.raises(KitError, match="The draft is empty"):
        voice.rewrite(" \n")
    assert main(["rewrite", str(tmp_path / "none.txt")]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert main(["rewrite", str(draft), "--run", "mien"]) == 2
    assert "`python -m rpo_kit mine FILE --run mien` makes one" in capsys.readouterr().err


def test_the_voice_is_that_of_rl_only_while_it_is_up_to_date(runs):
    """`mine --rl`, then `mine` with other texts or settings: that RL adapter is of before."""
    run = existing_run("mine")
    assert last_trained(run) == "sft"
    with stage(run, "rl", **inputs_of(run, "rl")):
        pass
    assert last_trained(run) == "rl"
    assert last_trained(open_run("mine", overrides={"rl.steps": 9})) == "sft"


def test_a_passage_without_a_usable_rewrite_stays_as_it_was(runs, recording_chat, monkeypatch):
    """The model of these tests is random, so nothing that it writes is a trajectory."""
    base = recording_chat(lambda conversation: "I am sorry, I cannot help.")
    monkeypatch.setattr("rpo_kit.rewriting.personalizer.open_chat_for", lambda run, spec: base)
    text = "This is the first part of it.\n\nThe second part comes after that."
    draft = OwnVoice.of(existing_run("mine")).rewrite(text)
    assert [bool(why_left(passage)) for passage in draft.passages] == [True, True]
    assert "sorry" in draft.generic
    assert draft.text == text


def test_at_use_the_base_model_sees_the_draft_alone(runs, recording_chat, monkeypatch):
    base = recording_chat()
    monkeypatch.setattr("rpo_kit.rewriting.personalizer.open_chat_for", lambda run, spec: base)
    voice = OwnVoice.of(existing_run("mine"))
    voice.rewrite("The first part of a draft is this.\n\nThe second part of it comes here.")
    sent = [message["content"] for conversation in base.asked for message in conversation]
    prefix = voice.personalize.task.prefix
    assert sent == [f"{prefix}The first part of a draft is this.", f"{prefix}The second part of it comes here."]


def test_only_runs_of_own_texts_have_a_voice(tmp_path):
    run = open_run("demo", "tiny", root=tmp_path)
    with pytest.raises(KitError, match="was not made of own texts"):
        OwnVoice.of(run)


def test_the_blind_test_works_on_the_run(runs):
    records = runs / "mine" / "evaluate" / "records" / "sft.jsonl"
    changed = [record | {"prediction": f"own {record['id']}"} for record in read_records(records)]
    records.write_text("".join(json.dumps(record) + "\n" for record in changed))
    test = BlindTest(existing_run("mine"))
    assert len(test.pairs) == len(changed)
    assert not test.current().history, "everybody knows the own voice"
    test.answer("A")
    assert len(BlindTest(existing_run("mine")).answers()) == 1


# ---- forget -------------------------------------------------------------------------------------------------------


def test_forget_deletes_the_run_and_its_forks_and_says_so(runs, capsys):
    fork("copy", existing_run("mine"), {"sft.steps": 2})
    open_run("other", "tiny")
    (runs / "other" / "run.json").touch()
    forget("mine", yes=True)
    said = capsys.readouterr().out
    left = sorted(path.name for path in runs.iterdir() if not path.name.startswith("."))
    assert left == ["other", "sent.mbox"], "the person's own file and other runs stay"
    for name in ("mine", "copy"):
        assert f"deleted  {runs / name}   " in said
    assert "Not deleted: the files that you gave" in said
    assert "Out of reach" not in said, "no server was asked"


def test_forget_deletes_what_a_killed_fork_left(runs):
    shutil.copytree(runs / "mine" / "prepare", runs / ".fork-copy" / "prepare")
    forget("mine", yes=True)
    assert not (runs / ".fork-copy").exists()


def test_a_fork_has_the_voice_and_can_be_forgotten_alone(runs, capsys):
    fork("copy", existing_run("mine"), {"evaluation.shots": 1})
    assert OwnVoice.of(existing_run("copy")).profile == OwnVoice.of(existing_run("mine")).profile
    forget("copy", yes=True)
    assert is_own(runs / "mine")
    assert not (runs / "copy").exists()
    fork("copy", existing_run("mine"), {"evaluation.shots": 1})
    shutil.rmtree(runs / "mine")
    with pytest.raises(KitError, match="The texts of run 'copy' are gone"):
        OwnVoice.of(existing_run("copy"))


def test_forget_asks_first(runs, capsys, monkeypatch):
    assert main(["forget", "mine"]) == 2
    assert "nobody can be asked here: add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["forget", "mine"]) == 0
    assert "Nothing was deleted." in capsys.readouterr().out
    assert is_own(runs / "mine")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(["forget", "mine"]) == 0
    assert not (runs / "mine").exists()


def test_forget_deletes_replies_from_the_shared_store(runs, capsys):
    raw = read_records(runs / "mine" / "prepare" / "generic.jsonl")[0]["raw"] or "reply of mine"
    store = open_answers(runs / "answers.sqlite")
    for key, text in (("a", raw), ("b", "of another run")):
        store.execute("INSERT INTO answers VALUES (?, ?)", (key, json.dumps({"text": text})))
    store.close()
    forget("mine", yes=True)
    assert "deleted  1 replies" in capsys.readouterr().out
    with sqlite3.connect(runs / "answers.sqlite") as database:
        assert database.execute("SELECT key FROM answers").fetchall() == [("b",)]


def test_forget_names_a_server_that_keeps_logs_of_its_own(runs, capsys):
    file = runs / "mine" / "run.json"
    stored = json.loads(file.read_text())
    stored["preset"]["base"] = "https://llm.example.org/v1#m"
    stored["preset"]["data"]["retriever"] = "dense:org/encoder"
    file.write_text(json.dumps(stored))
    forget("mine", yes=True)
    said = capsys.readouterr().out
    assert "Out of reach: what the servers of https://llm.example.org/v1#m logged" in said
    assert "Not deleted: vectors of the texts" in said


def test_forget_waits_for_no_stage_at_work(runs):
    from rpo_kit.processes import locked

    with locked(runs / "mine" / ".locks" / "sft", "x"), pytest.raises(KitError, match="The run 'mine' is in use"):
        forget("mine", yes=True)
    assert is_own(runs / "mine")


@pytest.mark.parametrize("linked", ["mine", "copy"])
def test_forget_refuses_a_run_that_is_a_link_because_its_texts_would_stay(runs, tmp_path, linked):
    fork("copy", existing_run("mine"), {"evaluation.shots": 1})
    elsewhere = Path(shutil.move(runs / linked, tmp_path / "elsewhere"))
    (runs / linked).symlink_to(elsewhere)
    with pytest.raises(KitError, match=r"is a link to .*elsewhere, so nothing is deleted"):
        forget("mine", yes=True)
    assert is_own(runs / "mine")
    assert is_own(elsewhere)


def test_forget_names_the_runs_that_there_are(runs):
    with pytest.raises(KitError, match="those of own texts are mine"):
        forget("mien", yes=True)


def test_forget_refuses_a_run_on_the_task_that_mine_did_not_make(runs):
    folder = runs / "by-hand"
    settings = json.loads((runs / "mine" / "run.json").read_text())
    settings["preset"]["data"]["source"] = "/data/letters"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(settings))
    with pytest.raises(KitError, match="'by-hand' is not of own texts, so it is not deleted"):
        forget("by-hand", yes=True)
    assert (folder / "run.json").exists()


def test_the_texts_are_for_the_owner_of_the_files_alone(finished):
    assert (finished[0] / "mine").stat().st_mode & 0o777 == 0o700
