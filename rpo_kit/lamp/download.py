"""LaMP's official files, downloaded from LaMP's own server only if `--data official` is set.

Addresses and sizes are printed first. A file is written to `<name>.part` and renamed once it is complete: as long as
announced, and JSON by its first and last character (LaMP's server answers wrong addresses with a web page and status
200). An interrupted download resumes; if the file has changed on the server meanwhile, it starts again.
`checksums.json` keeps size and SHA-256 of each download; a file that differs from them is an error. The data is under
CC BY-NC-SA 4.0 and the licenses of its sources. Out of scope: mirrors, and the golds of the test split, which LaMP
withholds.

    fetch(get_task("LaMP-3"), "user", ["dev"])      # data/lamp/LaMP-3-user, with dev_questions.json, dev_outputs.json
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import TypedDict, TypeVar, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.tasks import Task
from rpo_kit.runs import write_json

log = logging.getLogger(__name__)

OFFICIAL = "https://ciir.cs.umass.edu/downloads/LaMP"
SEPARATIONS = ("user", "time")
PAUSES = (1, 2, 4, 8, 16)  # seconds before each retry; an attempt that received data resets them
_CHUNK, _TIMEOUT = 2**20, 60  # bytes per read; seconds without an answer
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses worth a retry

T = TypeVar("T")


class Checksum(TypedDict):
    """One entry of `checksums.json`: a file as it was downloaded."""

    sha256: str
    size: int  # bytes
    url: str
    version: str
    seen: int  # modification time in ns: an untouched file is not hashed again


@dataclass(frozen=True)
class Remote:
    """One file on the server."""

    url: str
    path: Path  # its destination
    size: int | None  # bytes; None if the server does not say
    version: str  # ETag or date; "" if the server does not say

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")


def data_root() -> Path:
    """The folder for downloads: $RPO_DATA, else `data/lamp` in the checkout or else in the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    base = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("RPO_DATA") or base / "data" / "lamp").expanduser().resolve()


def addresses(task: Task, separation: str, splits: Sequence[str], base: str = OFFICIAL) -> dict[str, str]:
    """{file name: URL}, such as …/LaMP_3/dev/dev_outputs.json, or …/time/LaMP_3/… for the time split."""
    if separation not in SEPARATIONS:
        raise KitError(
            f"LaMP is split by {' or '.join(SEPARATIONS)}, not by {separation!r}: set data.separation to one of them."
        )
    folder = ("time/" if separation == "time" else "") + task.official_name + task.download_subfolder
    urls = {}
    for split in splits:
        for kind in ("questions",) if split == "test" else ("questions", "outputs"):
            name = f"{split}_{kind}.json"
            urls[name] = f"{base}/{folder}/{split}/{name}"
    return urls


