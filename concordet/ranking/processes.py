"""One ranking over the batches of several processes: positives are gathered, counts summed, negatives never move."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from concordet.ranking.counts import Counts


class Everyone:
    """This process alone."""

    size = 1

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        """All processes' rows ``[p]`` in order of rank, and which of them are this process's."""
        return own, slice(0, len(own))

    def shared(self, counts: Counts) -> Counts:
        """Counts whose negatives are those of all processes."""
        return counts


class Group(Everyone):
    """The processes of a group. Every one must call, with or without positives; none waits for data that never come."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def gather(self, own: Tensor) -> tuple[Tensor, slice]:
        lengths = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(self.size)]
        dist.all_gather(lengths, lengths[0].new_tensor([len(own)]), self._group)
        sizes = torch.cat(lengths).tolist()
        padded = own.new_zeros(max(sizes))
        padded[: len(own)] = own
        rows = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(rows, padded, self._group)
        start = sum(sizes[: self._rank])
        return torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)]), slice(start, start + len(own))

    def shared(self, counts: Counts) -> Counts:
        return _SharedCounts(counts, self._group)


class _SharedCounts:
    """Counts of one process, with the negatives above summed over all."""

    def __init__(self, counts: Counts, group: dist.ProcessGroup) -> None:
        self._counts = counts
        self._group = group
        self.positives = counts.positives
        self.positives_above = counts.positives_above
        self.better_above = counts.better_above
        self.spread_to_negatives = counts.spread_to_negatives
        self.spread_to_worse = counts.spread_to_worse

    def negatives_above(self) -> Tensor:
        count = self._counts.negatives_above().contiguous()
        dist.all_reduce(count, group=self._group)
        return count


def everyone(group: str) -> Everyone:
    """The processes of the group of this name; "" for this process alone."""
    if not group:
        return Everyone()
    return Group(dist.distributed_c10d._resolve_process_group(group))  # type: ignore[arg-type]
