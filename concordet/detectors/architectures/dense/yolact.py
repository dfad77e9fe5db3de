"""YOLACT (Bolya et al. 2019): a dense detector whose masks are sums of prototypes, on torchvision's parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import Assigned, Masks, Segmentation
from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.base import Detections, in_pixels
from concordet.detectors.dense import DenseDetector, DenseOutcome, Predictions
from concordet.detectors.networks.backbones import Size, pyramid
from concordet.detectors.networks.heads import flatten_level, init_prior_bias
from concordet.detectors.parts.anchors import GridAnchors
from concordet.detectors.parts.assigners import yolact_matches
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.reassignment import hard_negatives
from concordet.detectors.parts.resize import Resize
from concordet.detectors.parts.targets import Target, add_masks, require_masks
from concordet.losses.criteria import Criterion, LossDefaults
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.criteria.mask import MaskTerm
from concordet.losses.functional.reduction import at_least_float32


class Preset(NamedTuple):
    """Settings that differ between full and nano size."""

    depth: int  # convolutions before the prototypes
    prototypes: int


FULL, NANO = Preset(3, 32), Preset(1, 16)
DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1", 1.5, beta=1.0), softmax=True, mask=MaskTerm(weight=6.125))
POSTPROCESS = PostProcess(nms_threshold=0.5, nms="fast")


def yolact(
    criterion: Criterion, *, num_classes: int, size: Size, backbone: str | None, pretrained: bool, **settings: Any
) -> Yolact:
    """YOLACT: one anchor size of three aspect ratios per level, 32 mask coefficients, images of 550 x 550 pixels.

    Follows mmdetection's ``yolact_r50``: a convolution shared by levels and branches; prototypes from P3 at twice its
    resolution; with cross entropy or Harmonic loss a softmax that learns from the hardest three negatives per positive,
    smooth L1 x 1.5, cross entropy of masks within the object's box x 6.125, and of the classes at P3's pixels, a branch
    for training only. Losses with one sigmoid per class see every negative; ranking losses have Dice for masks and no
    such branch, as RS-YOLACT. Detections come from Fast NMS.

    Departures: of two objects with the same best anchor each gets one, as in the authors' code (there: the later takes
    it). An image without objects has no negatives in the softmax's loss and background in that of the pixels, as in
    the authors' code (there: all its anchors are negatives, and its pixels are left out). Every positive's mask is
    learned (there: at most 100 per image), the pyramid is torchvision's (there: bilinear upsampling), and losses are
    normalized by the batch's positives (there: each image counts at least 1).

    35.3 M parameters at ResNet-50 and 80 classes, as that configuration's layers add up to: ResNet 23.5, pyramid 8.0,
    head 1.4, prototypes 2.4, classes of pixels 0.02 (the authors' P6 and P7 have 4.1 less). Nano: levels P3..P5,
    16 coefficients, 0.6 M parameters at 3 classes.
    """
    features, strides = pyramid(size, backbone, extra="c5", pretrained=pretrained)
    channels, (depth, count) = features.out_channels, NANO if size == "nano" else FULL
    anchors = GridAnchors([(3 * s,) for s in strides], [(0.5, 1.0, 2.0)] * len(strides))
    outputs = num_classes + int(criterion.needs.softmax)
    return Yolact(
        features,
        YolactHead(channels, anchors.num_anchors_per_location()[0], outputs, count, softmax=criterion.needs.softmax),
        anchors,
        delta_codec((10.0, 10.0, 5.0, 5.0)),
        yolact_matches,
        criterion,
        protonet=protonet(channels, count, depth),
        segmentation=nn.Conv2d(channels, num_classes, 1) if not criterion.needs.ranks_only else None,
        num_classes=num_classes,
        reassign=hard_negatives if criterion.needs.samples else None,
        **settings,
    )


class YolactHead(nn.Module):
    """One convolution shared by all levels, then one each for classes, boxes and mask coefficients (Fig. 4).

    Args:
        channels: Channels of the features.
        num_anchors: Anchors per location.
        outputs: Class logits per anchor; of a softmax with the background's last.
        coefficients: Mask coefficients per anchor.
        softmax: The classifier is a softmax; with sigmoids the bias starts at a prior of 0.01.
    """

    def __init__(self, channels: int, num_anchors: int, outputs: int, coefficients: int, *, softmax: bool) -> None:
        super().__init__()
        self.shared: nn.Conv2d = nn.Conv2d(channels, channels, 3, padding=1)
        self.classes: nn.Conv2d = nn.Conv2d(channels, num_anchors * outputs, 3, padding=1)
        self.boxes: nn.Conv2d = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        self.coefficients: nn.Conv2d = nn.Conv2d(channels, num_anchors * coefficients, 3, padding=1)
        self.outputs: int
        self.count: int
        self.outputs, self.count = outputs, coefficients
        _initialize(self)
        if not softmax:
            init_prior_bias(self.classes)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``[b, a, c]`` logits, ``[b, a, 4]`` regressions, ``[b, a, k]`` coefficients in [-1, 1]."""
        levels = [self.shared(x).relu() for x in features]
        branches = ((self.classes, self.outputs), (self.boxes, 4), (self.coefficients, self.count))
        logits, boxes, coefficients = (
            torch.cat([flatten_level(branch(x), width) for x in levels], dim=1) for branch, width in branches
        )
        return logits, boxes, coefficients.tanh()


def protonet(channels: int, prototypes: int, depth: int) -> nn.Sequential:
    """Features to prototypes, at least 0, of twice the resolution (Fig. 3)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(channels, prototypes, 1), nn.ReLU())
    _initialize(net)
    return net


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True, kw_only=True)
class MaskPredictions(Predictions):
    """Predictions with coefficients and prototypes of masks."""

    coefficients: Tensor  # [b, a, k]
    prototypes: Tensor  # [b, k, h, w]
    finest: Tensor  # [b, channels, h / 2, w / 2]


def inside(boxes: Tensor, size: tuple[int, int], shape: tuple[int, int], *, margin: float = 1.0) -> Tensor:
    """``[p, h, w]`` bool: pixels of a map that lie in boxes, with a margin around them.

    Args:
        boxes: ``[p, 4]`` in pixels of an image.
        size: Height and width of the image.
        shape: Height and width of the map, which covers the whole image.
        margin: Pixels of the map that are added on every side.
    """
    boxes = on_map(boxes, size, shape)
    y = torch.arange(shape[0], device=boxes.device)[None, :, None]
    x = torch.arange(shape[1], device=boxes.device)[None, None, :]
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left - margin) & (x < right + margin) & (y >= top - margin) & (y < bottom + margin)


def height_and_width(x: Tensor) -> tuple[int, int]:
    """Height and width of a map or an image."""
    return x.shape[-2], x.shape[-1]


def resized(masks: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[m, h, w]`` masks at another resolution, fp32."""
    return F.interpolate(at_least_float32(masks[:, None]), shape, mode="bilinear")[:, 0]


def on_map(boxes: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """``[p, 4]`` boxes in pixels of a map of the image."""
    return boxes * boxes.new_tensor([shape[1] / size[1], shape[0] / size[0]]).repeat(2)


class Yolact(DenseDetector):
    """YOLACT in torchvision's convention.

    Targets also have ``masks`` ``[m, h, w]`` uint8. Detections have ``masks`` ``[k, 1, h, w]``, probabilities in
    [0, 1] in the image's pixels, 0 outside of the box, as Mask R-CNN's; above 0.5 is the object. Records carry mask
    logits and targets over the whole image at the prototypes' resolution. Classes of pixels within ``ignored_boxes``
    are unknown, except where objects are; masks of positives are not affected.

    Args:
        protonet: Finest features to prototypes.
        segmentation: Finest features to class logits of pixels; None for no such branch.

    The other arguments are :class:`~concordet.detectors.dense.DenseDetector`'s.
    """

    def __init__(self, *parts: Any, protonet: nn.Module, segmentation: nn.Module | None, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.protonet = protonet
        self.segmentation = segmentation

    def _checked(self, images: list[Tensor], targets: list[Target]) -> list[Target]:
        return add_masks(super()._checked(images, targets), images, targets)

    def predict(self, batch: ImageList, features: list[Tensor]) -> list[Predictions]:
        logits, regressions, coefficients = self.head(features)
        anchors, level_sizes = self.anchors(batch, features)
        return [
            MaskPredictions(
                logits=at_least_float32(logits),
                regressions=at_least_float32(regressions),
                qualities=None,
                anchors=anchors,
                level_sizes=level_sizes,
                image_sizes=batch.image_sizes,
                softmax=self.softmax,
                coefficients=at_least_float32(coefficients),
                prototypes=at_least_float32(self.protonet(features[0])),
                finest=features[0],
            )
        ]

    def _records(self, outcome: DenseOutcome, *, trained: bool) -> list[Assigned]:
        predictions, objects = _mask_predictions(outcome), outcome.objects
        if trained:
            require_masks(objects.masks, "yolact")
        (record,) = super()._records(outcome, trained=trained)
        masks = objects.complete_masks()
        if masks is None:
            return [record]
        record = self._with_masks(record, predictions, masks)
        return [self._with_segments(record, predictions, objects, masks)]

    def _with_masks(self, record: Assigned, predictions: MaskPredictions, gt_masks: list[Tensor]) -> Assigned:
        shape = height_and_width(predictions.prototypes)
        chosen = predictions.coefficients.flatten(0, 1)[record.positive]
        counts = torch.bincount(record.image_ids, minlength=len(gt_masks)).tolist()
        logits = [
            (coefficients @ prototypes.flatten(1)).unflatten(1, shape)
            for coefficients, prototypes in zip(chosen.split(counts), predictions.prototypes, strict=True)
        ]
        masks = torch.cat([resized(own, shape) > 0.5 for own in gt_masks])
        kept = inside(record.gt_boxes, predictions.image_sizes[0], shape)
        extents = on_map(record.gt_boxes, predictions.image_sizes[0], shape)
        areas = (extents[:, 2:] - extents[:, :2]).prod(1).clamp(min=1.0)  # at least one pixel
        return replace(
            record,
            masks=Masks(torch.cat(logits), at_least_float32(masks[record.gt_ids]), kept / areas[:, None, None]),
        )

    def _with_segments(
        self, record: Assigned, predictions: MaskPredictions, objects: Objects, gt_masks: list[Tensor]
    ) -> Assigned:
        if self.segmentation is None:
            return record
        logits = self.segmentation(predictions.finest)
        shape = height_and_width(logits)
        targets = []
        each = zip(gt_masks, objects.classes, objects.ignored, predictions.image_sizes, strict=True)
        for masks, labels, regions, size in each:
            classes = at_least_float32(torch.zeros_like(logits[0]))
            covered = (resized(masks, shape) > 0.5).to(classes.dtype)
            classes = classes.index_add(0, labels, covered).clamp(max=1)
            ignored = inside(regions, size, shape, margin=0.0).any(0)
            targets.append(torch.where(ignored & (classes == 0), -1.0, classes))
        return replace(record, segmentation=Segmentation(logits, torch.stack(targets)))

    @torch.no_grad()
    def _detections(self, outcome: DenseOutcome, images: list[Tensor]) -> Detections:
        predictions = _mask_predictions(outcome)
        results = []
        for i, (result, rows) in enumerate(self.select(predictions)):
            prototypes = predictions.prototypes[i]
            shape = height_and_width(prototypes)
            masks = (predictions.coefficients[i, rows] @ prototypes.flatten(1)).sigmoid().unflatten(1, shape)
            masks = masks * inside(result["boxes"], predictions.image_sizes[i], shape)
            results.append(result | {"masks": resized(masks, height_and_width(images[i]))[:, None]})
        return in_pixels(results, predictions.image_sizes, images)


def _mask_predictions(outcome: DenseOutcome) -> MaskPredictions:
    return cast(MaskPredictions, outcome.stages[-1])  # Yolact.predict returns them


ARCHITECTURE = Architecture(yolact, DEFAULTS, Resize.exactly(550, 550), POSTPROCESS, masks=True)