def fetch(
    task: Task,
    separation: str,
    splits: Sequence[str],
    root: Path | None = None,
    base: str = OFFICIAL,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The folder with the task's files; missing ones are downloaded.

    Raises: KitError if a file cannot be downloaded, or was changed after its download.
    """
    if task.placeholder:
        raise KitError(f"{task.name} cannot be downloaded completely: {task.placeholder_help}")
    folder = (root or data_root()) / f"{task.name}-{separation}"
    checksums = _read_checksums(folder)
    urls = addresses(task, separation, splits, base)
    missing = [name for name in urls if not _is_intact(folder / name, checksums.get(name))]
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    remotes = [_with_retries(partial(_head, urls[name], folder / name), sleep) for name in missing]
    _announce(remotes, folder)
    for remote in remotes:
        _download(remote, sleep)
        _finish(remote)
    return folder


# ---- one file -----------------------------------------------------------------------------------------------------


def _head(url: str, path: Path) -> Remote:
    """Length and version of a file, by a HEAD request."""
    with _open(url, method="HEAD") as response:
        headers: HTTPMessage = response.headers
    if headers.get_content_type() == "text/html":
        raise _web_page(url)
    size = headers.get("Content-Length")
    return Remote(url, path, int(size) if size else None, headers.get("ETag") or headers.get("Last-Modified") or "")


def _announce(remotes: Sequence[Remote], folder: Path) -> None:
    """Print addresses and sizes. Raises KitError if the disk has too little space."""
    total = sum(remote.size or 0 for remote in remotes)
    have = sum(remote.part.stat().st_size for remote in remotes if remote.part.exists())
    print(f"LaMP's official files, {_megabytes(total)} in all (CC BY-NC-SA 4.0), into {os.path.relpath(folder)}:")
    for remote in remotes:
        print(f"  {_megabytes(remote.size):>12}  {remote.url}")
    free = shutil.disk_usage(folder).free
    if free < total - have:
        raise KitError(
            f"The download needs {_megabytes(total - have)}, but {folder} has only {_megabytes(free)} of free space: "
            "free space, or set RPO_DATA to a folder on a larger disk. Nothing was downloaded."
        )


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _download(remote: Remote, sleep: Callable[[float], None]) -> None:
    """Download `<name>.part` to its full length, resuming where an earlier call stopped."""
    version = remote.part.with_name(f"{remote.part.name}.version")
    if not (remote.version and version.exists() and version.read_text() == remote.version):
        remote.part.unlink(missing_ok=True)
    version.write_text(remote.version)
    have = _length(remote.part)
    with tqdm(total=remote.size, initial=have, unit="B", unit_scale=True, desc=remote.path.name) as bar:
        _with_retries(lambda: _receive(remote, bar), sleep, progress=lambda: _length(remote.part))
    version.unlink()


def _receive(remote: Remote, bar: tqdm) -> None:
    have = _length(remote.part)
    if remote.size is not None and have >= remote.size:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": remote.version} if have else {}
    with _open(remote.url, headers) as response, remote.part.open("ab") as file:
        if response.status != 206 and have:  # the server sends the full file: it cannot resume, or the file has changed
            file.truncate(0)
            bar.reset(remote.size)
        while data := response.read(_CHUNK):
            file.write(data)
            bar.update(len(data))
    if remote.size is not None and _length(remote.part) < remote.size:
        raise ConnectionError(f"the connection ended after {_length(remote.part):,} of {remote.size:,} bytes")


def _finish(remote: Remote) -> None:
    """Check that the file is complete, record its checksum, and rename it."""
    with remote.part.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1024))
        end = file.read().rstrip()
    is_json = (start[:1], end[-1:]) in ((b"[", b"]"), (b"{", b"}"))
    if not is_json or size != (remote.size or size):
        remote.part.unlink()
        if start[:1] == b"<":
            raise _web_page(remote.url)
        raise KitError(
            f"{remote.url} sent {size:,} of {remote.size or size:,} bytes, which are not complete JSON; they were "
            "deleted. Run the command again; if this happens again, LaMP's server is at fault."
        )
    checksum = Checksum(
        sha256=_sha256(remote.part),
        size=size,
        url=remote.url,
        version=remote.version,
        seen=remote.part.stat().st_mtime_ns,
    )
    known = _read_checksums(remote.path.parent)
    write_json(remote.path.parent / "checksums.json", known | {remote.path.name: checksum})
    os.replace(remote.part, remote.path)


# ---- files on disk ------------------------------------------------------------------------------------------------


def _read_checksums(folder: Path) -> dict[str, Checksum]:
    path = folder / "checksums.json"
    return cast(dict[str, Checksum], json.loads(path.read_text())) if path.exists() else {}


def _is_intact(path: Path, checksum: Checksum | None) -> bool:
    """Whether the file exists. Raises KitError if it was changed; it is read only if its modification time differs."""
    if checksum is None or not path.exists():
        return False
    stat = path.stat()
    untouched = stat.st_mtime_ns == checksum["seen"]
    if stat.st_size == checksum["size"] and (untouched or _sha256(path) == checksum["sha256"]):
        return True
    raise KitError(
        f"{path} is not what was downloaded ({stat.st_size:,} bytes; SHA-256 was {checksum['sha256'][:12]}…, "
        f"{checksum['size']:,} bytes): delete it to fetch it again, or give its folder with --data if the change is "
        "yours."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---- the server ---------------------------------------------------------------------------------------------------


def _open(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> HTTPResponse:
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers or {}, method=method), timeout=_TIMEOUT)
        return response
    except HTTPError as error:
        if error.code in _TRANSIENT:
            raise ConnectionError(f"the server answered {error.code} {error.reason}") from None
        raise KitError(
            f"{url} answered {error.code} {error.reason}: look up the file's current address on LaMP's download "
            "page, download it, and give its folder with --data."
        ) from None


def _with_retries(attempt: Callable[[], T], sleep: Callable[[float], None], progress: Callable[[], int] = int) -> T:
    """The attempt's result, retried with growing pauses, which are reset whenever `progress` has grown."""
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except (OSError, HTTPException) as error:
            # An SSLError is an OSError too, and its number 1 is not EPERM.
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in _DISK_ERRORS:
                raise KitError(
                    f"The download cannot be written ({error}); what was received is kept. Free space, or set RPO_DATA "
                    "to a folder you may write to, and run the same command again."
                ) from error
            now = progress()
            failures, before = (0 if now > before else failures), now
            if failures == len(PAUSES):
                raise KitError(
                    f"LaMP's server does not answer ({error}); tried {failures + 1} times. What was received is kept: "
                    "run the same command again to resume, or give a folder with the files with --data."
                ) from None
            log.warning("Download: %s; retrying in %d s.", error, PAUSES[failures])
            sleep(PAUSES[failures])
            failures += 1


def _web_page(url: str) -> KitError:
    return KitError(
        f"{url} is a web page and not JSON: LaMP's server sends one with status 200 if there is no such file. Look up "
        "its current address on LaMP's download page, download it, and give its folder with --data."
    )
