"""A vLLM server that samples with a LoRA adapter which it is given at run time: RL's rollouts on GPUs of their own.

    server = VllmServer(rollout_server("vllm:http://gpu-2:8000"))
    server.load("rpo-1f0c…", folder)                       # adapter_config.json and adapter_model.safetensors in it
    server.sample("rpo-1f0c…", prompts, seeds, group=8, new_tokens=200, temperature=1.0, ends=[2])
    server.unload("rpo-1f0c…")

The server reads the adapter from the folder, so both must see the same disk. Prompts go there as token ids, and token
ids come back with their end token and log-probabilities: texts that are tokenized again would not be what was sampled.
Every name stands for other weights, because vLLM keeps what it computed for a prompt by the adapter's name and path.
Run against vLLM 0.32; `return_token_ids` came with 0.10.2. The same seed does not repeat a sample exactly: batches
differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpo_kit.errors import KitError
from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.client import Client
from rpo_kit.models.keys import key_in, without_key
from rpo_kit.models.stream import event_loop

Sampled = tuple[list[int], list[float]]  # a completion's tokens, its end token included, and their log-probabilities

_TIMEOUT = 600.0  # ours: seconds per request; a group of long completions on a busy server
_RETRIES = 4  # ours, with the OpenAI library's pauses
_MAX_WORDS = 600  # ours: characters of a server's refusal
START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK"


class VllmServer:
    """Raises KitError with a sentence, from every method, if the server does not do what it is asked."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec, self.key = spec, key_in(spec.variable)
        Client(spec, self.key, _TIMEOUT)  # reject bad settings now

    def load(self, name: str, folder: Path) -> None:
        """Let the server read the adapter in `folder` as the model `name`; one that it has already is left alone."""
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        ((status, said),) = self._post("load_lora_adapter", [body])
        if status == 200 or "already been loaded" in said:
            return
        hint = f"start it with `{START}`"
        if status == 404 and name not in said:  # without the variable there is no such address
            raise KitError(f"The vLLM server {self.spec.url} takes no adapters at run time (status 404): {hint}.")
        raise KitError(
            f"The vLLM server {self.spec.url} refuses the adapter in {folder} (status {status}: {said}). It must hold "
            f"the model that reflection.name names, and see this folder: {hint}."
        )

    def unload(self, name: str) -> None:
        """Let the server forget an adapter, if it has it."""
        self._post("unload_lora_adapter", [{"lora_name": name}])

    def sample(
        self,
        name: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        group: int,
        new_tokens: int,
        temperature: float,
        ends: Sequence[int],
    ) -> list[list[Sampled]]:
        """`group` completions of each prompt. Everything that shapes the distribution is sent, because the server takes
        what is not from the model's generation_config.json.
        """
        common = {"model": name, "n": group, "max_tokens": new_tokens, "temperature": temperature, "top_p": 1.0}
        common |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
        common |= {"frequency_penalty": 0.0, "stop_token_ids": list(ends), "logprobs": 0, "return_token_ids": True}
        bodies = [common | {"prompt": prompt, "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)]

        replies = self._post("completions", bodies)
        return [self._read(status, said, group) for status, said in replies]

    def _read(self, status: int, said: Any, group: int) -> list[Sampled]:
        if status != 200:
            raise KitError(
                f"The vLLM server {self.spec.url} does not sample (status {status}: {said}). It must hold the model of "
                "reflection.name; run the command again to resume from the last checkpoint."
            )
        choices = sorted(said["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != group or any(choice.get("token_ids") is None for choice in choices):
            raise KitError(
                f"The server {self.spec.url} does not return the {group} completions as token ids: rl.rollouts needs "
                "vLLM 0.10.2 or later."
            )
        return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]

    def _post(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
        """Send all requests at once; per request (200, JSON or text) or (status, the server's words)."""
        import openai

        async def send_all() -> list[tuple[int, Any]]:
            client = Client(self.spec, self.key, _TIMEOUT)
            try:
                return await asyncio.gather(*(_send(client, path, body) for body in bodies))
            finally:
                await client.close()

        with event_loop() as loop:
            try:
                return asyncio.run_coroutine_threadsafe(send_all(), loop).result()
            except openai.APIConnectionError as error:
                cause = without_key(f"{error.__cause__ or error!r}", self.key)
                raise KitError(
                    f"The vLLM server {self.spec.url} (rl.rollouts) does not answer ({cause}): start it with `{START}` "
                    "and run the command again, or set rl.rollouts=local."
                ) from None


async def _send(client: Client, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    import openai

    try:
        reply = await client.openai.with_options(max_retries=_RETRIES).post(f"/{path}", body=body, cast_to=object)
    except openai.APIStatusError as error:
        return error.status_code, without_key(" ".join(error.response.text.split())[:_MAX_WORDS], client.key)
    return 200, reply
