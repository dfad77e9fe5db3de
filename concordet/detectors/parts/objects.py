"""The objects of a batch, and the predictions that are matched to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from concordet.assigned import BACKGROUND, IGNORED, Assigned, Quality, Regression
from concordet.detectors.parts.targets import Target


@dataclass(frozen=True)
class Objects:
    """The objects of b images at the network's input size; image i has m_i of them.

    Attributes:
        boxes: b tensors ``[m_i, 4]``, xyxy pixels.
        classes: b tensors ``[m_i]`` int64, 0..c-1.
        ignored: b tensors ``[k_i, 4]``: regions that are neither object nor background (crowds).
        masks: b tensors ``[m_i, h, w]`` uint8, or None for images without masks.

    Example:
        >>> boxes, classes = [torch.zeros(2, 4), torch.zeros(3, 4)], [torch.tensor([0, 1]), torch.tensor([2, 0, 1])]
        >>> Objects.of(boxes, classes).offsets.tolist()
        [0, 2]
    """

    boxes: Sequence[Tensor]
    classes: Sequence[Tensor]
    ignored: Sequence[Tensor]
    masks: Sequence[Tensor | None]

    @classmethod
    def of(cls, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> Objects:
        """Objects without ignored regions and masks."""
        return cls(boxes, classes, [b[:0] for b in boxes], [None] * len(boxes))

    @classmethod
    def from_targets(cls, targets: Sequence[Target], *, ignore_regions: bool = True) -> Objects:
        """From resized targets, in which ignored regions are boxes of label 0 at the end.

        Args:
            targets: One per image: ``boxes`` ``[m + k, 4]``, ``labels`` ``[m + k]``, optionally ``masks``
                ``[m, h, w]``.
            ignore_regions: Whether to keep the ignored regions.
        """
        real = [t["labels"] > 0 for t in targets]
        each = list(zip(targets, real, strict=True))
        return cls(
            [t["boxes"][kept] for t, kept in each],
            [t["labels"][kept] - 1 for t, kept in each],
            [t["boxes"][~kept & ignore_regions] for t, kept in each],
            [t.get("masks") for t in targets],
        )

    def class_agnostic(self) -> Objects:
        """The same objects, all of class 0."""
        return replace(self, classes=[torch.zeros_like(c) for c in self.classes])

    def complete_masks(self) -> list[Tensor] | None:
        """The masks of all images; None if an image has none, as in validation data without masks."""
        masks = [own for own in self.masks if own is not None]
        return masks if len(masks) == len(self.masks) else None

    @property
    def counts(self) -> list[int]:
        """Number of objects of each image."""
        return [len(c) for c in self.classes]

    @property
    def offsets(self) -> Tensor:
        """``[b]`` int64: index in the batch of each image's first object."""
        return first_indices(self.counts, self.classes[0].device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.classes)


def first_indices(counts: Sequence[int], device: torch.device) -> Tensor:
    """``[b]`` int64: index of the first of ``counts[i]`` consecutive entries, for each i."""
    return torch.tensor([0, *counts[:-1]], device=device).cumsum(0)


@dataclass(frozen=True)
class Matching:
    """n predictions of a batch, of which p are matched to objects.

    Attributes:
        labels: ``[n]`` int64: the object's class, :data:`~concordet.assigned.BACKGROUND` or
            :data:`~concordet.assigned.IGNORED`.
        positive: ``[p]`` int64, ascending: indices of the matched predictions.
        gt_ids: ``[p]`` int64: indices of their objects in the batch.
        image_ids: ``[p]`` int64: indices of their images.
        gt_boxes: ``[p, 4]`` boxes of their objects.
    """

    labels: Tensor
    positive: Tensor
    gt_ids: Tensor
    image_ids: Tensor
    gt_boxes: Tensor

    @classmethod
    def of(cls, matches: Sequence[Tensor], objects: Objects) -> Matching:
        """From ``[n_i]`` per image: the index of a prediction's object in its image, or a label without object."""
        match = torch.cat(list(matches))
        device = match.device
        images = torch.repeat_interleave(torch.tensor([len(m) for m in matches], device=device))
        positive = torch.nonzero(match >= 0).squeeze(1)
        image_ids = images[positive]
        gt_ids = match[positive] + objects.offsets[image_ids]
        labels = match.clamp(max=BACKGROUND)
        labels[positive] = torch.cat(list(objects.classes))[gt_ids]
        return cls(labels, positive, gt_ids, image_ids, torch.cat(list(objects.boxes))[gt_ids])

    @property
    def classes(self) -> Tensor:
        """``[p]`` classes of the positives' objects."""
        return self.labels[self.positive]

    def assigned(
        self,
        logits: Tensor,
        boxes: Tensor,
        *,
        regression: Regression | None = None,
        quality: Quality | None = None,
        stage: str = "",
        softmax: bool = False,
        mean_over_rows: bool = False,
    ) -> Assigned:
        """The record for a criterion.

        The normalizer is this batch's; :class:`~concordet.detectors.base.Detector` averages it over processes.

        Args:
            logits: ``[n, c]``, with ``softmax`` ``[n, c + 1]``.
            boxes: ``[p, 4]`` decoded boxes of the positives.
            regression: Encoded regression of the positives.
            quality: Outputs and targets of an auxiliary head.
            stage: Name of the stage.
            softmax: The classifier is one softmax over classes and background.
            mean_over_rows: Whether losses are divided by the number of predictions that are not ignored, instead of
                the number of positives.
        """
        count = int((self.labels != IGNORED).sum()) if mean_over_rows else len(self.positive)
        return Assigned(
            logits=logits,
            labels=self.labels,
            positive=self.positive,
            boxes=boxes,
            gt_boxes=self.gt_boxes,
            gt_ids=self.gt_ids,
            image_ids=self.image_ids,
            normalizer=torch.tensor(float(count), device=logits.device),
            regression=regression,
            quality=quality,
            stage=stage,
            softmax=softmax,
        )
