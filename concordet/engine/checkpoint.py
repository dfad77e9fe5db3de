"""Checkpoints: their description of the detector, their checks, and loading of detectors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concordet.detectors import Detector, build_detector
from concordet.engine.config import TrainConfig
from concordet.files import replacing
from concordet.version import __version__

KEY = "concordet"
EMA_KEY = "ema_state_dict"
_PREFIX = "model."


def describe(config: TrainConfig, class_names: list[str], category_ids: list[int]) -> dict[str, Any]:
    """The description in a checkpoint: plain strings, numbers and lists from which the detector can be rebuilt."""
    return {
        "format": 1,
        "version": __version__,
        "detector": config.detector,
        "size": config.size,
        "loss": config.loss,
        "backbone": config.backbone,
        "num_classes": len(class_names),
        "class_names": [str(name) for name in class_names],
        "category_ids": [int(category) for category in category_ids],
        "options": detector_options(config),
    }


def detector_options(config: TrainConfig) -> dict[str, Any]:
    """Keyword arguments of ``build_detector`` beyond the named ones."""
    options = dict(config.options)
    if config.image_size is not None:
        size = config.image_size
        options["image_size"] = size if isinstance(size, int) else list(size)
    return options


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checked content of a checkpoint of concordet, on the CPU; it cannot run code (``weights_only=True``).

    Raises:
        ValueError: it is missing, not a checkpoint, not one of concordet, or incomplete.
    """
    path = Path(path)
    content = _open_checkpoint(path)
    meta = content[KEY]
    for key, expected in _FIELDS.items():
        if not isinstance(meta.get(key), expected) or isinstance(meta[key], bool):
            raise ValueError(
                f"{path} must hold {key}, as concordet's checkpoints do, got {meta.get(key)!r:.60}; name another"
            )
    faulty = (
        not meta["num_classes"] == len(meta["class_names"]) == len(meta["category_ids"]) > 0
        or not all(isinstance(name, str) for name in meta["class_names"])
        or not all(type(category) is int for category in meta["category_ids"])  # no booleans
        or not all(isinstance(name, str) for name in meta["options"])
    )
    if faulty:
        raise ValueError(
            f"{path} must hold a name and an id per class, and options by name, got others; name another checkpoint"
        )
    for key in ("state_dict", EMA_KEY):
        _check_state(content.get(key) or {}, path)
    return content


_FIELDS: dict[str, Any] = {
    "detector": str,
    "size": str,
    "loss": str,
    "backbone": (str, type(None)),
    "num_classes": int,
    "class_names": list,
    "category_ids": list,
    "options": dict,
}
"""Types of the values that :func:`describe` writes."""


def _open_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"checkpoint must be a file, got {path}, which does not exist; name a .ckpt file or a run folder"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about old formats, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many classes for files that are not checkpoints
        raise ValueError(
            f"checkpoint must be a whole file that `concordet train` wrote, got {path}; name another one, such as "
            "checkpoints/last.ckpt of a run folder"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict) or "state_dict" not in content:
        raise ValueError(
            f"checkpoint must be one that `concordet train` wrote, got {path} of another program; name another one"
        )
    return content


def _check_state(state: Any, path: Path) -> None:
    """Raises a ValueError unless a state has real tensors only."""
    if not isinstance(state, dict):
        raise ValueError(
            f"the weights in {path} must be tensors by name, got a {type(state).__name__}; name another checkpoint"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise ValueError(
                f"the weights in {path} must be tensors of real numbers, got others in {name}; name another"
            )


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raises a ValueError if a weight is NaN or infinite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"the weights in {path} must be finite, got others in {name}; name an earlier checkpoint")


def add_to_description(path: Path, **values: Any) -> None:
    """Rewrites a checkpoint with additional values in its description, whole or not at all."""
    content = read_checkpoint(path)
    content[KEY] = content[KEY] | values
    write_checkpoint(content, path)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint beside its target, flushes it to the disk and renames it.

    Raises:
        OSError: it cannot be written; the previous one is untouched.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's error for a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def weights_of(content: dict[str, Any], *, averaged: bool = True) -> dict[str, Tensor]:
    """The detector's state, with averaged (EMA) weights if the checkpoint has them."""
    state = dict(content["state_dict"])
    if averaged:
        state |= content.get(EMA_KEY) or {}
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def checkpoint_path(path: str | Path, which: str = "last") -> Path:
    """The checkpoint file of a run folder, or the file itself."""
    path = Path(path)
    return path / "checkpoints" / f"{which}.ckpt" if path.is_dir() else path


