"""Differentiable collectives over a process group, and the same interface for a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SingleProcess:
    """A single process: every collective returns its input."""

    size = 1

    def all_gather(self, *own: Tensor) -> tuple[tuple[Tensor, ...], slice]:
        """Columns with the rows of all processes, in order of rank; differentiable.

        Args:
            own: Columns ``[p]`` of this process, all of one length.

        Returns:
            The columns of all processes, and the slice of this process's rows in them.
        """
        return own, slice(0, len(own[0]))

    def all_sum(self, own: Tensor) -> Tensor:
        """Sum over processes of a tensor of the same shape in each; differentiable."""
        return own

    def all_mean(self, own: Tensor) -> Tensor:
        """Mean over processes of a tensor of the same shape in each; differentiable."""
        return self.all_sum(own) / self.size

    def all_max(self, own: Tensor) -> Tensor:
        """Elementwise maximum over processes, without gradient."""
        return own


class MultiProcess(SingleProcess):
    """The processes of a group. Every process of the group must make the same calls, with or without positives.

    Gradients are those of the sum of all processes' losses: where each computes the same global loss, they are that
    loss's times the number of processes, and DDP's average is the global gradient.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size: int = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def all_gather(self, *own: Tensor) -> tuple[tuple[Tensor, ...], slice]:
        lengths = [torch.zeros(1, dtype=torch.long, device=own[0].device) for _ in range(self.size)]
        dist.all_gather(lengths, lengths[0].new_tensor([len(own[0])]), self._group)
        sizes = torch.cat(lengths).tolist()
        start = sum(sizes[: self._rank])
        mine = slice(start, start + len(own[0]))
        return tuple(_Gathered.apply(column, sizes, mine, self._group) for column in own), mine

    def all_sum(self, own: Tensor) -> Tensor:
        return _Sum.apply(own, self._group, self.size)

    def all_max(self, own: Tensor) -> Tensor:
        largest = own.detach().clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
        return largest


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], mine: slice, group: dist.ProcessGroup) -> Tensor:
        ctx.mine, ctx.n_processes = mine, len(sizes)
        padded = own.new_zeros(max(sizes))
        padded[: len(own)] = own
        rows = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(rows, padded, group)
        return torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0][ctx.mine] * ctx.n_processes, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup, n_processes: int) -> Tensor:
        ctx.n_processes = n_processes
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.n_processes, None, None


SINGLE_PROCESS = SingleProcess()


def process_group(group: dist.ProcessGroup | str | None) -> SingleProcess:
    """Collectives of a group, or of the group with this name; None and "" stand for this process only."""
    if not group:
        return SINGLE_PROCESS
    if isinstance(group, str):
        group = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]  # declared as GroupName
    return MultiProcess(group)


def world() -> SingleProcess:
    """Collectives of all processes, as DDP averages over them; of this process where no group is initialized."""
    started = dist.is_available() and dist.is_initialized()
    return MultiProcess(dist.group.WORLD) if started and dist.group.WORLD is not None else SINGLE_PROCESS
