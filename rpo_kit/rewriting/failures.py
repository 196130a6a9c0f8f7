"""Items that a model did not answer: recorded with the reason, shown, and asked again by the next call of the stage.

A stage goes on without them while they are few (`endpoint.tolerate`); where they are more, it ends in a sentence after
everything else is stored. `failed.jsonl` of the stage's folder holds exactly the items that are missing now.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.processes import is_main
from rpo_kit.runs import Run, append_records, read_records

FAILED = "failed.jsonl"


def reopen(run: Run, stage: str) -> None:
    """Take up a finished stage again in which items failed."""
    manifest, failed = run.stage(stage) / "manifest.json", read_records(run.stage(stage) / FAILED)
    if failed and manifest.exists() and is_main():
        manifest.unlink()
        print(f"{stage}: {len(failed)} items failed last time and are asked again")


def forget(work: Path) -> None:
    """Before asking: what failed last time counts as missing and no more as failed."""
    (work / FAILED).unlink(missing_ok=True)


def note(work: Path, failed: dict[str, str]) -> None:
    """Record {item id: reason}."""
    if failed:
        append_records(work / FAILED, [{"id": item, "reason": reason} for item, reason in failed.items()])


def conclude(work: Path, total: int, tolerate: float) -> None:
    """After asking: show what failed; KitError where it is more than the share `tolerate` of `total` items."""
    failed = read_records(work / FAILED)
    if not failed:
        return
    reasons = Counter(record["reason"] for record in failed).most_common()
    told = "; ".join(f"{count} × {reason}" for reason, count in reasons[:5]) + ("; …" if len(reasons) > 5 else "")
    counted = f"{len(failed)} of {total} items failed ({told})"
    if len(failed) > tolerate * total:
        raise KitError(
            f"{counted}: more than the share endpoint.tolerate={tolerate:g}. They are listed in {work / FAILED}; what "
            "is finished is kept, so run again, and only they are asked."
        )
    print(f"{counted} and are left out; the next call asks for them again")
