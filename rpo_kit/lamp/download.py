"""LaMP's official files, fetched from LaMP's own address when, and only when, `--data official` asks for it.

Says first what comes from where and how large it is. A file grows as `<name>.part` and is renamed when it is whole: as
long as the server said, and JSON from its first to its last character (LaMP's server answers wrong addresses with a web
page and status 200). A broken connection is taken up where it broke; a file that changed on the server meanwhile starts
anew. `checksums.json` keeps size and SHA-256 of what came, and a file that no longer fits is named. The data is under
CC BY-NC-SA 4.0 and the licences of its sources. Left out: mirrors, and the test outputs, which LaMP keeps.

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
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from rpo_kit.errors import KitError
from rpo_kit.lamp.leaks import mails_missing
from rpo_kit.lamp.tasks import Task
from rpo_kit.runs import write_json

log = logging.getLogger(__name__)

OFFICIAL = "https://ciir.cs.umass.edu/downloads/LaMP"
SEPARATIONS = ("user", "time")
PAUSES = (1, 2, 4, 8, 16)  # seconds before each further try; a try that brought something starts them anew
_CHUNK, _TIMEOUT = 2**20, 60
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # what a server says when it may be different in a moment


@dataclass(frozen=True)
class Remote:
    """One file on the server: its address, its length in bytes, and what tells its version."""

    url: str
    path: Path
    size: int | None
    version: str

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")


def data_root() -> Path:
    """Where downloads live: $RPO_DATA, else `data/lamp` in the checkout, else `data/lamp` here."""
    checkout = Path(__file__).resolve().parents[2]
    here = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("RPO_DATA") or here / "data" / "lamp").expanduser().resolve()


def addresses(task: Task, separation: str, splits: Sequence[str], base: str = OFFICIAL) -> dict[str, str]:
    """{file name: address}. Movies are LaMP_2/new; plain LaMP_2 is the deprecated news task."""
    if separation not in SEPARATIONS:
        raise KitError(
            f"LaMP is split by {' or '.join(SEPARATIONS)}, not by {separation!r}: set data.separation to one."
        )
    folder = ("time/" if separation == "time" else "") + task.official_name + ("/new" if task.name == "LaMP-2" else "")
    kinds = {split: ("questions",) if split == "test" else ("questions", "outputs") for split in splits}
    names = [f"{split}_{kind}.json" for split in splits for kind in kinds[split]]
    return {name: f"{base}/{folder}/{name.split('_')[0]}/{name}" for name in names}


def fetch(
    task: Task,
    separation: str,
    splits: Sequence[str],
    root: Path | None = None,
    base: str = OFFICIAL,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The folder with the task's files, those which are not there yet downloaded; KitError says why one cannot be."""
    if task.name == "LaMP-6":
        raise mails_missing("LaMP-6 cannot be downloaded whole")
    folder = (root or data_root()) / f"{task.name}-{separation}"
    known = _checksums(folder)
    missing = [name for name in addresses(task, separation, splits) if not _is_intact(folder / name, known.get(name))]
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    urls = addresses(task, separation, splits, base)
    remotes = [_patiently(partial(_look, urls[name], folder / name), sleep) for name in missing]
    _announce(remotes, folder)
    for remote in remotes:
        _download(remote, sleep)
        _finish(remote)
    return folder


# ---- one file -----------------------------------------------------------------------------------------------------


def _look(url: str, path: Path) -> Remote:
    """Length and version, asked without the content."""
    with _open(url, method="HEAD") as answer:
        headers: HTTPMessage = answer.headers
    if headers.get_content_type() == "text/html":
        raise _not_there(url)
    size = headers.get("Content-Length")
    return Remote(url, path, int(size) if size else None, headers.get("ETag") or headers.get("Last-Modified") or "")


def _announce(remotes: Sequence[Remote], folder: Path) -> None:
    total = sum(remote.size or 0 for remote in remotes)
    have = sum(remote.part.stat().st_size for remote in remotes if remote.part.exists())
    print(f"LaMP's official files, {_megabytes(total)} in all (CC BY-NC-SA 4.0), into {os.path.relpath(folder)}:")
    for remote in remotes:
        print(f"  {_megabytes(remote.size):>12}  {remote.url}")
    free = shutil.disk_usage(folder).free
    if free < total - have:
        raise KitError(
            f"{folder} has {_megabytes(free)} of free space for {_megabytes(total - have)}: make room, or set RPO_DATA "
            "to a folder on a larger disk. Nothing was downloaded."
        )


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _download(remote: Remote, sleep: Callable[[float], None]) -> None:
    """Bring `<name>.part` to its full length, going on where an earlier call broke off."""
    version = remote.part.with_name(f"{remote.part.name}.version")
    if not (remote.version and version.exists() and version.read_text() == remote.version):
        remote.part.unlink(missing_ok=True)
    version.write_text(remote.version)
    have = _length(remote.part)
    with tqdm(total=remote.size, initial=have, unit="B", unit_scale=True, desc=remote.path.name) as bar:
        _patiently(lambda: _receive(remote, bar), sleep, progress=lambda: _length(remote.part))
    version.unlink()


