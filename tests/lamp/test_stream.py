"""A list is streamed as json would read it, whatever the buffer; what is broken is reported with its position."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpo_kit.errors import KitError
from rpo_kit.lamp import stream
from rpo_kit.lamp.stream import stream_list

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@given(st.lists(VALUES, max_size=4), st.sampled_from([1, 2, 3, 7, 64]), st.booleans(), st.sampled_from([None, 2]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_list_comes_back_whatever_the_size_of_the_buffer(
    tmp_path: Path, values: list[Any], chunk: int, ascii: bool, indent: int | None
) -> None:
    text = json.dumps(values, ensure_ascii=ascii, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_CHUNK", chunk)
        assert list(stream_list(written(tmp_path / "a", text))) == json.loads(text)


def test_an_item_is_yielded_before_the_file_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 16)
    items = stream_list(written(tmp_path / "a", '[{"a": 1}, {"b": 2}, "' + "x" * 100 + '"}'))
    assert next(items) == {"a": 1}
    assert next(items) == {"b": 2}
    with pytest.raises(KitError, match="not complete JSON"):
        list(items)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('[{"a": 1}', "Expecting ']' at character 9 of 9"),
        ('[{"a": 1},', "Expecting value at character 10 of 10"),
        ('[{"a": "b', "Unterminated string starting at character 7 of 9"),
        ('[{"a": 1} {"b": 2}]', "Expecting ']' at character 10 of 19"),
        ('[{"a": 1}] [', "text after the end of the list at character 11 of 12"),
        ('[{"a": nul}]', "Expecting value at character 7 of 12"),
        ("", "Expecting '\\[' at character 0 of 0"),
        ("[" * 100_000, "brackets nested too deeply at character 1"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 2**20])
def test_what_is_broken_is_reported_with_its_position(
    content: str, what: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    with pytest.raises(KitError, match=f"a is not complete JSON: {what}"):
        list(stream_list(written(tmp_path / "a", content)))


def test_a_mistake_in_the_middle_stops_at_once_and_does_not_read_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 64)
    path = written(tmp_path / "a", '[{"a": oops, "b": "' + "x" * 100_000)
    read: list[int] = []
    real = stream._Buffer.read
    monkeypatch.setattr(stream._Buffer, "read", lambda self, count=64: read.append(count) or real(self, count))
    with pytest.raises(KitError, match="Expecting value at character 7"):
        list(stream_list(path))
    assert sum(read) == 64


def test_bytes_that_are_not_text_are_named_by_their_offset_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 4)
    with pytest.raises(KitError, match=r"a is not UTF-8 text \(byte 10\)"):
        list(stream_list(written(tmp_path / "a", b'["\xc3\xa9", "ab\xff"]')))


def test_anything_but_a_list_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"should be a JSON list of examples: .*, or swap it with the"):
        list(stream_list(written(tmp_path / "a", '{"task": "LaMP_3"}')))
    with pytest.raises(KitError, match="is a web page"):
        list(stream_list(written(tmp_path / "a", " \n<html>")))
    assert list(stream_list(written(tmp_path / "a", b"\xef\xbb\xbf [ ] \n"))) == []
