"""How fast an RL step could be on this machine: its arithmetic and its bytes over what the machine was measured to do.

A step has five phases. Each needs at least FLOPs / (the rate of a large matrix product) and at least bytes / (the rate
of a large copy), and their sum is the bound:

    reading     R prompts through all linear layers, once
    writing     N - 1 decoding steps of R G tokens each; every step reads all weights, and the keys and values so far
    reference   the micro-batches through the frozen adapter: forward (only with the KL)
    policy      the same with the trained adapter; the head takes the gradient along, so it computes twice
    backward    gradients of activations (the weights are frozen: one product per layer, not two) and of LoRA

A multiplication and an addition count as 2. Bytes are the least there can be: weights once per pass, keys and values,
and what backward needs (rpo_kit/memory.py), written once and read once. Elementwise passes are not counted, so that
their time shows as distance from the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rpo_kit.memory import Shape, lora_parameters, weights
from rpo_kit.models.attention import Blocks
from rpo_kit.presets import ModelSettings, RLSettings

Work = tuple[float, float]  # FLOPs and bytes


@dataclass(frozen=True)
class Machine:
    """What was measured: FLOPs per second of a matrix product, bytes per second of a copy (read and written)."""

    flops: float
    bandwidth: float


def measure_machine(dtype: torch.dtype, device: str = "cpu", size: int = 2048, tries: int = 5) -> Machine:
    """The best of some tries: of products (size, size) x (size, size) and (size, 576) x (576, 1536), and of a copy."""
    rates = []
    for rows, inner, columns in ((size, size, size), (size, min(size, 576), min(size, 1536))):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        rates.append(2 * rows * inner * columns / best_time(lambda a=a, b=b: a @ b, device, tries))
    source = torch.zeros(size * size * 16, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4
    return Machine(max(rates), copied / best_time(lambda: target.copy_(source), device, tries))


def best_time(call: Callable[[], object], device: str, tries: int) -> float:
    """Seconds of the fastest of `tries` calls, after one that warms up."""
    call()
    seconds = []
    for _ in range(tries):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def step_work(
    shape: Shape, model: ModelSettings, rl: RLSettings, prompt: int, element: int = 2, read_as_group: bool = True
) -> dict[str, Work]:
    """FLOPs and bytes of each phase of a step whose prompts and completions all have the same length.

    `element`: bytes of a number (2 in 16 bits, 4 in fp32). `read_as_group`: a group's prompt is scored once.
    """
    rows, group, new = rl.prompts_per_step, rl.group_size, rl.max_new_tokens
    linear = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear.values())
    thin, head = lora_parameters(shape, model), shape.hidden * shape.vocabulary
    completions, queries = rows * group * new, shape.heads * shape.width
    scored = completions + rows * prompt * (1 if read_as_group else group)
    scored_pairs = rows * (pairs(prompt, group, new) if read_as_group else group * (prompt + new) ** 2)
    per_token = 2 * (linear + thin)
    scale = element / 2
    passes = weights(shape, model.load_in_4bit) * (1 if model.load_in_4bit else scale) + 4 * thin
    token_kv = 2 * shape.key_heads * shape.width * shape.layers * element
    per_pair = 4 * queries * shape.layers  # two products per pair of tokens that looks at each other
    micro = max(1.0, scored / rl.micro_batch_tokens)
    kept = scale * shape.layers * kept_by_layer(shape, model, scored, scored_pairs)

    reading = rows * prompt * per_token + rows * prompt**2 * per_pair + 2 * rows * head
    # (R, group) queries look at the whole row: its prompt and what all G completions have written so far
    looks = sum(rows * group * (prompt + group * done) for done in range(1, new))
    writing = rows * group * (new - 1) * (per_token + 2 * head) + looks * per_pair
    read_again = sum(rows * (prompt + group * done) for done in range(1, new)) * token_kv
    forward = scored * per_token + scored_pairs * per_pair
    backward = scored * (2 * linear + 4 * thin) + 2 * scored_pairs * per_pair
    if rl.gradient_checkpointing:
        backward += forward
    phases = {
        "reading": (reading, passes + rows * prompt * token_kv),
        "writing": (writing, (new - 1) * passes + read_again),
        "reference": (forward + 2 * completions * head, micro * passes),
        "policy": (forward + 4 * completions * head, micro * passes + kept),
        "backward": (backward, micro * passes + kept),
    }
    return phases if rl.beta else {name: work for name, work in phases.items() if name != "reference"}


def pairs(prompt: int, group: int, new: int) -> int:
    """Pairs of a token and one that it attends to while a group is scored on a CPU: in the blocks of attention.py."""
    blocks = Blocks.of([(prompt, [new] * group)]).blocks
    lengths = [(block.own.stop - block.own.start, block.prefix.stop - block.prefix.start) for block in blocks]
    return sum(own * (own + prefix) for own, prefix in lengths)


def kept_by_layer(shape: Shape, model: ModelSettings, tokens: float, pairs: float) -> float:
    """Bytes, in 16 bits, that backward needs of one decoder layer on a CPU, where attention keeps its probabilities."""
    thin = 2 * model.lora_rank * sum(name in shape.linear for name in model.lora_targets)
    wide = 16 * shape.hidden + 8 * shape.intermediate + 4 * shape.key_heads * shape.width
    return tokens * (wide + thin) + 2 * shape.heads * pairs


def bound(work: dict[str, Work], machine: Machine) -> dict[str, float]:
    """The least seconds of each phase."""
    return {name: max(flops / machine.flops, size / machine.bandwidth) for name, (flops, size) in work.items()}


def report(work: dict[str, Work], machine: Machine, seconds: float) -> str:
    """A table of the phases, and the share of the bound that a step of `seconds` reaches."""
    least = bound(work, machine)
    lines = [f"machine: {machine.flops / 1e9:,.0f} GFLOP/s in a matrix product, {machine.bandwidth / 1e9:.1f} GB/s"]
    for name, (flops, size) in work.items():
        kind = "arithmetic" if flops / machine.flops > size / machine.bandwidth else "bytes"
        lines.append(
            f"  {name:10} {flops / 1e9:9,.1f} GFLOP {size / 1e9:7.2f} GB  at least {least[name]:7.3f} s ({kind})"
        )
    total = sum(least.values())
    return "\n".join([*lines, f"bound {total:.2f} s, measured {seconds:.2f} s: {total / seconds:.0%} of the bound"])
