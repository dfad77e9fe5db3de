"""Small real runs that the tests of engine and command line share."""

from dataclasses import replace
from pathlib import Path

from concordet.engine import DataConfig, OptimConfig, TrainConfig

CLASSES = ["3", "7"]


def tiny(**changes) -> TrainConfig:
    """Three updates an epoch on 64-pixel digit scenes; dotted names go to data and optim as ``data_...``."""
    data = DataConfig(
        name="digits",
        train_options={"length": 12, "size": 64, "classes": CLASSES},
        val_options={"length": 6, "size": 64, "classes": CLASSES},
        batch_size=4,
        workers=0,
        augment="jitter",
    )
    optim = OptimConfig(epochs=2, lr=1e-3, ema=0.9)
    data = replace(data, **{k[5:]: changes.pop(k) for k in list(changes) if k.startswith("data_")})
    optim = replace(optim, **{k[6:]: changes.pop(k) for k in list(changes) if k.startswith("optim_")})
    settings = {"detector": "fcos", "size": "nano", "image_size": (64, 64), "accelerator": "cpu", "log_every": 1}
    return TrainConfig(**settings | {"data": data, "optim": optim} | changes)


def words(config: TrainConfig) -> list[str]:
    """The options of ``concordet train`` that give this configuration."""
    import json

    from concordet.engine.config import flat

    found = []
    for name, value in flat(config).items():
        if value is not None:
            found += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
