"""Two-stage detectors: one forward pass, from images to proposals, boxes, records, losses and detections.

Faster, Cascade and Mask R-CNN differ in what they pass in: stages of the RoI head, and a mask branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from concordet.assigned import Assigned
from concordet.detectors.base import Detections, Detector, Target, in_pixels
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.parts.assigners import ignore_inside, iou_matches
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.proposals import (
    RoIOutput,
    RPNOutput,
    make_record,
    roi_matches,
    sample,
    select_boxes,
)
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import StagedCriterion
from concordet.losses.functional.reduction import at_least_float32


class BoxStage(nn.Module):
    """One stage of the RoI head: pooled features to class logits and box deltas.

    Args:
        box_head: ``[n, channels, h, w]`` to ``[n, width]``.
        box_predictor: ``[n, width]`` to class logits and deltas, in torchvision's order: with softmax the background
            comes first, and in class-specific regression has deltas too.
        coder: Deltas to boxes.
        foreground: Smallest IoU of a positive, in [0, 1].
        softmax: The classifier is one softmax over classes and background.
    """

    def __init__(
        self,
        box_head: nn.Module,
        box_predictor: FastRCNNPredictor,
        coder: BoxCoder,
        *,
        foreground: float,
        softmax: bool,
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.coder = coder
        self.foreground = foreground
        self.softmax = softmax
        if not softmax:
            init_prior_bias(box_predictor.cls_score)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, c]`` logits (with softmax ``[n, c + 1]``, background last) and ``[n, c or 1, 4]`` deltas."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        deltas = deltas.unflatten(1, (-1, 4))
        if self.softmax:
            logits = logits.roll(-1, dims=1)
            deltas = deltas[:, 1:] if deltas.shape[1] > 1 else deltas
        return at_least_float32(logits), at_least_float32(deltas)

    @torch.no_grad()
    def decode(self, output: RoIOutput) -> list[Tensor]:
        """``[k, c or 1, 4]`` boxes of each image, without gradient."""
        boxes = self.coder.decode_single(output.deltas.flatten(1), torch.cat(output.references))
        return list(boxes.unflatten(1, (-1, 4)).split([len(b) for b in output.references]))


class TwoStageHead(nn.Module):
    """A two-stage detector without backbone and image transform: features to proposals, boxes and records.

    Losses that need samples (cross entropy and Harmonic loss of a softmax) are means over random minibatches of 256
    anchors (at most half of them positive) and 512 proposals (a quarter) per image, as in torchvision. Losses with one
    sigmoid per class weight negatives themselves and are computed on every anchor and every proposal.

    Args:
        rpn: torchvision's region proposal network.
        box_pool: Features and boxes to ``[n, channels, h, w]``.
        stages: Stages of the RoI head by name; each refines the boxes of the one before it, and their logits are
            averaged.
        postprocess: Thresholds; ``topk`` candidates per image come before NMS.
        sampled: Whether losses are computed on random minibatches: the criterion's ``needs.samples``.
    """

    def __init__(
        self,
        rpn: RegionProposalNetwork,
        box_pool: MultiScaleRoIAlign,
        stages: Mapping[str, BoxStage],
        *,
        postprocess: PostProcess,
        sampled: bool,
    ) -> None:
        super().__init__()
        self.rpn = rpn
        self.box_pool = box_pool
        self.stage_names: list[str] = list(stages)
        # not in a list if it is the only one: parameters then have the names of torchvision's
        heads = list(stages.values())
        self.roi_heads: BoxStage | nn.ModuleList = heads[0] if len(heads) == 1 else nn.ModuleList(heads)
        self.postprocess = postprocess
        self.sampled = sampled
        self.roi_sampler = BalancedPositiveNegativeSampler(512, 0.25)
        if not sampled:
            init_prior_bias(rpn.head.cls_logits)

    @property
    def box_stages(self) -> list[BoxStage]:
        """Stages of the RoI head."""
        heads = self.roi_heads
        return [heads] if isinstance(heads, BoxStage) else [s for s in heads if isinstance(s, BoxStage)]

    def propose(self, batch: ImageList, features: dict[str, Tensor]) -> RPNOutput:
        """Predictions of the region proposal network, and the proposals selected from them.

        Args:
            batch: Images at the network's input size.
            features: ``[b, channels, h, w]`` per level, finest first.
        """
        levels = list(features.values())
        logits, deltas = self.rpn.head(levels)
        level_sizes = [x[0].numel() for x in logits]
        # the generator takes shape, device and dtype from features; bf16 has too few digits for pixels
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

    def pool(self, pooler: MultiScaleRoIAlign, rpn: RPNOutput, boxes: list[Tensor]) -> Tensor:
        """``[n, channels, h, w]`` features of ``[n_i, 4]`` boxes per image."""
        # the pooler derives strides from the size: from the padded one they are exact, from an image's own rounded
        return pooler(rpn.features, boxes, [rpn.padded_size] * len(boxes))

    def refine(self, rpn: RPNOutput, boxes: list[Tensor]) -> list[RoIOutput]:
        """Predictions of every stage; each refines the boxes of the one before, clipped to the images.

        Args:
            rpn: Features of the images.
            boxes: ``[n_i, 4]`` per image, which the first stage refines.
        """
        results: list[RoIOutput] = []
        stages = self.box_stages
        for stage in stages:
            results.append(RoIOutput(boxes, *stage(self.pool(self.box_pool, rpn, boxes))))
            if stage is not stages[-1]:
                decoded = stage.decode(results[-1])
                boxes = [clip_boxes_to_image(b[:, 0], s) for b, s in zip(decoded, rpn.image_sizes, strict=True)]
        return results

    def training_records(self, rpn: RPNOutput, objects: Objects) -> tuple[list[Assigned], list[RoIOutput]]:
        """Records for the loss, of anchors and of each stage's boxes (sampled or all), and the stages' outputs."""
        matches = self.match_anchors(rpn, objects)
        proposals = self.rpn_record(
            rpn, objects, matches, sample(matches, self.rpn.fg_bg_sampler) if self.sampled else None
        )
        rois = self.refine(rpn, self._training_boxes(rpn, objects))
        return [proposals, *self.roi_records(rpn, rois, objects)], rois

    def inference_records(self, rpn: RPNOutput, rois: list[RoIOutput], objects: Objects) -> list[Assigned]:
        """Records of everything that inference uses; the final one has the averaged logits that scores come from."""
        proposals = self.rpn_record(rpn, objects, self.match_anchors(rpn, objects))
        rois = [*rois[:-1], replace(rois[-1], logits=mean_logits(rois))]
        return [proposals, *self.roi_records(rpn, rois, objects)]

    def _training_boxes(self, rpn: RPNOutput, objects: Objects) -> list[Tensor]:
        """``[k, 4]`` boxes per image that the RoI head is trained on."""
        boxes = [torch.cat(pair) for pair in zip(rpn.boxes, objects.boxes, strict=True)]
        if self.sampled:
            chosen = sample(self.match_boxes(boxes, objects, self.box_stages[0].foreground), self.roi_sampler)
            boxes = [b[i] for b, i in zip(boxes, chosen, strict=True)]
        return boxes

    @torch.no_grad()
    def match_anchors(self, rpn: RPNOutput, objects: Objects) -> list[Tensor]:
        """``[a]`` per image: index of each anchor's object, or a label without object."""
        return [
            ignore_inside(
                iou_matches(anchors, boxes, rpn.level_sizes, foreground=0.7, background=0.3), anchors, ignored
            )
            for anchors, boxes, ignored in zip(rpn.anchors, objects.boxes, objects.ignored, strict=True)
        ]

    @torch.no_grad()
    def match_boxes(self, boxes: list[Tensor], objects: Objects, foreground: float) -> list[Tensor]:
        """``[n_i]`` per image: index of each box's object, or a label without object."""
        return [
            ignore_inside(roi_matches(proposals, gt_boxes, foreground=foreground), proposals, ignored)
            for proposals, gt_boxes, ignored in zip(boxes, objects.boxes, objects.ignored, strict=True)
        ]

    def rpn_record(
        self, rpn: RPNOutput, objects: Objects, matches: list[Tensor], rows: list[Tensor] | None = None
    ) -> Assigned:
        """The record ``rpn`` of anchors: of those in ``rows`` per image, or of all."""
        logits, deltas, anchors = list(rpn.logits), list(rpn.deltas), rpn.anchors
        if rows is not None:
            matches, logits, deltas, anchors = (
                [x[i] for x, i in zip(values, rows, strict=True)] for values in (matches, logits, deltas, anchors)
            )
        return make_record(
            matches,
            objects.class_agnostic(),
            anchors,
            torch.cat(logits)[:, None],
            torch.cat(deltas)[:, None],
            self.rpn.box_coder,
            stage="rpn",
            softmax=False,
            mean_over_rows=self.sampled,
        )

    def roi_records(self, rpn: RPNOutput, rois: list[RoIOutput], objects: Objects) -> list[Assigned]:
        """One record per stage of the RoI head."""
        return [
            make_record(
                self.match_boxes(r.references, objects, stage.foreground),
                objects,
                r.references,
                r.logits,
                r.deltas,
                stage.coder,
                stage=name,
                softmax=stage.softmax,
                mean_over_rows=self.sampled,
            )
            for name, stage, r in zip(self.stage_names, self.box_stages, rois, strict=True)
        ]

    @torch.no_grad()
    def select(self, rpn: RPNOutput, rois: list[RoIOutput]) -> Detections:
        """Detections at the network's input size."""
        last, logits = self.box_stages[-1], mean_logits(rois)
        scores = logits.softmax(-1)[:, :-1] if last.softmax else logits.sigmoid()
        boxes = last.decode(rois[-1])
        each = zip(scores.split([len(b) for b in boxes]), boxes, rpn.image_sizes, strict=True)
        return [select_boxes(s, b, self.postprocess, size) for s, b, size in each]


