"""Co-DETR (Zong et al. 2023): Deformable DETR with auxiliary one-to-many heads; with RS Loss BRS-DETR."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import Assigned, Regression
from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.dense import atss
from concordet.detectors.architectures.set_prediction.auxiliary_heads import (
    MAX_QUERIES,
    AuxiliaryHeads,
    Positives,
    QueryMaker,
)
from concordet.detectors.architectures.set_prediction.deformable_detr import (
    DEFAULTS,
    DeformableDETR,
    build_network,
    deformable_detr_options,
    stage_names,
)
from concordet.detectors.architectures.set_prediction.detection_transformer import costs_for, to_pixels
from concordet.detectors.networks.backbones import Size, features
from concordet.detectors.parts.hungarian import in_units
from concordet.detectors.parts.objects import Matching
from concordet.detectors.parts.proposals import staged_criterion
from concordet.detectors.parts.targets import Target
from concordet.detectors.set_prediction import POSTPROCESS, Outcome, per_layer_criterion
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion, build_criterion
from concordet.losses.criteria.box import BoxTerm

if TYPE_CHECKING:
    from transformers import DeformableDetrForObjectDetection

RCNN_DEFAULTS = LossDefaults("ce", BoxTerm("giou", weight=10.0), softmax=True)
HEADS = ("rcnn", "atss")
WEIGHT = 12.0
RANKING_WEIGHT = 5.0


def co_detr_options(size: Size) -> dict[str, Any]:
    """The detector's own options and their defaults."""
    shape = deformable_detr_options(size)
    return {"num_queries": shape["num_queries"], "layers": shape["layers"], "auxiliary": True}


def query_stages(layers: int) -> list[str]:
    """Names of the stages of the extra queries, head by head."""
    return [f"{head}_{name}" for head in HEADS for name in stage_names(layers, False)]


def co_detr_criterion(
    loss: str | Criterion | StagedCriterion, *, layers: int, auxiliary: bool, **_: Any
) -> StagedCriterion:
    """One criterion per term of the total loss: auxiliary heads, extra queries, encoder and decoder layers.

    The total is the sum over layers l of L_dec,l + lambda_1 sum_k L_extra,k,l + lambda_2 sum_k L_aux,k (thesis
    Eq. 3.54), with K = 2 auxiliary heads, lambda_1 = 1, and 12 (5 with ranking losses) for the sum of lambda_2 over the
    layers. L_dec and L_extra are weighted sums of classification, L1 and GIoU (Eq. 3.55; weights 2, 5 and 2 in
    Co-DETR's code); with ranking losses L1 and GIoU are scaled to the value of the classification term (Eq. 3.56). The
    auxiliary heads have the same loss in their own form: with the default focal loss and centerness (ATSS), cross
    entropy and GIoU with weight 10 (Faster R-CNN); with ranking losses the terms of the proposals have a fifth of the
    heads' weight, as in RS Loss.

    Raises:
        ValueError: for a loss with an auxiliary quality head, or a criterion with other stages.
    """
    decoder = stage_names(layers, two_stage=True)
    if isinstance(loss, StagedCriterion):
        every = ["rpn", "roi", "atss", *query_stages(layers)] if auxiliary else []
        return per_layer_criterion("co_detr", loss, DEFAULTS, [*every, *decoder])
    if not auxiliary:
        return per_layer_criterion("co_detr", loss, DEFAULTS, decoder)
    sets = per_layer_criterion("co_detr", loss, DEFAULTS, [*query_stages(layers), *decoder])
    rcnn = staged_criterion("co_detr", loss, RCNN_DEFAULTS, {"roi": 1.0})
    dense = build_criterion(loss, atss.DEFAULTS) if isinstance(loss, str) else copy.deepcopy(loss)
    weight = RANKING_WEIGHT if sets.needs.ranks_only else WEIGHT
    weights = {name: weight * rcnn.weights.get(name, 1.0) for name in rcnn.stages}
    stages = {**rcnn.stages, "atss": dense, **sets.stages}
    return StagedCriterion(stages, {**weights, "atss": weight})


