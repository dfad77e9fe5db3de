"""The configuration of a run as typed dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from concordet.errors import UsageError
from concordet.setting_types import MAX_IMAGE_SIDE

Schedule = Literal["onecycle", "cosine", "step", "constant"]

MAX_WORKERS = 256
"""Largest number of processes that load images; thousands of them would stop most machines."""


@dataclass
class DataConfig:
    """Images and annotations.

    Args:
        path: Folder or annotation file with the data; the same as the argument of `concordet train`. The format (YOLO,
            COCO, Pascal VOC, CSV, ...) is recognized.
        name: Name of the data set: digits (generated), coco, voc, ...; see `concordet list datasets`. With path, the
            format in which to read it.
        classes: Classes to keep, separated by commas, such as cat,pet=dog+wolf, which merges two; or a mapping of names
            to new names, or to null, which drops a class; by default all.
        val_fraction: Share of the images to hold out for validation if path has no validation split.
        val_seed: Random seed for choosing the images to hold out.
        allow_outside: Whether to read images outside the folder of the data set, to which annotations or links point.
        root: Folder of the data set, in its publisher's layout.
        train_split: Name of the training split; the default depends on the data set (voc: trainval, digits: train).
        val_split: Name of the evaluation split; the default depends on the data set (voc: test, digits: val).
        train_annotations: COCO file with the training annotations, for layouts other than COCO's.
        val_annotations: COCO file with the evaluation annotations, for layouts other than COCO's.
        train_images: Folder with the training images, for layouts other than COCO's.
        val_images: Folder with the evaluation images, for layouts other than COCO's.
        train_options: Other options of the training data, by name (digits: length, size, seed, ...).
        val_options: Other options of the evaluation data, by name.
        batch_size: Images per batch and process.
        workers: Number of processes that load images; 0 loads them in the training process.
        augment: Augmentation of the training images: none; flip (for half of the images, unless flipped objects would
            be of other classes, as digits are); jitter (scale, position and flips); ssd (colors, zoom, crops and
            flips).

    Example:
        >>> cells = DataConfig(path="photos", classes={"RBC": "cell", "WBC": "cell", "Platelets": None}, batch_size=16)
        >>> digits = DataConfig(name="digits", train_options={"length": 200, "size": 96})
    """

    path: str | None = None
    name: str | None = None
    classes: list[str] | dict[str, str | None] | None = None
    val_fraction: float = 0.2
    val_seed: int = 0
    allow_outside: bool = False
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
    """Optimization.

    Args:
        optimizer: Optimizer: adamw, or sgd with Nesterov momentum.
        lr: Peak learning rate of an update, whose batch is that of all processes together; it is not scaled.
        backbone_lr_factor: Factor on the learning rate of the backbone (DETR: 0.1).
        weight_decay: Weight decay; not applied to norms and biases.
        momentum: Momentum of SGD.
        epochs: Number of passes over the training images.
        steps: Updates of the weights; overrides epochs.
        schedule: Learning rate schedule: onecycle and cosine decay to zero, step drops at the milestones.
        milestones: Epochs after which the step schedule drops; by default 2/3 and 11/12 of the run.
        drop: Factor of each drop of the step schedule.
        warmup: Number of warmup updates, or, below 1, their share of the run; by default 0.3 for onecycle, otherwise a
            tenth of the run and at most 500 updates.
        clip: Maximum gradient norm; 0 disables clipping.
        ema: Decay of the averaged weights (EMA), which are evaluated and saved; 0 disables averaging.
        accumulate: Number of batches per update.

    Example:
        >>> detectron = OptimConfig(optimizer="sgd", lr=0.01, schedule="step", epochs=12, milestones=[8, 11], ema=0)
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr_factor: float = 1.0
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
class CalibrationConfig:
    """Calibration of scores.

    Args:
        fraction: Share of the training images to hold out for fitting the calibrator; with 0, it is fitted on the
            evaluated images, and the reported calibration errors are cross-fitted.
        seed: Random seed for choosing these images.
    """

    fraction: float = 0.0
    seed: int = 0


