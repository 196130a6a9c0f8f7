"""LoRA on a model: putting it on, loading it, a frozen copy of it, and its forward pass in one piece.

LoRA (arXiv 2106.09685) adds a trained product of two thin matrices to a frozen weight: y = x W^T + s (x A^T) B^T. PEFT
writes and reads the adapters. While sampling and scoring, `using_adapter` computes that line itself, in the model's own
type and with its gradient written out: PEFT takes four passes over the (tokens, features) result, as long as the matrix
product of a small model on a CPU.

    model = load_lora(model, run.stage("sft") / "adapter", trainable=True)
    copy_adapter(model, "ref")                        # a frozen second adapter with the same weights
    with using_adapter(model, "ref"): ...             # what is computed here, the copy computes
    merge_lora(model).save_pretrained(folder)         # a plain model, for other programs

For mypy a PeftModel is the model that it wraps: it has the same attributes and methods.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from rpo_kit.errors import KitError
from rpo_kit.memory import MERGED
from rpo_kit.presets import ModelSettings


def add_lora(model: PreTrainedModel, settings: ModelSettings) -> PreTrainedModel:
    """The model with a new trainable LoRA; torch's random generator decides its first weights."""
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(settings.lora_targets),
        task_type="CAUSAL_LM",
    )
    return cast(PreTrainedModel, get_peft_model(model, config))


def load_lora(model: PreTrainedModel, folder: Path, trainable: bool = False, name: str = "default") -> PreTrainedModel:
    """The model with the adapter stored in `folder`, as its adapter `name`; those that it has already stay.

    Raises:
        KitError: there is no adapter, its file is damaged, or it belongs to another model.
    """
    if not (folder / "adapter_config.json").exists():
        raise KitError(f"{folder} holds no LoRA adapter (adapter_config.json is missing); train that stage first.")
    try:
        shapes = _stored_shapes(folder / "adapter_model.safetensors")
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        # without is_trainable the optimizer would be empty and nothing would change (huggingface/trl#6700)
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, is_trainable=trainable)
            loaded: PeftModel | None = model
        else:
            loaded = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
        # where the base really is: PEFT looks its configuration up, and would ask the hub for the name in the adapter
        loaded.peft_config[name].base_model_name_or_path = getattr(model.config, "_name_or_path", "") or base
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise KitError(f"The adapter in {folder} is damaged ({error}): train that stage again.") from error
    except (RuntimeError, ValueError):
        loaded = None
    own = {} if loaded is None else get_peft_model_state_dict(loaded, adapter_name=name)
    if loaded is None or {key: tuple(value.shape) for key, value in own.items()} != shapes:
        other = getattr(model.config, "_name_or_path", "this model")
        raise KitError(
            f"The adapter in {folder} was trained on another model ({base}) and does not fit {other}: name that model "
            "in reflection.name, or train the adapter again."
        )
    return cast(PreTrainedModel, loaded)


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(file, framework="pt") as tensors:
        names = tensors.keys()
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def copy_adapter(model: PreTrainedModel, name: str) -> None:
    """Add a frozen copy of the adapter "default" under another name."""
    assert isinstance(model, PeftModel)
    model.add_adapter(name, model.peft_config["default"])
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        if ".default." in key:
            parameters[key.replace(".default.", f".{name}.")].data.copy_(parameter.data)
    model.set_adapter("default")


@contextmanager
def using_adapter(model: torch.nn.Module, name: str = "default") -> Iterator[None]:
    """All LoRA layers compute with adapter `name`, in one piece and in the model's own type; a model without LoRA is
    left alone. Gradients reach A and B of that adapter if they require gradients, and the layer's input.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and name in layer.lora_A]
    dtype = _dtype(model)
    for layer in layers:
        # A and B are fp32 while they are trained; they are cast here, once for all passes inside
        a, b = (cast(Tensor, part[name].weight).to(dtype) for part in (layer.lora_A, layer.lora_B))
        layer.forward = partial(_forward, layer, a, b, layer.scaling[name])
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def merged_adapter(model: torch.nn.Module, name: str = "default") -> Iterator[None]:
    """`using_adapter` for many passes of few tokens, without gradients: LoRA layers multiply by W + s B A, made once.

    The model's own weights are not touched. Takes a second, 16-bit copy of them: where there is no room for it, and for
    4-bit models on a CPU, it is `using_adapter`. (Measured in bf16 on SmolLM2: a KL to fp32 of 0.0016 per token both
    ways.)
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and name in layer.lora_A]
    if not _has_room_to_merge(layers):
        with using_adapter(model, name):
            yield
        return
    dtype = _dtype(model)
    for layer in layers:
        layer.forward = _packed_linear(_merged(layer, name, dtype), cast("Tensor | None", layer.base_layer.bias))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        if layers and layers[0].base_layer.weight.is_cuda:
            torch.cuda.empty_cache()  # or the scoring that follows would find the card in pieces


