"""What two-stage detectors share below the detector: proposals, sampling, and records of boxes refined from others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes

from concordet.assigned import BACKGROUND, Assigned, Regression
from concordet.detectors.networks.backbones import Size
from concordet.detectors.parts.objects import Matching, Objects
from concordet.detectors.parts.postprocess import PostProcess, suppress
from concordet.losses.criteria import BoxTerm, Criterion, LossDefaults, LossName, StagedCriterion, build_criterion

RPN_USUAL = LossDefaults("ce", BoxTerm("smooth_l1"), positive_iou=0.7)
RPN_RANKING_WEIGHT = 0.2


@dataclass(frozen=True)
class RPNOutput:
    """A batch's features and what the region proposal network made of them."""

    features: dict[str, Tensor]
    image_sizes: list[tuple[int, int]]
    padded_size: tuple[int, int]
    logits: Tensor  # [b, a]
    deltas: Tensor  # [b, a, 4]
    anchors: list[Tensor]  # b times [a, 4]
    boxes: list[Tensor]  # b times [k, 4], without gradient
    level_sizes: list[int]


@dataclass(frozen=True)
class RoIOutput:
    """What one stage of the RoI head made of boxes: n over the batch."""

    references: list[Tensor]  # b times [k, 4]
    logits: Tensor  # [n, c] or, with softmax, [n, c + 1]
    deltas: Tensor  # [n, c or 1, 4]


