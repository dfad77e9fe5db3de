"""Records of a batch, merged from those of groups of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from concordet.assigned import Assigned
from concordet.detectors.parts.objects import first_indices
from concordet.distributed import world


def mean_count(count: float | Tensor, device: torch.device | None = None) -> Tensor:
    """0-dim ``count`` averaged over processes; the sum over all of them is at least 1."""
    processes = world()
    return processes.all_sum(torch.as_tensor(count, dtype=torch.float32, device=device)).clamp(min=1.0) / processes.size


def merge_records(records: Sequence[Assigned], groups: Sequence[Sequence[int]], counts: Sequence[int]) -> Assigned:
    """One stage's record of a batch, from records of groups of its images; rows are concatenated group by group.

    Args:
        records: One per group, of the same stage.
        groups: Per group, the indices of its images in the batch.
        counts: Objects per image of the batch.
    """
    if len(records) == 1 and list(groups[0]) == list(range(len(counts))):
        return records[0]
    device = records[0].positive.device
    first = first_indices(counts, device)
    merged: dict[str, list[Any]] = {f.name: [getattr(record, f.name) for record in records] for f in fields(Assigned)}
    for i, (record, images) in enumerate(zip(records, groups, strict=True)):
        indices = torch.tensor(images, device=device)
        first_in_group = first_indices([counts[k] for k in images], device)
        merged["image_ids"][i] = indices[record.image_ids]
        merged["gt_ids"][i] = record.gt_ids + (first[indices] - first_in_group)[record.image_ids]
        merged["positive"][i] = record.positive + sum(len(other.labels) for other in records[:i])
    joined = {name: _joined(values) for name, values in merged.items() if name != "normalizer"}
    return Assigned(**joined, normalizer=torch.stack(merged["normalizer"]).sum(0))


def _joined(values: Sequence[Any]) -> Any:
    """Rows of all records, in tensors and in sub-records of tensors; other values are the same in all of them."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if is_dataclass(values[0]) and not isinstance(values[0], type):
        names = [f.name for f in fields(values[0])]
        return replace(values[0], **{name: _joined([getattr(value, name) for value in values]) for name in names})
    return values[0]
