"""Rows of other processes, with gradient; on one process everything here is the identity."""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import NamedTuple, TypeVar

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


class GatherGroup(NamedTuple):
    """Processes that see each other's rows, this one among them; without a `group`, that of all processes."""

    ranks: tuple[int, ...]  # rising
    group: dist.ProcessGroup | None = None

    @property
    def place(self) -> int:
        """This process's index among them."""
        return self.ranks.index(rank())


def gather_group(gather: str, local_rank: int, timeout: timedelta) -> GatherGroup:
    """
    The processes whose rows this one sees: `"all"`, those of the same `"node"`, or `"none"` but this one.

    `local_rank` is this process's index on its node, `timeout` how long processes of a node wait for each other.
    """
    if gather == "all" or world_size() == 1:
        return GatherGroup(tuple(range(world_size())))
    if gather == "none":
        return GatherGroup((rank(),))
    nodes = ranks_by_node(gather_objects(local_rank))
    return GatherGroup(next(node for node in nodes if rank() in node), _group_of(nodes, timeout))


def ranks_by_node(local_ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """
    The ranks of each node, given each process's index on its node in order of rank.

    Example:
        >>> ranks_by_node([0, 1, 2, 0, 1])
        ((0, 1, 2), (3, 4))
    """
    firsts = [process for process, local_rank in enumerate(local_ranks) if local_rank == 0]
    nodes = [tuple(range(*ends)) for ends in zip(firsts, [*firsts[1:], len(local_ranks)], strict=True)]
    if list(local_ranks) != [place for node in nodes for place in range(len(node))]:
        raise ValueError(
            f"conr_gather is node, but the processes have indices {list(local_ranks)} on their nodes, so that those "
            "of a node do not follow each other. Let the launcher number them node by node, or set conr_gather to all."
        )
    return tuple(nodes)


@cache  # a group lasts as long as its process; a second train() takes the same
def _group_of(nodes: tuple[tuple[int, ...], ...], timeout: timedelta) -> dist.ProcessGroup | None:
    group, _ = dist.new_subgroups_by_enumeration([list(node) for node in nodes], timeout=timeout)
    assert not isinstance(group, int), "a process that is on none of the nodes"
    return group


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, peers: GatherGroup) -> Tensor:
        ctx.peers = peers  # type: ignore[attr-defined]
        parts = [torch.empty_like(rows) for _ in peers.ranks]
        dist.all_gather(parts, rows, group=peers.group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process's loss reads these rows, so their gradient is the sum over processes; of the sum each needs
        # its own rows only.
        peers: GatherGroup = ctx.peers  # type: ignore[attr-defined]
        parts = list(gradient.contiguous().chunk(len(peers.ranks)))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=peers.group)
        return own, None


def gather_rows(tensors: Sequence[Tensor], counts: Sequence[int], peers: GatherGroup | None = None) -> list[Tensor]:
    """
    Concatenates the rows of the peers (unset: all processes) in order of rank, differentiably.

    Of each tensor, `(M, ...)` and of one dtype and shape on all processes, peer k gives its first `counts[k]` rows:
    `(sum(counts), ...)`. The gradient that reaches a tensor is the sum over the processes of the gradients of their
    losses. There is one exchange for all tensors, and one of the same size for their gradients.
    """
    peers = peers or GatherGroup(tuple(range(world_size())))
    if len(peers.ranks) == 1:
        return [tensor[: counts[0]] for tensor in tensors]
    flat = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
    gathered: Tensor = _Gather.apply(torch.cat(flat, 1), peers)
    size = len(flat[0])
    if sum(counts) < len(gathered):
        gathered = torch.cat([gathered[k * size : k * size + count] for k, count in enumerate(counts)])
    parts = torch.split(gathered, [part.shape[1] for part in flat], 1)
    return [part.reshape(-1, *tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)]


def sum_over_processes(tensor: Tensor, peers: GatherGroup | None = None) -> Tensor:
    """The sum of `tensor` over the peers (unset: all processes), detached, on each of them."""
    total = tensor.detach().clone()
    if (world_size() if peers is None else len(peers.ranks)) > 1:
        dist.all_reduce(total, group=None if peers is None else peers.group)
    return total


def gather_objects(value: T) -> list[T]:
    """The picklable `value` of every process, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values
