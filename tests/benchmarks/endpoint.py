"""Endpoints: throughput against the bare client, cache hits a second, memory over many items; ratios from one run.

`python tests/benchmarks/endpoint.py [--latency 0.1] [--concurrency 16] [--items 400] [--many 100000]`. The server is a
child on this machine with a fixed latency that answers any number of requests at once. Bare client: `AsyncOpenAI` in a
semaphore, nothing else. The two take turns, three rounds each; the ratio is that of the medians. Not a timed test.
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
from pathlib import Path

import psutil

from rpo_kit.presets import EndpointSettings
from rpo_kit.rewriting.cache import open_database
from rpo_kit.rewriting.endpoint import EndpointChat
from rpo_kit.rewriting.keys import Place

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


async def bare(url: str, count: int, concurrency: int) -> None:
    from openai import AsyncOpenAI

    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(messages: list[dict[str, str]]) -> None:
            async with gate:
                await client.chat.completions.create(model="m", messages=messages, max_tokens=8, temperature=0)

        await asyncio.gather(*map(one, questions(count)))


def ours(chat: EndpointChat, count: int) -> int:
    return sum(len(batch) for batch in chat.stream(questions(count), max_new_tokens=8))


def seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def make_chat(url: str, folder: Path, name: str, **settings: object) -> EndpointChat:
    return EndpointChat(Place(url, "m", ""), EndpointSettings(**settings), open_database(folder / name), "bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("latency", 0.1), ("concurrency", 16), ("items", 400), ("many", 100_000)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    command = [sys.executable, __file__, "--serve", str(options.latency)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"  # type: ignore[union-attr]
            print(f"{platform.machine()}, load {os.getloadavg()[0]:.1f}, {vars(options)}")
            throughput(url, Path(folder), options)
            hits_and_memory(url, Path(folder), options)
        finally:
            server.kill()


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


def hits_and_memory(url: str, folder: Path, options: argparse.Namespace) -> None:
    """The cache is filled by hand: what counts here is reading it, and what 100 times as many items need."""
    chat = make_chat(url, folder, "hits.sqlite", concurrency=options.concurrency)
    assert chat.cache is not None
    chat.cache.base.execute("BEGIN")
    for messages in questions(options.many):
        key = chat.key_of(messages, 8, 0.0)
        chat.cache.put(key, {"text": "ok", "finished": True, "prompt_tokens": 7, "new_tokens": 3, "failure": None})
    chat.cache.base.execute("COMMIT")
    process, peaks = psutil.Process(), {}
    for count in (1_000, options.many):
        taken = seconds(lambda c=count: ours(chat, c))
        peaks[count] = process.memory_info().rss / 2**20
        print(f"{count:7,} cached items: {count / taken:8,.0f} hits a second, memory after it {peaks[count]:.0f} MB")
    print(f"memory at {options.many:,} / memory at 1,000 items = {peaks[options.many] / peaks[1_000]:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(run_server(float(sys.argv[2])))
    else:
        main()
