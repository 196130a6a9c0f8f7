"""A stage in its own process is followed, stopped and explained as if it ran in the notebook."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rpo_kit import own_process
from rpo_kit.errors import KitError
from rpo_kit.models.local import load_trainable
from rpo_kit.own_process import in_own_process, own_process_wanted, run_stage
from rpo_kit.pipeline import inputs_of
from rpo_kit.runs import Run, open_run
from rpo_kit.stages import stage
from rpo_kit.training.synthesis import synthesize


@pytest.fixture
def ready_for_rl(prepared: Callable[..., Run]) -> Run:
    """A run of the random Llama with an SFT adapter that knows nothing."""
    run = prepared({"rl.max_new_tokens": 8})
    synthesize(run)
    with stage(run, "sft", **inputs_of(run, "sft")) as folder:
        load_trainable(run.preset.reflection, None, seed=0).model.save_pretrained(folder / "adapter")
    return run


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that sets the program to run in place of the stage."""

    def program(text: str) -> None:
        start = subprocess.Popen
        monkeypatch.setattr(
            own_process.subprocess, "Popen", lambda command, **rest: start([sys.executable, "-c", text], **rest)
        )
        monkeypatch.setattr(own_process, "_POLL", 0.02)

    return program


# ---- a real stage -------------------------------------------------------------------------------------------------


def test_a_stage_runs_in_another_process_and_its_log_arrives_here(ready_for_rl, monkeypatch, capfd):
    rows, run = [], ready_for_rl
    monkeypatch.setenv("RPO_OWN_PROCESS", "1")
    run_stage(run, "rl", lambda log: rows.append(log))
    assert [row["step"] for row in rows[-1]] == [1, 2]
    assert rows[-1][0]["shots"] == 2
    assert (run.stage("rl") / "adapter" / "adapter_model.safetensors").exists()
    assert "each prompt is read once per group" in capfd.readouterr().out
    rows.clear()
    run_stage(run, "rl", lambda log: rows.append(log))
    assert rows == []  # finished already: nothing to plot
    assert "rl: done already" in capfd.readouterr().out


def test_a_failing_stage_reports_its_own_error(trained, capfd):
    run = trained()
    with pytest.raises(KitError, match="holds no LoRA adapter") as error:
        in_own_process(open_run(run.name, None, {"rl.steps": 3}, run.folder.parent), "rl")
    assert "\n" not in str(error.value)
    assert not str(error.value).startswith("rpo_kit:")
    assert "Traceback" not in capfd.readouterr().out


# ---- following a child --------------------------------------------------------------------------------------------

WRITES_A_LOG = """
import pathlib, time
log = pathlib.Path("LOG")
log.parent.mkdir(parents=True, exist_ok=True)
for step in (1, 2, 3):
    rows = [f"{n},{n / 10},{'' if n == 1 else 0.5}" for n in range(1, step + 1)]
    log.with_suffix(".new").write_text("\\n".join(["step,loss,kl", *rows]) + "\\n")
    log.with_suffix(".new").rename(log)
    print("step", step, flush=True)
    time.sleep(0.3)
print("no line end", end="")
"""


def test_each_new_row_and_each_printed_line_is_passed_on_once(new_run, child, capsys):
    run, seen = new_run(), []
    child(WRITES_A_LOG.replace("LOG", str(run.stage("sft") / "log.csv")))
    in_own_process(run, "sft", lambda rows: seen.append(rows))
    assert [len(rows) for rows in seen] == [1, 2, 3]
    assert seen[-1][:2] == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2, "kl": 0.5}]
    assert capsys.readouterr().out.splitlines() == ["step 1", "step 2", "step 3", "no line end"]


def test_a_progress_bar_is_not_printed_repeatedly(new_run, child, capsys):
    child(
        "import sys, time\n"
        "for n in range(20):\n"
        "    print(f'\\rbar {n}', end='', flush=True); time.sleep(0.02)\n"
        "print('\\r        \\ra message\\r\\nthe next')"
    )
    in_own_process(new_run(), "sft")
    assert capsys.readouterr().out.splitlines() == ["a message", "the next"]