@dataclass
class TrainConfig:
    """Run.

    Args:
        preset: Settings to start from, which all other settings override; see `concordet list presets`. For data given
            by its path, the default is chosen for the images and the device; none means the defaults listed here.
        detector: Name of the detector; see `concordet list detectors`.
        size: Size of the detector: full is as published, nano is for CPUs and small data sets.
        loss: Name of the loss, optionally with couplings, such as focal+concordance(0.3); see `concordet list losses`.
        backbone: Name of the backbone; by default the published one.
        weights: Initial weights: a checkpoint of the same detector, size and classes, a file with torchvision's
            weights, or their name (ResNet50_Weights.IMAGENET1K_V1); by default random. Nano detectors take only a
            checkpoint.
        image_size: Size of the network's input in pixels: [shorter, longer] side for detectors that keep the aspect
            ratio, [height, width] for SSD, DSSD, RefineDet and YOLACT, or one number; the default depends on the
            detector.
        options: Other options of the detector, by name.
        data: Images and annotations.
        optim: Optimization.
        calibration: Calibration of scores.
        plugins: Python file or module, or a list of them, that registers your own losses, detectors or data sets.
        precision: Floating-point precision: 32, or bf16 for automatic mixed precision.
        accelerator: Device: cpu, gpu, or auto, which uses a GPU if there is one.
        devices: Number of processes on this machine, one per device; auto uses every GPU, or one process on a CPU.
        nodes: Number of machines; torchrun sets it.
        timeout: Seconds that processes wait for one another before they give up.
        seed: Random seed of the weights, the order of the images and the augmentation.
        compile: Whether to compile the backbone (torch.compile).
        sync_batchnorm: Whether to synchronize batch norms over all processes (GPUs only).
        global_ranking: Whether ranking and correlation losses use the batches of all processes together; by default
            each process ranks its own batch, as in the papers.
        val_every: Number of epochs between evaluations; the last epoch is always evaluated, unless this is 0.
        evaluate: Whether to evaluate the run at the end.
        logger: Where to log curves besides metrics.csv: tensorboard, wandb, mlflow, or csv for nowhere else.
        log_every: Number of updates between two rows of metrics.csv.
        checkpoint_minutes: Minutes between checkpoints within an epoch; 0 writes them only at the end of epochs.
        paper: Results that a paper reports for this run (in recipes); they have no effect.

    Raises:
        UsageError: a number is outside its range, or two settings contradict each other.

    Example:
        >>> config = TrainConfig(detector="atss", size="nano", loss="rank_sort", data=DataConfig(path="photos"))
        >>> config.optim.lr
        0.001
        >>> TrainConfig(nodes=0)
        Traceback (most recent call last):
        concordet.errors.UsageError: nodes must be at least 1, got 0; choose another number
    """

    preset: str | None = None
    detector: str = "fcos"
    size: Literal["full", "nano"] = "full"
    loss: str = "default"
    backbone: str | None = None
    weights: str | None = None
    image_size: int | tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    plugins: list[str] | str | None = None
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
    logger: Literal["tensorboard", "wandb", "mlflow", "csv"] = "tensorboard"
    log_every: int = 10
    checkpoint_minutes: float = 30.0
    paper: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value, minimum in (
            ("data.batch_size", self.data.batch_size, 1),
            ("data.workers", self.data.workers, 0),
            ("optim.epochs", self.optim.epochs, 1),
            ("optim.accumulate", self.optim.accumulate, 1),
            ("optim.backbone_lr_factor", self.optim.backbone_lr_factor, 0),
            ("optim.clip", self.optim.clip, 0),
            ("optim.momentum", self.optim.momentum, 0),
            ("optim.warmup", self.optim.warmup or 0, 0),
            ("optim.weight_decay", self.optim.weight_decay, 0),
            ("optim.steps", 1 if self.optim.steps is None else self.optim.steps, 1),
            ("nodes", self.nodes, 1),
            ("timeout", self.timeout, 1),
            ("val_every", self.val_every, 0),
            ("log_every", self.log_every, 1),
            ("checkpoint_minutes", self.checkpoint_minutes, 0),
        ):
            if not minimum <= value < math.inf:
                raise UsageError(f"{name} must be at least {minimum}, got {value}; choose another number")
        if self.data.workers > MAX_WORKERS:
            raise UsageError(
                f"data.workers must be at most {MAX_WORKERS}, got {self.data.workers}; each is a process, and one per "
                "processor core is enough"
            )
        milestones = self.optim.milestones or []
        if milestones != sorted(set(milestones)) or not all(0 < m < self.optim.epochs for m in milestones):
            raise UsageError(
                f"optim.milestones must be ascending epochs within the {self.optim.epochs} of the run, got "
                f"{milestones}; give others, or null for 2/3 and 11/12 of the run"
            )
        if milestones and self.optim.schedule != "step":
            raise UsageError(
                f"optim.schedule must be step with optim.milestones, got {self.optim.schedule}; leave one of them out"
            )
        if not 0 < self.optim.drop < 1:
            raise UsageError(f"optim.drop must be above 0 and below 1, got {self.optim.drop}; choose another factor")
        if not 0 < self.optim.lr < math.inf:
            raise UsageError(f"optim.lr must be above 0, got {self.optim.lr}; choose another learning rate")
        if not 0 < self.data.val_fraction < 1:
            raise UsageError(
                f"data.val_fraction must be above 0 and below 1, got {self.data.val_fraction}; 0.2 holds out a fifth"
            )
        if not 0 <= self.calibration.fraction < 1:
            raise UsageError(
                f"calibration.fraction must be at least 0 and below 1, got {self.calibration.fraction}; 0.1 holds out "
                "a tenth of the training images"
            )
        if not 0 <= self.optim.ema < 1:
            raise UsageError(f"optim.ema must be at least 0 and below 1, got {self.optim.ema}; choose another decay")
        sides = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ()
        if not all(1 <= side <= MAX_IMAGE_SIDE for side in sides):
            raise UsageError(
                f"image_size must be between 1 and {MAX_IMAGE_SIDE} pixels, got {list(sides)}; choose another"
            )
        for name in self.options:
            if name in _NO_OPTIONS:
                raise UsageError(f"options must be those of the detector, got {name}; {_NO_OPTIONS[name]}")
        self.plugins = [self.plugins] if isinstance(self.plugins, str) else self.plugins


_NO_OPTIONS = {name: f"write {name} beside options" for name in ("loss", "size", "backbone", "weights", "image_size")}
_NO_OPTIONS |= {"num_classes": "the data decides it; data.classes chooses classes", "name": "write it as detector"}
"""Arguments of build_detector that are separate settings, and what to do instead."""