def co_detr(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    num_queries: int,
    layers: int,
    auxiliary: bool,
    **settings: Any,
) -> CoDETR:
    """Co-Deformable-DETR: two-stage Deformable DETR with box refinement, and auxiliary ATSS and Faster R-CNN.

    Follows the authors' code: 300 queries, six layers of 256 channels. At ResNet-50 and 80 classes it has 62.3 M
    parameters in training and 41.2 M parameters for inference, as two-stage Deformable DETR. Departures: the auxiliary
    heads are those of this package, where proposals have three anchors per location instead of nine and smooth L1 for
    boxes; images with fewer positives than others get masked queries instead of random negatives, an option of the
    authors' code; encoder and decoder are Deformable DETR's, without mixed selection and look forward twice, with
    1024 instead of 2048 channels in feed-forward layers and dropout. Nano: 50 queries, two layers of 128 channels,
    2.9 M parameters at 80 classes.

    Args:
        criterion: Criterion with all stages.
        num_classes: Number of foreground classes.
        size: Size of the network.
        backbone: Name for :func:`~concordet.detectors.networks.backbones.features`; the thesis uses ``"swin_t"`` and
            ``"swin_l"``.
        pretrained: Whether weights will be loaded.
        num_queries: Number of queries, the most detections per image.
        layers: Number of encoder layers, and of decoder layers.
        auxiliary: Whether to train the auxiliary heads and queries from their positives; False is a Deformable DETR,
            which loads weights trained with them.
        **settings: Arguments of the detector.

    Raises:
        ValueError: if ``num_queries`` is less than 1, or Transformers is not installed.
    """
    maps = features(size, backbone, pretrained=pretrained)
    network = build_network(
        maps, num_classes=num_classes, size=size, num_queries=num_queries, layers=layers,
        box_refine=True, two_stage=True, costs=costs_for(criterion),
    )  # fmt: skip
    heads = None
    if auxiliary:
        levels = [maps.strides[0] * 2**i for i in range(network.config.num_feature_levels)]
        channels = network.config.d_model
        heads = AuxiliaryHeads(channels, levels, criterion, num_classes=num_classes, size=size)
    return CoDETR(network, heads, criterion, num_classes=num_classes, **settings)


@dataclass(frozen=True)
class CoOutcome(Outcome):
    """A forward pass, with the inputs of the auxiliary heads and their queries."""

    batch: ImageList
    decoding: dict[str, Any]  # arguments of the decoder


