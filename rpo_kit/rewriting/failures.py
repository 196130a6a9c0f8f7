"""Items that a model did not answer: recorded with the reason, shown, and asked again by the next call of the stage.

A stage continues without them while they are few (`endpoint.tolerate`); if they are more, it stops with an error after
everything else is stored. `failed.jsonl` in the stage's folder lists exactly the items that are missing now.

    with stage(run, "prepare", retry=remain(run, "prepare"), ...) as stage_dir:      # a finished one is taken up again
        forget(stage_dir)                            # they count as missing again
        note(stage_dir, {"310": "status 500: no"})
        conclude(stage_dir, total=90, tolerate=0.02)     # 1 of 90: printed; 2 of 90: KitError
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.processes import is_main
from rpo_kit.runs import Run, append_records, read_records

FAILED = "failed.jsonl"


def remain(run: Run, stage: str) -> bool:
    """Whether items of a finished stage failed; prints that they are asked again."""
    failed = read_records(run.stage(stage) / FAILED)
    if not failed or not (run.stage(stage) / "manifest.json").exists():
        return False
    if is_main():
        print(f"{stage}: {len(failed)} items failed last time and are asked again")
    return True


def forget(stage_dir: Path) -> None:
    """Clear the list of failures before asking again."""
    (stage_dir / FAILED).unlink(missing_ok=True)


def note(stage_dir: Path, failed: dict[str, str]) -> None:
    """Record {item id: reason}."""
    if failed:
        append_records(stage_dir / FAILED, [{"id": item, "reason": reason} for item, reason in failed.items()])


def conclude(stage_dir: Path, total: int, tolerate: float) -> None:
    """Print what failed, after asking.

    Raises:
        KitError: more than the fraction `tolerate` of the `total` items failed.
    """
    failed = read_records(stage_dir / FAILED)
    if not failed:
        return
    reasons = Counter(record["reason"] for record in failed).most_common()
    shown = "; ".join(f"{count} × {reason}" for reason, count in reasons[:5]) + ("; …" if len(reasons) > 5 else "")
    summary = f"{len(failed)} of {total} items failed ({shown})"
    if len(failed) > tolerate * total:
        raise KitError(
            f"{summary}: more than the share endpoint.tolerate={tolerate:g}. They are listed in {stage_dir / FAILED}; "
            "finished items are kept, so run again and only the failed ones are asked."
        )
    print(f"{summary} and are left out; the next call asks for them again")