def _merged(layer: LoraLayer, name: str, dtype: torch.dtype) -> Tensor:
    """W + s B A (out, in) as `dtype`, with the adapter `name`."""
    a, b = (cast(Tensor, part[name].weight) for part in (layer.lora_A, layer.lora_B))
    weight = frozen_weight(layer.base_layer, dtype)
    return torch.add(weight, b @ a, alpha=layer.scaling[name]).to(weight.dtype)


@torch.no_grad()
def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """The wrapped model as a plain one in fp32, with W + s B A in place of every LoRA layer, for good; 4-bit weights
    are unpacked. `model` must not be used after that.
    """
    assert isinstance(model, PeftModel)
    plain = cast(PreTrainedModel, model.get_base_model())
    for place, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            weight, bias = _merged(layer, "default", torch.float32), layer.base_layer.bias
        elif hasattr(getattr(layer, "weight", None), "quant_state") and not place.endswith("base_layer"):
            weight, bias = frozen_weight(layer, torch.float32), layer.bias
        else:
            continue
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        linear.weight, linear.bias = torch.nn.Parameter(weight), cast(torch.nn.Parameter, bias)
        parent, _, child = place.rpartition(".")
        setattr(plain.get_submodule(parent), child, linear)
        if child == "lm_head":  # it no longer is the embeddings, if it was
            plain.config.tie_word_embeddings = False
    forget_quantisation(plain)
    return plain.float().requires_grad_(False).eval()


def forget_quantisation(model: PreTrainedModel) -> None:
    """Tell transformers that the weights are not quantised any more; save_pretrained would refuse to write them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.is_quantized = False  # type: ignore[assignment]
    model.quantization_method = model.is_loaded_in_4bit = None  # type: ignore[assignment]


def _has_room_to_merge(layers: Sequence[LoraLayer]) -> bool:
    """On a GPU the copy may take MERGED bytes, whatever the card: a resumed run does the same."""
    weights = [cast(Tensor, layer.base_layer.weight) for layer in layers]
    if not weights or not weights[0].is_cuda:
        return not any(hasattr(weight, "quant_state") for weight in weights)
    return 2 * sum(cast(int, layer.in_features) * cast(int, layer.out_features) for layer in layers) <= MERGED


def _dtype(model: torch.nn.Module) -> torch.dtype:
    """Of the embeddings, which are never 4-bit, and come first."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def without_adapter(model: torch.nn.Module) -> Iterator[None]:
    """LoRA layers compute as the layers that they wrap: the model as it was before training."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.forward = layer.base_layer.forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _packed_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x W^T + bias, with W in the order in which oneDNN reads it, where torch can bring it there: F.linear does so anew
    each time (measured: 1.4 times slower for 16 rows). Torch refuses on an x86 CPU without AVX512.
    """
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    bf16_on_x86 = weight.dtype == torch.bfloat16 and platform.machine() in ("x86_64", "AMD64")
    if pack is None or weight.is_cuda or not bf16_on_x86 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return partial(torch.nn.functional.linear, weight=weight, bias=bias)
    packed, multiply = pack(weight, 16), torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _forward(layer: LoraLayer, a: Tensor, b: Tensor, scaling: float, x: Tensor) -> Tensor:
    return lora_linear(x.flatten(0, -2), layer.base_layer, a, b, scaling).view(*x.shape[:-1], -1)


class Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    layer: torch.nn.Module
    scaling: float

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T of rows x (N, in) with A (rank, in) and B (out, rank); W and bias are frozen."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, layer: torch.nn.Module, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        thin = x @ a.T
        y = torch.nn.functional.linear(x, frozen_weight(layer, x.dtype), cast("Tensor | None", layer.bias))
        ctx.save_for_backward(x, thin, a, b)
        ctx.layer, ctx.scaling = layer, scaling
        return y.addmm_(thin, b.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, thin, a, b = ctx.saved_tensors
        grad_thin = (grad @ b).mul_(ctx.scaling)
        grad_x = (grad @ frozen_weight(ctx.layer, x.dtype)).addmm_(grad_thin, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, grad_thin.T @ x, (grad.T @ thin).mul_(ctx.scaling), None


lora_linear: Callable[..., Tensor] = LoraLinear.apply


def frozen_weight(layer: torch.nn.Module, dtype: torch.dtype) -> Tensor:
    """The layer's weight (out, in) as `dtype`; a 4-bit one is unpacked anew each time, to take no more memory."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    return weight.to(dtype)
