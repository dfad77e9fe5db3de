"""The seam: what a detector tells a loss, and nothing else.

Data flows one way: images -> detector -> :class:`Assigned` -> criterion -> named terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

BACKGROUND: Final = -1
"""Label of a prediction that belongs to no object."""

IGNORED: Final = -2
"""Label of a prediction that no loss may look at (between two matching thresholds, inside a crowd region)."""


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """Predictions of one stage (or decoder layer) with the objects assigned to them, over a whole batch.

    With n predictions, c classes and p positives (predictions that an object is assigned to):

    Attributes:
        logits: ``[n, c]`` raw class logits of all images and levels; with ``softmax`` ``[n, c + 1]``, the background's
            last.
        labels: ``[n]`` int64, 0..c-1 for the object's class, :data:`BACKGROUND` or :data:`IGNORED`.
        positive: ``[p]`` int64, the positives' places in ``n``, ascending.
        boxes: ``[p, 4]`` decoded predicted boxes of the positives, xyxy in the network's input pixels, differentiable.
        gt_boxes: ``[p, 4]`` boxes of the objects assigned to them, same units.
        gt_ids: ``[p]`` int64, which object, counted over the batch.
        image_ids: ``[p]`` int64, which image of the batch.
        normalizer: ``[]`` number of positives averaged over processes, at least 1.
        deltas: ``[p, 4]`` encoded predicted regression, where the detector has one.
        gt_deltas: ``[p, 4]`` its target.
        quality_logits: ``[p]`` logits of the auxiliary head (centerness or IoU), where there is one.
        quality_targets: ``[p]`` its target in [0, 1], where geometry alone decides it (centerness).
        mask_logits: ``[p, m, m]`` logits of each positive's mask of its object's class, in a frame of the detector's
            choice, where it predicts masks.
        mask_targets: ``[p, m, m]`` the objects' masks in the same frame, in [0, 1].
        mask_weights: ``[p, m, m]`` weights of the pixels, 0 for those that are cut off; None is the mean over all.
        segment_logits: ``[b, c, h, w]`` logits of the classes at pixels of the images, where the detector learns from
            them.
        segment_targets: ``[b, c, h, w]`` 1 within objects of the class, 0 outside, -1 where nobody knows.
        stage: name of the stage; "" for a detector with one.
        softmax: the classifier is one softmax over classes and background, not a sigmoid a class.
        group: processes whose batches are ranked, correlated and balanced as one; the criterion says so, no detector.
    """

    logits: Tensor
    labels: Tensor
    positive: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    gt_ids: Tensor
    image_ids: Tensor
    normalizer: Tensor
    deltas: Tensor | None = None
    gt_deltas: Tensor | None = None
    quality_logits: Tensor | None = None
    quality_targets: Tensor | None = None
    mask_logits: Tensor | None = None
    mask_targets: Tensor | None = None
    mask_weights: Tensor | None = None
    segment_logits: Tensor | None = None
    segment_targets: Tensor | None = None
    stage: str = ""
    softmax: bool = False
    group: dist.ProcessGroup | None = None

    @property
    def positive_logits(self) -> Tensor:
        """``[p]`` each positive's logit of the class of its object."""
        return self.logits[self.positive, self.labels[self.positive]]

    def probabilities(self) -> Tensor:
        """``[p, c]`` class probabilities of the positives."""
        logits = self.logits[self.positive]
        return logits.softmax(-1)[:, :-1] if self.softmax else logits.sigmoid()

    def scores(self) -> Tensor:
        """``[p]`` each positive's probability of the class of its object."""
        if not self.softmax:
            return self.positive_logits.sigmoid()
        return self.probabilities().gather(1, self.labels[self.positive][:, None]).squeeze(1)

    def confidences(self) -> Tensor:
        """``[p]`` score in [0, 1] that the positives would be ranked with at inference.

        With an auxiliary head it is the geometric mean of class probability and predicted quality, as FCOS and ATSS do.
        """
        scores = self.scores()
        if self.quality_logits is None:
            return scores
        return torch.sqrt(scores * self.quality_logits.sigmoid())
