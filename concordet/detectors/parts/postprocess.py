"""From raw predictions to detections: thresholds, variants of non-maximum suppression, score voting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from concordet.boxes import paired_iou
from concordet.setting_types import checked_types


@dataclass(frozen=True)
class PostProcess:
    """Settings of the step from raw predictions to detections.

    Attributes:
        score_threshold: Smallest score of a detection, in [0, 1]; also of a score that soft suppression has lowered.
        nms_threshold: IoU above which the lower scored of two boxes of a class is dropped (or lowered), in [0, 1].
        topk: Candidates before suppression, per level in one-stage detectors, otherwise per image; at least 1.
        detections_per_image: Maximum number of detections after suppression; at least 1.
        nms: ``hard``, torchvision's; ``soft`` and ``soft_linear``, which lower the scores of overlapping boxes by a
            Gaussian or linearly; ``fast``, YOLACT's. See :data:`SUPPRESSIONS`.
        sigma: Width of the Gaussian of ``soft``, above 0; 0.5 as published.
        class_wise: Whether only boxes of the same class are compared.
        score_voting: Whether kept boxes become weighted means of the candidates around them (PAA).

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> PostProcess(nms="soft", score_threshold=0.01).topk
        1000
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.6
    topk: int = 1000
    detections_per_image: int = 100
    nms: str = "hard"
    sigma: float = 0.5
    class_wise: bool = True
    score_voting: bool = False

    def __post_init__(self) -> None:
        for name, value in checked_types(vars(self), type(self)).items():
            object.__setattr__(self, name, value)
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("topk", "detections_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.nms not in SUPPRESSIONS:
            raise ValueError(f"nms must be one of {', '.join(SUPPRESSIONS)}, got {self.nms!r}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")


def hard(boxes: Tensor, scores: Tensor, groups: Tensor, postprocess: PostProcess) -> tuple[Tensor, Tensor]:
    """Drops a box that a better one of its group overlaps by more than the threshold (torchvision's)."""
    kept = batched_nms(boxes, scores, groups, postprocess.nms_threshold)[: postprocess.detections_per_image]
    return kept, scores[kept]


def soft(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    postprocess: PostProcess,
    *,
    decay: Callable[[Tensor, PostProcess], Tensor],
) -> tuple[Tensor, Tensor]:
    """Keeps the best box, lowers the scores of its group according to their overlap with it, and repeats.

    Bodla et al. 2017, Fig. 2. Scores never rise, so boxes come in the order of their final scores.
    """
    remaining = scores.clone()
    kept, values = [], []
    for _ in range(min(len(scores), postprocess.detections_per_image)):
        value, best = remaining.max(0)
        kept.append(best)
        values.append(value)
        overlaps = paired_iou(boxes[best], boxes)
        remaining = torch.where(groups == groups[best], remaining * decay(overlaps, postprocess), remaining)
        remaining[best] = -1.0
    if not kept:
        return groups.new_zeros(0), scores
    value = torch.stack(values)
    enough = value > postprocess.score_threshold
    return torch.stack(kept)[enough], value[enough]


def gaussian_decay(overlaps: Tensor, postprocess: PostProcess) -> Tensor:
    """exp(-IoU^2 / sigma); Bodla et al. 2017, Sec. 3, last equation."""
    return torch.exp(-(overlaps**2) / postprocess.sigma)


def linear_decay(overlaps: Tensor, postprocess: PostProcess) -> Tensor:
    """1 - IoU above the threshold, else 1; ibid., the equation before it."""
    return torch.where(overlaps > postprocess.nms_threshold, 1 - overlaps, 1.0)


def fast(
    boxes: Tensor, scores: Tensor, groups: Tensor, postprocess: PostProcess, *, candidates: int = 200
) -> tuple[Tensor, Tensor]:
    """Drops a box that any better one of its group overlaps by more than the threshold, even a dropped one.

    All pairs among the best ``candidates`` of each group can then be compared at once. Bolya et al. 2019, Sec. 3.5.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = [order[:0]]
    for group in groups.unique():
        best = order[groups[order] == group][:candidates]
        overlaps = paired_iou(boxes[best][:, None], boxes[best][None]).triu(diagonal=1)  # [better, worse]
        kept.append(best[overlaps.amax(0) <= postprocess.nms_threshold])
    chosen = torch.cat(kept)
    chosen = chosen[scores[chosen].argsort(descending=True, stable=True)][: postprocess.detections_per_image]
    return chosen, scores[chosen]


Suppression = Callable[[Tensor, Tensor, Tensor, PostProcess], tuple[Tensor, Tensor]]
SUPPRESSIONS: dict[str, Suppression] = {
    "hard": hard,
    "soft": partial(soft, decay=gaussian_decay),
    "soft_linear": partial(soft, decay=linear_decay),
    "fast": fast,
}
"""Functions of boxes ``[n, 4]``, scores ``[n]``, groups ``[n]`` within which boxes compete, and :class:`PostProcess`.

They return the indices of the boxes to keep, at most ``detections_per_image``, and their scores, descending.
"""


def voted_boxes(kept: Tensor, kept_groups: Tensor, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """``[..., k, 4]`` means of the candidates ``[..., n]`` of the same group around each kept box.

    The weight of a candidate is exp(-(1 - IoU)^2 / 0.025) times its score if its IoU with the kept box is above 0.01.
    Kim and Lee 2020, Sec. 3.3, with the published code's constants.
    """
    overlaps = paired_iou(kept[..., :, None, :], boxes[..., None, :, :])  # [..., k, n]
    weights = torch.exp(-((1 - overlaps) ** 2) / 0.025) * scores[..., None, :]
    weights = weights * ((overlaps > 0.01) & (kept_groups[..., :, None] == groups[..., None, :]))
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights @ boxes / total.clamp(min=torch.finfo(total.dtype).tiny), kept)


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, postprocess: PostProcess
) -> tuple[dict[str, Tensor], Tensor]:
    """One image's detections among candidate boxes.

    Args:
        boxes: ``[n, 4]`` xyxy, within the image.
        scores: ``[n]`` in [0, 1].
        labels: ``[n]`` 0..c-1.
        postprocess: Thresholds and type of suppression.

    Returns:
        ``boxes`` ``[k, 4]``, ``labels`` ``[k]`` 1..c and ``scores`` ``[k]``, and the indices ``[k]`` of the candidates.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.5]])
        >>> scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
        >>> detections, kept = suppress(boxes, scores, labels, PostProcess())
        >>> kept.tolist(), detections["labels"].tolist()
        ([0, 2], [1, 2])
        >>> suppress(boxes, scores, labels, PostProcess(class_wise=False))[1].tolist()
        [0]
        >>> suppress(boxes, scores, labels, PostProcess(nms="soft"))[0]["scores"]
        tensor([0.9000, 0.7000, 0.1583])
    """
    groups = labels if postprocess.class_wise else torch.zeros_like(labels)
    indices, values = SUPPRESSIONS[postprocess.nms](boxes, scores, groups, postprocess)
    kept = boxes[indices]
    if postprocess.score_voting:
        kept = voted_boxes(kept, groups[indices], boxes, scores, groups)
    return {"boxes": kept, "labels": labels[indices] + 1, "scores": values}, indices
