"""Endpoints: throughput against the bare client, memory over many items, cache hits a second; ratios from one run.

`python tests/benchmarks/endpoint.py [--latency 0.1] [--concurrency 16] [--items 400] [--many 100000]`. The server is a
child on this machine with a fixed latency that answers any number of requests at once. Bare client: `AsyncOpenAI` in a
semaphore, nothing else. The two take turns, three rounds each; the ratio is that of the medians. Memory and hits: each
number is from a client process of its own, which asks a server without latency for 1,000 and for `--many` items; a
second process asks the same again, and the cache answers. Beside wall time stands the time that the process computed:
where other programs share the cores, the difference is waiting for them. Not a timed test. (`endpoint_real.py`: the
same against a real server.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.cache import open_database
from rpo_kit.models.endpoint import EndpointChat
from rpo_kit.presets import EndpointSettings

BODY = json.dumps(
    {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
).encode()  # fmt: skip
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line)
            await reader.readexactly(size)
            await asyncio.sleep(latency)
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def run_server(latency: float) -> None:
    server = await asyncio.start_server(lambda r, w: answer(r, w, latency), "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def questions(count: int) -> Iterator[list[dict[str, str]]]:
    return ([{"role": "user", "content": f"question {n} " + "word " * 40}] for n in range(count))


async def bare(url: str, count: int, concurrency: int, model: str = "m", tokens: int = 8) -> list[str | None]:
    from openai import AsyncOpenAI

    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(messages: list[dict[str, str]]) -> str | None:
            async with gate:
                found = await client.chat.completions.create(
                    model=model, messages=messages, max_tokens=tokens, temperature=0
                )
            return found.choices[0].message.content

        return await asyncio.gather(*map(one, questions(count)))


def ours(chat: EndpointChat, count: int, tokens: int = 8) -> int:
    answered = 0
    for batch in chat.stream(questions(count), max_new_tokens=tokens):
        answered += sum(completion.failure is None for _, completion in batch)
    assert answered == count, f"{count - answered} items failed"
    return answered


def seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def make_chat(url: str, folder: Path, name: str, **settings: object) -> EndpointChat:
    return EndpointChat(EndpointSpec(url, "m", ""), EndpointSettings(**settings), open_database(folder / name))


@contextmanager
def server_of(latency: float) -> Iterator[str]:
    """The address of a server with this latency, in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"  # type: ignore[union-attr]
        finally:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("latency", 0.1), ("concurrency", 16), ("items", 400), ("many", 100_000)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    print(f"{platform.machine()}, load {os.getloadavg()[0]:.1f}, {vars(options)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with server_of(options.latency) as url:
            throughput(url, Path(folder), options)
        with server_of(0.0) as url:
            memory_and_hits(url, Path(folder), options)


def throughput(url: str, folder: Path, options: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for turn in range(3):
        chat = make_chat(url, folder, f"{turn}.sqlite", concurrency=options.concurrency)
        times["bare"].append(seconds(lambda: asyncio.run(bare(url, options.items, options.concurrency))))
        times["ours"].append(seconds(lambda c=chat: ours(c, options.items)))
    rates = {name: options.items / statistics.median(taken) for name, taken in times.items()}
    ceiling = options.concurrency / options.latency
    print(f"requests a second: ceiling {ceiling:.0f}, bare {rates['bare']:.1f}, ours {rates['ours']:.1f}")
    print(f"ours / bare = {rates['ours'] / rates['bare']:.3f}", flush=True)


def memory_and_hits(url: str, folder: Path, options: argparse.Namespace) -> None:
    """Few and many items, each asked and then asked again, by processes of their own that share a cache."""
    peaks: dict[tuple[str, int], float] = {}
    for count in (1_000, options.many):
        for label in ("asked", "cached"):
            command = [sys.executable, __file__, "--client", url, str(folder), str(count), str(options.concurrency)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            assert found["requests"] == (count if label == "asked" else 0)
            peaks[label, count] = found["peak"]
            print(
                f"{count:7,} items {label:6}: {count / found['wall']:8,.0f} a second of wall time, "
                f"{count / found['computed']:8,.0f} of computing; peak {found['peak']:.0f} MB",
                flush=True,
            )
    for label in ("asked", "cached"):
        ratio = peaks[label, options.many] / peaks[label, 1_000]
        print(f"{label}: memory for {options.many:,} / memory for 1,000 items = {ratio:.3f}")


def peak_memory() -> float:
    """MB that this process has had at most (Linux; `ru_maxrss` would count what its parent had when it started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def run_client(url: str, folder: str, count: int, concurrency: int) -> None:
    """In the client process: ask, and print how long it took and how much memory the process has had at most."""
    chat = make_chat(url, Path(folder), f"many-{count}.sqlite", concurrency=concurrency)
    before = time.process_time()
    wall = seconds(lambda: ours(chat, count))
    computed = time.process_time() - before
    print(
        json.dumps(
            {"wall": wall, "computed": computed, "peak": peak_memory(), "requests": chat.ledger.used_here.requests}
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(run_server(float(sys.argv[2])))
    elif sys.argv[1:2] == ["--client"]:
        run_client(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
