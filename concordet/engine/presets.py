"""Presets: named settings for data sets and devices, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from concordet.engine.config import TrainConfig, from_dict
from concordet.errors import UsageError, unknown

NO_PRESET: Final = "none"

FEW_IMAGES: Final = 3000
"""Number of images up to which decoded images are kept in memory: at 320 x 240 pixels 0.7 GB."""

MANY_IMAGES: Final = 20_000
"""Number of images above which the full-size detector is trained as published."""

THUMBNAIL: Final = 200
"""Longest side in pixels of images that need only a small input size."""


@dataclass(frozen=True)
class Preset:
    """Settings for some data sets and devices.

    Attributes:
        about: Data and device that the preset is for.
        cost: Training time.
        settings: Settings of a run, as in a configuration file; all others have their defaults.
    """

    about: str
    cost: str
    settings: dict[str, Any]


_NANO: Final = {"lr": 0.002, "weight_decay": 0.05, "warmup": 0.1, "ema": 0.99}
"""Optimization of a nano detector from scratch, as in examples/bccd.yaml and the demonstration."""

PRESETS: Final[dict[str, Preset]] = {
    "thumbnails": Preset(
        "images of up to 200 pixels",
        "0.03 s of a CPU core per image and epoch: 1,000 images take a quarter of an hour on one core",
        {
            "size": "nano",
            "image_size": [128, 192],
            "val_every": 5,
            "data": {"batch_size": 16, "workers": 0, "train_options": {"cache": True}, "val_options": {"cache": True}},
            "optim": {**_NANO, "epochs": 30},
        },
    ),
    "small_photos": Preset(
        "up to 3,000 photographs, on a CPU",
        "0.07 s of a CPU core per image and epoch: 300 photographs take a quarter of an hour on one core",
        {
            "size": "nano",
            "image_size": [240, 320],
            "val_every": 10,
            "data": {
                "workers": 0,
                "train_options": {"cache": True, "max_size": 320},
                "val_options": {"cache": True, "max_size": 320},
            },
            "optim": {**_NANO, "epochs": 40},
        },
    ),
    "photos": Preset(
        "more than 3,000 photographs, on a CPU",
        "0.07 s of a CPU core per image and epoch: 10,000 photographs take two and a half hours on one core",
        {
            "size": "nano",
            "image_size": [240, 320],
            "val_every": 4,
            "data": {"train_options": {"max_size": 320}, "val_options": {"max_size": 320}},
            "optim": {**_NANO, "epochs": 12},
        },
    ),
    "photos_gpu": Preset(
        "up to 20,000 photographs, on a GPU",
        "not measured",
        {
            "size": "nano",
            "image_size": [480, 640],
            "val_every": 10,
            "precision": "bf16",
            "data": {
                "batch_size": 16,
                "workers": 4,
                "augment": "jitter",
                "train_options": {"max_size": 640},
                "val_options": {"max_size": 640},
            },
            "optim": {**_NANO, "epochs": 60},
        },
    ),
    "full": Preset(
        "more than 20,000 photographs, on a GPU: the detector's published size, 12 epochs",
        "not measured",
        {"precision": "bf16", "data": {"workers": 8}},
    ),
}


def list_presets() -> list[str]:
    """Names of all presets.

    Example:
        >>> list_presets()
        ['thumbnails', 'small_photos', 'photos', 'photos_gpu', 'full']
    """
    return list(PRESETS)


def preset_settings(name: str) -> dict[str, Any]:
    """The settings of a preset by dotted name.

    Raises:
        UsageError: there is no preset of this name.

    Example:
        >>> preset_settings("small_photos")["optim.epochs"]
        40
    """
    settings: dict[str, Any] = {}
    for key, value in _preset(name).settings.items():
        settings |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return settings


def preset_summary(name: str) -> str:
    """The main settings of a preset, for a line of output; config.yaml has all of them.

    Example:
        >>> preset_summary("photos_gpu")
        'size nano, image_size [480, 640], precision bf16, data.batch_size 16, optim.lr 0.002, optim.epochs 60'
    """
    main = ("size", "image_size", "optim.epochs", "optim.lr", "data.batch_size", "precision")
    return ", ".join(f"{key} {value}" for key, value in preset_settings(name).items() if key in main)


def describe_preset(name: str) -> dict[str, Any]:
    """A preset as plain strings and numbers, for lists."""
    preset = PRESETS[name]
    return {"name": name, "about": preset.about, "cost": preset.cost, "settings": preset_settings(name)}


@dataclass(frozen=True)
class Glance:
    """Number and size of the images of a data set, known before it is read.

    Attributes:
        images: Number of image files.
        size: (width, height) of the image of median area; None without readable images.
    """

    images: int
    size: tuple[int, int] | None


HEADERS: Final = 64
"""Number of images whose size is read: enough for a median if they are spread over all images."""


def glance(path: str | Path, *, allow_outside: bool = False) -> Glance:
    """Number and median size of the images of a data set, from at most 64 headers.

    Args:
        path: Folder or annotation file.
        allow_outside: Whether to follow links to folders outside.
    """
    from concordet.data.paths import Listing
    from concordet.images import SUFFIXES, read_header

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = Listing.of(folder, allow_outside).with_suffix(*SUFFIXES)
    sizes = []
    for file in files[:: max(1, len(files) // HEADERS)][:HEADERS]:
        try:
            header = read_header(file)
        except (ValueError, OSError):  # reported when the data set is opened
            continue
        sizes.append((header.width, header.height))
    sizes.sort(key=lambda size: size[0] * size[1])
    return Glance(len(files), sizes[len(sizes) // 2] if sizes else None)


def choose_preset(seen: Glance, *, gpu: bool) -> str:
    """The preset for a data set.

    Args:
        seen: Number and size of the images.
        gpu: Whether the run has a GPU.

    Example:
        >>> choose_preset(Glance(300, (640, 480)), gpu=False), choose_preset(Glance(118_000, (640, 480)), gpu=True)
        ('small_photos', 'full')
    """
    if seen.size is not None and max(seen.size) <= THUMBNAIL:
        return "thumbnails"
    if gpu:
        return "full" if seen.images > MANY_IMAGES else "photos_gpu"
    return "photos" if seen.images > FEW_IMAGES else "small_photos"


def why(seen: Glance, *, gpu: bool) -> str:
    """The reason for the choice of a preset, in words.

    Example:
        >>> why(Glance(300, (640, 480)), gpu=False)
        '300 images, most about 640 x 480 pixels, on a CPU'
    """
    size = "" if seen.size is None else f", most about {seen.size[0]} x {seen.size[1]} pixels"
    return f"{seen.images:,} image{'s' * (seen.images != 1)}{size}, on a {'GPU' if gpu else 'CPU'}"


def preset_for(path: str | Path, *, accelerator: str = "auto", allow_outside: bool = False) -> tuple[str, str]:
    """The preset for the data in a folder, and the reason for it in words.

    Args:
        path: Folder or annotation file.
        accelerator: Device of the run, as in its configuration.
        allow_outside: Whether to follow links to folders outside.
    """
    from concordet.engine.evaluation import pick_device

    seen, gpu = glance(path, allow_outside=allow_outside), pick_device(accelerator).type == "cuda"
    return choose_preset(seen, gpu=gpu), why(seen, gpu=gpu)


def preset_config(name: str, **changes: Any) -> TrainConfig:
    """A run's configuration from a preset, for Python.

    Args:
        name: Name of the preset.
        **changes: Settings that differ, by name; those of a section as a dict, such as ``data={"path": "photos"}``.

    Raises:
        UsageError: there is no such preset.

    Example:
        >>> preset_config("small_photos", loss="rank_sort", data={"path": "photos"}).optim.epochs
        40
    """
    settings: dict[str, Any] = {"preset": name}
    for source in ({} if name == NO_PRESET else _preset(name).settings, changes):
        for key, value in source.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, Mapping) else value
    return from_dict(settings)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(unknown("preset", name, (*PRESETS, NO_PRESET)))
    return PRESETS[name]
