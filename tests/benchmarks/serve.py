"""`serve`: what it adds to a request, and how latency and throughput change with the number of clients.

`python tests/benchmarks/serve.py [--run demo] [--seconds 20] [--requests 300] [--only overhead]`. Overhead: server and
client are two processes on this machine; base model and module answer at once (retrieval, tokenizer, prompts, parsing
and HTTP are real), the profile has 12 items, and requests come one after another. `personalizer` is the same call in
the server's process without HTTP: the difference is what the server adds of its own. Load: `python -m rpo_kit serve`
with the run's models; 1, 8 and 32 clients ask for --seconds each, the personalizer (`rpo`) and the bare base model
(`base`) in turn, through the same server. A client sends its next request when the last is answered.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TASK, CLIENTS = "LaMP-7", (1, 8, 32)
WRITTEN = "<observe>[1] opens lol: joker</observe><plan>joker: lol</plan><rewrite>lol query {} haha</rewrite>"


def examples(count: int) -> list[tuple[str, list[dict[str, str]]]]:
    """Queries of invented users with their histories of 12 items."""
    from rpo_kit.lamp import personas

    return [(row["input"], list(row["profile"])[:12]) for row in personas.build(TASK, "dev", count)]


def fake_personalizer() -> Any:
    """The personalizer with the bundled model's tokenizer, whose models answer at once."""
    from transformers import AutoTokenizer

    from rpo_kit.bundled import bundled_model
    from rpo_kit.lamp.tasks import get_task
    from rpo_kit.models.chat import Completion
    from rpo_kit.models.local import LoadedModel
    from rpo_kit.rewriting import reflection
    from rpo_kit.rewriting.personalizer import Personalizer

    class AtOnce:
        name = "at once"

        def complete(self, conversations: Any, **_: Any) -> list[Completion]:
            return [Completion("I query a treat.", True, 9, 9) for _ in conversations]

    reflection.generate = lambda model, asked, **_: [Completion(WRITTEN, True, 9, 9)] * len(asked)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model(), padding_side="left")
    module = LoadedModel(None, tokenizer, 1024)  # type: ignore[arg-type]
    return Personalizer(AtOnce(), module, get_task(TASK), new_tokens=200)


def serve_fakes(requests: int) -> None:
    """In the child: time the personalizer itself, print its milliseconds and the port, then serve."""
    from rpo_kit.serving.server import make_server
    from rpo_kit.serving.service import Service
    from rpo_kit.serving.together import Together

    personalizer, rows = fake_personalizer(), examples(50)
    service = Service(personalizer, None, together=Together())
    for n, (_, profile) in enumerate(rows):
        service.store.write(f"u{n}", profile)
    taken = []
    for n in range(requests + 20):
        start = time.perf_counter()
        personalizer(*rows[n % len(rows)])
        taken.append(1000 * (time.perf_counter() - start))
    with make_server(service, port=0) as server:
        print(json.dumps({"port": server.server_address[1], "alone": taken[20:]}), flush=True)
        server.serve_forever(0.05)


def ask(port: int, body: dict[str, Any], key: str = "") -> float:
    """Milliseconds that one request took."""
    content, start = json.dumps(body), time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", content, headers)
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, text
    connection.close()
    return 1000 * (time.perf_counter() - start)


def request_of(row: tuple[str, list[dict[str, str]]], model: str = "rpo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": row[0]}], **more}


@contextmanager
def child(*command: str, **environment: str) -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            yield process.stdout
        finally:
            process.kill()


def percentiles(milliseconds: list[float]) -> tuple[float, float]:
    """p50 and p95."""
    cuts = statistics.quantiles(milliseconds, n=20, method="inclusive") if len(milliseconds) > 1 else milliseconds * 19
    return cuts[9], cuts[18]


def overhead(requests: int) -> None:
    rows = examples(50)
    with child(__file__, "--fakes", str(requests)) as said:
        told = json.loads(said.readline())
        ways = {"stored profile": {}, "profile in the request": {}, "with explanation": {"rpo": {"explain": True}}}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(requests + 20):
            for name, more in ways.items():
                own = {"profile": rows[n % 50][1]} if "request" in name else {"user": f"u{n % 50}"}
                times[name].append(ask(told["port"], request_of(rows[n % 50], **own, **more)))
    alone = percentiles(told["alone"])
    print(f"overhead, models that answer at once, {requests} requests: milliseconds")
    print(f"{'':28}{'p50':>8}{'p95':>8}   of serve's own (p50)")
    print(f"{'personalizer, no HTTP':28}{alone[0]:8.2f}{alone[1]:8.2f}")
    for name, taken in times.items():
        p50, p95 = percentiles(taken[20:])
        print(f"{'serve, ' + name:28}{p50:8.2f}{p95:8.2f}   {p50 - alone[0]:.2f}", flush=True)


def load(run: str, seconds: float) -> None:
    key, rows = secrets.token_hex(16), examples(64)
    with child("-m", "rpo_kit", "serve", "--run", run, "--port", "0", RPO_SERVE_KEY=key, PYTHONUNBUFFERED="1") as said:
        port = int(said.readline().partition("/v1;")[0].rpartition(":")[2])
        said.readline()
        print(f"\nload, run {run!r}, {seconds:g} s each: seconds, and requests per second")
        print(f"{'clients':>8} {'model':6}{'p50':>8}{'p95':>8}{'rate':>8}{'requests':>10}")
        for model in ("base", "rpo"):
            ask(port, request_of(rows[0], model, profile=rows[0][1]), key)  # the first one prepares kernels
        for clients in CLIENTS:
            for model in ("base", "rpo"):
                taken, wall = asked_by(clients, port, model, rows, key, seconds)
                p50, p95 = (value / 1000 for value in percentiles(taken))
                rate = len(taken) / wall
                print(f"{clients:8} {model:6}{p50:8.2f}{p95:8.2f}{rate:8.2f}{len(taken):10}", flush=True)


def asked_by(
    clients: int, port: int, model: str, rows: list[Any], key: str, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of all requests of so many clients, and seconds until the last was answered."""
    taken: list[float] = []
    start = time.perf_counter()

    def client(number: int) -> None:
        n = number
        while time.perf_counter() - start < seconds:
            row = rows[n % len(rows)]
            taken.append(ask(port, request_of(row, model, profile=row[1]), key))
            n += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, time.perf_counter() - start


def main() -> None:
    if sys.argv[1:2] == ["--fakes"]:
        serve_fakes(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--only", choices=("overhead", "load"))
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    if options.only != "load":
        overhead(options.requests)
    if options.only != "overhead":
        load(options.run, options.seconds)


if __name__ == "__main__":
    main()