def region_proposals(
    channels: int, strides: Sequence[int], criterion: StagedCriterion, *, size: Size, unsampled: int = 1000
) -> RegionProposalNetwork:
    """torchvision's RPN as published; nano: two anchor scales from 2.5 strides on, 200 proposals.

    Where RoI heads learn from samples, there are 2000 proposals an image to draw from; else they learn from all of
    ``unsampled``, as RS Loss does.  With a ranking loss boxes are coded with weights (10, 10, 5, 5), otherwise 1.
    """
    if size == "nano":
        sizes: tuple[tuple[int, ...], ...] = tuple((int(2.5 * s), int(2.5 * s * 2**0.5)) for s in strides)
    else:
        sizes = tuple((8 * s,) for s in strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RPNHead(channels, anchors.num_anchors_per_location()[0])
    nano = size == "nano"
    kept = 200 if nano else 2000 if criterion.needs.samples else unsampled
    rpn = RegionProposalNetwork(
        anchors, head, 0.7, 0.3, 256, 0.5,
        {"training": 500 if nano else 2000, "testing": 500 if nano else 1000},
        {"training": kept, "testing": min(kept, 1000)},
        0.7,
    )  # fmt: skip
    if criterion.needs.ranks_only:
        rpn.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    return rpn


def staged_criterion(
    name: str, loss: str | Criterion | StagedCriterion, defaults: LossDefaults, weights: Mapping[str, float]
) -> StagedCriterion:
    """One criterion for the region proposal network and one for each stage of the RoI head, from one loss.

    The network of proposals gets the same base loss: with a ranking one its couplings too, and weight 0.2.

    Args:
        name: the detector's, for messages.
        loss: a name, a criterion (copied where there are several stages) or a criterion for all stages.
        defaults: the RoI head's published terms.
        weights: of the stages of the RoI head; 1 each with a ranking loss.

    Raises:
        ValueError: for an auxiliary head, or a criterion of other stages.
    """
    if isinstance(loss, StagedCriterion):
        if list(loss.stages) != ["rpn", *weights]:
            raise ValueError(f"{name} has the stages {['rpn', *weights]}, the criterion has {list(loss.stages)}")
        return loss
    if isinstance(loss, str):
        stages = {stage: build_criterion(loss, defaults) for stage in weights}
    else:
        stages = {stage: copy.deepcopy(loss) if len(weights) > 1 else loss for stage in weights}
    first = next(iter(stages.values()))
    if first.needs.quality_head is not None:
        raise ValueError(f"{name} has no auxiliary head, which loss {loss!r} would train; leave it away")
    ranks_only = first.needs.ranks_only
    if isinstance(loss, str):
        base = LossName.parse(loss) if ranks_only else LossName.parse(loss).without_extras()
        rpn = build_criterion(base, RPN_USUAL)
    elif ranks_only:
        rpn = Criterion(copy.deepcopy(first.core), couplings=first.couplings, needs=first.needs)
    else:
        rpn = build_criterion("default", RPN_USUAL)
    factors = {"rpn": RPN_RANKING_WEIGHT} if ranks_only else dict(weights)
    return StagedCriterion({"rpn": rpn, **stages}, factors)


def roi_matches(proposals: Tensor, boxes: Tensor, *, foreground: float = 0.5) -> Tensor:
    """Fast R-CNN's: the object of greatest IoU, where that is at least ``foreground``; ``[n]`` as in ``matching``."""
    if len(boxes) == 0 or len(proposals) == 0:
        return torch.full((len(proposals),), BACKGROUND, dtype=torch.int64, device=proposals.device)
    return Matcher(foreground, foreground)(box_iou(boxes, proposals))


def sample(matches: Sequence[Tensor], sampler: BalancedPositiveNegativeSampler) -> list[Tensor]:
    """Indices of a random minibatch of each image, by torchvision's sampler (and with its draws)."""
    kinds = [torch.where(m >= 0, 1, torch.where(m == BACKGROUND, 0, -1)) for m in matches]
    return [torch.where(p | n)[0] for p, n in zip(*sampler(kinds), strict=True)]


def make_record(
    matches: Sequence[Tensor],
    objects: Objects,
    references: Sequence[Tensor],
    logits: Tensor,
    deltas: Tensor,
    coder: BoxCoder,
    *,
    stage: str,
    softmax: bool,
    mean_over_rows: bool,
) -> Assigned:
    """One stage's predictions on boxes, with the objects that the boxes are matched to.

    Args:
        matches: ``[n_i]`` per image: index of its object in the image, or a label without object.
        objects: Those of the images.
        references: ``[n_i, 4]`` per image: anchors or proposals, from which the deltas lead to boxes.
        logits: ``[n, c]``, with ``softmax`` ``[n, c + 1]``.
        deltas: ``[n, c or 1, 4]``.
        coder: Deltas to boxes.
        stage: Name of the stage.
        softmax: The classifier is one softmax over classes and background.
        mean_over_rows: Losses are means over all rows that are used; otherwise they are divided by the positives.
    """
    matching = Matching.of(matches, objects)
    own = deltas[matching.positive, matching.classes if deltas.shape[1] > 1 else 0]
    boxes = torch.cat(list(references))[matching.positive]
    return matching.assigned(
        logits,
        coder.decode_single(own, boxes),
        regression=Regression(own, coder.encode_single(matching.gt_boxes, boxes)),
        stage=stage,
        softmax=softmax,
        mean_over_rows=mean_over_rows,
    )


def select_refined(
    scores: Tensor, boxes: Tensor, postprocess: PostProcess, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """One image's detections: threshold, best candidates, clip, NMS within classes.

    Args:
        scores: ``[k, c]`` in [0, 1].
        boxes: ``[k, c or 1, 4]``.
        postprocess: thresholds; ``topk`` candidates an image come before NMS.
        image_size: height and width, pixels.
    """
    num_classes = scores.shape[1]
    flat = scores.flatten()
    above = torch.nonzero(flat > postprocess.score_threshold).squeeze(1)
    index = above[flat[above].topk(min(postprocess.topk, len(above))).indices]
    rows, labels = index // num_classes, index % num_classes
    candidates = clip_boxes_to_image(boxes[rows, labels if boxes.shape[1] > 1 else 0], image_size)
    large = remove_small_boxes(candidates, 1e-2)
    candidates, labels, kept = candidates[large], labels[large], flat[index[large]]
    return suppress(candidates, kept, labels, postprocess)[0]
