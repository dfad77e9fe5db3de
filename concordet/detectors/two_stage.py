"""Two-stage detectors: one forward pass, from images to proposals, refined boxes, records, losses and detections.

What distinguishes Faster, Cascade and Mask R-CNN is passed in: stages of the RoI head, and a mask branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from concordet.assigned import Assigned
from concordet.detectors.base import Detections, Detector, Target, in_pixels
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.parts.assigners import ignore_inside, iou_matches
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.proposals import (
    Objects,
    RoIOutput,
    RPNOutput,
    make_record,
    objects_of,
    roi_matches,
    sample,
    select_refined,
)
from concordet.losses.criteria import StagedCriterion
from concordet.losses.functional.reduction import at_least_float32


class BoxStage(nn.Module):
    """One stage of the RoI head: pooled features to class logits and box deltas.

    Args:
        box_head: ``[n, channels, h, w]`` to ``[n, width]``.
        box_predictor: ``[n, width]`` to class logits and deltas, in torchvision's order: with softmax the background
            comes first, and in class-specific regression has deltas too.
        coder: deltas to boxes.
        foreground: IoU from which on a box is an object's.
        softmax: of the classifier.
    """

    def __init__(
        self, box_head: nn.Module, box_predictor: nn.Module, coder: BoxCoder, *, foreground: float, softmax: bool
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.coder = coder
        self.foreground = foreground
        self.softmax = softmax
        if not softmax:
            init_prior_bias(cast(nn.Module, box_predictor.cls_score))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, c]`` logits (with softmax ``[n, c + 1]``, background last) and ``[n, c or 1, 4]`` deltas."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        deltas = deltas.unflatten(1, (-1, 4))
        if self.softmax:
            logits = logits.roll(-1, dims=1)
            deltas = deltas[:, 1:] if deltas.shape[1] > 1 else deltas
        return at_least_float32(logits), at_least_float32(deltas)

    @torch.no_grad()
    def decode(self, refined: RoIOutput) -> list[Tensor]:
        """``[k, c or 1, 4]`` boxes of each image, without gradient."""
        boxes = self.coder.decode_single(refined.deltas.flatten(1), torch.cat(refined.references))
        return list(boxes.unflatten(1, (-1, 4)).split([len(b) for b in refined.references]))


@dataclass(frozen=True)
class Outcome:
    """What a forward pass gives; refined boxes are those of all proposals, where they were needed."""

    found: RPNOutput
    objects: list[Objects]
    refined: list[RoIOutput] | None


class TwoStageDetector(Detector):
    """A two-stage detector in torchvision's convention, as :class:`~concordet.detectors.dense.DenseDetector` is.

    Records are named ``rpn`` and after the RoI head's stages.  With a softmax classifier (cross entropy, Harmonic loss)
    losses are means over random minibatches of 256 anchors (half of them positive) and 512 proposals (a quarter) an
    image, as torchvision takes them.  Losses with a sigmoid a class weigh negatives themselves and see every anchor and
    every proposal.  In training objects' own boxes join the proposals; what :meth:`assigned` measures in evaluation
    mode are proposals as at inference, all of them.

    Args:
        backbone: features; has ``out_channels``.
        rpn: torchvision's.
        box_pool: features and boxes to ``[n, channels, h, w]``.
        stages: of the RoI head; each refines the boxes of the one before it, and their logits are averaged.
        criterion: loss; its stages are ``rpn`` and the RoI head's.
        num_classes: foreground classes; labels outside are 1..num_classes.
        image_size: (least shorter side, greatest longer side) that images are resized to, pixels.
        inference: thresholds; ``topk`` is the number of candidates an image before NMS.
        ignore_regions: boxes inside ``target["ignored_boxes"]`` are neither positive nor negative.
    """

    criterion: StagedCriterion

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        box_pool: MultiScaleRoIAlign,
        stages: Sequence[BoxStage],
        criterion: StagedCriterion,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        inference: PostProcess,
        ignore_regions: bool = True,
    ) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(*image_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.backbone = backbone
        self.rpn = rpn
        self.box_pool = box_pool
        # one stage keeps the names of torchvision's parameters
        self.roi_heads = stages[0] if len(stages) == 1 else nn.ModuleList(stages)
        self.criterion = criterion
        self.stage_names = list(criterion.stages)[1:]
        self.num_classes = num_classes
        self.inference = inference
        self.ignore_regions = ignore_regions
        self.sampled = stages[0].softmax
        self.roi_sampler = BalancedPositiveNegativeSampler(512, 0.25)
        if not self.sampled:
            init_prior_bias(rpn.head.cls_logits)

    @property
    def box_stages(self) -> list[BoxStage]:
        """Stages of the RoI head."""
        heads = self.roi_heads
        return [heads] if isinstance(heads, BoxStage) else [cast(BoxStage, stage) for stage in heads]

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Outcome:
        found, objects = self._propose(images, targets)
        # in training mode boxes are refined for the loss, which has proposals of its own
        return Outcome(found, objects, None if self.training else self._refine(found, found.boxes))

    def _records(self, outcome: Outcome, *, trained: bool) -> list[Assigned]:
        if trained:
            return self._trained(outcome.found, outcome.objects)
        return self._measured(outcome.found, self._refined(outcome), outcome.objects)

    @torch.no_grad()
    def _detections(self, outcome: Outcome, images: list[Tensor]) -> Detections:
        found = outcome.found
        return in_pixels(self._select(found, self._refined(outcome)), found.image_sizes, images)

    def _refined(self, outcome: Outcome) -> list[RoIOutput]:
        return outcome.refined or self._refine(outcome.found, outcome.found.boxes)

    def _propose(self, images: list[Tensor], targets: list[Target] | None) -> tuple[RPNOutput, list[Objects]]:
        batch, resized = self.transform(images, targets)
        return self._proposed(batch, self.backbone(batch.tensors)), [objects_of(t) for t in resized or []]

    def _proposed(self, batch: ImageList, features: dict[str, Tensor]) -> RPNOutput:
        levels = list(features.values())
        logits, deltas = self.rpn.head(levels)
        level_sizes = [x[0].numel() for x in logits]
        # the generator takes shape, device and type from features; bf16 could not tell pixels apart
        like = [at_least_float32(x.new_empty(())).expand(x.shape) for x in levels]
        anchors = self.rpn.anchor_generator(batch, like)
        logits, deltas = (at_least_float32(x) for x in concat_box_prediction_layers(logits, deltas))
        count = len(batch.image_sizes)
        with torch.no_grad():
            proposals = self.rpn.box_coder.decode(deltas, anchors).view(count, -1, 4)
            boxes, _ = self.rpn.filter_proposals(proposals, logits, batch.image_sizes, level_sizes)
        return RPNOutput(
            features,
            batch.image_sizes,
            tuple(batch.tensors.shape[-2:]),
            logits.view(count, -1),
            deltas.view(count, -1, 4),
            anchors,
            boxes,
            level_sizes,
        )

    def _pool(self, pool: MultiScaleRoIAlign, found: RPNOutput, boxes: list[Tensor]) -> Tensor:
        # strides come out exact for the padded size; for an image's own they would be rounded
        return pool(found.features, boxes, [found.padded_size] * len(boxes))

    def _refine(self, found: RPNOutput, boxes: list[Tensor]) -> list[RoIOutput]:
        """Every stage's predictions; each begins with the boxes of the one before, cut off at the images' borders."""
        results: list[RoIOutput] = []
        stages = self.box_stages
        for stage in stages:
            results.append(RoIOutput(boxes, *stage(self._pool(self.box_pool, found, boxes))))
            if stage is not stages[-1]:
                decoded = stage.decode(results[-1])
                boxes = [clip_boxes_to_image(b[:, 0], s) for b, s in zip(decoded, found.image_sizes, strict=True)]
        return results

    @torch.no_grad()
    def _match_anchors(self, found: RPNOutput, objects: list[Objects]) -> list[Tensor]:
        matches = []
        for anchors, image in zip(found.anchors, objects, strict=True):
            match = iou_matches(anchors, image.boxes, found.level_sizes, foreground=0.7, background=0.3)
            matches.append(ignore_inside(match, anchors, image.ignored) if self.ignore_regions else match)
        return matches

    @torch.no_grad()
    def _match_boxes(self, boxes: list[Tensor], objects: list[Objects], foreground: float) -> list[Tensor]:
        matches = []
        for proposals, image in zip(boxes, objects, strict=True):
            match = roi_matches(proposals, image.boxes, foreground=foreground)
            matches.append(ignore_inside(match, proposals, image.ignored) if self.ignore_regions else match)
        return matches

    def _trained(self, found: RPNOutput, objects: list[Objects]) -> list[Assigned]:
        """Records that the loss sees."""
        proposals = self._trained_rpn_record(found, objects)  # samples first, as torchvision does
        refined = self._refine(found, self._training_boxes(found, objects))
        return [proposals, *self._roi_records(found, refined, objects)]

    def _trained_rpn_record(self, found: RPNOutput, objects: list[Objects]) -> Assigned:
        matches = self._match_anchors(found, objects)
        rows = sample(matches, self.rpn.fg_bg_sampler) if self.sampled else None
        return self._rpn_record(found, objects, matches, rows)

    def _training_boxes(self, found: RPNOutput, objects: list[Objects]) -> list[Tensor]:
        """``[k, 4]`` boxes of each image that the RoI head learns from."""
        boxes = [torch.cat([b, o.boxes]) for b, o in zip(found.boxes, objects, strict=True)]
        if self.sampled:
            chosen = sample(self._match_boxes(boxes, objects, self.box_stages[0].foreground), self.roi_sampler)
            boxes = [b[i] for b, i in zip(boxes, chosen, strict=True)]
        return boxes

    def _measured(self, found: RPNOutput, refined: list[RoIOutput], objects: list[Objects]) -> list[Assigned]:
        """Records over everything that is seen at inference; the final one's logits are those that decide there."""
        proposals = self._rpn_record(found, objects, self._match_anchors(found, objects), None)
        refined = [*refined[:-1], replace(refined[-1], logits=mean_logits(refined))]
        return [proposals, *self._roi_records(found, refined, objects)]

    def _rpn_record(
        self, found: RPNOutput, objects: list[Objects], matches: list[Tensor], rows: list[Tensor] | None
    ) -> Assigned:
        logits, deltas, anchors = list(found.logits), list(found.deltas), found.anchors
        if rows is not None:
            matches, logits, deltas, anchors = (
                [x[i] for x, i in zip(values, rows, strict=True)] for values in (matches, logits, deltas, anchors)
            )
        return make_record(
            matches,
            [replace(o, classes=torch.zeros_like(o.classes)) for o in objects],
            anchors,
            torch.cat(logits)[:, None],
            torch.cat(deltas)[:, None],
            self.rpn.box_coder,
            stage="rpn",
            softmax=False,
            averaged=self.sampled,
        )

    def _roi_records(self, found: RPNOutput, refined: list[RoIOutput], objects: list[Objects]) -> list[Assigned]:
        return [
            make_record(
                self._match_boxes(r.references, objects, stage.foreground),
                objects,
                r.references,
                r.logits,
                r.deltas,
                stage.coder,
                stage=name,
                softmax=stage.softmax,
                averaged=self.sampled,
            )
            for name, stage, r in zip(self.stage_names, self.box_stages, refined, strict=True)
        ]

    @torch.no_grad()
    def _select(self, found: RPNOutput, refined: list[RoIOutput]) -> Detections:
        """Detections at the network's input size."""
        last, logits = self.box_stages[-1], mean_logits(refined)
        scores = logits.softmax(-1)[:, :-1] if last.softmax else logits.sigmoid()
        boxes = last.decode(refined[-1])
        each = zip(scores.split([len(b) for b in boxes]), boxes, found.image_sizes, strict=True)
        return [select_refined(s, b, self.inference, size) for s, b, size in each]


def mean_logits(refined: Sequence[RoIOutput]) -> Tensor:
    """``[n, c]`` averaged over the stages, as mmdetection does."""
    return torch.stack([r.logits for r in refined]).mean(0)
