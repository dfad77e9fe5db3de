"""Dense detectors: one forward pass, from images to assigned predictions, losses and detections.

RetinaNet, FCOS, SSD and the others differ in what they pass in: head, anchors, box coder, assigner, reassignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from concordet.assigned import IGNORED, Assigned, Quality
from concordet.detectors.base import Detections, Detector, Target, in_pixels
from concordet.detectors.parts.assigners import Assigner, centers, ignore_inside, side_distances
from concordet.detectors.parts.coders import BoxCodec
from concordet.detectors.parts.objects import Matching, Objects
from concordet.detectors.parts.postprocess import PostProcess, suppress
from concordet.detectors.parts.reassignment import Reassigner, Scene
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import Criterion, StagedCriterion
from concordet.losses.functional.reduction import at_least_float32

__all__ = ["AnchorHead", "DenseDetector", "Predictions", "select"]


@dataclass(frozen=True)
class Predictions:
    """Raw predictions of one stage for a batch: b images, a anchors over all levels, c classes."""

    logits: Tensor  # [b, a, c], with softmax [b, a, c + 1], the background last
    regressions: Tensor  # [b, a, d], d = 4 for most codecs
    qualities: Tensor | None  # [b, a]
    anchors: Tensor  # [b, a, 4]
    level_sizes: list[int]
    image_sizes: list[tuple[int, int]]
    softmax: bool = False
    stage: str = ""
    class_agnostic: bool = False  # every object is of class 0
    dropped: Tensor | None = None  # [b, a] anchors that an earlier stage ruled out

    @torch.no_grad()
    def scores(self) -> Tensor:
        """``[b, a, c]`` scores in [0, 1] that detections are ranked by."""
        scores = self.logits.softmax(-1)[..., :-1] if self.softmax else self.logits.sigmoid()
        if self.qualities is not None:
            scores = torch.sqrt(scores * self.qualities.sigmoid()[..., None])
        return scores if self.dropped is None else scores.masked_fill(self.dropped[..., None], 0.0)


class AnchorHead(nn.Module):
    """A dense detector without backbone and image transform: features to predictions, records and detections.

    Args:
        head: Features to (logits, regressions, qualities or None).
        anchor_generator: torchvision's, or one with its interface.
        codec: Regressions to boxes.
        assigner: Anchors to objects.
        softmax: The classifier is one softmax over classes and background.
        postprocess: Thresholds.
        reassign: Changes the assignment once predictions are known.
    """

    def __init__(
        self,
        head: nn.Module,
        anchor_generator: AnchorGenerator | DefaultBoxGenerator,
        codec: BoxCodec,
        assigner: Assigner,
        *,
        softmax: bool,
        postprocess: PostProcess,
        reassign: Reassigner | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchor_generator = anchor_generator
        self.codec = codec
        self.assigner = assigner
        self.reassign = reassign
        self.softmax = softmax
        self.postprocess = postprocess

    def predict(self, batch: ImageList, features: list[Tensor]) -> list[Predictions]:
        """Raw predictions, one entry per stage; the last one gives the detections.

        Args:
            batch: Images at the network's input size.
            features: ``[b, channels, h, w]`` per level, finest first.
        """
        logits, regressions, qualities = self.head(features)
        anchors, level_sizes = self.anchors(batch, features)
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

    def anchors(self, batch: ImageList, features: list[Tensor]) -> tuple[Tensor, list[int]]:
        """Each image's anchors ``[b, a, 4]`` over all levels, and the number of anchors per level."""
        # generators take shape, device and dtype from features; bf16 has too few digits for pixels
        like = [at_least_float32(x.new_empty(())).expand(x.shape) for x in features]
        per_location = self.anchor_generator.num_anchors_per_location()
        sizes = [x.shape[-2] * x.shape[-1] * k for x, k in zip(features, per_location, strict=True)]
        # all images of a batch have the same anchors
        return self.anchor_generator(batch, like)[0].expand(features[0].shape[0], -1, -1), sizes

    @torch.no_grad()
    def match(self, predictions: Predictions, objects: Objects) -> list[Tensor]:
        """``[a]`` per image: index of each anchor's object in its image, or a label without object."""
        matches = []
        each = zip(predictions.anchors, objects.boxes, objects.classes, objects.ignored, strict=True)
        for i, (anchors, boxes, classes, ignored) in enumerate(each):
            match = self.assigner(anchors, boxes, predictions.level_sizes)
            if predictions.dropped is not None:
                match = match.masked_fill(predictions.dropped[i], IGNORED)
            match = ignore_inside(match, anchors, ignored)
            if self.reassign is not None:
                scene = Scene(
                    predictions.logits[i].detach(),
                    predictions.regressions[i].detach(),
                    anchors,
                    self.codec,
                    boxes,
                    classes,
                    predictions.level_sizes,
                )
                match = ignore_inside(self.reassign(match, scene), anchors, ignored)
            matches.append(match)
        return matches

    def assign(self, predictions: Predictions, objects: Objects) -> Assigned:
        """The record of one stage: predictions, and the objects that their anchors are matched to."""
        if predictions.class_agnostic:
            objects = objects.class_agnostic()
        matching = Matching.of(self.match(predictions, objects), objects)
        anchors = predictions.anchors.flatten(0, 1)[matching.positive]
        deltas = predictions.regressions.flatten(0, 1)[matching.positive]
        qualities = predictions.qualities
        return matching.assigned(
            predictions.logits.flatten(0, 1),
            self.codec.decode(deltas, anchors),
            regression=self.codec.regression(deltas, matching.gt_boxes, anchors),
            quality=Quality(
                None if qualities is None else qualities.flatten()[matching.positive],
                centerness(centers(anchors), matching.gt_boxes),
            ),
            stage=predictions.stage,
            softmax=predictions.softmax,
        )

    @torch.no_grad()
    def select(self, predictions: Predictions) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Each image's detections at the network's input size, and the indices of their anchors."""
        each = zip(
            predictions.scores(), predictions.regressions, predictions.anchors, predictions.image_sizes, strict=True
        )
        return [
            select(scores, regressions, anchors, predictions.level_sizes, self.codec, self.postprocess, size)
            for scores, regressions, anchors, size in each
        ]


@dataclass(frozen=True)
class DenseOutcome:
    """A forward pass: predictions per stage, and the objects of the images."""

    stages: list[Predictions]
    objects: Objects


class DenseDetector(AnchorHead, Detector):
    """A one-stage detector in torchvision's convention.

    Args:
        backbone: Features; has ``out_channels``.
        head: Features to (logits, regressions, qualities or None).
        anchor_generator: torchvision's, or one with its interface.
        codec: Regressions to boxes.
        assigner: Anchors to objects.
        criterion: Loss; of several stages a :class:`StagedCriterion`.
        num_classes: Foreground classes; labels outside are 1..num_classes.
        resize: How images are resized for the network.
        postprocess: Thresholds.
        reassign: Changes the assignment once predictions are known.
        ignore_regions: Anchors inside ``target["ignored_boxes"]`` (crowds, difficult objects) are neither positive nor
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
        resize: Resize,
        postprocess: PostProcess,
        ignore_regions: bool = True,
        reassign: Reassigner | None = None,
    ) -> None:
        super().__init__(
            head,
            anchor_generator,
            codec,
            assigner,
            softmax=criterion.needs.softmax,
            postprocess=postprocess,
            reassign=reassign,
        )
        self.backbone = backbone
        self._set_up(criterion, num_classes=num_classes, resize=resize, ignore_regions=ignore_regions)

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> DenseOutcome:
        batch, resized = self.transform(images, targets)
        features = list(self.backbone(batch.tensors).values())
        objects = Objects.from_targets(resized or [], ignore_regions=self.ignore_regions)
        return DenseOutcome(self.predict(batch, features), objects)

    def _records(self, outcome: DenseOutcome, *, trained: bool) -> list[Assigned]:
        return [self.assign(predictions, outcome.objects) for predictions in outcome.stages]

    def _detections(self, outcome: DenseOutcome, images: list[Tensor]) -> Detections:
        predictions = outcome.stages[-1]
        return in_pixels([result for result, _ in self.select(predictions)], predictions.image_sizes, images)


