"""The base of networks of Hugging Face Transformers: placeholders for backbones, padding masks, folders of weights.

These networks need the extra ``transformers``; detectors import them when they are built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from transformers import AutoBackbone, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_utils import PreTrainedModel


class PlaceholderConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a :class:`Placeholder`: numbers of channels of the backbone that replaces it."""

    model_type = "concordet_placeholder"

    def __init__(self, channels: Sequence[int] = (1,), **options: Any) -> None:
        super().__init__(**options)
        self.channels: list[int] = list(channels)
        self.stage_names: list[str] = [f"stage{i}" for i in range(len(self.channels))]
        self.set_output_features_output_indices(self.stage_names, None)


class Placeholder(BackboneMixin, PreTrainedModel):
    """Stands in until the real backbone replaces it: Transformers builds backbones only from configurations, and
    freezes their batch norms."""

    config_class = PlaceholderConfig

    def __init__(self, config: PlaceholderConfig) -> None:
        super().__init__(config)
        self.num_features: list[int] = config.channels


AutoBackbone.register(PlaceholderConfig, Placeholder)


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Records the keyword arguments of every call of a module within the context."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(lambda _, __, keywords: calls.append(keywords), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def valid_pixels(batch: ImageList) -> Tensor:
    """``[b, h, w]`` int64, 1 at pixels of the images and 0 at padding."""
    mask = torch.zeros_like(batch.tensors[:, 0], dtype=torch.int64)
    for i, (height, width) in enumerate(batch.image_sizes):
        mask[i, :height, :width] = 1
    return mask


def load_folder(network: PreTrainedModel, folder: Path) -> None:
    """Loads a folder that Transformers' ``save_pretrained`` wrote, in place.

    A classifier with one sigmoid per class takes the classes of a softmax, without its "no object".

    Args:
        network: Network that gets the weights.
        folder: Path of the folder.

    Raises:
        ValueError: for a folder without such a model, or with a model of another shape.
    """
    cls: Any = type(network)
    try:
        other, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"weights {folder} must hold a {cls.__name__} that Transformers can read, "
            f"got {type(error).__name__}: {error}"
        ) from error
    for key in ("num_labels", "two_stage", "with_box_refine", "num_queries", "encoder_layers", "decoder_layers"):
        theirs, ours = getattr(other.config, key, None), getattr(network.config, key, None)
        if theirs != ours:
            raise ValueError(
                f"weights {folder} must be of a model with {key} {ours}, got {theirs}; build the detector with the same"
            )
    if report["missing_keys"]:
        absent = min(report["missing_keys"])
        raise ValueError(f"weights {folder} must hold a whole {cls.__name__}, got none of {absent!r}")
    # here the backbone is wrapped in a Features module
    state = {k.replace("backbone.model.", "backbone.model.body."): v for k, v in other.state_dict().items()}
    own = network.state_dict()
    for key in state:
        if key.startswith("class_labels_classifier") and len(state[key]) == len(own[key]) + 1:
            state[key] = state[key][:-1]
    missing = sorted(k for k in own if k not in state and not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k in own if k in state and state[k].shape != own[k].shape)
    if missing or wrong:
        raise ValueError(
            f"weights {folder} must have {(missing + wrong)[0]!r} in the same shape as this detector; "
            "only a ResNet of torchvision takes the backbone of such a folder, and it must be the same one"
        )
    network.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
