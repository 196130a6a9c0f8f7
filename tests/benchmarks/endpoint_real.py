"""Our client and the bare `openai` client against a real OpenAI-compatible server, in turn; the ratio from one run.

`python tests/benchmarks/endpoint_real.py [--server URL#MODEL] [--items 48] [--concurrency 4] [--tokens 16]`

Without `--server` one is started on this machine with the bundled model: `llama_cpp.server` where it can be imported
(pip install 'llama-cpp-python[server]'; it reads the GGUF itself), else `transformers serve` (pip install fastapi
uvicorn python-multipart). Neither is a dependency of the kit: a folder of `pip install --target` in PYTHONPATH will do.
Both clients send the same questions with the same settings, three rounds each, the first one taking turns. Printed are
rates, their ratio (of the medians), and for how many questions both got the same text. Not a timed test.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from endpoint import bare, questions, seconds  # the benchmark beside this one

from rpo_kit.bundled import bundled_model, gguf_file
from rpo_kit.model_spec import EndpointSpec, parse_spec
from rpo_kit.models.chat import Completion
from rpo_kit.models.endpoint import EndpointChat
from rpo_kit.presets import EndpointSettings

ROUNDS = 3
PATIENCE = 600.0  # seconds for the server to load its model
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # the model is here; nothing else is looked for


def command_of(port: int) -> tuple[list[str], str]:
    """The command that starts a server on `port`, and the model's name there; SystemExit where none is installed."""

    def there(*modules: str) -> bool:
        return all(importlib.util.find_spec(module) for module in modules)

    where = ["--host", "127.0.0.1", "--port", str(port)]
    if there("llama_cpp", "fastapi", "uvicorn"):
        model = str(gguf_file())
        return [sys.executable, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "2048", *where], model
    if there("fastapi", "uvicorn", "multipart"):
        model = str(bundled_model())
        start = "from transformers.cli.transformers import main; main()"
        return [sys.executable, "-c", start, "serve", model, "--device", "cpu", *where], model
    raise SystemExit(f"No server is installed, and none is named with --server.\n\n{__doc__}")


@contextmanager
def a_server() -> Iterator[EndpointSpec]:
    """A server of our own, once it answers; stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, model = command_of(port)
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | OFFLINE)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            took = seconds(lambda: wait_for(server, url))
            print(f"server: {' '.join(command[1:4])} …, ready after {took:.0f} s", flush=True)
            yield EndpointSpec(url, model, "")
        except BaseException:
            log.seek(0)
            print(log.read()[-2000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait()


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("The server did not come up; what it said:")


def ours(spec: EndpointSpec, options: argparse.Namespace) -> list[Completion]:
    """A new client with a cache in memory, so that every question is asked."""
    chat = EndpointChat(spec, EndpointSettings(concurrency=options.concurrency, timeout=PATIENCE))
    answers = chat.complete(list(questions(options.items)), max_new_tokens=options.tokens)
    failed = [answer.failure for answer in answers if answer.failure]
    assert not failed, f"{len(failed)} items failed, the first with: {failed[0]}"
    return answers


def compare(spec: EndpointSpec, options: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    texts: dict[str, list[str]] = {}

    def ask(name: str) -> None:
        if name == "ours":
            texts[name] = [answer.text for answer in ours(spec, options)]
        else:
            asked = bare(spec.url, options.items, options.concurrency, spec.model, options.tokens)
            texts[name] = [text or "" for text in asyncio.run(asked)]

    asyncio.run(bare(spec.url, 1, 1, spec.model, options.tokens))  # the first answer of a server is slow
    for turn in range(ROUNDS):
        for name in sorted(times, reverse=bool(turn % 2)):
            times[name].append(seconds(lambda n=name: ask(n)))
    rates = {name: options.items / statistics.median(taken) for name, taken in times.items()}
    same = sum(a == b for a, b in zip(texts["bare"], texts["ours"], strict=True))
    print(f"requests a second, median of {ROUNDS}: bare {rates['bare']:.2f}, ours {rates['ours']:.2f}")
    print(f"seconds a round: { ({name: [round(t, 2) for t in taken] for name, taken in times.items()}) }")
    print(f"ours / bare = {rates['ours'] / rates['bare']:.3f}; the same text for {same} of {options.items} questions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", help="URL#MODEL of a server that runs already, such as http://localhost:8000/v1#m")
    for name, default in (("items", 48), ("concurrency", 4), ("tokens", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    print(f"{platform.machine()}, load {os.getloadavg()[0]:.1f}, {vars(options)}", flush=True)
    if options.server is None:
        with a_server() as spec:
            compare(spec, options)
        return
    named = parse_spec(options.server)
    if named is None:
        raise SystemExit(f"{options.server!r} is no URL#MODEL, such as http://localhost:8000/v1#my-model.")
    compare(named, options)


if __name__ == "__main__":
    main()
