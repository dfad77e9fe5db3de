"""Deformable DETR (Zhu et al. 2021) on Transformers' network: each query attends to a few points per level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.set_prediction.detection_transformer import (
    DetectionTransformer,
    check_queries,
    costs_for,
    load_network,
    needs_transformers,
    to_pixels,
)
from concordet.detectors.networks.backbones import Features, Size, features
from concordet.detectors.parts.hungarian import Costs
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.targets import Target
from concordet.detectors.set_prediction import POSTPROCESS, Outcome, Stage, per_layer_criterion
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.functional.reduction import at_least_float32

if TYPE_CHECKING:
    from transformers import DeformableDetrForObjectDetection

DEFAULTS = LossDefaults("focal", BoxTerm("giou", weight=2.0))
ENCODER = "encoder"


def deformable_detr_options(size: Size) -> dict[str, Any]:
    """The detector's own options and their defaults."""
    full = size == "full"
    return {
        "num_queries": 300 if full else 50,
        "layers": 6 if full else 2,
        "box_refine": False,
        "two_stage": False,
    }


def stage_names(layers: int, two_stage: bool) -> list[str]:
    """``layer1`` and so on, with two stages after ``encoder``.

    Raises:
        ValueError: if ``layers`` is less than 2, which Transformers' model does not support.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    return [ENCODER] * two_stage + [f"layer{i}" for i in range(1, layers + 1)]


def deformable_detr_criterion(
    loss: str | Criterion | StagedCriterion, *, layers: int, two_stage: bool, **_: Any
) -> StagedCriterion:
    """One criterion per decoder layer, with two stages one for the encoder too.

    Weights are those of Transformers: 1 for the class, 5 for L1 and 2 for GIoU (the authors' class weight is 2).
    """
    return per_layer_criterion("deformable_detr", loss, DEFAULTS, stage_names(layers, two_stage), classification=1.0)


def deformable_detr(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    num_queries: int,
    layers: int,
    box_refine: bool,
    two_stage: bool,
    **settings: Any,
) -> DeformableDETR:
    """Deformable DETR: three levels of the backbone and a coarser one, as many encoder as decoder layers.

    Follows the authors' code as in Transformers: 300 queries, six layers of 256 channels; 40.1 M parameters at
    ResNet-50 and 91 classes (published: 40 M), 40.8 M with refinement. Nano: 50 queries, two layers of 128 channels,
    three levels, no dropout; 1.1 M parameters at 80 classes, 1.3 M with two stages.

    Args:
        criterion: Criterion with one stage per layer.
        num_classes: Number of foreground classes.
        size: Size of the network.
        backbone: Name for :func:`~concordet.detectors.networks.backbones.features`.
        pretrained: Whether weights will be loaded.
        num_queries: Number of queries, the most detections per image; with two stages also the number of proposals.
        layers: Number of encoder layers, and of decoder layers.
        box_refine: Whether each decoder layer refines the boxes of the layer before it (Sec. 4.2).
        two_stage: Whether the encoder proposes the boxes that the decoder starts from; includes ``box_refine``.
        **settings: Arguments of the detector.

    Raises:
        ValueError: if ``num_queries`` is less than 1, or Transformers is not installed.
    """
    maps = features(size, backbone, pretrained=pretrained)
    network = build_network(
        maps, num_classes=num_classes, size=size, num_queries=num_queries, layers=layers,
        box_refine=box_refine, two_stage=two_stage, costs=costs_for(criterion),
    )  # fmt: skip
    return DeformableDETR(network, criterion, num_classes=num_classes, **settings)


def build_network(
    maps: Features,
    *,
    num_classes: int,
    size: Size,
    num_queries: int,
    layers: int,
    box_refine: bool,
    two_stage: bool,
    costs: Costs,
) -> DeformableDetrForObjectDetection:
    """Transformers' network of this size.

    Raises:
        ValueError: if ``num_queries`` is less than 1, or Transformers is not installed.
    """
    check_queries(num_queries)
    with needs_transformers():
        from concordet.detectors.networks.transformers_deformable_detr import deformable_network
    shape = {} if size == "full" else _NANO
    return deformable_network(
        maps,
        num_labels=num_classes,
        num_queries=num_queries,
        two_stage_num_proposals=num_queries,
        encoder_layers=layers,
        decoder_layers=layers,
        with_box_refine=box_refine or two_stage,
        two_stage=two_stage,
        auxiliary_loss=True,
        class_cost=int(costs.classification),
        bbox_cost=int(costs.l1),
        giou_cost=int(costs.giou),
        **shape,
    )


_NANO = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "num_feature_levels": 3, "dropout": 0.0}


class DeformableDETR(DetectionTransformer):
    """Deformable DETR in torchvision's convention; records are named ``encoder`` (with two stages) and ``layer1`` on.

    Its network is Transformers' ``DeformableDetrForObjectDetection``.
    """

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Outcome:
        batch, resized = self.transform(images, targets)
        return self._outcome(batch, resized or [])

    def _outcome(self, batch: ImageList, targets: list[Target]) -> Outcome:
        from concordet.detectors.networks.transformers_base import valid_pixels
        from concordet.detectors.networks.transformers_deformable_detr import layer_predictions

        self._check_locations(tuple(batch.tensors.shape[-2:]))
        out = self.network.model(batch.tensors, pixel_mask=valid_pixels(batch))
        layers = layer_predictions(
            self.network,
            out.intermediate_hidden_states,
            out.init_reference_points,
            out.intermediate_reference_points,
        )
        stages = [
            Stage(f"layer{i}", logits, to_pixels(boxes, batch.image_sizes))
            for i, (logits, boxes) in enumerate(layers, 1)
        ]
        if out.enc_outputs_class is not None:
            # every location is classified as object or not, by the first class's logit (Appendix A.4)
            boxes = to_pixels(at_least_float32(out.enc_outputs_coord_logits).sigmoid(), batch.image_sizes)
            stages.insert(0, Stage(ENCODER, at_least_float32(out.enc_outputs_class), boxes, class_agnostic=True))
        return Outcome(stages, batch.image_sizes, Objects.from_targets(targets, ignore_regions=self.ignore_regions))

    def _check_locations(self, padded: tuple[int, int]) -> None:
        """Refuses images with fewer locations than two stages choose queries."""
        config, finest = self.network.config, self.backbone.strides[0]
        if not config.two_stage:
            return
        strides = [finest * 2**i for i in range(config.num_feature_levels)]
        count = sum(-(-padded[0] // s) * -(-padded[1] // s) for s in strides)
        if count < config.num_queries:
            raise ValueError(
                f"num_queries must be at most {count} with two_stage=True, the number of locations in images of "
                f"{padded[0]} x {padded[1]} pixels, got {config.num_queries}; take a larger image_size or fewer queries"
            )


ARCHITECTURE = Architecture(
    deformable_detr,
    DEFAULTS,
    postprocess=POSTPROCESS,
    criterion=deformable_detr_criterion,
    options=deformable_detr_options,
    load=load_network,
)
