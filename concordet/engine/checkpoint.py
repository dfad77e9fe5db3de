"""Checkpoints: what they say about themselves, and how a detector comes back from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concordet.engine.config import TrainConfig
from concordet.version import __version__

KEY = "concordet"
EMA_KEY = "ema_state_dict"
_PREFIX = "model."


def describe(config: TrainConfig, class_names: list[str], category_ids: list[int]) -> dict[str, Any]:
    """What a checkpoint carries beside weights: plain strings, numbers and lists, enough to rebuild the detector."""
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
    """The content of one of our checkpoints, tensors on the CPU; no code in it is run (``weights_only=True``).

    Raises:
        ValueError: it is missing, no checkpoint, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}; name a .ckpt file or a run folder that holds one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        raise ValueError(
            f"{path} is no checkpoint of concordet, or was cut short; name another file, such as checkpoints/last.ckpt "
            "of a run folder"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict) or "state_dict" not in content:
        raise ValueError(f"{path} is a checkpoint, but not one of concordet; name one that `concordet train` wrote")
    return content


def weights_of(content: dict[str, Any], *, averaged: bool = True) -> dict[str, Tensor]:
    """The detector's state: the averaged weights where there are some, else those that were trained."""
    state = dict(content["state_dict"])
    if averaged:
        state |= content.get(EMA_KEY) or {}
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def checkpoint_path(place: str | Path, which: str = "last") -> Path:
    """The checkpoint file that a run folder, or the file itself, stands for."""
    place = Path(place)
    return place / "checkpoints" / f"{which}.ckpt" if place.is_dir() else place


def load_detector(path: str | Path, *, averaged: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """A detector as a checkpoint has it, in evaluation mode on the CPU.

    Args:
        path: A checkpoint file, or a run folder (then its ``checkpoints/last.ckpt``).
        averaged: Take the averaged (EMA) weights where the checkpoint has them.

    Returns:
        The detector, and what the checkpoint says of it: ``detector``, ``size``, ``loss``, ``num_classes``,
        ``class_names``, ``category_ids``, ``options``.

    Raises:
        ValueError: the file is missing, no checkpoint of concordet, or does not fit what it says of itself.
    """
    from concordet.detectors import build_detector

    path = checkpoint_path(path)
    content = read_checkpoint(path)
    meta = content[KEY]
    model = build_detector(
        meta["detector"],
        num_classes=meta["num_classes"],
        loss=meta["loss"],
        size=meta["size"],
        backbone=meta["backbone"],
        **meta["options"],
    )
    load_weights(model, weights_of(content, averaged=averaged), path)
    return model.eval(), meta


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Puts a checkpoint's weights into a detector, all of them or none.

    Raises:
        ValueError: names or shapes differ.
    """
    own = model.state_dict()
    # batch norms that were frozen in training have no such counter
    state = {n: v for n, v in own.items() if n.endswith("num_batches_tracked")} | state
    missing, left_over = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or left_over or shaped:
        name = (shaped or missing or left_over)[0]
        count = len(missing) + len(left_over) + len(shaped)
        raise ValueError(
            f"the weights in {path} are not those of this detector: {count} tensors differ, the first is {name}; "
            "use the version and the detector that it was written with"
        )
    model.load_state_dict(state)


def is_ours(path: str | Path) -> bool:
    """Whether this is a run folder, or a file that holds one of our checkpoints."""
    path = checkpoint_path(path)
    try:
        return bool(read_checkpoint(path))
    except ValueError:
        return False


def start_from(model: nn.Module, path: str | Path, wanted: dict[str, Any]) -> None:
    """Puts the weights of a checkpoint of the same detector, size and classes into ``model``; the loss may differ.

    Args:
        model: The detector that will be trained.
        path: A checkpoint or a run folder.
        wanted: What :func:`describe` says of the new run.

    Raises:
        ValueError: the checkpoint is of another detector, size or number of classes; the sentence says which.
    """
    path = checkpoint_path(path)
    content = read_checkpoint(path)
    check_same(content[KEY], wanted, path)
    state = weights_of(content)
    # a criterion's state belongs to the other run's loss
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("criterion.")}
    state = {name: value for name, value in state.items() if not name.startswith("criterion.")}
    if content[KEY]["loss"] != wanted["loss"]:
        # the loss decides on the auxiliary head: one that is new keeps its first weights, one that is gone is left out
        own = model.state_dict()
        kept |= {name: value for name, value in own.items() if name not in state}
        state = {name: value for name, value in state.items() if name in own}
    load_weights(model, state | kept, path)


def check_same(meta: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raises a ValueError that says in what a checkpoint differs from the detector that is wanted."""
    for key, word in (("detector", "detector"), ("size", "size"), ("backbone", "backbone")):
        if key in wanted and meta[key] != wanted[key]:
            raise ValueError(
                f"{path} is a checkpoint of the {word} {meta[key]}, but {wanted[key]} is asked for; "
                f"name another checkpoint, or ask for {meta[key]}"
            )
    if meta["num_classes"] != wanted["num_classes"]:
        raise ValueError(
            f"{path} was trained on {meta['num_classes']} classes ({_few(meta['class_names'])}), but the data has "
            f"{wanted['num_classes']} ({_few(wanted['class_names'])}); name another checkpoint or other data"
        )
    if meta["class_names"] != wanted["class_names"]:
        raise ValueError(
            f"{path} was trained on the classes {_few(meta['class_names'])}, but the data has "
            f"{_few(wanted['class_names'])}; name another checkpoint or other data"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
