"""Twenty `kill -9` at random moments: no finished item is lost, none is written twice, none is paid for twice.

A child asks the endpoint for 600 items and appends each answer as it comes. The parent kills it as soon as a random
number of further answers lies on the disk. Whatever was on the disk or in the store before a kill is not asked again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes import last

from rpo_kit.models.chat import stream_completions
from rpo_kit.models.open import open_chat
from rpo_kit.presets import EndpointSettings
from rpo_kit.runs import append_records, read_records

ITEMS, KILLS, CONCURRENCY, PATIENCE = 600, 20, 8, 240


def ask_for_what_is_missing(path: Path, spec: str, runs: Path) -> None:
    """What the child does."""
    os.environ |= {"RPO_RUNS": str(runs), "NO_PROXY": "127.0.0.1"}
    done = {record["id"] for record in read_records(path)}
    missing = [n for n in range(ITEMS) if n not in done]
    chat = open_chat(spec, settings=EndpointSettings(concurrency=CONCURRENCY))
    asked = [[{"role": "user", "content": f"item {n}"}] for n in missing]
    for batch in stream_completions(chat, asked, max_new_tokens=4):
        append_records(path, [{"id": missing[index], "text": answer.text} for index, answer in batch])


@pytest.mark.slow
def test_twenty_kills_lose_nothing_double_nothing_and_pay_for_nothing_twice(endpoint, tmp_path):
    children = multiprocessing.get_context("forkserver")  # libraries are imported once, and no thread is forked
    children.set_forkserver_preload(["openai", __name__])
    draw, path = random.Random(0), tmp_path / "answers.jsonl"

    def start() -> multiprocessing.process.BaseProcess:
        child = children.Process(target=ask_for_what_is_missing, args=(path, f"{endpoint.url}#m", tmp_path))
        child.start()
        return child

    def written() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for _ in range(KILLS):
        child, wanted, deadline = start(), written() + draw.randint(1, 15), time.monotonic() + PATIENCE
        while written() < wanted:
            assert child.is_alive(), "the child ended before it could be killed"
            assert time.monotonic() < deadline, "the child does not get on"
            time.sleep(0.001)  # between two looks, not for something to happen
        child.kill()
        child.join()
        assert child.exitcode == -9
    assert written() < ITEMS, "killed in the middle each time"
    child = start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    records = read_records(path)
    assert Counter(record["id"] for record in records) == Counter(range(ITEMS))
    assert all(record["text"] == f"echo item {record['id']}" for record in records)
    paid = Counter(map(last, endpoint.requests))
    assert len(paid) == ITEMS
    assert sum(paid.values()) - ITEMS <= KILLS * CONCURRENCY, "no more than what was in flight at each kill"