def run_of(path: str | Path) -> Path | None:
    """The run folder itself or that of a checkpoint in it; None for a checkpoint outside of a run folder."""
    path = Path(path)
    if not path.is_dir():
        if path.absolute().parent.name != "checkpoints":
            return None
        path = path.absolute().parents[1]
    return path if (path / "config.yaml").is_file() else None


def load_detector(path: str | Path, *, averaged: bool = True) -> tuple[Detector, dict[str, Any]]:
    """The detector of a checkpoint, in evaluation mode on the CPU.

    Args:
        path: Checkpoint file, or run folder (then its ``checkpoints/last.ckpt``).
        averaged: Whether to use the averaged (EMA) weights if the checkpoint has them.

    Returns:
        The detector and its description: ``detector``, ``size``, ``loss``, ``num_classes``, ``class_names``,
        ``category_ids``, ``options``.

    Raises:
        ValueError: the file is missing or not a checkpoint of concordet, its weights do not fit its description, or
            some of them are not finite.

    Example:
        >>> model, meta = load_detector("runs/first")
        >>> model.training, meta["detector"], meta["num_classes"]
        (False, 'fcos', 2)
    """
    path = checkpoint_path(path)
    content = read_checkpoint(path)
    meta = content[KEY]
    try:
        model = build_detector(
            meta["detector"],
            num_classes=meta["num_classes"],
            loss=meta["loss"],
            size=meta["size"],
            backbone=meta["backbone"],
            **meta["options"],
        )
    except (ValueError, TypeError) as error:  # TypeError: an option of another type
        raise ValueError(
            f"{path} must describe a detector of this version of concordet, got another one: {error}"
        ) from error
    state = weights_of(content, averaged=averaged)
    load_weights(model, state, path)
    check_finite(state, path)
    return model.eval(), meta


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads a checkpoint's weights into a detector, all of them or none.

    Raises:
        ValueError: names or shapes differ.
    """
    own = model.state_dict()
    # frozen batch norms, which detectors with pretrained weights have, lack this counter
    state = {n: v for n, v in own.items() if n.endswith("num_batches_tracked")} | state
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or surplus or shaped:
        name = (shaped or missing or surplus)[0]
        count = len(missing) + len(surplus) + len(shaped)
        raise ValueError(
            f"the weights in {path} are not those of this detector: {count} tensors differ, the first is {name}; "
            "use the version and the detector that it was written with"
        )
    model.load_state_dict(state)


def is_ours(path: str | Path) -> bool:
    """Whether a path is a run folder, or a checkpoint of concordet."""
    try:
        return bool(_open_checkpoint(checkpoint_path(path)))
    except ValueError:
        return False


def start_from(model: nn.Module, path: str | Path, wanted: dict[str, Any]) -> None:
    """Loads the weights of a checkpoint of the same detector, size and classes into ``model``; the loss may differ.

    Args:
        model: Detector that will be trained.
        path: Checkpoint or run folder.
        wanted: Description of the new run by :func:`describe`.

    Raises:
        ValueError: the checkpoint is of another detector, size or number of classes; the message says which.
    """
    path = checkpoint_path(path)
    content = read_checkpoint(path)
    check_same(content[KEY], wanted, path)
    state = weights_of(content)
    check_finite(state, path)
    # the state of the other run's criterion is not wanted
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("criterion.")}
    state = {name: value for name, value in state.items() if not name.startswith("criterion.")}
    if content[KEY]["loss"] != wanted["loss"]:
        # the loss decides on the auxiliary head: a new one keeps its initial weights, one that is gone is left out
        own = model.state_dict()
        kept |= {name: value for name, value in own.items() if name not in state}
        state = {name: value for name, value in state.items() if name in own}
    load_weights(model, state | kept, path)


def check_same(meta: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raises a ValueError that names the difference between a checkpoint and the wanted detector."""
    for key in ("detector", "size", "backbone"):
        if key in wanted and meta[key] != wanted[key]:
            raise ValueError(
                f"{key} must be {meta[key]}, which {path} is a checkpoint of, got {wanted[key]}; name another "
                f"checkpoint, or use {meta[key]}"
            )
    if meta["num_classes"] != wanted["num_classes"]:
        raise ValueError(
            f"the data must have the {meta['num_classes']} classes that {path} was trained on "
            f"({_few(meta['class_names'])}), got {wanted['num_classes']} ({_few(wanted['class_names'])}); name another "
            "checkpoint or other data"
        )
    if meta["class_names"] != wanted["class_names"]:
        raise ValueError(
            f"the data must have the classes that {path} was trained on ({_few(meta['class_names'])}), got "
            f"{_few(wanted['class_names'])}; name another checkpoint or other data"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