def _receive(remote: Remote, bar: Any) -> None:
    have = _length(remote.part)
    if remote.size is not None and have >= remote.size:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": remote.version} if have else {}
    with _open(remote.url, headers) as answer, remote.part.open("ab") as file:
        if answer.status != 206 and have:  # the whole file after all: the server cannot resume, or the file changed
            file.truncate(0)
            bar.reset(remote.size)
        while data := answer.read(_CHUNK):
            file.write(data)
            bar.update(len(data))
    if remote.size is not None and _length(remote.part) < remote.size:
        raise ConnectionError(f"the connection ended after {_length(remote.part):,} of {remote.size:,} bytes")


def _finish(remote: Remote) -> None:
    """Check the whole file, write down what it is, and give it its name."""
    with remote.part.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = (file.seek(0), file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n"))[1]
        end = (file.seek(max(0, size - 1024)), file.read().rstrip())[1]
    whole = (start[:1], end[-1:]) in ((b"[", b"]"), (b"{", b"}"))
    if not whole or size != (remote.size or size):
        remote.part.unlink()
        if start[:1] == b"<":
            raise _not_there(remote.url)
        raise KitError(
            f"{remote.url} sent {size:,} bytes that are no whole JSON file (it said {remote.size or size:,}); they "
            "were thrown away. Give the command again; if it stays so, LaMP's server is at fault."
        )
    known = _checksums(remote.path.parent)
    facts = {"sha256": _sha256(remote.part), "size": size, "url": remote.url, "version": remote.version}
    facts["seen"] = remote.part.stat().st_mtime_ns
    write_json(remote.path.parent / "checksums.json", known | {remote.path.name: facts})
    os.replace(remote.part, remote.path)


# ---- what is here -------------------------------------------------------------------------------------------------


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "checksums.json"
    return cast(dict[str, dict[str, Any]], json.loads(path.read_text())) if path.exists() else {}


def _is_intact(path: Path, facts: dict[str, Any] | None) -> bool:
    """Whether the file is here as it was downloaded. Read again only where its time says that it was touched."""
    if facts is None or not path.exists():
        return False
    stat = path.stat()
    if stat.st_size == facts["size"] and (stat.st_mtime_ns == facts["seen"] or _sha256(path) == facts["sha256"]):
        return True
    raise KitError(
        f"{path} is not what was downloaded ({stat.st_size:,} bytes; SHA-256 was {facts['sha256'][:12]}…, "
        f"{facts['size']:,} bytes): delete it to fetch it again, or give its folder with --data if the change is yours."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---- the server ---------------------------------------------------------------------------------------------------


def _open(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
    try:
        return urlopen(Request(url, headers=headers or {}, method=method), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code in _PASSING:
            raise ConnectionError(f"the server answered {error.code} {error.reason}") from None
        raise KitError(
            f"{url} answered {error.code} {error.reason}: look on LaMP's download page for where the file is now, "
            "download it, and give its folder with --data."
        ) from None


def _patiently(attempt: Callable[[], Any], sleep: Callable[[float], None], progress: Callable[[], int] = int) -> Any:
    """The attempt's result, tried again with longer and longer pauses; what was received meanwhile starts them anew."""
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except (OSError, HTTPException) as error:
            if _is_of_the_disk(error):
                raise KitError(
                    f"The download cannot be written ({error}): what has come is kept. Make room or set RPO_DATA to a "
                    "folder you may write in, and give the same command again."
                ) from error
            now = progress()
            failures, before = (0 if now > before else failures), now
            if failures == len(PAUSES):
                raise KitError(
                    f"LaMP's server does not answer ({error}); tried {failures + 1} times. What has come is kept: give "
                    "the same command again to go on, or give a folder that you have with --data."
                ) from None
            log.warning("Download: %s; trying again in %d s.", error, PAUSES[failures])
            sleep(PAUSES[failures])
            failures += 1


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed; anything else comes from the network. An SSLError's number 1 is no EPERM."""
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in _DISK


def _not_there(url: str) -> KitError:
    return KitError(
        f"{url} is a web page and not JSON: LaMP's server sends one, as if all were well, where there is no such file. "
        "Look on LaMP's download page for where it is now, download it, and give its folder with --data."
    )
