"""Several processes train together (torchrun, `accelerate launch`): each takes some prompts of a step, and what the
formula sums over the whole batch is exchanged. With one process, nothing here has an effect.

    first, mine = share_of(prompts)            # rank r of n gets the r-th of n equal parts
    rewards = gather([...])                    # of all ranks, in the order of the prompts
    sum_gradients(parameters)                  # after each rank has divided by the tokens of *all* ranks
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def world() -> tuple[int, int]:
    """This process's rank, and how many there are; torchrun sets both."""
    return int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)


def start() -> None:
    """Connect the ranks; a second call does nothing."""
    if world()[1] < 2 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_stop)


def _stop() -> None:
    """Disconnect before the process ends; otherwise gloo's threads may abort it when another rank ends first."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def share_of(rows: Sequence[T]) -> tuple[int, Sequence[T]]:
    """This rank's part of the rows, and the index of its first; may be empty if there are more ranks than rows."""
    rank, ranks = world()
    first, last = rank * len(rows) // ranks, (rank + 1) * len(rows) // ranks
    return first, rows[first:last]


def gather(rows: list[T]) -> list[T]:
    """The rows of all ranks, in their order."""
    if world()[1] < 2:
        return rows
    parts: list[list[T] | None] = [None] * world()[1]
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part or []]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up each parameter's gradient over the ranks; one without a gradient counts as 0."""
    if world()[1] < 2:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    distributed.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter).clone()
