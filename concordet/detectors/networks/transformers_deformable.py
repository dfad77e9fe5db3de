"""Networks of Hugging Face Transformers, built from configurations, on the zoo's own backbones.

Needs the extra ``transformers``; detectors import this module when they are built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from transformers import AutoBackbone, DeformableDetrConfig, DeformableDetrForObjectDetection, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
    inverse_sigmoid,
)

from concordet.detectors.networks.backbones import Features
from concordet.detectors.networks.heads import init_prior_bias
from concordet.losses.functional.reduction import at_least_float32


class GivenConfig(BackboneConfigMixin, PreTrainedConfig):
    """Says how many channels each map of a backbone has that is put in afterwards."""

    model_type = "concordet_given"

    def __init__(self, channels: Sequence[int] = (1,), **options: Any) -> None:
        super().__init__(**options)
        self.channels = list(channels)
        self.stage_names = [f"stage{i}" for i in range(len(self.channels))]
        self.set_output_features_output_indices(self.stage_names, None)


class Given(BackboneMixin, PreTrainedModel):
    """Keeps a backbone's place: Transformers makes backbones by configuration only, and freezes their batch norms."""

    config_class = GivenConfig

    def __init__(self, config: GivenConfig) -> None:
        super().__init__(config)
        self.num_features = config.channels


AutoBackbone.register(GivenConfig, Given)


def deformable_network(features: Features, **options: Any) -> DeformableDetrForObjectDetection:
    """Deformable DETR on this backbone, initialised as its authors do (Transformers' own is for loading weights).

    Args:
        features: the backbone.
        **options: of ``DeformableDetrConfig``.
    """
    config = DeformableDetrConfig(backbone_config=GivenConfig(features.channels), **options)
    network = DeformableDetrForObjectDetection(config)
    network.model.backbone.model = features
    initialise(network)
    return network


@torch.no_grad()
def initialise(network: DeformableDetrForObjectDetection) -> None:
    """Initial weights of Zhu et al. 2021, as in their code."""
    model, two_stage = network.model, network.config.two_stage
    for part in (model.encoder, model.decoder):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in part.modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                part._init_weights(module)
    linear = [cast(nn.Sequential, projection)[0] for projection in model.input_proj]
    for layer in [*linear, *([model.enc_output, model.pos_trans] if two_stage else [])]:
        nn.init.xavier_uniform_(cast(Tensor, layer.weight))
        nn.init.zeros_(cast(Tensor, layer.bias))
    if not two_stage:
        nn.init.normal_(model.query_position_embeddings.weight)
    for head in cast(Iterable[nn.Linear], network.class_embed):
        head.reset_parameters()
        init_prior_bias(head)
    for i, tower in enumerate(network.bbox_embed):
        *layers, last = cast(Iterable[nn.Linear], tower.layers)
        for layer in layers:
            layer.reset_parameters()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if i == 0 and not two_stage:
            last.bias[2:] = -2.0  # boxes begin small


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments that a module is called with meanwhile, call by call."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(lambda _, __, keywords: calls.append(keywords), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def valid_pixels(batch: ImageList) -> Tensor:
    """``[b, h, w]`` int64, 1 where the batch has pixels of its images and 0 where it is padded."""
    mask = torch.zeros_like(batch.tensors[:, 0], dtype=torch.int64)
    for i, (height, width) in enumerate(batch.image_sizes):
        mask[i, :height, :width] = 1
    return mask


def layer_predictions(
    network: DeformableDetrForObjectDetection, hidden: Tensor, start: Tensor, moved: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits ``[b, q, c]`` and boxes ``[b, q, 4]`` (centre and size in units of the image) of each decoder layer.

    Args:
        network: whose heads are used.
        hidden: ``[b, layers, q, d]``.
        start: ``[b, q, 2 or 4]`` reference points that the first layer begins with.
        moved: ``[b, layers, q, 2 or 4]`` those after each layer.
    """
    results = []
    for i, (states, reference) in enumerate(zip(hidden.unbind(1), [start, *moved.unbind(1)], strict=False)):
        change, origin = at_least_float32(network.bbox_embed[i](states)), inverse_sigmoid(at_least_float32(reference))
        known = origin.shape[-1]
        change = torch.cat([change[..., :known] + origin, change[..., known:]], -1)
        results.append((at_least_float32(network.class_embed[i](states)), change.sigmoid()))
    return results


def load_folder(network: PreTrainedModel, folder: Path) -> None:
    """Loads what ``save_pretrained`` of Transformers has written, in place.

    A classifier of a sigmoid a class takes the classes of a softmax and leaves its "no object".

    Raises:
        ValueError: for a folder of something else, or of a model of another shape.
    """
    kind: Any = type(network)
    try:
        other, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"weights {folder}: holds no {kind.__name__} that Transformers can read ({type(error).__name__}: {error})"
        ) from error
    for key in ("num_labels", "two_stage", "with_box_refine", "num_queries", "encoder_layers", "decoder_layers"):
        theirs, ours = getattr(other.config, key, None), getattr(network.config, key, None)
        if theirs != ours:
            raise ValueError(
                f"weights {folder}: {key} is {theirs} there, {ours} here; build the detector with the same"
            )
    if report["missing_keys"]:
        raise ValueError(f"weights {folder}: holds no {kind.__name__}, {min(report['missing_keys'])!r} is missing")
    # the zoo's backbones are the bodies of their features
    state = {k.replace("backbone.model.", "backbone.model.body."): v for k, v in other.state_dict().items()}
    own = network.state_dict()
    for key in state:
        if key.startswith("class_labels_classifier") and len(state[key]) == len(own[key]) + 1:
            state[key] = state[key][:-1]
    missing = sorted(k for k in own if k not in state and not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k in own if k in state and state[k].shape != own[k].shape)
    if missing or wrong:
        raise ValueError(
            f"weights {folder}: {(missing + wrong)[0]!r} is not as it is here; only torchvision's ResNets take the "
            "backbone of such a folder, and it must be the same one"
        )
    network.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
