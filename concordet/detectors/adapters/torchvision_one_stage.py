"""Losses in torchvision's RetinaNet, FCOS and SSD.

Each passes its matches to a function of (targets, head outputs, anchors, matches), which :class:`DenseLoss` replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from concordet.assigned import Assigned, Quality
from concordet.detectors.adapters.changes import Change
from concordet.detectors.adapters.criteria import Loss, criterion_for, keeps_default, log_odds, named_terms
from concordet.detectors.architectures.dense import fcos, ssd
from concordet.detectors.dense import centerness
from concordet.detectors.parts.assigners import centers
from concordet.detectors.parts.coders import BoxCodec, distance_codec
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import make_record
from concordet.detectors.parts.reassignment import hardest_kept
from concordet.detectors.parts.records import mean_count
from concordet.losses.criteria import BoxTerm, Criterion, LossDefaults, Terms

Targets = list[dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class DenseLoss:
    """Replaces ``compute_loss`` of a RetinaNet's or FCOS's head, or of an SSD.

    Args:
        owner: Object whose ``compute_loss`` it replaces.
        record: Function that builds a record of the arguments.
        criterion: Loss.
        keeps_default: Whether the owner's terms stay, and ours are added to them.
    """

    owner: Any
    record: Callable[[Any, Criterion, Targets, dict[str, Tensor], list[Tensor], list[Tensor]], Assigned]
    criterion: Criterion
    keeps_default: bool

    def __call__(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Terms:
        """Named terms of a batch; torchvision's codes for background and ignored in ``matched_idxs`` are also ours."""
        terms: Terms = {}
        if self.keeps_default:
            terms = type(self.owner).compute_loss(self.owner, targets, head_outputs, anchors, matched_idxs)
        record = self.record(self.owner, self.criterion, targets, head_outputs, anchors, matched_idxs)
        return {**terms, **named_terms(self.criterion, [record])[0]}


class SideCoder(BoxCoder):
    """FCOS's coder with the method names of R-CNN's."""

    codec: BoxCodec = distance_codec()

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes ``[k, 4]`` from distances in units of the anchors."""
        return self.codec.decode(rel_codes, boxes)

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Distances ``[k, 4]`` of the first boxes' sides, in units of the second."""
        return self.codec.encode(reference_boxes, proposals)


def _record(
    targets: Targets,
    logits: Tensor,
    regressions: Tensor,
    anchors: list[Tensor],
    matches: list[Tensor],
    coder: BoxCoder,
    *,
    first_class: int,
    softmax: bool = False,
) -> Assigned:
    record = make_record(
        matches,
        Objects.of([t["boxes"] for t in targets], [t["labels"] - first_class for t in targets]),
        anchors,
        logits.float().flatten(0, 1),
        regressions.float().flatten(0, 1)[:, None],
        coder,
        stage="",
        softmax=softmax,
        mean_over_rows=False,
    )
    return replace(record, normalizer=mean_count(record.normalizer))


# --- RetinaNet ------------------------------------------------------------------------------------------------------


def retinanet_adapter(model: Any, loss: Loss) -> tuple[Criterion, list[Change]]:
    """torchvision's RetinaNet; its head also has a logit for label 0, a class without objects."""
    defaults = LossDefaults("focal", BoxTerm(model.head.regression_head._loss_type, beta=1.0))
    criterion = criterion_for(model, loss, defaults)
    return criterion, [
        Change(model.head, "compute_loss", DenseLoss(model.head, _retinanet_record, criterion, keeps_default(loss))),
        *_threshold(model, criterion),
    ]


def _retinanet_record(
    head: RetinaNetHead,
    criterion: Criterion,
    targets: Targets,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matches: list[Tensor],
) -> Assigned:
    logits, regressions, coder = outputs["cls_logits"], outputs["bbox_regression"], head.regression_head.box_coder
    return _record(targets, logits, regressions, anchors, matches, coder, first_class=0)


# --- FCOS -----------------------------------------------------------------------------------------------------------


def fcos_adapter(model: Any, loss: Loss) -> tuple[Criterion, list[Change]]:
    """torchvision's FCOS.

    ``default``, ``+centerness`` and ``+iou_head`` train its centerness branch, as everywhere. Any other loss freezes
    that branch, and scores are class probabilities instead of their geometric means with the branch's.
    """
    criterion = criterion_for(model, loss, fcos.DEFAULTS, quality_head=True)
    default = keeps_default(loss)
    changes = [
        Change(model.head, "compute_loss", DenseLoss(model.head, _fcos_record, criterion, default)),
        *_threshold(model, criterion),
    ]
    if criterion.needs.quality_head is None and not default:
        branch = model.head.regression_head.bbox_ctrness
        changes += [Change(parameter, "requires_grad", False) for parameter in branch.parameters()]
        changes += [Change(model, "postprocess_detections", ClassScores(model))]
    return criterion, changes


def _fcos_record(
    head: FCOSHead,
    criterion: Criterion,
    targets: Targets,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matches: list[Tensor],
) -> Assigned:
    logits, regressions, coder = outputs["cls_logits"], outputs["bbox_regression"], SideCoder((1.0,) * 4)
    record = _record(targets, logits, regressions, anchors, matches, coder, first_class=0)
    if criterion.needs.quality_head is None:
        return record
    return replace(
        record,
        quality=Quality(
            outputs["bbox_ctrness"].float().flatten()[record.positive],
            centerness(centers(torch.cat(anchors)[record.positive]), record.gt_boxes),
        ),
    )


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Replaces FCOS's ``postprocess_detections``: a score is the class probability, without centerness."""

    model: FCOS

    def __call__(self, head_outputs: dict[str, list[Tensor]], *rest: Any) -> Targets:
        """The model's own function, with p in place of centerness: sqrt(p * p) = p."""
        outputs = {**head_outputs, "bbox_ctrness": head_outputs["cls_logits"]}
        return type(self.model).postprocess_detections(self.model, outputs, *rest)


# --- SSD ------------------------------------------------------------------------------------------------------------


def ssd_adapter(model: Any, loss: Loss) -> tuple[Criterion, list[Change]]:
    """torchvision's SSD, which keeps its softmax over C + 1 classes.

    Cross entropy and Harmonic loss train on the hardest negatives, like the model's own loss; every other loss trains
    on all negatives, with the log-odds of the softmax's probabilities as logits of one sigmoid per class.
    """
    criterion = criterion_for(model, loss, ssd.DEFAULTS)
    return criterion, [
        Change(model, "compute_loss", DenseLoss(model, _ssd_record, criterion, keeps_default(loss))),
        *_threshold(model, criterion),
    ]


def _ssd_record(
    model: Any,
    criterion: Criterion,
    targets: Targets,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matches: list[Tensor],
) -> Assigned:
    logits = outputs["cls_logits"].float().roll(-1, -1)  # background last
    if criterion.needs.samples:
        matches = [
            hardest_kept(match, image_logits, ratio=int(model.neg_to_pos_ratio))
            for match, image_logits in zip(matches, logits.detach(), strict=True)
        ]
    if not criterion.needs.softmax:
        logits = log_odds(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])
    regressions, softmax = outputs["bbox_regression"], criterion.needs.softmax
    return _record(targets, logits, regressions, anchors, matches, model.box_coder, first_class=1, softmax=softmax)


def _threshold(model: Any, criterion: Criterion) -> list[Change]:
    """No score threshold for ranking losses: they order scores but give them no scale."""
    return [Change(model, "score_thresh", 0.0)] if criterion.needs.ranks_only else []
