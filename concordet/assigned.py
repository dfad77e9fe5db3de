"""What a detector passes to a loss: predictions, and the objects assigned to them.

Data flows one way: images -> detector -> :class:`Assigned` -> criterion -> named terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

BACKGROUND: Final = -1
"""Label of a prediction that belongs to no object.

Ranking functions number labels differently: there 1 is a positive, 0 a negative and -1 is ignored.
:meth:`Assigned.ranking_labels` converts.
"""

IGNORED: Final = -2
"""Label of a prediction that losses leave out (between two matching thresholds, inside a crowd region)."""


@dataclass(frozen=True)
class Regression:
    """Encoded box outputs of the positives, as the detector's regression branch predicts them.

    Attributes:
        deltas: ``[p, d]`` predicted values, differentiable; d is 4 except for unusual encodings.
        targets: ``[p, d]`` targets of the deltas.
        distributions: ``[p, d, m]`` logits of the discrete distributions whose expectations the deltas are, for
            detectors that predict such distributions (Generalized Focal Loss); None otherwise.
    """

    deltas: Tensor
    targets: Tensor
    distributions: Tensor | None = None


@dataclass(frozen=True)
class Quality:
    """Localization quality of the positives, predicted by an auxiliary head or known from geometry.

    Attributes:
        logits: ``[p]`` logits of the auxiliary head (centerness or IoU); None for a detector without one.
        targets: ``[p]`` targets in [0, 1] that geometry determines (centerness); None where there are none.
    """

    logits: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Masks:
    """Instance masks of the positives, in a frame of the detector's choice.

    Attributes:
        logits: ``[p, h, w]`` mask logits of each positive, for the class of its object.
        targets: ``[p, h, w]`` masks of the objects in the same frame, in [0, 1].
        weights: ``[p, h, w]`` weights of the pixels, 0 for pixels that do not count; None for the mean over all.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Segmentation:
    """Semantic segmentation of whole images, for detectors that train such a branch.

    Attributes:
        logits: ``[b, c, h, w]`` class logits per pixel.
        targets: ``[b, c, h, w]`` 1 within objects of the class, 0 outside, -1 where it is unknown.
    """

    logits: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Ranked:
    """Values of a ranking loss that were computed for this record and others in one call.

    Attributes:
        term: The ranking loss.
        inputs: Tensors of the record that the values were computed from; they do not hold for other tensors.
        ious: ``[p]`` IoUs of the positives.
        values: 0-dim values of the loss.
    """

    term: object
    inputs: tuple[Tensor, ...]
    ious: Tensor
    values: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """Predictions of one stage (or decoder layer) with the objects assigned to them, over a whole batch.

    With n predictions, c classes and p positives (predictions that an object is assigned to):

    Attributes:
        logits: ``[n, c]`` raw class logits of all images and levels; with ``softmax`` ``[n, c + 1]``, background last.
        labels: ``[n]`` int64: 0..c-1 for the class of the object, :data:`BACKGROUND` (-1) or :data:`IGNORED` (-2).
        positive: ``[p]`` int64 indices of the positives in ``n``, ascending.
        boxes: ``[p, 4]`` decoded predicted boxes of the positives, xyxy in the network's input pixels, differentiable.
        gt_boxes: ``[p, 4]`` boxes of the objects assigned to them, in the same units.
        gt_ids: ``[p]`` int64 indices of those objects, numbered over the batch.
        image_ids: ``[p]`` int64 indices of their images in the batch.
        normalizer: 0-dim number of positives averaged over processes, at least 1.
        regression: encoded box outputs, for detectors that regress encoded boxes.
        quality: localization quality, for detectors with an auxiliary head or geometric targets for one.
        masks: instance masks, for detectors that predict them.
        segmentation: semantic segmentation, for detectors that train such a branch.
        stage: name of the stage; "" for a detector with one.
        softmax: the classifier is one softmax over classes and background, not one sigmoid per class.
        group: processes whose batches are ranked, correlated and balanced as one. The criterion sets it, never a
            detector.
        ranked: values of its ranking loss where several records are ranked in one call. The criterion sets it, never a
            detector.
    """

    logits: Tensor
    labels: Tensor
    positive: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    gt_ids: Tensor
    image_ids: Tensor
    normalizer: Tensor
    regression: Regression | None = None
    quality: Quality | None = None
    masks: Masks | None = None
    segmentation: Segmentation | None = None
    stage: str = ""
    softmax: bool = False
    group: dist.ProcessGroup | None = None
    ranked: Ranked | None = None

    @property
    def positive_logits(self) -> Tensor:
        """``[p]`` logit of each positive for the class of its object."""
        return self.logits[self.positive, self.labels[self.positive]]

    @property
    def used(self) -> Tensor:
        """``[n]`` bool: predictions that are not ignored."""
        return self.labels != IGNORED

    def probabilities(self) -> Tensor:
        """``[p, c]`` class probabilities of the positives."""
        logits = self.logits[self.positive]
        return logits.softmax(-1)[:, :-1] if self.softmax else logits.sigmoid()

    def scores(self) -> Tensor:
        """``[p]`` probability of each positive for the class of its object."""
        if not self.softmax:
            return self.positive_logits.sigmoid()
        return self.probabilities().gather(1, self.labels[self.positive][:, None]).squeeze(1)

    def confidences(self) -> Tensor:
        """``[p]`` scores in [0, 1] that the positives would be ranked by at inference.

        With an auxiliary head these are geometric means of class probability and predicted quality, as in FCOS and
        ATSS.
        """
        scores = self.scores()
        if self.quality is None or self.quality.logits is None:
            return scores
        return torch.sqrt(scores * self.quality.logits.sigmoid())

    def class_targets(self, values: Tensor | float = 1.0) -> Tensor:
        """Targets of a classification loss.

        Args:
            values: ``[p]`` targets of the positives (their IoUs, for example), or one number for all.

        Returns:
            ``[n, c]`` with ``values`` at each positive's class and 0 elsewhere, in the type of the logits.
        """
        targets = torch.zeros_like(self.logits)
        if not isinstance(values, Tensor):
            values = targets.new_full((), values)
        targets[self.positive, self.labels[self.positive]] = values.to(targets.dtype)
        return targets

    def ranking_labels(self) -> Tensor:
        """Labels of a ranking loss over ``logits.flatten()``: one ranking of all predictions and classes.

        Returns:
            ``[n * c]`` int64: 1 positive, 0 negative, -1 ignored.
        """
        ignored = (~self.used).to(torch.int64)
        labels = -ignored[:, None].repeat(1, self.logits.shape[1])
        labels[self.positive, self.labels[self.positive]] = 1
        return labels.flatten()

    def normalized_sum(self, losses: Tensor) -> Tensor:
        """0-dim sum of ``losses`` ``[n, c]`` over the predictions that are not ignored, over ``normalizer``."""
        return (losses * self.used[:, None]).sum() / self.normalizer
