"""Provenance of a result: fingerprints of its inputs, versions of the packages, the commit, the machine.

fingerprint(Path("runs/demo/sft/adapter"))      # sha256 of the folder's files, independent of its path
provenance()                                    # {"packages": {"torch": "2.13.0+cpu", …}, "commit": …, …}
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.machine import gpu, processor, threads

_FOLDERS = re.compile(r"(?<![\w/.])/(?:[^\s,/]+/)+")  # of an absolute path, but not of an address
_PACKAGES = (  # those whose version can change a number
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "unsloth_zoo",
    "datasets",
    "bitsandbytes",
    "pyarrow",
    "rouge-score",
)


def fingerprint(value: object) -> str:
    """Sha256 of a file's bytes, of a folder's files, or of a plain value's JSON.

    A setting that was added later, `field(default=…, metadata={"since": …})`, counts only if it is not the default, so
    that older runs keep their fingerprints. Of one with the metadata "address" only the kind counts, before the colon.
    One with the metadata "memory", which does not change the result, counts as its default.

    Raises:
        KitError: `value` is a path that does not exist.
    """
    if isinstance(value, Path):
        return _fingerprint_path(value)
    plain = _plain(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _plain(value: object) -> object:
    """As `dataclasses.asdict`, without the later settings that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        fields = [(f, v.partition(":")[0] if "address" in f.metadata else v) for f, v in fields]
        fields = [(f, f.default if "memory" in f.metadata else v) for f, v in fields]
        return {f.name: _plain(v) for f, v in fields if "since" not in f.metadata or v != f.default}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def common_provenance(manifests: Sequence[Path]) -> dict[str, object]:
    """The commits that made these results, and the machine and packages of the last one."""
    made = [json.loads(file.read_text(encoding="utf-8")) for file in manifests]
    commits = ", ".join(dict.fromkeys(manifest["commit"] for manifest in made))
    return {"commit": commits} | {key: made[-1][key] for key in ("machine", "packages")}


def without_folders(value: Any) -> Any:
    """A JSON value in which absolute paths of this machine, alone or after "file:", are cut to their last part.

    >>> without_folders({"base": "file:/home/ann/train.json,/home/ann/dev.json", "url": "http://host/v1#org/model"})
    {'base': 'file:train.json,dev.json', 'url': 'http://host/v1#org/model'}
    """
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def _fingerprint_path(path: Path) -> str:
    if not path.exists():
        raise KitError(f"The input {path} is missing: run the stage that writes it again.")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def provenance() -> dict[str, object]:
    """Packages, commit and machine of this process."""
    return {
        "packages": package_versions(),
        "commit": git_commit(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "processor": processor(),
        "gpu": gpu() or "none",
        "threads": threads(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change results; "not installed" for one that is missing."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in _PACKAGES}


def git_commit() -> str:
    """The commit of this code, with "+" if tracked files are changed; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") if shutil.which("git") else ""
    return (commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) if commit else "unknown"
