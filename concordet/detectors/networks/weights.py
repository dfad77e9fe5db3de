"""Weights from a local file or from torchvision's enumerations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_weight

OPTIONAL = ("num_batches_tracked", "caffe_input", "conv2.offset.weight", "conv2.offset.bias")
"""Suffixes of parameters that weights may lack: plain ResNets have no offsets of deformable convolutions, which start
at 0."""


def load_weights(model: nn.Module, weights: str | Path | WeightsEnum) -> None:
    """Loads a whole detector's weights, or a classifier's into its backbone, in place.

    Args:
        model: Detector.
        weights: Local file (a state dict, or a checkpoint of concordet), enumeration of torchvision, or its name
            (``"ResNet50_Weights.IMAGENET1K_V1"``), which torchvision downloads unless it is in torch's cache. Weights
            of timm's networks are files as timm distributes them, from PyTorch or ``.safetensors``.

    Raises:
        ValueError: for a file without weights, weights of another model, or if a download is not possible.
    """
    name = str(weights)
    state = _read(weights)
    if any("backbone." in key for key in state):
        _copy(model, state, name)
    else:
        body = getattr(getattr(model, "backbone", None), "body", None)
        body = getattr(body, "model", body)  # timm's networks are wrapped
        if body is None:
            raise ValueError(f"weights must be a detector's where there is no backbone, got a classifier's, {name}")
        if any(bool(v.isnan().any()) for v in state.values()):
            raise ValueError(
                f"weights {name}: these have no classifier and expect Caffe's pixels; take VGG16_Weights.IMAGENET1K_V1"
            )
        _copy(body, state, name)


def is_torchvision_name(weights: object) -> bool:
    """Whether this is the name of a torchvision enumeration.

    Example:
        >>> is_torchvision_name("ResNet50_Weights.IMAGENET1K_V1"), is_torchvision_name("last.ckpt")
        (True, False)
    """
    return isinstance(weights, str) and not Path(weights).exists() and "_Weights." in weights


def _read(weights: str | Path | WeightsEnum) -> Mapping[str, Tensor]:
    if is_torchvision_name(weights):
        try:
            weights = get_weight(weights)
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"weights must be a file or a name that torchvision knows, got {weights!r}") from error
    if isinstance(weights, WeightsEnum):
        try:
            return weights.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError) as error:
            raise ValueError(
                f"weights {weights} could not be downloaded ({error}); download them where there is a network "
                f"and pass the file's path"
            ) from error
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"weights must be a file, got {path}, which does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many classes for files that are not checkpoints
        raise ValueError(
            f"weights must be a PyTorch file that loads with weights_only=True, got {path} ({type(error).__name__})"
        ) from error
    averaged = content.get("ema_state_dict") if isinstance(content, Mapping) else None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"weights must hold a state dict, got {path}, which has none")
    if isinstance(averaged, Mapping):
        # this project evaluates the averaged weights
        content = {**content, **averaged}
    return {k.removeprefix("model."): v for k, v in content.items()}


def _copy(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    own = module.state_dict()
    expected = {k for k in own if not k.startswith("criterion.")}
    missing = sorted(k for k in expected - set(state) if not k.endswith(OPTIONAL))
    if missing:
        raise ValueError(
            f"weights {name}: {len(missing)} parameters of this detector are not in it, {missing[0]!r} first; "
            "are detector and size the same?"
        )
    wrong = [k for k in sorted(expected & set(state)) if own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(
            f"weights {name}: {wrong[0]!r} is {list(state[wrong[0]].shape)} there, {list(own[wrong[0]].shape)} here; "
            "are detector, size and number of classes the same?"
        )
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
