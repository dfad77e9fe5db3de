"""Configurations as plain values and YAML files, and the checks of what they contain."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from concordet.engine.config.settings import CalibrationConfig, DataConfig, OptimConfig, TrainConfig
from concordet.engine.plugins import absolute
from concordet.errors import UsageError, closest
from concordet.files import read_yaml, write_text
from concordet.setting_types import checked_types

# Settings that may change when a run is continued: those of files and hardware, which do not change its results.
# The batch size may change because the number of accumulated batches follows from the images of an update.
MAY_CHANGE = (
    "data.path",
    "data.allow_outside",
    "data.root",
    "data.batch_size",
    "data.workers",
    "data.train_annotations",
    "data.val_annotations",
    "data.train_images",
    "data.val_images",
    "plugins",
    "accelerator",
    "devices",
    "nodes",
    "timeout",
    "compile",
    "val_every",
    "evaluate",
    "logger",
    "log_every",
    "checkpoint_minutes",
)

RENAMED = {("optim", "backbone_lr"): "backbone_lr_factor"}
"""New names of renamed settings by (section, old name); files with the old names can still be read."""


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name.

    Example:
        >>> flat(TrainConfig())["optim.lr"]
        0.001
    """
    settings: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            settings |= flat(value, f"{prefix}{item.name}.")
        else:
            settings[f"{prefix}{item.name}"] = list(value) if isinstance(value, tuple) else value
    return settings


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same configuration with absolute names of files and folders, which are found from every folder.

    Example:
        >>> with_absolute_paths(TrainConfig(data=DataConfig(path="photos"))).data.path == str(Path("photos").absolute())
        True
    """

    names = ("path", "root", *(_RELATIVE_TO_ROOT if config.data.root is None else ()))
    paths = {name: value for name in names if (value := getattr(config.data, name)) is not None}
    whole: dict[str, Any] = {name: str(Path(value).absolute()) for name, value in paths.items()}
    weights = config.weights
    if weights is not None and Path(weights).exists():  # not a name
        weights = str(Path(weights).absolute())
    return replace(config, data=replace(config.data, **whole), weights=weights, plugins=absolute(config.plugins))


_RELATIVE_TO_ROOT = ("train_annotations", "val_annotations", "train_images", "val_images")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, strings and numbers."""
    size = config.image_size
    return asdict(config) | {"image_size": list(size) if isinstance(size, tuple) else size}


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The configuration that :func:`to_dict` was made from.

    Raises:
        ValueError: a setting does not exist or has a value of the wrong type.

    Example:
        >>> from_dict(to_dict(TrainConfig(detector="atss", image_size=(240, 320)))).image_size
        (240, 320)
    """
    values = checked_settings(values)
    for name, section in _SECTIONS.items():
        values[name] = section(**values.get(name, {}))
    return TrainConfig(**values)


_SECTIONS: dict[str, type[Any]] = {"data": DataConfig, "optim": OptimConfig, "calibration": CalibrationConfig}


def checked_settings(values: dict[str, Any], *, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings converted to their types; sections that are null are left out.

    Args:
        values: Settings by name; a section is a nested dict.
        others: Additional names that are allowed, with any value.

    Raises:
        ValueError: a setting does not exist or has a value of another type, or a section is not a mapping.

    Example:
        >>> checked_settings({"optim": {"lr": "0.1"}, "devices": 2})
        {'optim': {'lr': 0.1}, 'devices': '2'}
        >>> checked_settings({"optim": 3})
        Traceback (most recent call last):
        ValueError: optim must be a mapping of settings, got 3; write for example optim: {lr: 0.001}
    """
    _check_names(values, TrainConfig, "", others)
    sections = {}
    for name, section in _SECTIONS.items():
        inside = values.get(name)
        if inside is None:
            continue
        if not isinstance(inside, dict):
            example = "{lr: 0.001}" if name == "optim" else "{name: voc}"
            raise ValueError(
                f"{name} must be a mapping of settings, got {inside!r:.60}; write for example {name}: {example}"
            )
        _check_names(inside, section, f"{name}.", ())
        sections[name] = checked_types(inside, section, f"{name}.")
    free = {name: value for name, value in values.items() if name in others}
    own = {name: value for name, value in values.items() if name not in (*others, *_SECTIONS)}
    return sections | checked_types(own, TrainConfig) | free


def _check_names(values: dict[str, Any], section: type[Any], prefix: str, others: tuple[str, ...]) -> None:
    known = [item.name for item in fields(section)]
    for name in values:
        if name not in (*known, *others):
            match = closest(str(name), known)
            fix = f"choose one of {', '.join(sorted(known))}" if match is None else f"did you mean {prefix}{match}?"
            raise ValueError(f"setting must be one of `concordet train --help`, got {prefix}{name}; {fix}")


def rename_settings(values: dict[str, Any]) -> list[str]:
    """Renames settings of older versions, in place, and returns a note for each.

    Example:
        >>> values = {"optim": {"backbone_lr": 0.1}}
        >>> rename_settings(values), values
        (['optim.backbone_lr is now called optim.backbone_lr_factor'], {'optim': {'backbone_lr_factor': 0.1}})
    """
    notes = []
    for (section, old), new in RENAMED.items():
        inside = values.get(section)
        if isinstance(inside, dict) and old in inside:
            inside[new] = inside.pop(old)
            notes.append(f"{section}.{old} is now called {section}.{new}")
    return notes


def save_config(path: str | Path, config: TrainConfig) -> None:
    """Writes the configuration as YAML.

    Args:
        path: File to write; an existing one is replaced.
        config: Configuration of a run.

    Example:
        >>> save_config(Path("run.yaml"), TrainConfig(detector="atss", loss="rank_sort"))
        >>> load_config(Path("run.yaml")).loss
        'rank_sort'
    """
    import yaml

    write_text(Path(path), yaml.safe_dump(to_dict(config), sort_keys=False))


def load_config(path: str | Path) -> TrainConfig:
    """Reads a configuration that :func:`save_config` wrote.

    Args:
        path: YAML file, such as ``config.yaml`` of a run folder.

    Returns:
        The configuration; settings that the file does not have are the defaults.

    Raises:
        ValueError: there is no such file, or it is not a run's configuration.

    Example:
        >>> load_config(Path("runs/first/config.yaml")).detector
        'fcos'
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"run must be a folder with {path.name}, got {path.parent} without it; give the output folder of "
            "`concordet train`"
        )
    values = read_settings(path)
    rename_settings(values)
    try:
        return from_dict(values)
    except UsageError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The unchecked settings in a YAML file.

    Raises:
        ValueError: the file cannot be read, is not YAML, or does not contain settings.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} must hold settings, such as detector: fcos, got {str(values)[:60]}; name another file"
        )
    return values
