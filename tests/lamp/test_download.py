"""Downloads from a server on this machine: announced, resumed, and complete or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rpo_kit.errors import KitError
from rpo_kit.lamp import download
from rpo_kit.lamp.data import read_lamp
from rpo_kit.lamp.download import OFFICIAL, PAUSES, addresses, fetch
from rpo_kit.lamp.tasks import get_task

RATINGS = get_task("LaMP-3")
ITEM = {"id": "3100", "text": "Broke twice. " * 50, "score": "1"}
QUESTIONS = json.dumps(
    [{"id": f"31{n}", "input": RATINGS.make_input(text="ok"), "profile": [ITEM]} for n in range(9)]
).encode()
OUTPUTS = json.dumps({"task": "LaMP_3", "golds": [{"id": f"31{n}", "output": "5"} for n in range(9)]}).encode()


@dataclass
class Server:
    """What the server has, how it misbehaves, and the requests that it received."""

    files: dict[str, bytes]
    version: str = '"1"'
    cut_after: list[int] = field(default_factory=list)  # bytes of each answer before the connection breaks
    statuses: list[int] = field(default_factory=list)  # sent in place of the first answers
    kind: str = "application/json"
    ranges: bool = True
    claimed: int = 0  # bytes that it claims to send beyond those it has
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    base: str = ""


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.reply(content=False)

    def do_GET(self) -> None:
        self.reply(content=True)

    def reply(self, content: bool) -> None:
        server: Server = self.server.lamp  # type: ignore[attr-defined]
        if content:
            server.asked.append((self.path.rpartition("/")[2], self.headers.get("Range")))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if self.path not in server.files:
            return self.send_error(404)
        data = server.files[self.path]
        resumes = server.ranges and "Range" in self.headers and self.headers["If-Range"] == server.version
        first = int(self.headers["Range"][6:-1]) if resumes else 0
        self.send_response(206 if resumes else 200)
        self.send_header("Content-Type", server.kind)
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(data) - first + server.claimed))
        self.end_headers()
        if content:
            self.wfile.write(data[first:][: server.cut_after.pop(0) if server.cut_after else None])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    lamp = Server({"/LaMP_3/dev/dev_questions.json": QUESTIONS, "/LaMP_3/dev/dev_outputs.json": OUTPUTS})
    lamp.base = f"http://127.0.0.1:{http.server_port}"
    http.lamp = lamp  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield lamp
    http.shutdown()
    http.server_close()
    thread.join()


def get(server: Server, folder: Path, pauses: list[float] | None = None) -> Path:
    waited: list[float] = [] if pauses is None else pauses
    return fetch(RATINGS, "user", ["dev"], root=folder, base=server.base, sleep=waited.append)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "LaMP-3-user").iterdir())


WHOLE = ["checksums.json", "dev_outputs.json", "dev_questions.json"]


def test_the_addresses_are_lamps() -> None:
    assert addresses(get_task("LaMP-2"), "user", ["dev"]) == {
        "dev_questions.json": f"{OFFICIAL}/LaMP_2/new/dev/dev_questions.json",
        "dev_outputs.json": f"{OFFICIAL}/LaMP_2/new/dev/dev_outputs.json",
    }
    assert list(addresses(get_task("LaMP-7"), "time", ["test"]).values()) == [
        f"{OFFICIAL}/time/LaMP_7/test/test_questions.json"
    ]
    assert (
        f"{OFFICIAL}/LaMP_2/train/train_outputs.json" in addresses(get_task("LaMP-2-news"), "user", ["train"]).values()
    )
    with pytest.raises(KitError, match="by user or time, not by 'date'"):
        addresses(RATINGS, "date", ["dev"])


def test_sizes_are_printed_first_checksums_are_kept_and_the_files_are_lamps(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = get(server, tmp_path)
    said = capsys.readouterr().out
    assert f"{(len(QUESTIONS) + len(OUTPUTS)) / 1e6:,.1f} MB in all" in said
    assert f"{server.base}/LaMP_3/dev/dev_questions.json" in said
    assert names(tmp_path) == WHOLE
    facts = json.loads((folder / "checksums.json").read_text())
    assert facts["dev_questions.json"]["sha256"] == hashlib.sha256(QUESTIONS).hexdigest()
    assert len(read_lamp(folder, RATINGS, "dev")) == 9


def test_files_on_disk_are_not_requested_again(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    asked = len(server.asked)
    server.statuses = [503]
    assert get(server, tmp_path) == tmp_path / "LaMP-3-user"
    assert (len(server.asked), server.statuses) == (asked, [503])


def test_a_broken_connection_resumes_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 500]
    pauses: list[float] = []
    folder = get(server, tmp_path, pauses)
    assert (folder / "dev_questions.json").read_bytes() == QUESTIONS
    assert server.asked[:3] == [
        ("dev_questions.json", None), ("dev_questions.json", "bytes=1000-"), ("dev_questions.json", "bytes=1500-"),
    ]  # fmt: skip
    assert pauses == [1, 1], "each try brought something, so the pauses do not grow"


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000] + [0] * len(PAUSES) + [0]
    pauses: list[float] = []
    with pytest.raises(KitError, match=r"connection ended after 1,000 of .* tried 6 times. What was received is kept"):
        get(server, tmp_path, pauses)
    assert pauses == list(PAUSES)
    assert not {"dev_questions.json", "checksums.json"} & set(names(tmp_path)), "nothing looks whole"
    server.asked.clear()
    server.cut_after = []
    folder = get(server, tmp_path)
    assert server.asked[0] == ("dev_questions.json", "bytes=1000-")
    assert (folder / "dev_questions.json").read_bytes() == QUESTIONS
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_or_a_server_that_cannot_resume_means_a_fresh_start(
    ranges: bool, server: Server, tmp_path: Path
) -> None:
    server.cut_after = [1000] + [0] * (len(PAUSES) + 1)
    with pytest.raises(KitError, match="does not answer"):
        get(server, tmp_path)
    new = QUESTIONS.replace(b"Broke", b"Bring")
    server.cut_after, server.ranges = [], ranges
    server.version, server.files["/LaMP_3/dev/dev_questions.json"] = ('"2"' if ranges else '"1"'), new
    folder = get(server, tmp_path)
    assert (folder / "dev_questions.json").read_bytes() == new


def test_a_busy_server_is_retried_with_growing_pauses(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    pauses: list[float] = []
    get(server, tmp_path, pauses)
    assert pauses == [1, 2, 4]


def test_lamp_6_is_rejected_before_any_request(server: Server, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"LaMP-6 cannot be downloaded completely: .*Avocado .*LDC2015T03.*--data FOLD"):
        fetch(get_task("LaMP-6"), "user", ["dev"], root=tmp_path, base=server.base)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "decryption failed or bad record mac"),  # 1 is EPERM as well
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        TimeoutError("The read operation timed out"),
    ],
)
def test_network_errors_are_retried(
    error: OSError, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks, pauses, real = [error, error], [], download._open

    def open_once_it_works(*arguments: Any, **more: Any) -> Any:
        if breaks:
            raise breaks.pop()
        return real(*arguments, **more)

    monkeypatch.setattr(download, "_open", open_once_it_works)
    get(server, tmp_path, pauses)
    assert pauses == [1, 2]
    breaks += [error] * 6
    with pytest.raises(KitError, match=r"LaMP's server does not answer .* tried 6 times"):
        get(server, tmp_path / "elsewhere")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EIO])
def test_disk_errors_are_reported_at_once(
    number: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(download, "_receive", full)
    pauses: list[float] = []
    with pytest.raises(KitError, match=rf"cannot be written .*{os.strerror(number)}.*what was received is kept"):
        get(server, tmp_path, pauses)
    assert pauses == []


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_a_web_page_with_status_200_leaves_nothing_behind(kind: str, server: Server, tmp_path: Path) -> None:
    server.kind = kind
    server.files["/LaMP_3/dev/dev_questions.json"] = b"<!DOCTYPE html><html>LaMP</html>"
    with pytest.raises(KitError, match=r"dev_questions.json is a web page and not JSON: .*--data"):
        get(server, tmp_path)
    assert not (tmp_path / "LaMP-3-user" / "dev_questions.json").exists()
    assert not list((tmp_path / "LaMP-3-user").glob("*.part"))


def test_a_file_that_is_broken_on_the_server_is_deleted(server: Server, tmp_path: Path) -> None:
    server.files["/LaMP_3/dev/dev_questions.json"] = QUESTIONS[:-100]
    with pytest.raises(KitError, match="not complete JSON"):
        get(server, tmp_path)
    assert names(tmp_path) == []


def test_a_response_shorter_than_announced_is_not_accepted(server: Server, tmp_path: Path) -> None:
    server.claimed = 7
    with pytest.raises(KitError, match="tried 6 times"):
        get(server, tmp_path)
    assert not set(WHOLE) & set(names(tmp_path))


def test_an_address_that_is_gone_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    pauses: list[float] = []
    with pytest.raises(KitError, match=r"dev_questions.json answered 404 .*--data"):
        get(server, tmp_path, pauses)
    assert pauses == []


def test_a_file_changed_after_the_download_is_named_and_not_overwritten(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path) / "dev_questions.json"
    path.write_bytes(QUESTIONS.replace(b"Broke", b"Bring"))
    with pytest.raises(KitError, match=r"dev_questions.json is not what was downloaded .*delete it to fetch it again"):
        get(server, tmp_path)
    path.write_bytes(QUESTIONS)  # the same bytes at another time are the same file
    assert get(server, tmp_path) == path.parent


def test_a_full_disk_is_seen_before_the_first_byte(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: download.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(KitError, match=r"needs 0.0 MB, but .* has only 0.0 MB of free space: .*set RPO_DATA"):
        get(server, tmp_path)
    assert server.asked == []
