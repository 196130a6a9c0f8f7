"""One request to an OpenAI-compatible endpoint: what is sent, and what every kind of reply means.

`endpoint.py` decides when to ask, and how often. Nothing that the server says can carry the key out of here: it is cut
out of answers and errors, and no traceback shows the server's own words.

    client = Client(EndpointSpec("http://localhost:8000/v1", "my-model", ""), key="", timeout=120.0)
    await client.send([{"role": "user", "content": "Say hello."}], Sampling(8, 0.0))
    # Completion(text='Hello!', finished=True, prompt_tokens=12, new_tokens=2, failure=None), or AttemptError
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rpo_kit.model_spec import OPENAI, EndpointSpec
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.models.keys import without_key
from rpo_kit.models.retry import (
    UNLIMITED,
    AttemptError,
    ErrorResponse,
    attempt_error,
    not_sent_error,
    read_completion,
)
from rpo_kit.text import replace_surrogates

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

for _library in ("httpcore", "httpcore2"):  # at level DEBUG they log headers, in which a server may repeat the key
    logging.getLogger(_library).setLevel(logging.INFO)


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. Part of the cache's key, so the fields keep their names."""

    max_new_tokens: int
    temperature: float | None  # None: not sent


class Client:
    """Sends single requests to one endpoint; belongs to the event loop in which it is made."""

    def __init__(self, spec: EndpointSpec, key: str, timeout: float) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        self.spec, self.key, self.timeout = spec, key, timeout
        self.openai = AsyncOpenAI(
            base_url=spec.url or None,
            api_key=key or "not-needed",
            max_retries=0,  # we retry, and count the attempts
            timeout=Timeout(timeout, connect=timeout / 2),  # a host that is off is then reported as such
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),  # a prompt goes to the named server only
        )
        if spec.variable != OPENAI:  # the client reads these from the environment, and would send them to any server
            self.openai.organization = self.openai.project = self.openai.admin_api_key = None

    async def close(self) -> None:
        await self.openai.close()

    async def send(self, messages: Conversation, sampling: Sampling) -> Completion:
        """Send one request and read the answer.

        Raises:
            AttemptError: there is no answer; the error says whether another attempt can help.
        """
        import openai

        address = self.spec.url or "OpenAI's address"
        try:
            async with asyncio.timeout(self.timeout):  # a server that sends a byte per minute is too late as well
                response = await self.openai.chat.completions.create(**self._body(messages, sampling))
        except (TimeoutError, openai.APITimeoutError) as error:
            late = AttemptError(f"no answer within {self.timeout:g} s", retries=UNLIMITED, charged=True)
            raise not_sent_error(error, address) or late from None
        except openai.APIStatusError as error:
            message = without_key(str(error.message), self.key)
            headers = error.response.headers
            raise attempt_error(ErrorResponse(error.status_code, error.code or "", message, headers)) from None
        except (openai.OpenAIError, ValueError) as error:
            cause = without_key(f"{error} ({error.__cause__!r})" if error.__cause__ else repr(error), self.key)
            unreadable = AttemptError(f"no readable answer: {cause}", retries=UNLIMITED, charged=True)
            raise not_sent_error(error, address) or unreadable from None
        return read_completion(response, self.key)

    def _body(self, messages: Conversation, sampling: Sampling) -> CompletionCreateParamsNonStreaming:
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
        return body
