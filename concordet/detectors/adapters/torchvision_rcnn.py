"""Losses in torchvision's Faster R-CNN and Mask R-CNN: in the region proposal network and in the RoI heads.

Neither passes boxes to its loss, so this module has its own forward pass of training, with the model's modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import box_iou

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors.adapters.changes import Change
from concordet.detectors.adapters.criteria import Loss, couplings_only, keeps_default, log_odds, named_terms
from concordet.detectors.architectures.two_stage.faster_rcnn import faster_rcnn_criterion
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import make_record
from concordet.detectors.parts.records import mean_count
from concordet.losses.criteria import StagedCriterion, Terms

Targets = list[dict[str, Tensor]]


def rcnn_adapter(model: Any, loss: Loss) -> tuple[StagedCriterion, list[Change]]:
    """torchvision's Faster R-CNN or Mask R-CNN, which keeps its mask loss; stages are ``rpn`` and ``roi``.

    Cross entropy and Harmonic loss train on its random samples of proposals; every other loss trains on all proposals,
    with the log-odds of the softmax's probabilities as logits of one sigmoid per class. The region proposal network
    keeps its loss, except with ranking losses: then it has the same loss on all anchors, with weight 0.2.
    """
    heads: RoIHeads = model.roi_heads
    if heads.has_keypoint():
        raise ValueError(
            f"model must be a detector of boxes or masks, got a {type(model).__name__} of keypoints; use Faster R-CNN"
        )
    criterion = faster_rcnn_criterion(loss)
    roi, default = criterion.stages["roi"], keeps_default(loss)
    if default:
        criterion.stages["roi"] = couplings_only(roi)
    changes = [Change(heads, "forward", RoILoss(heads, criterion, default))]
    if not roi.needs.samples:
        changes += [Change(heads, "subsample", all_used)]
    if roi.needs.ranks_only:
        changes += [
            Change(heads, "score_thresh", 0.0),
            Change(model.rpn, "forward", ProposalLoss(model.rpn, criterion)),
        ]
    return criterion, changes


def all_used(labels: list[Tensor]) -> list[Tensor]:
    """Replaces ``RoIHeads.subsample``: indices of all proposals of each image that are not ignored."""
    return [torch.where(image >= 0)[0] for image in labels]


@dataclass(frozen=True, eq=False)
class ProposalLoss:
    """Replaces ``RegionProposalNetwork.forward``: in training our loss on the model's own matches."""

    rpn: RegionProposalNetwork
    criterion: StagedCriterion

    def __call__(
        self, images: ImageList, features: dict[str, Tensor], targets: Targets | None = None
    ) -> tuple[list[Tensor], Terms]:
        """Proposals of each image, and named terms in training."""
        rpn = self.rpn
        if not rpn.training or targets is None:
            return type(rpn).forward(rpn, images, features, targets)
        levels = list(features.values())
        logits, deltas = rpn.head(levels)
        level_sizes = [x[0].numel() for x in logits]
        anchors = rpn.anchor_generator(images, levels)
        logits, deltas = (x.float() for x in concat_box_prediction_layers(logits, deltas))
        proposals = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = rpn.filter_proposals(proposals, logits, images.image_sizes, level_sizes)
        return boxes, self._losses(logits, deltas, anchors, targets)

    def _losses(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], targets: Targets) -> Terms:
        rpn = self.rpn
        boxes = [t["boxes"] for t in targets]
        record = make_record(
            [
                rpn.proposal_matcher(box_iou(b, a)) if len(b) else torch.full((len(a),), BACKGROUND, device=a.device)
                for b, a in zip(boxes, anchors, strict=True)
            ],
            Objects.of(boxes, [t["labels"] for t in targets]).class_agnostic(),
            anchors,
            logits,
            deltas[:, None],
            rpn.box_coder,
            stage="rpn",
            softmax=False,
            mean_over_rows=False,
        )
        return named_terms(self.criterion, [replace(record, normalizer=mean_count(record.normalizer))])[0]


@dataclass(frozen=True, eq=False)
class RoILoss:
    """Replaces ``RoIHeads.forward``: in training our loss, in addition to the model's own if that stays.

    Args:
        heads: RoI heads of the model.
        criterion: Criterion with the stages ``rpn`` and ``roi``.
        keeps_default: Whether the model's terms of classes and boxes stay, and ours are added to them.
    """

    heads: RoIHeads
    criterion: StagedCriterion
    keeps_default: bool

    def __call__(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, Terms]:
        """Detections of each image, or no detections and named terms in training."""
        heads = self.heads
        if not heads.training or targets is None:
            return type(heads).forward(heads, features, proposals, image_shapes, targets)
        proposals, matched, labels, gt_deltas = heads.select_training_samples(proposals, targets)
        pooled = heads.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        losses: Terms = {}
        if self.keeps_default:
            classification, box = fastrcnn_loss(logits, deltas, labels, gt_deltas)
            losses = {"loss_classifier": classification, "loss_box_reg": box}
        losses.update(self._losses(logits.float(), deltas.float(), proposals, matched, labels, targets))
        if heads.has_mask():
            losses["loss_mask"] = self._mask_loss(features, proposals, image_shapes, matched, labels, targets)
        return [], losses

    def _losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: Targets,
    ) -> Terms:
        logits, softmax = logits.roll(-1, 1), self.criterion.needs.softmax  # background last
        codes = [torch.where(image == 0, BACKGROUND, IGNORED) for image in labels]
        deltas = deltas.unflatten(1, (-1, 4))
        record = make_record(
            [torch.where(image > 0, m, c) for image, m, c in zip(labels, matched, codes, strict=True)],
            Objects.of([t["boxes"] for t in targets], [t["labels"] - 1 for t in targets]),
            proposals,
            logits if softmax else log_odds(logits),
            deltas[:, 1:] if deltas.shape[1] > 1 else deltas,
            self.heads.box_coder,
            stage="roi",
            softmax=softmax,
            mean_over_rows=softmax,
        )
        return named_terms(self.criterion, [replace(record, normalizer=mean_count(record.normalizer))])[0]

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: Targets,
    ) -> Tensor:
        """torchvision's mask loss of the positives."""
        heads: Any = self.heads
        positive = [torch.where(image > 0)[0] for image in labels]
        boxes = [b[i] for b, i in zip(proposals, positive, strict=True)]
        objects = [m[i] for m, i in zip(matched, positive, strict=True)]
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, image_shapes)))
        masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
        return maskrcnn_loss(logits, boxes, masks, classes, objects)
