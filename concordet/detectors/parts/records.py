"""Records of a batch put together from those of its parts."""

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
    """0-dim: ``count`` averaged over processes, as if all of them together had at least 1."""
    processes = world()
    return processes.all_sum(torch.as_tensor(count, dtype=torch.float32, device=device)).clamp(min=1.0) / processes.size


def merge_records(parts: Sequence[Assigned], places: Sequence[Sequence[int]], counts: Sequence[int]) -> Assigned:
    """One stage's record of a batch from records of parts of it; rows follow one another part by part.

    Args:
        parts: records of one stage.
        places: of each part, its images' places in the batch, in the part's order.
        counts: objects of each image of the batch.
    """
    if len(parts) == 1 and list(places[0]) == list(range(len(counts))):
        return parts[0]
    device = parts[0].positive.device
    first = first_indices(counts, device)
    merged: dict[str, list[Any]] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Assigned)}
    for i, (part, images) in enumerate(zip(parts, places, strict=True)):
        where = torch.tensor(images, device=device)
        own = first_indices([counts[k] for k in images], device)
        merged["image_ids"][i] = where[part.image_ids]
        merged["gt_ids"][i] = part.gt_ids + (first[where] - own)[part.image_ids]
        merged["positive"][i] = part.positive + sum(len(other.labels) for other in parts[:i])
    joined = {name: _joined(values) for name, values in merged.items() if name != "normalizer"}
    return Assigned(**joined, normalizer=torch.stack(merged["normalizer"]).sum(0))


def _joined(values: Sequence[Any]) -> Any:
    """Rows of all parts, in tensors and in records of tensors; other values are the same in every part."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if is_dataclass(values[0]) and not isinstance(values[0], type):
        names = [f.name for f in fields(values[0])]
        return replace(values[0], **{name: _joined([getattr(value, name) for value in values]) for name in names})
    return values[0]
