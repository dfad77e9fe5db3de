"""What a run consists of, as typed dataclasses: printable, saved beside the run, read back from there.

Nothing here imports torch, so that ``concordet train --help`` is quick.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from concordet.errors import UsageError
from concordet.files import replacing

Schedule = Literal["onecycle", "cosine", "step", "constant"]


@dataclass
class DataConfig:
    """Images and annotations.

    Args:
        name: Data set: digits (made on the fly), coco, voc, ...; `concordet list datasets` names them.
        root: Folder of the data set, as its publisher lays it out.
        train_split: Which part trains; the data set's own default when not given (VOC: trainval, digits: train).
        val_split: Which part is evaluated; the data set's own default when not given (VOC: test, digits: val).
        train_annotations: Annotation file of the training part, for COCO files that do not lie in the usual place.
        val_annotations: Annotation file of the evaluated part.
        train_images: Folder of the training images, likewise.
        val_images: Folder of the evaluated images.
        train_options: Further options of the data set for training, by name (digits: length, size, seed, ...).
        val_options: The same for evaluation.
        batch_size: Images a step and process.
        workers: Processes that load images; 0 loads in the training process.
        augment: none; flip (mirrors half of the images, where the classes allow it: a mirrored digit is none); jitter
            (scale and place, and flips); ssd (colours, zoom, crops and flips).
    """

    name: str = "digits"
    root: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    train_annotations: str | None = None
    val_annotations: str | None = None
    train_images: str | None = None
    val_images: str | None = None
    train_options: dict[str, Any] = field(default_factory=dict)
    val_options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    workers: int = 2
    augment: Literal["none", "flip", "jitter", "ssd"] = "flip"


@dataclass
class OptimConfig:
    """Optimisation.

    Args:
        optimizer: adamw, or sgd with Nesterov momentum.
        lr: Highest learning rate, for the whole batch of all processes.
        backbone_lr: Factor on it for the backbone (DETR: 0.1).
        weight_decay: Of weights; norms and biases have none.
        momentum: Of sgd.
        epochs: Passes over the training images.
        steps: Updates instead of epochs; it wins where both are given.
        schedule: onecycle and cosine fall to zero, step falls at the milestones.
        milestones: Epochs after which step falls; when not given 2/3 and 11/12 of the run.
        drop: Factor of each fall.
        warmup: Updates that the learning rate rises over, or below 1 their share of the run; when not given 0.3 for
            onecycle, else at most 500 updates and a tenth of the run.
        clip: Largest gradient norm; 0 switches clipping off.
        ema: Decay of the averaged weights that are evaluated and saved; 0 switches averaging off.
        accumulate: Batches that are added up to one update.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    epochs: int = 12
    steps: int | None = None
    schedule: Schedule = "onecycle"
    milestones: list[float] | None = None
    drop: float = 0.1
    warmup: float | None = None
    clip: float = 10.0
    ema: float = 0.998
    accumulate: int = 1


