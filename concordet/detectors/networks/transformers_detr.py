"""Transformers' DETR, built from a configuration, on the zoo's own backbones; needs the extra ``transformers``."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection
from transformers.models.detr.modeling_detr import DetrDecoder, DetrDecoderOutput

from concordet.detectors.networks.backbones import Features
from concordet.detectors.networks.heads import init_prior_bias
from concordet.detectors.networks.transformers_deformable import GivenConfig


class EveryLayersDecoder(DetrDecoder):
    """Gives every layer's states, normalised, ``[layers, b, q, d]``.

    So does Transformers' own where a configuration asks for losses at all layers, but then each layer is handed the
    normalised states of the one before, which is neither DETR's way nor Transformers' own without those losses: weights
    trained in one way are wrong for the other.
    """

    def __init__(self, config: DetrConfig) -> None:
        config = copy.deepcopy(config)
        config.auxiliary_loss = False
        super().__init__(config)

    def forward(self, *args: Any, **keywords: Any) -> DetrDecoderOutput:
        """As Transformers'."""
        output = super().forward(*args, **{**keywords, "output_hidden_states": True})
        *earlier, last = output.hidden_states[1:]  # the first are the layers' input, the last normalised
        output.intermediate_hidden_states = torch.stack([*map(self.layernorm, earlier), last])
        return output


def detr_network(features: Features, *, softmax: bool, **options: Any) -> DetrForObjectDetection:
    """DETR on this backbone, initialised as its authors do (Transformers' own is for loading weights).

    Args:
        features: the backbone, of one map.
        softmax: of the classifier; otherwise a sigmoid a class, without "no object".
        **options: of ``DetrConfig``.
    """
    config = DetrConfig(backbone_config=GivenConfig(features.channels), auxiliary_loss=True, **options)
    network = DetrForObjectDetection(config)
    model = network.model
    model.backbone.model = features
    model.decoder = EveryLayersDecoder(config)
    if not softmax:
        network.class_labels_classifier = nn.Linear(config.d_model, network.class_labels_classifier.out_features - 1)
    for part in (model.encoder, model.decoder):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.query_position_embeddings.weight)
    for layer in (model.input_projection, network.class_labels_classifier, *network.bbox_predictor.layers):
        cast(nn.Linear, layer).reset_parameters()
    if not softmax:
        init_prior_bias(network.class_labels_classifier)
    return network
