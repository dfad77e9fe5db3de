"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask per box, on torchvision's parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign

from concordet.assigned import Assigned, Masks
from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.two_stage.faster_rcnn import DEFAULTS, POSTPROCESS, box_pool
from concordet.detectors.base import Detections
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.proposals import RoIOutput, RPNOutput, region_proposals, staged_criterion
from concordet.detectors.parts.targets import Target, add_masks, require_masks
from concordet.detectors.two_stage import BoxStage, TwoStageDetector, TwoStageOutcome
from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.functional.reduction import at_least_float32


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    width: int  # of the fully connected layers
    layers: list[int]  # channels of the mask branch's convolutions
    side: int  # of the pooled features that masks are predicted from


FULL, NANO = Preset(1024, [256] * 4, 14), Preset(128, [32, 32], 7)


def mask_rcnn_criterion(loss: str | Criterion | StagedCriterion) -> StagedCriterion:
    """Stages ``rpn`` and ``roi``."""
    return staged_criterion("mask_rcnn", loss, DEFAULTS, {"roi": 1.0})


def mask_rcnn(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    **settings: Any,
) -> MaskRCNN:
    """Mask R-CNN: Faster R-CNN and four convolutions on features pooled to 14 x 14, which give masks of 28 x 28.

    Follows torchvision's ``maskrcnn_resnet50_fpn``, whose weights' names it keeps: cross entropy of masks, mean over
    positives and pixels; with ranking losses Dice. Targets of masks are torchvision's, in [0, 1] (in mmdetection 0 or
    1, and sampled half a pixel away). 44.4 M parameters at ResNet-50 and 80 classes, as that one's (mmdetection's: 44.2
    M). Nano: Faster R-CNN's, and two convolutions 32 wide on 7 x 7, 0.8 M parameters at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="pool", pretrained=pretrained)
    channels = features.out_channels
    softmax = criterion.stages["roi"].needs.softmax
    width, layers, side = NANO if size == "nano" else FULL
    outputs = num_classes + int(softmax)
    pool = box_pool(size)
    stage = MaskStage(
        TwoMLPHead(channels * pool.output_size[0] ** 2, width),
        FastRCNNPredictor(width, outputs),
        BoxCoder((10.0, 10.0, 5.0, 5.0)),
        foreground=0.5,
        softmax=softmax,
    )
    stage.mask_head = MaskRCNNHeads(channels, layers, 1)
    stage.mask_predictor = MaskRCNNPredictor(layers[-1], layers[-1], outputs)
    return MaskRCNN(
        features,
        region_proposals(channels, strides, criterion, size=size),
        pool,
        [stage],
        criterion,
        mask_pool=box_pool(size, side),
        num_classes=num_classes,
        **settings,
    )


class MaskStage(BoxStage):
    """The RoI head with a mask branch, under torchvision's names."""

    mask_head: nn.Module
    mask_predictor: nn.Module

    def masks(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """``[k, m, m]`` mask logits of the boxes, for their ``classes`` ``[k]``.

        Args:
            pooled: ``[k, channels, h, w]`` features of the boxes.
            classes: ``[k]`` 0..c-1.
        """
        logits = at_least_float32(self.mask_predictor(self.mask_head(pooled)))
        # with a softmax, torchvision's first output is the background's, which is never trained
        return logits[torch.arange(len(classes), device=classes.device), classes + int(self.softmax)]


class MaskRCNN(TwoStageDetector):
    """Mask R-CNN in torchvision's convention.

    Targets also have ``masks`` ``[m, h, w]`` uint8. Detections have ``masks`` ``[k, 1, h, w]``, probabilities in [0,
    1] in pixels of the image, as in torchvision; above 0.5 is the object. The RoI head's record carries mask logits
    and targets in the frames of the boxes that the stage refines.

    Args:
        mask_pool: Features and boxes to ``[n, channels, h, w]``.

    The other arguments are :class:`~concordet.detectors.two_stage.TwoStageDetector`'s.
    """

    roi_heads: MaskStage

    def __init__(self, *parts: Any, mask_pool: MultiScaleRoIAlign, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.mask_pool = mask_pool

    def _checked(self, images: list[Tensor], targets: list[Target]) -> list[Target]:
        return add_masks(super()._checked(images, targets), images, targets)

    def training_records(self, rpn: RPNOutput, objects: Objects) -> tuple[list[Assigned], list[RoIOutput]]:
        """The base class's records and RoI outputs; ValueError for images without masks."""
        require_masks(objects.masks, "mask_rcnn")
        return super().training_records(rpn, objects)

    def roi_records(self, rpn: RPNOutput, rois: list[RoIOutput], objects: Objects) -> list[Assigned]:
        """The record of the RoI head, with masks where all images have them."""
        (record,) = super().roi_records(rpn, rois, objects)
        gt_masks = objects.complete_masks()
        if gt_masks is None:
            return [record]
        counts = torch.bincount(record.image_ids, minlength=len(objects)).tolist()
        boxes = list(torch.cat(rois[0].references)[record.positive].split(counts))
        logits = self.roi_heads.masks(self.pool(self.mask_pool, rpn, boxes), record.labels[record.positive])
        own = (record.gt_ids - objects.offsets[record.image_ids]).split(counts)  # indices in the image
        targets = [
            project_masks_on_boxes(masks, b, ids, logits.shape[-1])
            for masks, b, ids in zip(gt_masks, boxes, own, strict=True)
        ]
        return [replace(record, masks=Masks(logits, torch.cat(targets)))]

    def select(self, rpn: RPNOutput, rois: list[RoIOutput]) -> Detections:
        """Detections at the network's input size, with masks in the frames of their boxes."""
        results = super().select(rpn, rois)
        boxes = [r["boxes"] for r in results]
        classes = torch.cat([r["labels"] for r in results]) - 1
        masks = self.roi_heads.masks(self.pool(self.mask_pool, rpn, boxes), classes)
        for result, own in zip(results, masks.sigmoid().split([len(b) for b in boxes]), strict=True):
            result["masks"] = own[:, None]
        return results

    @torch.no_grad()
    def _detections(self, outcome: TwoStageOutcome, images: list[Tensor]) -> Detections:
        results = super()._detections(outcome, images)
        for result, image in zip(results, images, strict=True):
            result["masks"] = paste_masks_in_image(result["masks"], result["boxes"], tuple(image.shape[-2:]))
        return results


ARCHITECTURE = Architecture(mask_rcnn, DEFAULTS, postprocess=POSTPROCESS, criterion=mask_rcnn_criterion, masks=True)
