"""A key that a server repeats is cut out, in whatever form it stands."""

from __future__ import annotations

import base64
import html
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpo_kit.models.keys import without_key
from rpo_kit.models.open import open_chat

KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=90)
AROUND = st.text(st.characters(codec="utf-8"), max_size=20)
FORMS = {
    "plain": lambda key: key,
    "upper case": str.upper,
    "lower case": str.lower,
    "backwards": lambda key: key[::-1],
    "for a URL": lambda key: quote(key, safe=""),
    "for a URL, twice": lambda key: quote(quote(key, safe=""), safe=""),
    "percent signs all over": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "for HTML": html.escape,
    "HTML numbers": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "HTML hex numbers": lambda key: "".join(f"&#x{ord(c):X};" for c in key),
    "for JSON": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "JSON numbers": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "Python's escapes": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "hex digits": lambda key: key.encode().hex(),
    "large hex digits": lambda key: key.encode().hex().upper(),
    "Base64": lambda key: base64.b64encode(key.encode()).decode(),
    "a header in Base64": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "a login in Base64": lambda key: base64.urlsafe_b64encode(f"ann:{key}\n".encode()).decode(),
    "in two lines": lambda key: f"{key[:5]}\n  {key[5:]}",
    "with invisible characters": "\u200b".join,
}


@settings(max_examples=25, deadline=None)
@given(KEYS, AROUND, AROUND)
@example("0000%00'", "", "")  # holds what reads as an escape
def test_no_form_of_the_key_is_left(key, before, after):
    for form, write in FORMS.items():
        written = write(key)
        shown = without_key(f"{before} {written} {after}", key)
        assert written not in shown, form
        assert "…" in shown, form
        if form.endswith("Base64"):
            assert written[8:-8] not in shown or len(written) < 24, form


@settings(max_examples=200, deadline=None)
@given(KEYS, st.text(st.sampled_from("abcdefghij .,;!\n<>&%#\\/0123"), max_size=200))
def test_a_text_without_the_key_stays_as_it_is(key, text):
    if not set(key.lower()) <= set("abcdefghij.,;!<>&%#\\/0123"):
        assert without_key(text, f"zZ{key}Zz") == text


@settings(max_examples=8, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=30, max_size=90), st.integers(16, 29))
def test_the_beginning_of_a_long_key_is_cut_out_too(key, length):
    assert key[:length] not in without_key(f"Your key {key[:length]}", key)


def test_the_text_around_the_key_is_kept():
    key = "sk-not-a-real-key-0123456789"
    assert without_key(f"Incorrect API key provided: {key}. Look at it.", key) == (
        "Incorrect API key provided: …. Look at it."
    )
    assert without_key(f'{{"key":"{key}","why":"old"}}', key) == '{"key":"…","why":"old"}'
    assert without_key("an answer of ann", "ann") == "an answer of ann", "too short to be a key"


@pytest.mark.parametrize(
    "text", ["s" * 10**6, " " * 10**6, "\\" * 10**5, "%25" * 10**5, "&#0000" * 10**5, "sk-" * 10**5]
)
def test_long_texts_are_searched_fast(text):
    start = time.perf_counter()
    without_key(text, "sk-not-a-real-key-0123456789")
    without_key(text, "s" * 40)
    assert time.perf_counter() - start < 5


def test_a_key_in_an_answer_a_failure_or_a_web_page_is_cut_out_in_any_form(endpoint, monkeypatch):
    key = "sk-not-a-real-key-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    coded = base64.b64encode(f"Bearer {key}".encode()).decode()
    chat = open_chat(f"{endpoint.url}#m@MY_KEY")
    for status, content in (
        (400, {"error": {"message": f"bad: {coded}"}}),
        (403, f"<html><title>{''.join(f'&#{ord(c)};' for c in key)}</title>"),
        (200, {"error": {"message": f"Invalid: {quote(key)} and {key[::-1]}"}}),
        (307, {}),
    ):
        endpoint.reply = lambda body, reply=(status, content): reply
        endpoint.headers = {"Location": f"https://elsewhere/?key={key}"} if status == 307 else {}
        failure = chat.complete([[{"role": "user", "content": f"q{status}"}]], max_new_tokens=2)[0].failure
        assert "…" in failure
        assert key[:16] not in failure
        assert coded[12:30] not in failure
        assert key[::-1] not in failure
