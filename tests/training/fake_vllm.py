"""The part of vLLM's server that RL's rollouts use, around a tiny model: it reads the adapter that it is sent, and
samples with it as the kit does, from the seed of the request. Replies have the form of vLLM 0.32's.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from fakes import Server

from rpo_kit.errors import KitError
from rpo_kit.models.local import LoadedModel, load_model, sample
from rpo_kit.models.lora import load_lora, merged_adapter
from rpo_kit.presets import ModelSettings
from rpo_kit.training.shared_prefix import score, scoring

_SENT = {  # of vLLM's CompletionRequest, what decides a sample; another field would be ignored there
    *("model", "prompt", "n", "max_tokens", "temperature", "seed", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "stop_token_ids", "logprobs", "return_token_ids"),
}


class FakeVllm:
    """`updating`: whether VLLM_ALLOW_RUNTIME_LORA_UPDATING is set; `version`: a release before 0.10.2 knows no ids."""

    def __init__(self, model: Path, updating: bool = True, returns_ids: bool = True) -> None:
        self.base = load_model(ModelSettings(str(model), max_seq_length=2048))
        self.updating, self.returns_ids = updating, returns_ids
        self.adapters: dict[str, LoadedModel] = {}
        self.loaded: list[str] = []  # all names ever, in turn
        self.most = 0  # adapters at one time
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            return self.complete(body)
        if not self.updating or path not in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            if self.adapters.pop(name, None) is None:
                return error(404, f"The lora adapter '{name}' cannot be found.")
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter …")
        try:
            base = load_model(ModelSettings(self.base.model.config._name_or_path, max_seq_length=2048))
            model = load_lora(base.model, Path(body["lora_path"]))
        except KitError as wrong:
            return error(500, str(wrong))
        self.adapters[name] = LoadedModel(model, base.tokenizer, 2048)
        self.loaded.append(name)
        self.most = max(self.most, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) == _SENT, "what is not sent, vLLM takes from generation_config.json"
        self.requests.append(body)
        policy = self.adapters.get(body["model"])
        if policy is None:
            return error(404, f"The model `{body['model']}` does not exist.")
        uniforms = torch.rand(
            body["n"], body["max_tokens"], generator=torch.Generator().manual_seed(body["seed"])
        )  # as reinforce.sample_completions
        policy.model.generation_config.eos_token_id = body["stop_token_ids"]
        limits = (body["n"], body["max_tokens"], body["temperature"])
        with torch.no_grad(), merged_adapter(policy.model):
            (completions,) = sample(policy, [body["prompt"]], *limits, uniforms[None])
        with torch.no_grad(), scoring(policy.model):
            logprobs = score(policy.model, [(body["prompt"], completions)], body["temperature"]).tolist()
        choices = []
        for index, tokens in enumerate(completions):
            own, logprobs = logprobs[: len(tokens)], logprobs[len(tokens) :]
            choice = {"index": index, "text": "…", "logprobs": {"token_logprobs": own}, "finish_reason": "stop"}
            choices.append(choice | ({"token_ids": tokens} if self.returns_ids else {}))
        return 200, {"id": "1", "object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.keys.append(self.headers["Authorization"])
                    status, reply = fake.answer(self.path, body)
                text = reply if isinstance(reply, str) else json.dumps(reply)
                self.send_response(status)
                if not isinstance(reply, str):
                    self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}