@dataclass(frozen=True)
class TwoStageOutcome:
    """A forward pass; ``rois`` has the outputs for all proposals, None if they were not needed."""

    rpn: RPNOutput
    objects: Objects
    rois: list[RoIOutput] | None


class TwoStageDetector(TwoStageHead, Detector):
    """A two-stage detector in torchvision's convention.

    Records are named ``rpn`` and after the RoI head's stages. In training the objects' own boxes are added to the
    proposals; in evaluation mode the records of :meth:`assigned` have all proposals of inference.

    Args:
        backbone: Features; has ``out_channels``.
        rpn: torchvision's region proposal network.
        box_pool: Features and boxes to ``[n, channels, h, w]``.
        stages: Stages of the RoI head.
        criterion: Loss; its stages are ``rpn`` and the RoI head's.
        num_classes: Foreground classes; labels outside are 1..num_classes.
        resize: How images are resized for the network.
        postprocess: Thresholds; ``topk`` candidates per image come before NMS.
        ignore_regions: Boxes inside ``target["ignored_boxes"]`` are neither positive nor negative.
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
        resize: Resize,
        postprocess: PostProcess,
        ignore_regions: bool = True,
    ) -> None:
        named = dict(zip(list(criterion.stages)[1:], stages, strict=True))
        super().__init__(rpn, box_pool, named, postprocess=postprocess, sampled=criterion.needs.samples)
        self.backbone = backbone
        self._set_up(criterion, num_classes=num_classes, resize=resize, ignore_regions=ignore_regions)

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> TwoStageOutcome:
        batch, resized = self.transform(images, targets)
        rpn = self.propose(batch, self.backbone(batch.tensors))
        objects = Objects.from_targets(resized or [], ignore_regions=self.ignore_regions)
        # the loss has its own proposals in training mode, and refines those
        return TwoStageOutcome(rpn, objects, None if self.training else self.refine(rpn, rpn.boxes))

    def _records(self, outcome: TwoStageOutcome, *, trained: bool) -> list[Assigned]:
        if trained:
            return self.training_records(outcome.rpn, outcome.objects)[0]
        return self.inference_records(outcome.rpn, self._rois(outcome), outcome.objects)

    @torch.no_grad()
    def _detections(self, outcome: TwoStageOutcome, images: list[Tensor]) -> Detections:
        rpn = outcome.rpn
        return in_pixels(self.select(rpn, self._rois(outcome)), rpn.image_sizes, images)

    def _rois(self, outcome: TwoStageOutcome) -> list[RoIOutput]:
        return outcome.rois or self.refine(outcome.rpn, outcome.rpn.boxes)


def mean_logits(rois: Sequence[RoIOutput]) -> Tensor:
    """``[n, c]`` logits averaged over the stages, as in mmdetection."""
    return torch.stack([r.logits for r in rois]).mean(0)