@dataclass
class TrainConfig:
    """One run.

    Args:
        detector: Name of the detector; `concordet list detectors` names them.
        size: full is the published architecture, nano one for CPUs and demonstrations.
        loss: Name of the loss, couplings added with +, such as focal+concordance(0.3); `concordet list losses`.
        backbone: Backbone; the published default when not given.
        weights: What to start from: a checkpoint of the same detector, size and classes, a file of torchvision's
            weights, or their name (ResNet50_Weights.IMAGENET1K_V1); from scratch when not given.
        image_size: Size of the network's input in pixels: [shorter, longer] side for detectors that keep the shape of
            images, [height, width] for SSD, DSSD, RefineDet and YOLACT, or one number (see build_detector); the
            detector's default when not given.
        options: Further options of the detector, by name.
        data: Images and annotations.
        optim: Optimisation.
        precision: 32, or bf16 for automatic mixed precision.
        accelerator: auto takes a GPU where there is one.
        devices: Processes on this machine, one a device; auto takes every GPU, or one process on a CPU.
        nodes: Machines; torchrun knows it without.
        timeout: Seconds that processes wait for one another before they give up.
        seed: Of weights, order and augmentation.
        compile: Compile the backbone (torch.compile).
        sync_batchnorm: Batch norms see the batch of all processes (GPUs only).
        global_ranking: Ranking and correlation losses see the batch of all processes, as one process with all of it
            would; without, each process ranks its own, as published.
        val_every: Epochs between evaluations during training; 0 never evaluates.
        evaluate: Evaluate the run at its end.
        log_every: Updates between two rows of metrics.csv.
        paper: What a paper reports of this run, in recipes; it changes nothing.
    """

    detector: str = "fcos"
    size: Literal["full", "nano"] = "full"
    loss: str = "default"
    backbone: str | None = None
    weights: str | None = None
    image_size: int | tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Literal["32", "bf16"] = "32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: str = "auto"
    nodes: int = 1
    timeout: int = 1800
    seed: int = 0
    compile: bool = False
    sync_batchnorm: bool = False
    global_ranking: bool = False
    val_every: int = 1
    evaluate: bool = True
    log_every: int = 10
    paper: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("data.batch_size", self.data.batch_size, 1),
            ("data.workers", self.data.workers, 0),
            ("optim.epochs", self.optim.epochs, 1),
            ("optim.accumulate", self.optim.accumulate, 1),
            ("optim.clip", self.optim.clip, 0),
            ("optim.warmup", self.optim.warmup or 0, 0),
            ("optim.weight_decay", self.optim.weight_decay, 0),
            ("optim.steps", 1 if self.optim.steps is None else self.optim.steps, 1),
            ("nodes", self.nodes, 1),
            ("timeout", self.timeout, 1),
            ("val_every", self.val_every, 0),
            ("log_every", self.log_every, 1),
        ):
            if not value >= least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        milestones = self.optim.milestones or []
        if milestones != sorted(set(milestones)) or not all(0 < m < self.optim.epochs for m in milestones):
            raise UsageError(
                f"optim.milestones are epochs in ascending order within the {self.optim.epochs} of the run, not "
                f"{milestones}; give others, or null for 2/3 and 11/12 of the run"
            )
        if milestones and self.optim.schedule != "step":
            raise UsageError(f"optim.milestones belong to the schedule step, not to {self.optim.schedule}")
        if not 0 < self.optim.drop < 1:
            raise UsageError(f"optim.drop is a factor above 0 and below 1, not {self.optim.drop}")
        if not self.optim.lr > 0:
            raise UsageError(f"optim.lr must be above 0, not {self.optim.lr}")
        if not 0 <= self.optim.ema < 1:
            raise UsageError(f"optim.ema is a decay in [0, 1), not {self.optim.ema}")


# What may change when a run is continued: where it runs and where its files lie, not what it computes.
# Batches may, since as many are added up as keep the images of an update.
MAY_CHANGE = (
    "data.root",
    "data.batch_size",
    "data.workers",
    "data.train_annotations",
    "data.val_annotations",
    "data.train_images",
    "data.val_images",
    "accelerator",
    "devices",
    "nodes",
    "timeout",
    "compile",
    "val_every",
    "evaluate",
    "log_every",
)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name.

    Example:
        >>> flat(TrainConfig())["optim.lr"]
        0.001
    """
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found |= flat(value, f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = list(value) if isinstance(value, tuple) else value
    return found


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, strings and numbers."""
    size = config.image_size
    return asdict(config) | {"image_size": list(size) if isinstance(size, tuple) else size}


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The configuration that :func:`to_dict` was made from.

    Raises:
        ValueError: a setting that no run has.

    Example:
        >>> from_dict(to_dict(TrainConfig(detector="atss", image_size=(240, 320)))).image_size
        (240, 320)
    """
    values = dict(values)
    for name, kind in (("data", DataConfig), ("optim", OptimConfig)):
        values[name] = _made(kind, values.get(name) or {}, f"{name}.")
    if isinstance(values.get("image_size"), list | tuple):
        values["image_size"] = tuple(values["image_size"])
    return _made(TrainConfig, values)


def _made(kind: type[Any], values: dict[str, Any], prefix: str = "") -> Any:
    known = {item.name for item in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"{prefix}{name} is no setting of a run; it has {', '.join(sorted(known))}")
    return kind(**values)


def save_config(path: Path, config: TrainConfig) -> None:
    """Writes the configuration as YAML."""
    import yaml

    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def load_config(path: Path) -> TrainConfig:
    """Reads a configuration that :func:`save_config` wrote.

    Raises:
        ValueError: there is no such file, or it is not a run's configuration.
    """
    import yaml

    if not path.is_file():
        raise ValueError(
            f"{path.parent} is no run folder: it has no {path.name}; name a folder that `concordet train` made"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings; name a folder that `concordet train` made")
    return from_dict(values)
