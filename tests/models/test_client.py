"""The way to a server: no proxy for this machine, and a sentence where the way is barred, before the first question."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from contextlib import suppress

import pytest
from fakes import Endpoint, error
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_kit.errors import KitError
from rpo_kit.model_spec import on_this_machine, parse_spec
from rpo_kit.models.open import open_chat
from rpo_kit.models.retry import EndpointError
from rpo_kit.presets import EndpointSettings

PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
QUICK = EndpointSettings(tries=2, backoff=0.001, timeout=5.0, cache=False)
ASK = [[{"role": "user", "content": "What is it?"}]]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RPO_RUNS", str(tmp_path))
    for name in (*PROXIES, "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(endpoint, monkeypatch):
    """A server on this machine, in an environment that does not except it from proxies."""
    monkeypatch.delenv("NO_PROXY")
    return endpoint


def asked(url):
    return open_chat(f"{url}#m", settings=QUICK).complete(ASK, max_new_tokens=2)[0]


# ---- proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", PROXIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_a_server_on_this_machine_is_never_reached_through_a_proxy(here, monkeypatch, variable, host):
    proxy = Endpoint()
    monkeypatch.setenv(variable, proxy.url.removesuffix("/v1"))
    answer = asked(here.url.replace("127.0.0.1", host))
    proxy.close()
    assert (answer.text, proxy.requests) == ("echo What is it?", [])


@pytest.mark.parametrize("variable", PROXIES)
def test_an_unusable_proxy_does_not_affect_this_machine(here, monkeypatch, variable):
    for value in ("socks5://127.0.0.1:9", "http://127.0.0.1:9", "nonsense://x", "http://[", ""):
        monkeypatch.setenv(variable, value)
        assert asked(here.url).text == "echo What is it?"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://LOCALHOST.:8000/v1",
        "http://a.localhost",
        "http://[::1]:80",
        "http://0.0.0.0",
        "http://127.9.8.7",
    ],
)
def test_the_names_of_this_machine_are_known(url):
    assert on_this_machine(url)


@pytest.mark.parametrize(
    "url", ["http://example.com", "http://8.8.8.8/v1", "http://[2001:db8::1]", "http://localhost.example"]
)
def test_other_machines_are_not_mistaken_for_it(url):
    assert not on_this_machine(url)


def test_a_server_elsewhere_is_reached_through_the_proxy(here, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", here.url.removesuffix("/v1"))
    assert asked("http://far.example/v1").text == "echo What is it?"
    assert here.paths == ["http://far.example/v1/chat/completions"]


def test_a_proxy_that_does_not_answer_is_named_without_its_password(monkeypatch, endpoint):
    endpoint.server.server_close()
    monkeypatch.setenv("HTTP_PROXY", endpoint.url.replace("http://", "http://me:secret@").removesuffix("/v1"))
    failure = asked("http://far.example/v1").failure
    assert failure.startswith("the proxy in HTTP_PROXY does not reach http://far.example/v1: is the server running?")
    assert "secret" not in failure


def test_a_proxy_that_asks_for_a_password_stops_the_stream(here, monkeypatch):
    here.reply = lambda body: error(407, "who are you?")
    monkeypatch.setenv("HTTP_PROXY", here.url.removesuffix("/v1"))
    with pytest.raises(EndpointError, match="a proxy on the way asks for a password: check HTTP_PROXY"):
        asked("http://far.example/v1")


def test_a_socks_proxy_without_its_package_is_reported_before_the_first_request(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:9")
    with pytest.raises(KitError, match=r"ALL_PROXY names a SOCKS proxy, .* `pip install socksio`, or unset") as caught:
        open_chat("http://far.example/v1#m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["nonsense://me:secret@x", "http://h:port"])
def test_an_invalid_proxy_is_reported_before_the_first_request(monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(
        KitError, match=r"The client for https://far\.example/v1 cannot be created \(.*\): correct"
    ) as caught:
        open_chat("https://far.example/v1#m")
    assert "secret" not in str(caught.value)


# ---- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n"])
def test_an_address_that_was_copied_with_its_line_end_is_used_without_it(endpoint, monkeypatch, end):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{endpoint.url}{end}")
    monkeypatch.setenv("OPENAI_API_KEY", f"a-key-of-mine{end}")
    assert open_chat("openai:m").complete(ASK, max_new_tokens=2)[0].text == "echo What is it?"
    assert open_chat(f"{endpoint.url}#m{end}").spec == parse_spec(f"{endpoint.url}#m")


def test_an_address_of_spaces_counts_as_unset(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", " \n")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-mine")
    assert str(open_chat("openai:m").spec.url) == ""


@given(
    st.sampled_from('\n\r\t \x00\x7f\u00a0\u200b\u202e\ufeff"<>\\^`{|}'),
    st.sampled_from(["http://h{}/v1", "http://{}h/v1", "http://h/{}v1", "ht{}tp://h/v1"]),
)
def test_an_impossible_character_in_an_address_is_named(character, address):
    with suppress(KitError):
        assert parse_spec(f"{address.format(character)}#m") is None, "then it names no model, which open_chat says"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=12))
def test_any_address_gives_a_client_or_a_clear_error(host):
    with suppress(KitError):
        assert open_chat(f"http://{host}/v1#m", settings=QUICK).name.endswith("#m")


# ---- certificates -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that nobody has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def secure(here, certificate):
    """The address of a server on this machine that speaks https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Endpoint()
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    yield server.url.replace("http://127.0.0.1", "https://localhost")
    server.close()


def test_a_certificate_that_is_not_trusted_is_named_and_the_stream_stops(secure):
    with pytest.raises(
        EndpointError, match=r"the certificate of https://localhost.* is not trusted .*set SSL_CERT_FILE"
    ):
        asked(secure)


def test_with_its_authority_a_certificate_is_trusted_on_this_machine_too(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    assert asked(secure).text == "echo What is it?"


def test_a_missing_certificate_file_is_reported_before_the_first_request(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    for url in ("http://localhost:1/v1", "https://far.example/v1"):
        with pytest.raises(
            KitError, match=r"The client for .* cannot be created \(FileNotFoundError.*\): correct .*SSL_CERT_FILE"
        ):
            open_chat(f"{url}#m")


def test_https_for_an_http_server_is_reported_and_the_stream_stops(here):
    with pytest.raises(EndpointError, match=r"does not speak https: write http://"):
        asked(here.url.replace("http://", "https://"))
