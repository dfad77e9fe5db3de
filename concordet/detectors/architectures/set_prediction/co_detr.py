"""Co-DETR (Zong et al. 2023): a Deformable DETR that one-to-many heads help to train; with RS Loss it is BRS-DETR."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

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

RCNN_USUAL = LossDefaults("ce", BoxTerm("giou", weight=10.0), softmax=True)
HEADS = ("rcnn", "atss")
WEIGHT = 12.0
RANKING_WEIGHT = 5.0


def co_detr_options(size: Size) -> dict[str, Any]:
    """The detector's own options and their defaults."""
    shape = deformable_detr_options(size)
    return {"num_queries": shape["num_queries"], "layers": shape["layers"], "auxiliary": True}


def query_stages(layers: int) -> list[str]:
    """Stages of the extra queries, head by head."""
    return [f"{head}_{name}" for head in HEADS for name in stage_names(layers, False)]


def co_detr_criterion(
    loss: str | Criterion | StagedCriterion, *, layers: int, auxiliary: bool, **_: Any
) -> StagedCriterion:
    """A criterion for each term of the total loss: auxiliary heads, extra queries, encoder and decoder layers.

    sum over layers l of (L_dec,l + lambda_1 sum_k L_extra,k,l + lambda_2 sum_k L_aux,k), thesis Eq. 3.54, with K = 2
    auxiliary heads, lambda_1 = 1 and 12 (with ranking losses 5) for the sum of lambda_2 over the layers.  L_dec and
    L_extra are weighted sums of classification, L1 and GIoU (Eq. 3.55; Co-DETR's code: 2, 5, 2); with ranking losses
    L1 and GIoU are scaled to the classification's value (Eq. 3.56).  The auxiliary heads have the same loss in their
    own form: with the default one focal loss and centerness (ATSS), cross entropy and 10 times GIoU (Faster R-CNN);
    with ranking losses the proposals' terms weigh a fifth of the heads', as in RS Loss.

    Raises:
        ValueError: for an auxiliary quality head, or a criterion of other stages.
    """
    decoder = stage_names(layers, two_stage=True)
    if isinstance(loss, StagedCriterion):
        every = ["rpn", "roi", "atss", *query_stages(layers)] if auxiliary else []
        return per_layer_criterion("co_detr", loss, DEFAULTS, [*every, *decoder])
    if not auxiliary:
        return per_layer_criterion("co_detr", loss, DEFAULTS, decoder)
    sets = per_layer_criterion("co_detr", loss, DEFAULTS, [*query_stages(layers), *decoder])
    rcnn = staged_criterion("co_detr", loss, RCNN_USUAL, {"roi": 1.0})
    dense = build_criterion(loss, atss.DEFAULTS) if isinstance(loss, str) else copy.deepcopy(loss)
    weight = RANKING_WEIGHT if sets.needs.ranks_only else WEIGHT
    weights = {name: weight * rcnn.weights.get(name, 1.0) for name in rcnn.stages}
    stages = {**cast(Any, rcnn.stages), "atss": dense, **cast(Any, sets.stages)}
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

    Follows the authors' code: 300 queries, six layers of 256 channels.  At ResNet-50 and 80 classes 41.2 M parameters
    detect, as in two-stage Deformable DETR, and 62.3 M train.  The auxiliary heads are the zoo's own: proposals come
    from three anchors a location instead of nine, and learn boxes by smooth L1.  Images with fewer positives than
    others have masked queries in their place, as in the authors' version on DINO, not random negatives.  Nano: 50
    queries, two layers of 128 channels, 2.9 M parameters at 80 classes.

    Args:
        criterion: of each stage.
        num_classes: foreground classes.
        size: of the network.
        backbone: see :func:`~concordet.detectors.networks.backbones.features`; ``"swin_t"`` and ``"swin_l"`` are the
        thesis's.
        pretrained: weights will be loaded.
        num_queries: detections an image, at most.
        layers: of the encoder, and of the decoder.
        auxiliary: trains the auxiliary heads and the queries from their positives; False is a Deformable DETR, and
            loads what was trained with them.
        **settings: of the detector.
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
    """A forward pass, with what the auxiliary heads and their queries need."""

    batch: ImageList
    decoding: dict[str, Any]  # what the decoder was called with


