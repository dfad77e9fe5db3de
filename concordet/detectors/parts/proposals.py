"""Parts of two-stage detectors: region proposals, criteria of stages, sampling, records and detections of boxes."""

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

RPN_DEFAULTS = LossDefaults("ce", BoxTerm("smooth_l1"), positive_iou=0.7)
RPN_RANKING_WEIGHT = 0.2


@dataclass(frozen=True)
class RPNOutput:
    """Features of b images, and the region proposal network's predictions on a anchors per image.

    Attributes:
        features: Levels by name, finest first.
        image_sizes: Height and width of each image at the network's input.
        padded_size: Height and width of the batch's tensor.
        logits: ``[b, a]`` objectness.
        deltas: ``[b, a, 4]`` encoded boxes.
        anchors: b tensors ``[a, 4]``.
        boxes: b tensors ``[k, 4]``: the proposals, without gradient.
        level_sizes: Anchors per level.
    """

    features: dict[str, Tensor]
    image_sizes: list[tuple[int, int]]
    padded_size: tuple[int, int]
    logits: Tensor
    deltas: Tensor
    anchors: list[Tensor]
    boxes: list[Tensor]
    level_sizes: list[int]


@dataclass(frozen=True)
class RoIOutput:
    """Predictions of one stage of the RoI head on n boxes of a batch.

    Attributes:
        references: b tensors ``[k, 4]``: the boxes that the stage refines.
        logits: ``[n, c]``; with a softmax ``[n, c + 1]``, background last.
        deltas: ``[n, c or 1, 4]`` encoded boxes, per class or class-agnostic.
    """

    references: list[Tensor]
    logits: Tensor
    deltas: Tensor


def region_proposals(
    channels: int, strides: Sequence[int], criterion: StagedCriterion, *, size: Size, train_post_nms_top_n: int = 1000
) -> RegionProposalNetwork:
    """torchvision's region proposal network as published; nano: two anchor scales from 2.5 strides on, 200 proposals.

    With a ranking loss boxes are coded with weights (10, 10, 5, 5), otherwise 1.

    Args:
        channels: Channels of the features.
        strides: Strides of the levels.
        criterion: Loss of all stages.
        size: ``full`` or ``nano``.
        train_post_nms_top_n: Proposals per image in training if the RoI head learns from all of them (RS Loss); if it
            learns from samples, 2000 are kept to draw from.
    """
    if size == "nano":
        sizes: tuple[tuple[int, ...], ...] = tuple((int(2.5 * s), int(2.5 * s * 2**0.5)) for s in strides)
    else:
        sizes = tuple((8 * s,) for s in strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RPNHead(channels, anchors.num_anchors_per_location()[0])
    nano = size == "nano"
    kept = 200 if nano else 2000 if criterion.needs.samples else train_post_nms_top_n
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

    The region proposal network gets the same base loss, without couplings unless it is a ranking loss, which has weight
    0.2 there.

    Args:
        name: Name of the detector, for error messages.
        loss: A name, a criterion (copied if there are several stages) or a criterion of all stages.
        defaults: Terms that the RoI head was published with.
        weights: Weights of the RoI head's stages by name; all 1 with a ranking loss.

    Raises:
        ValueError: For a loss with an auxiliary head, or a criterion of other stages.
    """
    if isinstance(loss, StagedCriterion):
        if list(loss.stages) != ["rpn", *weights]:
            raise ValueError(f"stages of the criterion must be {['rpn', *weights]} for {name}, got {list(loss.stages)}")
        return loss
    if isinstance(loss, str):
        stages = {stage: build_criterion(loss, defaults) for stage in weights}
    else:
        stages = {stage: copy.deepcopy(loss) if len(weights) > 1 else loss for stage in weights}
    first = next(iter(stages.values()))
    if first.needs.quality_head is not None:
        raise ValueError(f"loss must be without auxiliary head for {name}, got {loss!r}; leave the head out")
    ranks_only = first.needs.ranks_only
    if isinstance(loss, str):
        base = LossName.parse(loss) if ranks_only else LossName.parse(loss).without_extras()
        rpn = build_criterion(base, RPN_DEFAULTS)
    elif ranks_only:
        rpn = Criterion(copy.deepcopy(first.core), couplings=first.couplings, needs=first.needs)
    else:
        rpn = build_criterion("default", RPN_DEFAULTS)
    factors = {"rpn": RPN_RANKING_WEIGHT} if ranks_only else dict(weights)
    return StagedCriterion({"rpn": rpn, **stages}, factors)


def roi_matches(proposals: Tensor, boxes: Tensor, *, foreground: float = 0.5) -> Tensor:
    """Fast R-CNN's assignment: the object of highest IoU, if that is at least ``foreground``.

    Args:
        proposals: ``[n, 4]``.
        boxes: ``[m, 4]`` of the objects.
        foreground: Smallest IoU of a positive, in [0, 1].

    Returns:
        ``[n]`` int64: index of an object, or :data:`~concordet.assigned.BACKGROUND`.
    """
    if len(boxes) == 0 or len(proposals) == 0:
        return torch.full((len(proposals),), BACKGROUND, dtype=torch.int64, device=proposals.device)
    return Matcher(foreground, foreground)(box_iou(boxes, proposals))


def sample(matches: Sequence[Tensor], sampler: BalancedPositiveNegativeSampler) -> list[Tensor]:
    """Per image, indices of a random minibatch of its ``[n_i]`` matches, drawn by torchvision's sampler."""
    labels = [torch.where(m >= 0, 1, torch.where(m == BACKGROUND, 0, -1)) for m in matches]  # torchvision's codes
    return [torch.where(p | n)[0] for p, n in zip(*sampler(labels), strict=True)]


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
        objects: Objects of the images.
        references: ``[n_i, 4]`` per image: anchors or proposals, from which the deltas lead to boxes.
        logits: ``[n, c]``, with ``softmax`` ``[n, c + 1]``.
        deltas: ``[n, c or 1, 4]``.
        coder: Deltas to boxes.
        stage: Name of the stage.
        softmax: The classifier is one softmax over classes and background.
        mean_over_rows: Losses are means over all rows that are used; otherwise they are divided by the positives.
    """
    matching = Matching.of(matches, objects)
    positive_deltas = deltas[matching.positive, matching.classes if deltas.shape[1] > 1 else 0]
    boxes = torch.cat(list(references))[matching.positive]
    return matching.assigned(
        logits,
        coder.decode_single(positive_deltas, boxes),
        regression=Regression(positive_deltas, coder.encode_single(matching.gt_boxes, boxes)),
        stage=stage,
        softmax=softmax,
        mean_over_rows=mean_over_rows,
    )


def select_boxes(
    scores: Tensor, boxes: Tensor, postprocess: PostProcess, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """One image's detections: threshold, best candidates, clip, NMS within classes.

    Args:
        scores: ``[k, c]`` in [0, 1].
        boxes: ``[k, c or 1, 4]``.
        postprocess: Thresholds; ``topk`` candidates per image come before NMS.
        image_size: Height and width, pixels.
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
