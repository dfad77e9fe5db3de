"""Dense detectors: one forward pass, from images to assigned predictions, losses and detections.

What distinguishes RetinaNet, FCOS, SSD and their kin here is passed in: head, anchors, box coder, assigner, refiner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

from concordet.assigned import BACKGROUND, IGNORED, Assigned
from concordet.detectors.base import Detections, Detector, Target, in_pixels
from concordet.detectors.parts.assigners import Assigner, centers, ignore_inside, side_distances
from concordet.detectors.parts.coders import BoxCodec, delta_codec, distance_codec
from concordet.detectors.parts.postprocess import PostProcess, suppress
from concordet.detectors.parts.reassignment import Reassigner, Scene
from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.functional.reduction import at_least_float32

__all__ = ["BoxCodec", "DenseDetector", "Predictions", "delta_codec", "distance_codec", "select"]


@dataclass(frozen=True)
class Predictions:
    """Raw predictions of one stage for a batch: b images, a anchors over all levels, c classes."""

    logits: Tensor  # [b, a, c], with softmax [b, a, c + 1], the background last
    regressions: Tensor  # [b, a, 4]
    qualities: Tensor | None  # [b, a]
    anchors: list[Tensor]  # b times [a, 4]
    level_sizes: list[int]
    image_sizes: list[tuple[int, int]]
    softmax: bool = False
    stage: str = ""
    class_agnostic: bool = False  # every object is of class 0
    dropped: Tensor | None = None  # [b, a] anchors that an earlier stage ruled out

    @torch.no_grad()
    def scores(self) -> Tensor:
        """``[b, a, c]`` in [0, 1], what detections are ranked with."""
        scores = self.logits.softmax(-1)[..., :-1] if self.softmax else self.logits.sigmoid()
        if self.qualities is not None:
            scores = torch.sqrt(scores * self.qualities.sigmoid()[..., None])
        return scores if self.dropped is None else scores.masked_fill(self.dropped[..., None], 0.0)


class DenseDetector(Detector):
    """A one-stage detector in torchvision's convention.

    Args:
        backbone: features; has ``out_channels``.
        head: features to (logits, regressions, qualities or None).
        anchor_generator: torchvision's.
        codec: regressions to boxes.
        assigner: anchors to objects.
        criterion: loss; of several stages a :class:`StagedCriterion`.
        num_classes: foreground classes; labels outside are 1..num_classes.
        image_size: (least shorter side, greatest longer side) that images are resized to, pixels.
        inference: thresholds.
        refiner: changes the assignment once predictions are known.
        fixed_size: images are resized to ``image_size`` (height, width), whatever their shape.
        ignore_regions: anchors inside ``target["ignored_boxes"]`` (crowds, difficult objects) are neither positive nor
            negative.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        anchor_generator: AnchorGenerator | DefaultBoxGenerator,
        codec: BoxCodec,
        assigner: Assigner,
        criterion: Criterion | StagedCriterion,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        inference: PostProcess,
        ignore_regions: bool = True,
        refiner: Reassigner | None = None,
        fixed_size: bool = False,
    ) -> None:
        super().__init__()
        height, width = image_size
        fixed = {"fixed_size": (width, height), "size_divisible": 1} if fixed_size else {}
        self.transform = GeneralizedRCNNTransform(height, width, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], **fixed)
        self.backbone = backbone
        self.head = head
        self.anchor_generator = anchor_generator
        self.codec = codec
        self.assigner = assigner
        self.refiner = refiner
        self.criterion = criterion
        self.softmax = bool(criterion.softmax)
        self.num_classes = num_classes
        self.inference = inference
        self.ignore_regions = ignore_regions

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> tuple[list[Predictions], list[Target]]:
        batch, objects = self.transform(images, targets)
        features = list(self.backbone(batch.tensors).values())
        return self._stages(batch, features), objects or []

    def _records(self, outcome: tuple[list[Predictions], list[Target]], *, trained: bool) -> list[Assigned]:
        stages, objects = outcome
        return [self._assign(predictions, objects) for predictions in stages]

    def _stages(self, batch: ImageList, features: list[Tensor]) -> list[Predictions]:
        """Raw predictions, one record a stage."""
        logits, regressions, qualities = self.head(features)
        anchors, level_sizes = self._anchors(batch, features)
        return [
            Predictions(
                at_least_float32(logits),
                at_least_float32(regressions),
                None if qualities is None else at_least_float32(qualities),
                anchors,
                level_sizes,
                batch.image_sizes,
                softmax=self.softmax,
            )
        ]

    def _anchors(self, batch: ImageList, features: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Each image's anchors ``[a, 4]`` over all levels, and how many each level has."""
        # Generators take shape, device and type from features; bf16 could not tell pixels apart.
        like = [at_least_float32(x.new_empty(())).expand(x.shape) for x in features]
        per_location = self.anchor_generator.num_anchors_per_location()
        sizes = [x.shape[-2] * x.shape[-1] * k for x, k in zip(features, per_location, strict=True)]
        return self.anchor_generator(batch, like), sizes

    @torch.no_grad()
    def _match(self, predictions: Predictions, objects: list[Target]) -> Tensor:
        """``[b, a]`` index of each anchor's object in its image, or a label without object."""
        matches = []
        for i, (anchors, target) in enumerate(zip(predictions.anchors, objects, strict=True)):
            real = target["labels"] > 0
            boxes, ignored = target["boxes"][real], target["boxes"][~real & self.ignore_regions]
            match = self.assigner(anchors, boxes, predictions.level_sizes)
            if predictions.dropped is not None:
                match = match.masked_fill(predictions.dropped[i], IGNORED)
            match = ignore_inside(match, anchors, ignored)
            if self.refiner is not None:
                scene = Scene(
                    predictions.logits[i].detach(),
                    predictions.regressions[i].detach(),
                    anchors,
                    self.codec,
                    boxes,
                    target["labels"][real] - 1,
                    predictions.level_sizes,
                )
                match = ignore_inside(self.refiner(match, scene), anchors, ignored)
            matches.append(match)
        return torch.stack(matches)

    def _assign(self, predictions: Predictions, objects: list[Target]) -> Assigned:
        matches = self._match(predictions, objects).flatten()  # [b * a]
        count = len(predictions.anchors[0])
        positive = torch.nonzero(matches >= 0).squeeze(1)
        image_ids = positive // count
        sizes = [int((t["labels"] > 0).sum()) for t in objects]
        offsets = torch.tensor([0, *sizes[:-1]], device=matches.device).cumsum(0)
        gt_ids = matches[positive] + offsets[image_ids]
        boxes = torch.cat([t["boxes"][t["labels"] > 0] for t in objects])
        classes = torch.cat([t["labels"][t["labels"] > 0] for t in objects]) - 1
        labels = matches.clamp(max=BACKGROUND)
        labels[positive] = torch.zeros_like(gt_ids) if predictions.class_agnostic else classes[gt_ids]
        anchors = torch.cat(predictions.anchors)[positive]
        deltas = predictions.regressions.flatten(0, 1)[positive]
        gt_boxes = boxes[gt_ids]
        return Assigned(
            logits=predictions.logits.flatten(0, 1),
            labels=labels,
            positive=positive,
            boxes=self.codec.decode(deltas, anchors),
            gt_boxes=gt_boxes,
            gt_ids=gt_ids,
            image_ids=image_ids,
            normalizer=torch.tensor(float(len(positive)), device=matches.device),
            deltas=deltas,
            gt_deltas=self.codec.encode(gt_boxes, anchors),
            quality_logits=None if predictions.qualities is None else predictions.qualities.flatten()[positive],
            quality_targets=centerness(centers(anchors), gt_boxes),
            stage=predictions.stage,
            softmax=predictions.softmax,
        )

    def _detections(self, outcome: tuple[list[Predictions], list[Target]], images: list[Tensor]) -> Detections:
        predictions = outcome[0][-1]
        return in_pixels([found for found, _ in self._select(predictions)], predictions.image_sizes, images)

    @torch.no_grad()
    def _select(self, predictions: Predictions) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Each image's detections at the network's input size, and the places of their anchors."""
        each = zip(
            predictions.scores(), predictions.regressions, predictions.anchors, predictions.image_sizes, strict=True
        )
        return [
            select(scores, regressions, anchors, predictions.level_sizes, self.codec, self.inference, size)
            for scores, regressions, anchors, size in each
        ]


def select(
    scores: Tensor,
    regressions: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    codec: BoxCodec,
    inference: PostProcess,
    image_size: tuple[int, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """One image's detections and the places of their anchors: threshold, best of each level, decode, clip, NMS.

    Args:
        scores: ``[a, c]`` in [0, 1].
        regressions: ``[a, 4]``.
        anchors: ``[a, 4]``.
    """
    num_classes = scores.shape[1]
    chosen, start = [], 0
    for size in level_sizes:
        flat = scores[start : start + size].flatten()
        above = torch.nonzero(flat > inference.score_threshold).squeeze(1)
        best = flat[above].topk(min(inference.topk, len(above))).indices
        chosen.append(above[best] + start * num_classes)
        start += size
    index = torch.cat(chosen)
    rows, labels, kept_scores = index // num_classes, index % num_classes, scores.flatten()[index]
    boxes = clip_boxes_to_image(codec.decode(regressions[rows], anchors[rows]), image_size)
    found, kept = suppress(boxes, kept_scores, labels, inference)
    return found, rows[kept]


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """``[p]`` in [0, 1]: 1 at the object's centre, 0 at its sides and outside.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).  Tian et al. 2019, Eq. 3.
    """
    left, top, right, bottom = side_distances(points, boxes).clamp(min=0).unbind(-1)
    tiny = torch.finfo(boxes.dtype).tiny
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=tiny)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=tiny)
    return torch.sqrt(horizontal * vertical)
