"""Forward passes of detectors up to non-maximum suppression, with shapes that do not depend on the values of tensors.

Each module takes ``pixels`` ``[b, 3, H, W]``, normalized images of one size that are padded to the network's strides,
and ``size`` ``[2]``, their height and width without padding. It returns candidates: boxes ``[b, n, 4]`` clipped to the
images, scores ``[b, n]``, negative in padding rows, and classes ``[b, n]`` 0..c-1.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, box_convert, roi_align

from concordet.detectors import Detector
from concordet.detectors.architectures.set_prediction.deformable_detr import DeformableDETR
from concordet.detectors.architectures.set_prediction.detr import DETR
from concordet.detectors.architectures.set_prediction.sparse_rcnn import CODER, SparseRCNN
from concordet.detectors.dense import DenseDetector
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.set_prediction import SetPredictor, class_scores
from concordet.detectors.two_stage import TwoStageDetector
from concordet.export.sizes import VariableSizes
from concordet.export.suppression import best_of, keep_best, rows, suppress
from concordet.losses.functional.reduction import at_least_float32

Candidates = tuple[Tensor, Tensor, Tensor]


def candidates_of(model: Detector, *, operator: bool) -> nn.Module:
    """The module that computes a detector's candidates.

    Args:
        model: Detector in evaluation mode.
        operator: Whether suppression uses :func:`~concordet.export.suppression.suppress` instead of torchvision's
            operator.

    Raises:
        ValueError: the detector belongs to no family that can be exported.
    """
    if isinstance(model, DenseDetector):
        return DenseCandidates(model)
    if isinstance(model, TwoStageDetector):
        return TwoStageCandidates(model, operator=operator)
    if isinstance(model, SparseRCNN):
        return SparseCandidates(model)
    if isinstance(model, DETR | DeformableDETR):
        return TransformerCandidates(model)
    raise ValueError(
        f"detector must be dense, two-stage or a set predictor of concordet, got {type(model).__name__}; export it "
        "with torch.onnx.export"
    )


class DenseCandidates(nn.Module):
    """Candidates of a one-stage detector: the best predictions of each pyramid level, decoded."""

    def __init__(self, model: DenseDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, size: Tensor) -> Candidates:
        """Candidates of a batch; see the module."""
        model, postprocess = self.model, self.model.postprocess
        features = list(model.backbone(pixels).values())
        predictions = model.predict(_image_list(pixels), features)[-1]
        scores, regressions = predictions.scores(), predictions.regressions
        num_classes = scores.shape[2]
        values, indices, start = [], [], 0
        for count in predictions.level_sizes:
            best, index = best_of(scores[:, start : start + count].flatten(1), postprocess.topk)
            values.append(best)
            indices.append(index + start * num_classes)
            start = start + count
        kept, index = torch.cat(values, 1), torch.cat(indices, 1)
        row = torch.div(index, num_classes, rounding_mode="floor")
        boxes = model.codec.decode(rows(regressions, row).flatten(0, 1), rows(predictions.anchors, row).flatten(0, 1))
        boxes = clipped(boxes.unflatten(0, (-1, kept.shape[1])), size)
        return boxes, above(kept, postprocess.score_threshold), index - row * num_classes


class TwoStageCandidates(nn.Module):
    """Candidates of a two-stage detector: proposals, refined by every stage, with their best classes."""

    def __init__(self, model: TwoStageDetector, *, operator: bool) -> None:
        super().__init__()
        self.model = model
        self.operator = operator

    def forward(self, pixels: Tensor, size: Tensor) -> Candidates:
        """Candidates of a batch; see the module."""
        model = self.model
        features = model.backbone(pixels)
        boxes, exists = self._proposals(pixels, features, size)
        stages, logits = model.box_stages, []
        for stage in stages:
            stage_logits, deltas = stage(pooled(model.box_pool, features, boxes))
            logits.append(stage_logits)
            decoded = stage.coder.decode_single(deltas.flatten(1), boxes.flatten(0, 1)).unflatten(1, (-1, 4))
            if stage is not stages[-1]:
                boxes = clipped(decoded[:, 0].unflatten(0, (-1, boxes.shape[1])), size)
        mean = torch.stack(logits).mean(0)
        scores = mean.softmax(-1)[:, :-1] if stages[-1].softmax else mean.sigmoid()
        scores = scores.unflatten(0, (-1, boxes.shape[1])).masked_fill(~exists[..., None], -1.0)
        return best_boxes(
            scores, decoded.unflatten(0, (-1, boxes.shape[1])), model.postprocess, size, exists=exists[..., None]
        )

    def _proposals(self, pixels: Tensor, features: dict[str, Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """``[b, k, 4]`` boxes and ``[b, k]`` whether each is a proposal, as torchvision's ``filter_proposals``."""
        rpn: Any = self.model.rpn
        levels = list(features.values())
        maps, deltas = rpn.head(levels)
        counts = [x.shape[-3] * x.shape[-2] * x.shape[-1] for x in maps]
        anchors = rpn.anchor_generator(_image_list(pixels), levels)[0]
        flat, deltas = concat_box_prediction_layers(maps, deltas)
        logits = at_least_float32(flat).view(pixels.shape[0], -1)
        deltas = at_least_float32(deltas).view(pixels.shape[0], -1, 4)
        scores, indices, groups, start = [], [], [], 0
        for level, count in enumerate(counts):
            best, index = best_of(logits[:, start : start + count], rpn.pre_nms_top_n(), lowest=-torch.inf)
            scores.append(torch.where(best > -torch.inf, positive(best), -1.0))
            indices.append(index + start)
            groups.append(torch.full_like(index, level))
            start = start + count
        values, index = torch.cat(scores, 1), torch.cat(indices, 1)
        regressions = rows(deltas, index).flatten(0, 1)
        boxes = rpn.box_coder.decode_single(regressions, anchors[index.flatten()])
        boxes = clipped(boxes.unflatten(0, (-1, values.shape[1])), size)
        values = values.masked_fill(~larger(boxes, rpn.min_size), -1.0)
        limit = rpn.post_nms_top_n()
        group, threshold = torch.cat(groups, 1), rpn.nms_thresh
        if self.operator:
            kept = suppress(boxes, values, group, threshold, limit, len(counts))
        else:
            kept = keep_best(boxes, values, group, threshold, len(counts))
        best, chosen = best_of(values.masked_fill(~kept, -1.0), limit)
        exists = best >= 0
        return torch.where(exists[..., None], rows(boxes, chosen), 0.0), exists


