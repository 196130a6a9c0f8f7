"""A model in this process: loading it with its tokenizer, generating with it, and the `Chat` around it.

Plain transformers, PEFT and bitsandbytes, the same on CPU and GPU, for base model, inference and RL. Only SFT trains
with Unsloth (`unsloth_loader.py`), which patches transformers for the whole process: nothing else may import it.

    model = load_base("smollm2")
    generate(model, [[{"role": "user", "content": "Say hello."}]], max_new_tokens=8)[0].text
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_kit.bundled import bundled_model
from rpo_kit.errors import KitError
from rpo_kit.machine import cpu_has_bf16
from rpo_kit.models.chat import Completion, Conversation
from rpo_kit.presets import ModelSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer (left padding), ready to generate. A PeftModel counts as the model that it wraps."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int
    adapter: str | None = "default"  # the LoRA adapter that generates, if the model has any; None: without


# ---- loading ------------------------------------------------------------------------------------------------------


def load_base(name: str, max_seq_length: int = 1024) -> LoadedModel:
    """Load the black-box model, which is never trained; in 4-bit if there is a GPU."""
    import torch

    return load_model(ModelSettings(name, load_in_4bit=torch.cuda.is_available(), max_seq_length=max_seq_length))


def load_model(settings: ModelSettings, dtype: torch.dtype | None = None) -> LoadedModel:
    """The model that `settings` names, without an adapter, in `dtype` or else in what this machine computes in.

    Raises:
        KitError: it cannot be found or loaded, or its tokenizer lacks a chat template or a separate pad token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype, path, quantization = dtype or compute_dtype(), model_path(settings.name), None
    if settings.load_in_4bit:  # as in QLoRA (arXiv 2305.14314): NF4 with double quantisation
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    with cannot_be_loaded(settings.name), quiet():
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, quantization_config=quantization, device_map={"": device()}
        )
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    for module in model.modules():
        # On a CPU, bitsandbytes repacks a 4-bit weight for good at the first forward pass without gradients: all later
        # gradients would be wrong, without an error.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (mypy: not an attribute of Module)
    return checked(model.eval(), tokenizer, settings)


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone. Raises KitError as `load_model`."""
    from transformers import AutoTokenizer

    with cannot_be_loaded(settings.name), quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_path(settings.name))
    _check_tokenizer(tokenizer, settings.name)
    return tokenizer


def load_trainable(settings: ModelSettings, adapter: Path | None, seed: int) -> LoadedModel:
    """The reflection module with a trainable LoRA in fp32: a new one, or the one stored in the folder `adapter`.

    Raises:
        KitError: as `load_model`, or the adapter was trained on another model.
    """
    import torch

    from rpo_kit.models.lora import add_lora, load_lora

    loaded = load_model(settings)
    torch.manual_seed(seed)
    model = load_lora(loaded.model, adapter, trainable=True) if adapter else add_lora(loaded.model, settings)
    return LoadedModel(model, loaded.tokenizer, loaded.max_seq_length)


def model_path(name: str) -> str:
    """The model's folder or hub id. Raises KitError for a folder without a model."""
    path = str(bundled_model()) if name == "smollm2" else name
    if path.startswith((".", "/", "~")) and not (Path(path) / "config.json").is_file():
        raise KitError(
            f"{path} does not contain a model (config.json is missing): name the folder of one, or a hub id."
        )
    return path


def compute_dtype() -> torch.dtype:
    """The dtype that this machine computes in: bf16 if the hardware supports it, else fp16 on GPUs (such as a T4) and
    fp32 on CPUs. Unsloth chooses the same.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def device() -> str:
    """The device of this process; under torchrun each rank has its own GPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def checked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> LoadedModel:
    _check_tokenizer(tokenizer, settings.name)
    window = getattr(model.config, "max_position_embeddings", None)
    return LoadedModel(model, tokenizer, min(settings.max_seq_length, window or settings.max_seq_length))


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise KitError(
            f"The model {name} has no pad token besides its end token, so the end of a rewrite would never be learned: "
            "set another pad_token in its tokenizer_config.json."
        )
    if tokenizer.chat_template is None:
        raise KitError(f"The model {name} has no chat template, so it cannot be prompted: choose an instruct model.")


