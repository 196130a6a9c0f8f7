"""One request to an OpenAI-compatible endpoint: sending it, and classifying whatever comes back.

`endpoint.py` decides when and how often to send a request; `reply.py` reads the reply. A key that the server repeats is
removed from answers and errors, and no traceback shows the server's own words.

    client = Client(EndpointSpec("http://localhost:8000/v1", "my-model", ""), key="", timeout=120.0)
    await client.send([{"role": "user", "content": "Say hello."}], Sampling(8, 0.0))
    # Reply(completion=Completion(text='Hello!', finished=True, …), model='my-model'), or AttemptError
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rpo_kit.errors import KitError
from rpo_kit.model_spec import OPENAI, EndpointSpec, on_this_machine
from rpo_kit.models.chat import Conversation
from rpo_kit.models.keys import without_key
from rpo_kit.models.reply import Reply, error_response, read_reply
from rpo_kit.models.retry import UNLIMITED, AttemptError, attempt_error, not_sent_error
from rpo_kit.text import replace_surrogates

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

_OPENAI_URL = "https://api.openai.com/v1"
_MAX_REASON = 600  # ours: characters of a failure's reason

for _library in ("httpcore", "httpcore2"):  # at level DEBUG they log headers, in which a server may repeat the key
    logging.getLogger(_library).setLevel(logging.INFO)


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. Part of the cache key, so the fields must keep their names."""

    max_new_tokens: int
    temperature: float | None  # None: not sent


class Client:
    """Sends single requests to one endpoint; belongs to the event loop in which it first sends.

    A server on this machine is never reached through a proxy. For any other, the variables HTTP_PROXY, HTTPS_PROXY,
    ALL_PROXY, NO_PROXY and SSL_CERT_FILE apply.

    Raises:
        KitError: the address, a proxy variable or a certificate file cannot be used.
    """

    def __init__(self, spec: EndpointSpec, key: str, timeout: float) -> None:
        self.spec, self.key, self.timeout = spec, key, timeout
        self.proxies = ""  # the proxy variables that apply
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

            url = urlsplit(spec.url or _OPENAI_URL)
            local = on_this_machine(url.geturl())
            if not local and not proxy_bypass(url.hostname or ""):
                names = [f"{name.upper()}_PROXY" for name in (url.scheme, "all") if getproxies().get(name)]
                self.proxies = " and ".join(names)
            verify: ssl.SSLContext | bool = True
            file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
            if local and (file or folder):  # without trust_env the library does not read them
                verify = ssl.create_default_context(cafile=file, capath=folder)
            self.openai = AsyncOpenAI(
                base_url=spec.url or _OPENAI_URL,
                api_key=key or "not-needed",
                max_retries=0,  # `endpoint.py` retries, and counts the attempts
                timeout=Timeout(timeout, connect=timeout / 2),  # so that a host that is off is reported as such
                http_client=DefaultAsyncHttpxClient(
                    follow_redirects=False,  # send prompts to the named server only
                    trust_env=not local,
                    verify=verify,
                ),
            )
        except Exception as error:  # from the libraries below: InvalidURL, ImportError, OSError, SSLError, …
            raise KitError(self._setup_error(error)) from None
        if spec.variable != OPENAI:  # the client reads these from the environment, and would send them to any server
            self.openai.organization = self.openai.project = self.openai.admin_api_key = None

    def _setup_error(self, error: Exception) -> str:
        reason = re.sub(r"//[^/@\s]*@", "//…@", " ".join(f"{error}".split()))[:_MAX_REASON]  # without a password
        reason = without_key(f"{type(error).__name__}: {reason}", self.key)
        if isinstance(error, ImportError) and "socks" in reason.lower():
            return (
                f"{self.proxies or 'ALL_PROXY'} names a SOCKS proxy, for which a package is missing: install it with "
                f"`pip install socksio`, or unset the variable ({reason})."
            )
        suspects = ["the address", *([self.proxies] if self.proxies else [])]
        suspects += [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        return f"The client for {self.address} cannot be created ({reason}): correct {' or '.join(suspects)}."

    @property
    def address(self) -> str:
        return self.spec.url or "OpenAI's address"

    async def close(self) -> None:
        await self.openai.close()

    async def send(self, messages: Conversation, sampling: Sampling) -> Reply:
        """Send one request and read the answer.

        Raises:
            AttemptError: there is no answer; its attributes say whether another attempt can help.
        """
        try:
            reply = await self._send(messages, sampling)
        except AttemptError as error:
            reason = without_key(error.reason[: 20 * _MAX_REASON], self.key)
            error.reason = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"
            error.args = (error.reason,)
            raise error from None
        completion = replace(reply.completion, text=without_key(reply.completion.text, self.key))
        return Reply(completion, without_key(reply.model, self.key))

    async def _send(self, messages: Conversation, sampling: Sampling) -> Reply:
        import openai

        texts = [{"role": m["role"], "content": replace_surrogates(m["content"])} for m in messages]
        body: CompletionCreateParamsNonStreaming = {
            "model": self.spec.model,
            "messages": cast("list[ChatCompletionMessageParam]", texts),
        }
        # OpenAI's newer models reject the old name of the limit, and some other servers ignore the new one.
        if self.spec.variable == OPENAI:
            body["max_completion_tokens"] = sampling.max_new_tokens
        else:
            body["max_tokens"] = sampling.max_new_tokens
        if sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        try:
            async with asyncio.timeout(self.timeout):  # a server that sends a byte per minute times out too
                create = self.openai.chat.completions.with_raw_response.create
                response = (await create(**body)).http_response
        except (TimeoutError, openai.APITimeoutError) as error:
            late = AttemptError(f"no answer within {self.timeout:g} s", "lost", retries=UNLIMITED, charged=True)
            raise not_sent_error(error, self.address, self.proxies) or late from None
        except openai.APIStatusError as error:
            content, headers = error.response.content, error.response.headers
            raise attempt_error(error_response(error.status_code, content, headers)) from None
        except Exception as error:  # whatever the libraries below raise for a broken reply
            cause = f"{error} ({error.__cause__!r})" if error.__cause__ else repr(error)
            unreadable = AttemptError(f"no readable answer: {cause}", "lost", retries=UNLIMITED, charged=True)
            raise not_sent_error(error, self.address, self.proxies) or unreadable from None
        return read_reply(response.content, response.headers)