class CoDETR(DeformableDETR):
    """Co-DETR in torchvision's convention.

    Records are named ``rpn``, ``roi`` and ``atss`` (the auxiliary heads' own), ``rcnn_layer1`` and ``atss_layer1`` on
    (the extra queries of each decoder layer, whose objects are those of the heads' positives), ``encoder`` and
    ``layer1`` on.  Only the last two kinds are there outside of training.

    Args:
        network: Transformers' model, with two stages.
        heads: auxiliary heads, None for none.
        criterion: loss.
        **settings: of :class:`~concordet.detectors.set_prediction.SetPredictor`.
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
        self.queries = nn.ModuleDict({name: QueryMaker(network.config.d_model) for name in HEADS} if heads else {})

    def _outcome(self, batch: ImageList, targets: list[Target]) -> Outcome:
        from concordet.detectors.networks.transformers_deformable import calls_of

        with calls_of(self.network.model.decoder) as calls:
            outcome = super()._outcome(batch, targets)
        return CoOutcome(**vars(outcome), batch=batch, decoding=calls[0])

    def _records(self, outcome: Outcome, *, trained: bool) -> list[Assigned]:
        records = super()._records(outcome, trained=trained)
        if not trained or self.heads is None or not isinstance(outcome, CoOutcome):
            return records
        memory, shapes = (outcome.decoding[key] for key in ("encoder_hidden_states", "spatial_shapes_list"))
        own, positives = self.heads(outcome.batch, memory, shapes, outcome.objects)
        return [*own, *self._query_records(outcome, positives), *records]

    def _query_records(self, outcome: CoOutcome, positives: dict[str, Positives]) -> list[Assigned]:
        """One record a head and decoder layer, of queries made from the head's positives.

        All heads' queries go through the decoder at once; each attends to those of its own head and image alone.
        """
        groups = [Queries(p, outcome.sizes) for p in positives.values()]
        boxes = torch.cat([g.padded(g.boxes) for g in groups], 1)
        owners = torch.cat([g.padded(torch.full_like(g.slots, k + 1)) for k, g in enumerate(groups)], 1)
        made = [
            self.queries[name](*(g.padded(x) for x in (self._embedded(g.boxes), g.features)))
            for name, g in zip(positives, groups, strict=True)
        ]
        places, contents = (torch.cat(list(parts), 1) for parts in zip(*made, strict=True))
        found = self._decoded(outcome.decoding, boxes, places, contents, owners)
        records, start = [], 0
        for name, g in zip(positives, groups, strict=True):
            rows = (g.record.image_ids[g.kept], start + g.slots)
            for i, (logits, decoded) in enumerate(found, 1):
                pixels = to_pixels(decoded, outcome.sizes)
                records.append(g.stage(f"{name}_layer{i}", logits[rows], pixels[rows]))
            start += g.most
        return records

    def _embedded(self, boxes: Tensor) -> Tensor:
        """``[p, 2 d]`` sines and cosines of boxes ``[p, 4]`` in units of the image."""
        from concordet.detectors.networks.transformers_deformable import inverse_sigmoid

        embedded = self.network.model.get_proposal_pos_embed(inverse_sigmoid(boxes)[None])[0]
        return embedded.to(boxes.dtype)  # Transformers computes in float32

    def _decoded(
        self, decoding: dict[str, Any], boxes: Tensor, places: Tensor, contents: Tensor, owners: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Each decoder layer's logits ``[b, q, c]`` and boxes ``[b, q, 4]``; queries see those of their owner."""
        from concordet.detectors.networks.transformers_deformable import layer_predictions

        strangers = owners[:, :, None] != owners[:, None, :]
        mask = torch.zeros_like(strangers, dtype=contents.dtype)
        mask = mask.masked_fill(strangers, torch.finfo(mask.dtype).min)
        out = self.network.model.decoder(
            **{
                **decoding,
                "inputs_embeds": contents,
                "object_queries_position_embeddings": places,
                "reference_points": boxes,
                "attention_mask": mask[:, None],
            }
        )
        hidden, moved = out.intermediate_hidden_states, out.intermediate_reference_points
        return layer_predictions(self.network, hidden, boxes, moved)


class Queries:
    """A head's positives as queries: at most :data:`MAX_QUERIES` random ones per image, each with a slot.

    Args:
        positives: of the head, p of them.
        sizes: of the images, pixels.
    """

    def __init__(self, positives: Positives, sizes: Sequence[tuple[int, int]]) -> None:
        self.record, self.count = positives.record, len(sizes)
        self.kept = at_most(self.record.image_ids, MAX_QUERIES)
        images = self.record.image_ids[self.kept]
        self.slots = places_in_image(images)
        self.most = max(int(images.bincount(minlength=1).max()), 1)  # of no positives one empty query is decoded
        self.extents = positives.boxes.new_tensor([[w, h, w, h] for h, w in sizes])[images]
        self.boxes = in_units(positives.boxes[self.kept], self.extents, "cxcywh")
        self.features = positives.features[self.kept]

    def padded(self, values: Tensor) -> Tensor:
        """``[b, most, ...]`` of ``[k, ...]``, with zeros where an image has fewer."""
        empty = values.new_zeros(self.count, self.most, *values.shape[1:])
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


def places_in_image(image_ids: Tensor) -> Tensor:
    """``[p]`` how many of the same image come before, of ascending ``image_ids`` ``[p]``.

    Example:
        >>> places_in_image(torch.tensor([0, 0, 2, 2, 2])).tolist()
        [0, 1, 0, 1, 2]
    """
    counts = image_ids.bincount()
    first = counts.cumsum(0) - counts
    return torch.arange(len(image_ids), device=image_ids.device) - first[image_ids]


def at_most(image_ids: Tensor, most: int) -> Tensor:
    """Places of at most ``most`` entries of each image, ascending; of an image with more, random ones."""
    order = torch.randperm(len(image_ids), device=image_ids.device)
    order = order[image_ids[order].argsort(stable=True)]
    return order[places_in_image(image_ids[order]) < most].sort().values


ARCHITECTURE = Architecture(
    co_detr, DEFAULTS, postprocess=POSTPROCESS, criterion=co_detr_criterion, options=co_detr_options
)
