"""Set predictors (DETR, Sparse R-CNN): stages of k predictions per image, one-to-one matching with objects, no NMS.

A subclass predicts; this module makes records, detections and criteria from the predictions of its stages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from concordet.assigned import Assigned, Regression
from concordet.detectors.base import Detections, Detector, in_pixels
from concordet.detectors.parts.assigners import ignore_inside
from concordet.detectors.parts.hungarian import Costs, hungarian_match, in_units
from concordet.detectors.parts.objects import Matching, Objects
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.proposals import select_boxes
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion, add_l1, build_criterion

POSTPROCESS = PostProcess(score_threshold=0.0, nms_threshold=1.0, topk=100)
"""Thresholds for predictions that are matched one to one: no NMS."""


@dataclass(frozen=True)
class Stage:
    """Predictions of one stage (decoder layer) for b images."""

    name: str
    logits: Tensor  # [b, k, c]; with softmax [b, k, c + 1], background ("no object") last
    boxes: Tensor  # [b, k, 4] xyxy pixels of the network's input, with gradient
    class_agnostic: bool = False  # every object has class 0, as for proposals of an encoder


@dataclass(frozen=True)
class Outcome:
    """A forward pass; the last stage gives the detections."""

    stages: list[Stage]
    sizes: list[tuple[int, int]]  # of the images at the network's input
    objects: Objects


def per_layer_criterion(
    name: str,
    loss: str | Criterion | StagedCriterion,
    defaults: LossDefaults,
    stages: Sequence[str],
    *,
    classification: float = 2.0,
    l1: float = 5.0,
    weights: Mapping[str, float] | None = None,
) -> StagedCriterion:
    """One criterion per stage; a loss by name gets L1 of boxes in units of the image in addition.

    Args:
        name: Name of the detector, for errors.
        loss: Name, criterion (copied for each stage), or criterion with all stages.
        defaults: Default terms of the detector.
        stages: Names of the stages; the last one gives the detections.
        classification: Factor of the classification term; see :func:`~concordet.losses.criteria.add_l1`.
        l1: Weight of the L1 term.
        weights: Weights of stages by name; 1 for stages not named.

    Raises:
        ValueError: for a loss with an auxiliary head, or a criterion with other stages.
    """
    if isinstance(loss, StagedCriterion):
        if list(loss.stages) != list(stages):
            raise ValueError(f"stages of the criterion must be {list(stages)} for {name}, got {list(loss.stages)}")
        return loss
    criteria = {
        stage: build_criterion(loss, defaults) if isinstance(loss, str) else copy.deepcopy(loss) for stage in stages
    }
    for criterion in criteria.values():
        if criterion.needs.quality_head is not None:
            raise ValueError(f"loss must be without auxiliary head for {name}, got {loss!r}; leave the head out")
        if isinstance(loss, str):
            add_l1(criterion, classification=classification, l1=l1)
    return StagedCriterion(criteria, weights)


class SetPredictor(Detector):
    """A set predictor in torchvision's convention.

    The predictions of each stage are matched to objects with the smallest total cost and become a record with the
    stage's name; encoded regressions are boxes in units of the image, in the format that the costs compare.

    A subclass implements ``_predict``, which returns an :class:`Outcome`. With one sigmoid per class every pair of
    box and class is a candidate for detection; with a softmax each box has its best class, as in DETR.

    Args:
        criterion: Loss of all stages; its needs say whether the classifier is a softmax.
        num_classes: Number of foreground classes; labels in targets and detections are 1..num_classes.
        resize: How images are resized for the network.
        postprocess: Thresholds; ``topk`` candidates per image, and an NMS threshold of 1 drops none of them.
        costs: Matching costs.
        ignore_regions: Whether predictions inside ``target["ignored_boxes"]`` are ignored instead of background.
    """

    criterion: StagedCriterion

    def __init__(
        self,
        criterion: StagedCriterion,
        *,
        num_classes: int,
        resize: Resize,
        postprocess: PostProcess,
        costs: Costs,
        ignore_regions: bool = True,
    ) -> None:
        super().__init__()
        self._set_up(criterion, num_classes=num_classes, resize=resize, ignore_regions=ignore_regions)
        self.postprocess = postprocess
        self.costs = costs

    def _records(self, outcome: Outcome, *, trained: bool) -> list[Assigned]:
        return [self._record(stage, self._match(stage, outcome), outcome) for stage in outcome.stages]

    def _objects(self, stage: Stage, outcome: Outcome) -> Objects:
        return outcome.objects.class_agnostic() if stage.class_agnostic else outcome.objects

    @torch.no_grad()
    def _match(self, stage: Stage, outcome: Outcome) -> Tensor:
        """``[b, k]`` index of each prediction's object in its image, or a label without object."""
        matches = []
        objects = self._objects(stage, outcome)
        predictions = zip(stage.logits, stage.boxes, outcome.sizes, strict=True)
        per_image = zip(objects.boxes, objects.classes, objects.ignored, strict=True)
        for (logits, boxes, size), (gt_boxes, classes, ignored) in zip(predictions, per_image, strict=True):
            match = hungarian_match(
                logits, boxes, gt_boxes, classes, size, costs=self.costs, softmax=self.criterion.needs.softmax
            )
            matches.append(ignore_inside(match, boxes, ignored))
        return torch.stack(matches)

    def _record(self, stage: Stage, matches: Tensor, outcome: Outcome) -> Assigned:
        """The record of a stage with ``[b, k]`` matches."""
        matching = Matching.of(list(matches), self._objects(stage, outcome))
        boxes = stage.boxes.flatten(0, 1)[matching.positive]
        extents = boxes.new_tensor([[width, height, width, height] for height, width in outcome.sizes])
        extents = extents[matching.image_ids]
        return matching.assigned(
            stage.logits.flatten(0, 1),
            boxes,
            regression=Regression(
                in_units(boxes, extents, self.costs.box_format),
                in_units(matching.gt_boxes, extents, self.costs.box_format),
            ),
            stage=stage.name,
            softmax=self.criterion.needs.softmax,
        )

    @torch.no_grad()
    def _detections(self, outcome: Outcome, images: list[Tensor]) -> Detections:
        stage = outcome.stages[-1]
        scores = class_scores(stage.logits, softmax=self.criterion.needs.softmax)
        results = [
            select_boxes(image_scores, boxes[:, None], self.postprocess, size)
            for image_scores, boxes, size in zip(scores, stage.boxes, outcome.sizes, strict=True)
        ]
        return in_pixels(results, outcome.sizes, images)


def class_scores(logits: Tensor, *, softmax: bool) -> Tensor:
    """``[b, k, c]`` scores in [0, 1]; with a softmax, only the best class of a box has a score above 0."""
    if not softmax:
        return logits.sigmoid()
    scores = logits.softmax(-1)[..., :-1]
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), scores.amax(-1, keepdim=True))