@contextlib.contextmanager
def cannot_be_loaded(name: str) -> Iterator[None]:
    """Turn an unknown hub id, a missing network, a full disk or a GPU without room into a KitError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise KitError(
            f"The GPU does not have enough memory for the model {name}: load it in 4 bits "
            "(reflection.load_in_4bit=true), take a smaller one, or end what else uses this GPU (see nvidia-smi)."
        ) from error
    except OSError as error:
        raise KitError(
            f"The model {name} cannot be loaded ({' '.join(str(error).split())[:300]}): check the name, the network "
            "and the disk, and run again."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide banners and progress bars; errors still raise."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# ---- generating ---------------------------------------------------------------------------------------------------


def generate(
    loaded: LoadedModel,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> list[Completion]:
    """One completion per conversation, in the same order; greedy at temperature 0."""
    import torch

    from rpo_kit.models.lora import merged_adapter, without_adapter

    tokenizer, ends = loaded.tokenizer, end_tokens(loaded)
    texts = [chat_text(tokenizer, conversation) for conversation in conversations]
    prompts: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(prompts)), key=lambda n: len(texts[n]))  # so that a batch holds prompts of similar length
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        name = loaded.adapter
        adapter = without_adapter(loaded.model) if name is None else merged_adapter(loaded.model, name)
        with torch.no_grad(), adapter:
            groups = sample(loaded, [prompts[n] for n in chosen], 1, max_new_tokens, temperature)
        decoded = tokenizer.batch_decode([new for (new,) in groups], skip_special_tokens=True)
        for n, (new,), text in zip(chosen, groups, decoded, strict=True):
            ended = bool(new) and new[-1] in ends
            completions[n] = Completion(text.strip(), ended, len(prompts[n]), len(new))
    return [completions[n] for n in range(len(prompts))]


def sample(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    group: int,
    new_tokens: int,
    temperature: float,
    uniforms: Tensor | None = None,
) -> list[list[list[int]]]:
    """`group` completions of each prompt, as token ids up to and including their end token; greedy at temperature 0.

    `uniforms` (prompts, group, new_tokens), numbers in [0, 1), decide what is drawn; None: torch's generator does.
    Prompts that a GPU's memory does not hold all at once are taken in halves.

    Raises:
        KitError: the memory does not hold one prompt and its completions.
    """
    import torch

    options = (group, new_tokens, temperature)
    with contextlib.suppress(torch.OutOfMemoryError):  # left before going on, because its traceback holds tensors
        return _sample_at_once(loaded, prompts, *options, uniforms)
    torch.cuda.empty_cache()
    if len(prompts) == 1:
        raise KitError(
            f"The GPU does not have enough memory to write {group} x {new_tokens} tokens after a prompt of "
            f"{len(prompts[0])}: load the model in 4 bits (reflection.load_in_4bit=true), or lower rl.group_size (in "
            "RL), the number of new tokens or the number of items."
        )
    warnings.warn(f"{len(prompts)} prompts do not fit into the GPU's memory at once: they are halved", stacklevel=2)
    half = len(prompts) // 2
    parts = (slice(None, half), slice(half, None))
    sampled = (sample(loaded, prompts[n], *options, None if uniforms is None else uniforms[n]) for n in parts)
    return [completions for part in sampled for completions in part]


def _sample_at_once(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    group: int,
    new_tokens: int,
    temperature: float,
    uniforms: Tensor | None,
) -> list[list[list[int]]]:
    import torch

    from rpo_kit.models import attention, sampling

    model, ends = loaded.model, end_tokens(loaded)
    pad, longest = loaded.tokenizer.pad_token_id, max(map(len, prompts))
    padded = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    ids = torch.tensor(padded, device=model.device)  # (prompts, longest), as the mask
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    was_training = model.training
    model.eval()  # in train mode, layers under gradient checkpointing cache no keys
    try:
        if attention.shares_prefix(model):
            new = sampling.sample_groups(model, ids, mask, group, new_tokens, temperature, ends, uniforms)
        else:
            with quiet():
                new = sampling.generate_rows(model, ids, mask, pad, group, new_tokens, temperature, ends, uniforms)
    finally:
        model.train(was_training)
    return [[sampling.until_end(row, ends) for row in rows] for rows in new.tolist()]


def end_tokens(loaded: LoadedModel) -> list[int]:
    """The end tokens of the tokenizer and of the model's generation config."""
    named = loaded.model.generation_config.eos_token_id
    return sorted({loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[int]:
    """The tokens of a conversation, up to the start of the model's answer."""
    ids: list[int] = tokenizer(chat_text(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> str:
    """A conversation in the model's chat template, up to the start of its answer."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> int:
    return len(prompt_ids(tokenizer, messages))


class LocalChat:
    """A model in this process, as a `Chat`; its context window is known."""

    def __init__(self, model: LoadedModel, name: str = "local") -> None:
        self.model, self.name = model, name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        return self.model.max_seq_length

    def complete(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, temperature: float = 0.0
    ) -> list[Completion]:
        return generate(self.model, conversations, max_new_tokens=max_new_tokens, temperature=temperature)
