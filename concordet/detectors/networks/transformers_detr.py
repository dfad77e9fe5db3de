"""Transformers' DETR, built from a configuration, on a backbone of this package."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection
from transformers.models.detr.modeling_detr import DetrDecoder, DetrDecoderOutput

from concordet.detectors.networks.backbones import Features
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.networks.transformers_base import PlaceholderConfig


class AllLayersDecoder(DetrDecoder):
    """Returns the normalized states of all layers, ``[layers, b, q, d]``.

    Transformers' decoder also returns them if the configuration asks for losses on all layers, but then the input of
    each layer is the normalized output of the layer before, unlike in DETR and in Transformers without those losses:
    weights trained with one do not work with the other.
    """

    def __init__(self, config: DetrConfig) -> None:
        config = copy.deepcopy(config)
        config.auxiliary_loss = False
        super().__init__(config)

    def forward(self, *args: Any, **keywords: Any) -> DetrDecoderOutput:
        """Output of Transformers' decoder, with ``intermediate_hidden_states`` of all layers."""
        output = super().forward(*args, **{**keywords, "output_hidden_states": True})
        *earlier, last = output.hidden_states[1:]  # the first is the input; only the last is normalized
        output.intermediate_hidden_states = torch.stack([*map(self.layernorm, earlier), last])
        return output


def detr_network(features: Features, *, softmax: bool, **options: Any) -> DetrForObjectDetection:
    """DETR on this backbone, initialized as in its authors' code (Transformers expects to load weights).

    Args:
        features: Backbone with one feature map.
        softmax: Whether the classifier is a softmax; otherwise it has one sigmoid per class, without "no object".
        **options: Arguments of ``DetrConfig``.
    """
    config = DetrConfig(backbone_config=PlaceholderConfig(features.channels), auxiliary_loss=True, **options)
    network = DetrForObjectDetection(config)
    model = network.model
    model.backbone.model = features
    model.decoder = AllLayersDecoder(config)
    if not softmax:
        network.class_labels_classifier = nn.Linear(config.d_model, network.class_labels_classifier.out_features - 1)
    for stack in (model.encoder, model.decoder):
        for parameter in stack.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.query_position_embeddings.weight)
    layers: Any = (model.input_projection, network.class_labels_classifier, *network.bbox_predictor.layers)
    for layer in layers:
        layer.reset_parameters()
    if not softmax:
        init_prior_bias(network.class_labels_classifier)
    return network