class SparseCandidates(nn.Module):
    """Candidates of Sparse R-CNN: learned boxes, refined by every stage."""

    def __init__(self, model: SparseRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, size: Tensor) -> Candidates:
        """Candidates of a batch; see the module."""
        model, batch = self.model, pixels.shape[0]
        features = model.backbone(pixels)
        proposals = model.head.init_proposal_features.expand(batch, -1, -1)
        center, extent = model.head.init_proposal_boxes.chunk(2, dim=1)
        corners = torch.cat([center - extent / 2, center + extent / 2], 1) * size.flip(0).repeat(2)
        boxes = corners.expand(batch, -1, -1)
        for stage in model.head.head_series:
            proposals, logits, deltas = stage(proposals, pooled(model.pool, features, boxes))
            decoded = CODER.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1))
            boxes = decoded.unflatten(0, (-1, boxes.shape[1]))
        return best_of_set(model, logits, boxes, size)


class TransformerCandidates(nn.Module):
    """Candidates of DETR and Deformable DETR: predictions of the last decoder layer."""

    def __init__(self, model: DETR | DeformableDETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, size: Tensor) -> Candidates:
        """Candidates of a batch; see the module."""
        network: Any = self.model.network
        height, width = pixels.shape[-2:]
        inside = (torch.arange(height) < size[0])[:, None] & (torch.arange(width) < size[1])[None]
        with VariableSizes():
            out = network.model(pixels, pixel_mask=inside.long().expand(pixels.shape[0], -1, -1))
        if isinstance(self.model, DETR):
            states = out.intermediate_hidden_states[-1]
            logits = at_least_float32(network.class_labels_classifier(states))
            boxes = at_least_float32(network.bbox_predictor(states)).sigmoid()
        else:
            from concordet.detectors.networks.transformers_deformable_detr import layer_predictions

            layers = layer_predictions(
                network,
                out.intermediate_hidden_states,
                out.init_reference_points,
                out.intermediate_reference_points,
            )
            logits, boxes = layers[-1]
        corners = box_convert(boxes * size.flip(0).repeat(2), "cxcywh", "xyxy")
        return best_of_set(self.model, logits, corners, size)