def select(
    scores: Tensor,
    regressions: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    codec: BoxCodec,
    postprocess: PostProcess,
    image_size: tuple[int, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """One image's detections and the indices of their anchors: threshold, best of each level, decode, clip, NMS.

    Args:
        scores: ``[a, c]`` in [0, 1].
        regressions: ``[a, d]``, d = 4 for most codecs.
        anchors: ``[a, 4]``.
        level_sizes: Anchors per level.
        codec: Regressions to boxes.
        postprocess: Thresholds; ``topk`` candidates per level come before NMS.
        image_size: Height and width, pixels.
    """
    num_classes = scores.shape[1]
    chosen, start = [], 0
    for size in level_sizes:
        flat = scores[start : start + size].flatten()
        above = torch.nonzero(flat > postprocess.score_threshold).squeeze(1)
        best = flat[above].topk(min(postprocess.topk, len(above))).indices
        chosen.append(above[best] + start * num_classes)
        start += size
    index = torch.cat(chosen)
    rows, labels, kept_scores = index // num_classes, index % num_classes, scores.flatten()[index]
    boxes = clip_boxes_to_image(codec.decode(regressions[rows], anchors[rows]), image_size)
    detections, kept = suppress(boxes, kept_scores, labels, postprocess)
    return detections, rows[kept]


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """``[p]`` in [0, 1]: 1 at the object's center, 0 at its sides and outside.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)). Tian et al. 2019, Eq. 3.
    """
    left, top, right, bottom = side_distances(points, boxes).clamp(min=0).unbind(-1)
    tiny = torch.finfo(boxes.dtype).tiny
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=tiny)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=tiny)
    return torch.sqrt(horizontal * vertical)