def test_the_log_of_an_earlier_call_is_not_new(new_run, child):
    run, seen = new_run(), []
    (run.stage("sft")).mkdir()
    (run.stage("sft") / "log.csv").write_text("step,loss\n1,0.5\n")
    child("import time; time.sleep(0.2)")
    in_own_process(run, "sft", lambda rows: seen.append(rows))
    assert seen == []


def test_a_sweep_is_followed_from_arm_to_arm(new_run, child):
    run, seen = new_run(), []
    two = [WRITES_A_LOG.replace("LOG", str(run.stage("sweep") / f"{cell}-seed0" / "log.csv")) for cell in "ab"]
    child("".join(two))
    in_own_process(run, "sweep", lambda rows: seen.append(len(rows)))
    assert seen == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (
            "import sys; print('rpo_kit: The file x is missing.'); print('bye'); sys.exit(2)",
            r"^The file x is missing\.$",
        ),
        ("1 / 0", "unexpected error .ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed from outside.*memory.*to resume"),
        ("import sys; sys.exit(3)", "unexpected error .code 3"),
    ],
)
def test_one_sentence_says_why_a_child_failed(new_run, child, program, sentence):
    child(program)
    with pytest.raises(KitError, match=sentence):
        in_own_process(new_run(), "sft")


WAITS = """
import os, pathlib, signal, subprocess, sys, time
SIGNAL
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("PIDS").write_text(f"{os.getpid()} {grandchild.pid}")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("checkpoint kept")
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_ends_the_child_and_its_own_children(new_run, child, tmp_path, monkeypatch, capsys, stubborn):
    run, pids = new_run(), tmp_path / "pids"
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)" if stubborn else ""
    child(WAITS.replace("PIDS", str(pids)).replace("SIGNAL", ignore))
    monkeypatch.setattr(own_process, "_PATIENCE", 1.0 if stubborn else 30.0)
    threading.Thread(target=interrupt_once_it_exists, args=(pids,), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        in_own_process(run, "rl")
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    assert "rl is being stopped; run this again to resume" in capsys.readouterr().out


def interrupt_once_it_exists(path: Path) -> None:
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def alive(pid: int) -> bool:
    """A process that nobody has waited for yet counts as dead."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def test_a_child_does_not_outlive_the_process_that_started_it(tmp_path):
    """The middle process is killed, as a notebook's kernel is when it is restarted."""
    pids = tmp_path / "pids"
    inner = (
        "import os, pathlib, threading, time; from rpo_kit import own_process as o;"
        "threading.Thread(target=o._end_with, args=(int(os.environ['RPO_PARENT']),), daemon=True).start();"
        f"pathlib.Path({str(pids)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    outer = (
        "import os, subprocess, sys, time; os.environ['RPO_PARENT'] = str(os.getpid());"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True); time.sleep(60)"
    )
    middle = subprocess.Popen([sys.executable, "-c", outer])
    while not pids.exists() or not pids.read_text():
        time.sleep(0.05)
    assert os.getpid() != int(pids.read_text())
    middle.kill()
    middle.wait()
    assert not alive(int(pids.read_text()))


# ---- in which process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "gpu", "wanted"), [("", True, True), ("", False, False), ("1", False, True), ("0", True, False)]
)
def test_the_environment_decides_and_by_default_the_gpu(monkeypatch, value, gpu, wanted):
    monkeypatch.setenv("RPO_OWN_PROCESS", value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert own_process_wanted() is wanted


def test_without_a_gpu_the_stage_runs_in_this_process(new_run, monkeypatch):
    calls = []
    monkeypatch.setattr(own_process, "stage_function", lambda name: lambda run, on_log: calls.append((name, on_log)))
    monkeypatch.setenv("RPO_OWN_PROCESS", "0")
    run_stage(new_run(), "sweep", print)
    assert calls == [("sweep", print)]


def test_settings_changed_since_the_notebook_opened_the_run_are_not_used_for_training(new_run):
    run = new_run()
    open_run(run.name, None, {"rl.steps": 5}, run.folder.parent)
    with pytest.raises(KitError, match="run the notebook again from its first cell"):
        in_own_process(run, "rl")
