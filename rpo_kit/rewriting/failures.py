"""Items that a model did not answer: recorded with the reason, reported, and retried by the next call of the stage.

A stage continues without them if they are few (`endpoint.tolerate`); otherwise it stops with an error after storing
everything else. `failed.jsonl` in the stage's folder lists exactly the items that are missing now.

    with stage(run, "prepare", retry=pending(run, "prepare"), ...) as stage_dir:     # reopens a finished stage
        clear(stage_dir)                             # they count as missing again
        record(stage_dir, {"310": "status 500: no"})
        report(stage_dir, total=90, tolerate=0.02)       # 1 of 90: printed; 2 of 90: KitError
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.processes import is_main
from rpo_kit.runs import Run, append_records, read_records

FAILED = "failed.jsonl"


def pending(run: Run, stage: str) -> bool:
    """Whether a finished stage has failed items; if so, print that they are retried."""
    failed = read_records(run.stage(stage) / FAILED)
    if not failed or not (run.stage(stage) / "manifest.json").exists():
        return False
    if is_main():
        print(f"{stage}: {len(failed)} answers were missing last time and are requested again")
    return True


def clear(stage_dir: Path) -> None:
    """Clear the list of failures before retrying."""
    (stage_dir / FAILED).unlink(missing_ok=True)


def record(stage_dir: Path, failed: dict[str, str]) -> None:
    """Append {item id: reason} to the list."""
    if failed:
        append_records(stage_dir / FAILED, [{"id": item, "reason": reason} for item, reason in failed.items()])


def report(stage_dir: Path, total: int, tolerate: float) -> None:
    """Print how many answers are missing, and why.

    Raises:
        KitError: more than the fraction `tolerate` of the `total` answers are missing.
    """
    failed = read_records(stage_dir / FAILED)
    if not failed:
        return
    reasons = Counter(item["reason"] for item in failed).most_common()
    shown = "; ".join(f"{count} × {reason}" for reason, count in reasons[:5]) + ("; …" if len(reasons) > 5 else "")
    summary = f"{len(failed)} of {total} answers are missing ({shown})"
    if len(failed) > tolerate * total:
        raise KitError(
            f"{summary}, more than the share endpoint.tolerate={tolerate:g} allows; they are listed in "
            f"{stage_dir / FAILED}. Fix the cause and run again: finished answers are kept, only the missing ones are "
            "retried."
        )
    print(f"{summary} and are left out; run the stage again to retry them")
