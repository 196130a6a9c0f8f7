"""Twenty `kill -9` at random moments: no finished item is lost, none is written twice, none is paid for twice.

A child asks the endpoint for 600 items and appends each answer as it comes. The parent kills it as soon as a random
number of further answers lies on the disk. Whatever was on the disk or in the store before a kill is not asked again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes import last

from rpo_kit.runs import read_records

ROOT = Path(__file__).resolve().parents[2]
ITEMS, KILLS, CONCURRENCY, PATIENCE = 600, 20, 8, 120
CHILD = """
import sys
from pathlib import Path
from rpo_kit.presets import EndpointSettings
from rpo_kit.rewriting.chat import as_they_come, open_chat
from rpo_kit.runs import append_records, read_records

path, spec, items, concurrency = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
done = {record["id"] for record in read_records(path)}
missing = [n for n in range(items) if n not in done]
chat = open_chat(spec, settings=EndpointSettings(concurrency=concurrency))
asked = [[{"role": "user", "content": f"item {n}"}] for n in missing]
for batch in as_they_come(chat, asked, max_new_tokens=4):
    append_records(path, [{"id": missing[place], "text": answer.text} for place, answer in batch])
"""


@pytest.mark.slow
def test_twenty_kills_lose_nothing_double_nothing_and_pay_for_nothing_twice(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    draw, path = random.Random(0), tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", CHILD, str(path), f"{endpoint.url}#m", str(ITEMS), str(CONCURRENCY)]

    def kill_after(more: int) -> None:
        """Let the child write `more` answers, then kill it."""
        child, wanted = subprocess.Popen(command), size() + more
        deadline = time.monotonic() + PATIENCE
        while size() < wanted:
            assert child.poll() is None, "the child ended before it could be killed"
            assert time.monotonic() < deadline, "the child does not get on"
            time.sleep(0.001)  # between two looks, not for something to happen
        child.kill()
        assert child.wait() == -9

    def size() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for _ in range(KILLS):
        kill_after(draw.randint(1, 20))
    assert size() < ITEMS, "killed in the middle each time"
    subprocess.run(command, check=True, timeout=PATIENCE)
    records = read_records(path)
    assert Counter(record["id"] for record in records) == Counter(range(ITEMS))
    assert all(record["text"] == f"echo item {record['id']}" for record in records)
    paid = Counter(map(last, endpoint.requests))
    assert len(paid) == ITEMS
    assert sum(paid.values()) - ITEMS <= KILLS * CONCURRENCY, "no more than what was in flight at each kill"
