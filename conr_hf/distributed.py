"""Rows of all processes, with gradient; on one process everything here is the identity."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's index in the group, 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        # Every process's loss reads these rows, so their gradient is the sum over processes, not this one's part.
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """
    Concatenates the rows of all processes in order of rank, differentiably.

    Args:
        rows (`torch.Tensor` of shape `(B, ...)`): The same shape on every process.

    Returns:
        `torch.Tensor` of shape `(B * world_size, ...)`. The gradient that reaches `rows` is the sum over the processes
        of the gradients of their losses.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows.contiguous())
    return gathered


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, detached, on each of them."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """The picklable `value` of every process, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values