def best_of_set(model: SetPredictor, logits: Tensor, boxes: Tensor, size: Tensor) -> Candidates:
    """Candidates of a set predictor from logits ``[b, k, c]`` and boxes ``[b, k, 4]``."""
    scores = class_scores(logits, softmax=model.criterion.needs.softmax)
    return best_boxes(scores, boxes[:, :, None], model.postprocess, size)


def best_boxes(
    scores: Tensor, boxes: Tensor, postprocess: PostProcess, size: Tensor, *, exists: Tensor | None = None
) -> Candidates:
    """The best pairs of box and class: :func:`concordet.detectors.parts.proposals.select_boxes` without suppression.

    Args:
        scores: ``[b, k, c]``.
        boxes: ``[b, k, c or 1, 4]``.
        postprocess: Thresholds.
        size: ``[2]`` height and width.
        exists: ``[b, k, 1]`` whether each box is a candidate, False in padding rows; None if all are.
    """
    num_classes = scores.shape[2]
    count = min(postprocess.topk, scores.shape[1] * num_classes)
    values, index = scores.flatten(1).topk(count, dim=1)
    row = torch.div(index, num_classes, rounding_mode="floor")
    labels = index - row * num_classes
    own = rows(boxes.flatten(1, 2), row if boxes.shape[2] == 1 else index)
    own = clipped(own, size)
    values = values.masked_fill(~larger(own, 1e-2), -1.0)
    return own, above(values, postprocess.score_threshold), labels


def pooled(pool: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """``[b * k, channels, h, w]`` features of boxes ``[b, k, 4]``; the pool must have seen a batch before.

    torchvision's module takes a list of boxes per image, which fixes the number of images.
    """
    images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None, None]
    rois = torch.cat([images.expand(-1, boxes.shape[1], 1), boxes], 2).flatten(0, 1)
    maps = [x for name, x in features.items() if name in pool.featmap_names]
    scales = cast("list[float]", pool.scales)  # None before the first batch, like map_levels
    level_of = cast(Any, pool.map_levels)([boxes.flatten(0, 1)])
    result = boxes.new_zeros((rois.shape[0], maps[0].shape[1], *pool.output_size))
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        own = torch.where(level_of == level)[0]
        values = roi_align(x, rois[own], pool.output_size, spatial_scale=scale, sampling_ratio=pool.sampling_ratio)
        result = result.index_put((own,), values)
    return result


def positive(logits: Tensor) -> Tensor:
    """Positive values in the order of the logits, for suppression.

    Sigmoids would not do: ONNX Runtime's is the same for all logits below -18, as those of most proposals may be.

    Example:
        >>> positive(torch.tensor([-30.0, -20.0, 0.0, 20.0]))
        tensor([ 0.0323,  0.0476,  1.0000, 21.0000])
    """
    return torch.where(logits > 0, 1 + logits, 1 / (1 - logits.clamp(max=0)))


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` clipped to images of ``size`` (height, width)."""
    return torch.minimum(boxes.clamp(min=0.0), size.flip(0).repeat(2))


def larger(boxes: Tensor, side: float) -> Tensor:
    """``[b, n]``: whether both sides of each box have at least length ``side``."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Scores, with -1 for those not above the threshold."""
    return torch.where(scores > threshold, scores, -1.0)


def _image_list(pixels: Tensor) -> ImageList:
    # Anchors depend on the padded size alone, so one size stands for all images of the batch.
    return ImageList(pixels, [(pixels.shape[-2], pixels.shape[-1])])
