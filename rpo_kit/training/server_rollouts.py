"""RL's completions from a vLLM server (`rl.rollouts`): the policy's LoRA is sent there before every step.

    sampler = ServerSampler(rollout_server("vllm:http://gpu-2:8000"), folder)
    groups = sampler.sample(loaded, prompts, settings, seeds)     # as reinforce.sample_completions
    sampler.gap                                                   # the log's column sampling_gap
    sampler.close()                                               # after the last step

The rest of the step stays here: rewards, advantages, log-probabilities, update. So the server samples from p_server and
the loss takes the completions as those of p, the policy as it is scored here: rho = p / p_old with p_old = p, not
p_server. The two differ by rounding (other kernels, 16-bit LoRA), which is what `gap` measures on the first prompt of
each step: the mean of |log p - log p_server| per token. No importance weight p / p_server corrects for it; a server
that holds another model or other weights is refused.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from rpo_kit.errors import KitError
from rpo_kit.model_spec import EndpointSpec
from rpo_kit.models.local import LoadedModel, end_tokens
from rpo_kit.models.sampling import until_end
from rpo_kit.models.vllm_server import VllmServer
from rpo_kit.presets import RLSettings
from rpo_kit.training import ranks
from rpo_kit.training.shared_prefix import Group, score, scoring

MAX_GAP = 0.5  # ours: nats per token


class ServerSampler:
    """Samples on a server. `folder`, where adapters wait for it, is deleted with the training's checkpoints."""

    def __init__(self, spec: EndpointSpec, folder: Path) -> None:
        self.server, self.folder = VllmServer(spec), folder
        self.name = ""  # of the adapter that the server has
        self.gap = 0.0  # of the last step, mean of all ranks

    def sample(
        self, loaded: LoadedModel, prompts: Sequence[list[int]], settings: RLSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """The prompts with G completions each, by the policy as it is now."""
        self.send_adapter(loaded)
        ends = end_tokens(loaded)
        limits = (settings.group_size, settings.max_new_tokens, settings.temperature, ends)
        sampled = self.server.sample(self.name, prompts, seeds, *limits)
        completions = [[until_end(tokens, ends) for tokens, _ in group] for group in sampled]
        groups = list(zip(prompts, completions, strict=True))
        gaps: list[float] = []
        if groups:  # a rank may have none
            pairs = zip(sampled[0], completions[0], strict=True)
            logprobs = [one for (_, logprobs), kept in pairs for one in logprobs[: len(kept)]]
            gaps = [gap(loaded, groups[0], logprobs, settings.temperature)]
        gaps = ranks.gather(gaps)
        self.gap = sum(gaps) / len(gaps)
        if not math.isfinite(self.gap):
            raise KitError(
                "Log-probabilities of the sampled tokens are not finite, the policy's here or those of the vLLM server "
                f"{self.server.spec.url}. Training stops before the step; the last checkpoint is good. Lower "
                "rl.learning_rate, or sample without a server (rl.rollouts=local) to see which it is."
            )
        if self.gap > MAX_GAP:
            raise KitError(
                f"The vLLM server {self.server.spec.url} gives its own tokens log-probabilities that differ by "
                f"{self.gap:.2f} per token from the policy's here: it holds another model than reflection.name, or "
                "other weights of it. (With rl.temperature other than 1, start it with --logprobs-mode "
                "processed_logprobs.)"
            )
        return groups

    def send_adapter(self, loaded: LoadedModel) -> None:
        """Give the server the policy's LoRA, under a name that stands for these weights; forget the one before."""
        name = ""
        if ranks.world()[0] == 0:
            part = self.folder / "served.part"
            loaded.model.save_pretrained(part, selected_adapters=["default"])
            digest = hashlib.sha256((part / "adapter_model.safetensors").read_bytes()).hexdigest()
            name = f"rpo-{digest[:16]}"
            if name != self.name:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                part.rename(self.folder / name)
                self.server.load(name, self.folder / name)
                if self.name:
                    self.server.unload(self.name)
                    shutil.rmtree(self.folder / self.name, ignore_errors=True)
        self.name = next(filter(None, ranks.gather([name])))  # the other ranks wait here

    def close(self) -> None:
        """Let the server forget the last adapter. If it has gone away, nothing is left to forget."""
        if self.name and ranks.world()[0] == 0:
            with suppress(KitError):
                self.server.unload(self.name)


def gap(loaded: LoadedModel, group: Group, logprobs: Sequence[float], temperature: float) -> float:
    """Mean of |log p - log p_server| over the tokens of a group."""
    with torch.no_grad(), scoring(loaded.model):
        own = score(loaded.model, [group], temperature)
    return float((own.float().cpu() - torch.tensor(logprobs)).abs().mean())
