"""DETR (Carion et al. 2020) on Transformers' network: queries, one feature map, one-to-one matching, no NMS."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from concordet.detectors.architectures.architecture import Architecture
from concordet.detectors.architectures.set_prediction.detection_transformer import (
    DetectionTransformer,
    check_queries,
    costs_for,
    load_network,
    needs_transformers,
    to_pixels,
)
from concordet.detectors.networks.backbones import Size, features
from concordet.detectors.parts.objects import Objects
from concordet.detectors.parts.targets import Target
from concordet.detectors.set_prediction import POSTPROCESS, Outcome, Stage, per_layer_criterion
from concordet.losses.criteria import Criterion, LossDefaults, StagedCriterion
from concordet.losses.criteria.box import BoxTerm
from concordet.losses.functional.reduction import at_least_float32

DEFAULTS = LossDefaults("ce", BoxTerm("giou", weight=2.0), softmax=True, no_object_weight=0.1)


def detr_options(size: Size) -> dict[str, Any]:
    """The detector's own options and their defaults."""
    return {"num_queries": 100, "layers": 6} if size == "full" else {"num_queries": 50, "layers": 3}


def detr_criterion(loss: str | Criterion | StagedCriterion, *, layers: int, **_: Any) -> StagedCriterion:
    """One criterion per decoder layer, ``layer1`` and so on; weights are 1 for the class, 5 for L1 and 2 for GIoU.

    Raises:
        ValueError: if ``layers`` is less than 1.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    return per_layer_criterion("detr", loss, DEFAULTS, [f"layer{i}" for i in range(1, layers + 1)], classification=1.0)


def detr(
    criterion: StagedCriterion,
    *,
    num_classes: int,
    size: Size,
    backbone: str | None,
    pretrained: bool,
    num_queries: int,
    layers: int,
    **settings: Any,
) -> DETR:
    """DETR: the backbone's last map, as many encoder as decoder layers, a loss on each decoder layer.

    Follows the authors' code as in Transformers: 100 queries, six layers of 256 channels, 41.6 M parameters at
    ResNet-50 and 91 classes (published: 41 M). Nano: 50 queries, three layers of 128 channels on the map of stride
    16, no dropout; 1.2 M parameters at 80 classes.

    With cross entropy (``default``, ``ce``) and Harmonic loss the classifier is a softmax whose last class, "no
    object", has weight 0.1; with every other loss it has one sigmoid per class.

    Args:
        criterion: Criterion with one stage per decoder layer.
        num_classes: Number of foreground classes.
        size: Size of the network.
        backbone: Name for :func:`~concordet.detectors.networks.backbones.features`.
        pretrained: Whether weights will be loaded.
        num_queries: Number of queries, the most detections per image.
        layers: Number of encoder layers, and of decoder layers.
        **settings: Arguments of the detector.

    Raises:
        ValueError: if ``num_queries`` is less than 1, or Transformers is not installed.
    """
    check_queries(num_queries)
    with needs_transformers():
        from concordet.detectors.networks.transformers_detr import detr_network
    costs = costs_for(criterion)
    network = detr_network(
        features(size, backbone, levels=(32,) if size == "full" else (16,), pretrained=pretrained),
        softmax=criterion.needs.softmax,
        num_labels=num_classes,
        num_queries=num_queries,
        encoder_layers=layers,
        decoder_layers=layers,
        class_cost=int(costs.classification),
        **({} if size == "full" else _NANO),
    )
    return DETR(network, criterion, num_classes=num_classes, **settings)


_NANO = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "dropout": 0.0}


class DETR(DetectionTransformer):
    """DETR in torchvision's convention; records are named ``layer1`` and so on.

    Its network is Transformers' ``DetrForObjectDetection``.
    """

    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Outcome:
        from concordet.detectors.networks.transformers_base import valid_pixels

        batch, resized = self.transform(images, targets)
        states = self.network.model(batch.tensors, pixel_mask=valid_pixels(batch)).intermediate_hidden_states
        logits = at_least_float32(self.network.class_labels_classifier(states))  # [layers, b, q, c]
        boxes = at_least_float32(self.network.bbox_predictor(states)).sigmoid()  # [layers, b, q, 4]
        stages = [
            Stage(f"layer{i}", layer_logits, to_pixels(layer_boxes, batch.image_sizes))
            for i, (layer_logits, layer_boxes) in enumerate(zip(logits, boxes, strict=True), 1)
        ]
        return Outcome(
            stages, batch.image_sizes, Objects.from_targets(resized or [], ignore_regions=self.ignore_regions)
        )


ARCHITECTURE = Architecture(
    detr, DEFAULTS, postprocess=POSTPROCESS, criterion=detr_criterion, options=detr_options, load=load_network
)
