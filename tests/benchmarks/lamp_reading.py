"""Opening 3 GB shaped like LaMP-3's training questions: `python tests/benchmarks/lamp_reading.py [--gigabytes 3]`.

Makes the file in a temporary folder, opens it in a fresh process, opens it once more, and reads single rows. Prints
seconds and each process's peak memory; with --plain also those of `json.load`, which needs many times the file's size.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from rpo_kit.lamp.tasks import get_task

ITEMS, WORDS = 190, 150  # LaMP-3 dev: 190 items a user, 844 bytes an item

OPEN = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
from rpo_kit.lamp.data import read_lamp
from rpo_kit.lamp.tasks import get_task
imported = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
data = read_lamp(Path(sys.argv[1]), get_task("LaMP-3"), "train")
opened = time.perf_counter()
assert len(data[len(data) - 1]["profile"]) == len(data[0]["profile"])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(f"{len(data):,} questions in {opened - imported:.2f} s (imports {imported - start:.1f} s), "
      f"peak {peak:,.0f} MB, of which {before:,.0f} MB before")
"""
PLAIN = """
import json, resource, sys, time
start = time.perf_counter()
data = json.load(open(sys.argv[1] + "/train_questions.json"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(f"{len(data):,} questions in {time.perf_counter() - start:.2f} s, peak {peak:,.0f} MB")
"""


def make(folder: Path, size: int) -> int:
    """The two files; reviews of common and rare words, no two users alike."""
    task, draw = get_task("LaMP-3"), random.Random(0)
    words = [f"w{n}" for n in range(30_000)]
    weights = [1 / (n + 1) for n in range(30_000)]
    pool = [" ".join(draw.choices(words, weights, k=round(draw.gauss(WORDS, WORDS / 3)) + 5)) for _ in range(5_000)]
    count = 0
    with (folder / "train_questions.json").open("w") as file:
        while file.tell() < size:
            texts = (draw.choice(pool) for _ in range(ITEMS))
            profile = [
                {"id": f"20{count}{n}", "text": f"{count} {n} {text}", "score": str(draw.randint(1, 5))}
                for n, text in enumerate(texts)
            ]
            row = {"id": f"20{count}", "input": task.make_input(text=draw.choice(pool)), "profile": profile}
            file.write(("[" if count == 0 else ", ") + json.dumps(row))
            count += 1
        file.write("]")
    golds = [{"id": f"20{n}", "output": "5"} for n in range(count)]
    (folder / "train_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    return count


def run(label: str, code: str, folder: Path) -> None:
    environment = os.environ | {"RPO_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True)
    print(f"{label:28} {done.stdout.strip() or done.stderr.strip()[-300:]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--plain", action="store_true", help="also json.load; needs about five times the memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = make(folder, int(options.gigabytes * 1e9))
        size = (folder / "train_questions.json").stat().st_size
        print(f"made {size / 1e9:.2f} GB, {count:,} questions; load average {os.getloadavg()[0]:.1f}", flush=True)
        run("first opening (conversion)", OPEN, folder)
        run("second opening", OPEN, folder)
        if options.plain:
            run("json.load", PLAIN, folder)


if __name__ == "__main__":
    main()
