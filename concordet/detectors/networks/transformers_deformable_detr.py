"""Transformers' Deformable DETR, built from a configuration, on a backbone of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
    inverse_sigmoid,
)

from concordet.detectors.networks.backbones import Features
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.networks.transformers_base import PlaceholderConfig
from concordet.losses.functional.reduction import at_least_float32

__all__ = ["deformable_network", "initialize", "inverse_sigmoid", "layer_predictions"]


def deformable_network(features: Features, **options: Any) -> DeformableDetrForObjectDetection:
    """Deformable DETR on this backbone, initialized as in its authors' code (Transformers expects to load weights).

    Args:
        features: Backbone.
        **options: Arguments of ``DeformableDetrConfig``.
    """
    config = DeformableDetrConfig(backbone_config=PlaceholderConfig(features.channels), **options)
    network = DeformableDetrForObjectDetection(config)
    network.model.backbone.model = features
    initialize(network)
    return network


@torch.no_grad()
def initialize(network: DeformableDetrForObjectDetection) -> None:
    """Initial weights of Zhu et al. 2021, as in their code."""
    model, two_stage = network.model, network.config.two_stage
    for stack in (model.encoder, model.decoder):
        for parameter in stack.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in stack.modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                stack._init_weights(module)
    projections: Any = model.input_proj
    for layer in [*(p[0] for p in projections), *([model.enc_output, model.pos_trans] if two_stage else [])]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    if not two_stage:
        nn.init.normal_(model.query_position_embeddings.weight)
    classifiers: Any = network.class_embed
    for head in classifiers:
        head.reset_parameters()
        init_prior_bias(head)
    towers: Any = network.bbox_embed
    for i, tower in enumerate(towers):
        *layers, last = tower.layers
        for layer in layers:
            layer.reset_parameters()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if i == 0 and not two_stage:
            last.bias[2:] = -2.0  # boxes start small


def layer_predictions(
    network: DeformableDetrForObjectDetection, hidden: Tensor, initial: Tensor, refined: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits ``[b, q, c]`` and boxes ``[b, q, 4]`` (center and size in units of the image) of each decoder layer.

    Args:
        network: Network whose heads are used.
        hidden: ``[b, layers, q, d]`` states of the queries.
        initial: ``[b, q, 2 or 4]`` reference points before the first layer.
        refined: ``[b, layers, q, 2 or 4]`` reference points after each layer.
    """
    results = []
    for i, (states, reference) in enumerate(zip(hidden.unbind(1), [initial, *refined.unbind(1)], strict=False)):
        change, origin = at_least_float32(network.bbox_embed[i](states)), inverse_sigmoid(at_least_float32(reference))
        given = origin.shape[-1]  # a reference point has a center, or a center and a size
        change = torch.cat([change[..., :given] + origin, change[..., given:]], -1)
        results.append((at_least_float32(network.class_embed[i](states)), change.sigmoid()))
    return results