class CoDETR(DeformableDETR):
    """Co-DETR in torchvision's convention.

    Records are named ``rpn``, ``roi`` and ``atss`` (auxiliary heads), ``rcnn_layer1``, ``atss_layer1`` and so on (extra
    queries of each decoder layer, whose objects are those of the heads' positives), ``encoder``, ``layer1`` and so on.
    Outside of training there are only ``encoder`` and the decoder layers.

    Args:
        network: Transformers' model with two stages.
        heads: Auxiliary heads; None for a detector without them.
        criterion: Loss.
        **settings: Arguments of :class:`~concordet.detectors.set_prediction.SetPredictor`.
    """

    def __init__(
        self,
        network: DeformableDetrForObjectDetection,
        heads: AuxiliaryHeads | None,
        criterion: StagedCriterion,
        **settings: Any,
    ) -> None:
        super().__init__(network, criterion, **settings)
        self.heads = heads
        self.queries: nn.ModuleDict = nn.ModuleDict(
            {name: QueryMaker(network.config.d_model) for name in HEADS} if heads else {}
        )

    def _outcome(self, batch: ImageList, targets: list[Target]) -> Outcome:
        from concordet.detectors.networks.transformers_base import calls_of

        with calls_of(self.network.model.decoder) as calls:
            outcome = super()._outcome(batch, targets)
        return CoOutcome(**vars(outcome), batch=batch, decoding=calls[0])

    def _records(self, outcome: Outcome, *, trained: bool) -> list[Assigned]:
        records = super()._records(outcome, trained=trained)
        if not trained or self.heads is None or not isinstance(outcome, CoOutcome):
            return records
        memory, shapes = (outcome.decoding[key] for key in ("encoder_hidden_states", "spatial_shapes_list"))
        head_records, positives = self.heads(outcome.batch, memory, shapes, outcome.objects)
        return [*head_records, *self._query_records(outcome, positives), *records]

    def _query_records(self, outcome: CoOutcome, positives: dict[str, Positives]) -> list[Assigned]:
        """One record per head and decoder layer, of queries made from the head's positives.

        The queries of all heads go through the decoder at once; each attends only to those of its own head and image.
        """
        groups = [Queries(p, outcome.sizes) for p in positives.values()]
        boxes = torch.cat([g.padded(g.boxes) for g in groups], 1)
        owners = torch.cat([g.padded(torch.full_like(g.slots, k + 1)) for k, g in enumerate(groups)], 1)
        queries = [
            self.queries[name](g.padded(self._embedded(g.boxes)), g.padded(g.features))
            for name, g in zip(positives, groups, strict=True)
        ]
        positions, contents = (torch.cat(list(tensors), 1) for tensors in zip(*queries, strict=True))
        layers = self._decoded(outcome.decoding, boxes, positions, contents, owners)
        records, start = [], 0
        for name, g in zip(positives, groups, strict=True):
            rows = (g.record.image_ids[g.kept], start + g.slots)
            for i, (logits, decoded) in enumerate(layers, 1):
                pixels = to_pixels(decoded, outcome.sizes)
                records.append(g.stage(f"{name}_layer{i}", logits[rows], pixels[rows]))
            start += g.max_slots
        return records

    def _embedded(self, boxes: Tensor) -> Tensor:
        """``[p, 2 d]`` sines and cosines of boxes ``[p, 4]`` in units of the image."""
        from concordet.detectors.networks.transformers_deformable_detr import inverse_sigmoid

        embedded = self.network.model.get_proposal_pos_embed(inverse_sigmoid(boxes)[None])[0]
        return embedded.to(boxes.dtype)  # Transformers computes in float32

    def _decoded(
        self, decoding: dict[str, Any], boxes: Tensor, positions: Tensor, contents: Tensor, owners: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits ``[b, q, c]`` and boxes ``[b, q, 4]`` per decoder layer; queries attend to those of the same owner."""
        from concordet.detectors.networks.transformers_deformable_detr import layer_predictions

        separate = owners[:, :, None] != owners[:, None, :]
        mask = torch.zeros_like(separate, dtype=contents.dtype)
        mask = mask.masked_fill(separate, torch.finfo(mask.dtype).min)
        out = self.network.model.decoder(
            **{
                **decoding,
                "inputs_embeds": contents,
                "object_queries_position_embeddings": positions,
                "reference_points": boxes,
                "attention_mask": mask[:, None],
            }
        )
        hidden, refined = out.intermediate_hidden_states, out.intermediate_reference_points
        return layer_predictions(self.network, hidden, boxes, refined)


class Queries:
    """A head's positives as queries: at most :data:`MAX_QUERIES` random ones per image, each with a slot.

    Args:
        positives: Positives of the head, p of them.
        sizes: Height and width of each image, pixels.
    """

    def __init__(self, positives: Positives, sizes: Sequence[tuple[int, int]]) -> None:
        self.record: Assigned
        self.count: int
        self.record, self.count = positives.record, len(sizes)
        self.kept: Tensor = sample_per_image(self.record.image_ids, MAX_QUERIES)
        images = self.record.image_ids[self.kept]
        self.slots: Tensor = index_in_image(images)
        # one empty query if there are no positives
        self.max_slots: int = max(int(images.bincount(minlength=1).max()), 1)
        self.extents: Tensor = positives.boxes.new_tensor([[w, h, w, h] for h, w in sizes])[images]
        self.boxes: Tensor = in_units(positives.boxes[self.kept], self.extents, "cxcywh")
        self.features: Tensor = positives.features[self.kept]

    def padded(self, values: Tensor) -> Tensor:
        """``[b, max_slots, ...]`` from ``[k, ...]``, with zeros where an image has fewer."""
        empty = values.new_zeros(self.count, self.max_slots, *values.shape[1:])
        return empty.index_put((self.record.image_ids[self.kept], self.slots), values)

    def stage(self, name: str, logits: Tensor, boxes: Tensor) -> Assigned:
        """The record of predictions ``[k, c]`` and ``[k, 4]``, pixels, for these queries."""
        record = self.record
        matching = Matching(
            record.labels[record.positive[self.kept]],
            torch.arange(len(self.kept), device=logits.device),
            record.gt_ids[self.kept],
            record.image_ids[self.kept],
            record.gt_boxes[self.kept],
        )
        regression = Regression(*(in_units(b, self.extents, "cxcywh") for b in (boxes, matching.gt_boxes)))
        return matching.assigned(logits, boxes, regression=regression, stage=name)


def index_in_image(image_ids: Tensor) -> Tensor:
    """``[p]`` number of earlier entries of the same image, for ascending ``image_ids`` ``[p]``.

    Example:
        >>> index_in_image(torch.tensor([0, 0, 2, 2, 2])).tolist()
        [0, 1, 0, 1, 2]
    """
    counts = image_ids.bincount()
    first = counts.cumsum(0) - counts
    return torch.arange(len(image_ids), device=image_ids.device) - first[image_ids]


def sample_per_image(image_ids: Tensor, count: int) -> Tensor:
    """Ascending indices of at most ``count`` entries per image, random ones of images with more."""
    order = torch.randperm(len(image_ids), device=image_ids.device)
    order = order[image_ids[order].argsort(stable=True)]
    return order[index_in_image(image_ids[order]) < count].sort().values


ARCHITECTURE = Architecture(
    co_detr, DEFAULTS, postprocess=POSTPROCESS, criterion=co_detr_criterion, options=co_detr_options
)
