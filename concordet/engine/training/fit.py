"""One run, from configuration to a folder with checkpoints and an evaluation."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn

from concordet.console import NORMAL, note, verbosity
from concordet.detectors import predicts_masks
from concordet.engine.checkpoint import checkpoint_path, describe, detector_options, is_ours, start_from
from concordet.engine.config import MAY_CHANGE, TrainConfig, flat, load_config, save_config, with_absolute_paths
from concordet.engine.data import DetectionData, build_dataset, describe_source, hold_out_for_calibration
from concordet.engine.evaluation import calibrate_checkpoints, evaluate_run, pick_device
from concordet.engine.plugins import import_plugins
from concordet.engine.seeding import seed_all
from concordet.engine.training.callbacks import AveragedWeights, IterationTimer, StartNote
from concordet.engine.training.checkpoints import (
    DurableCheckpointIO,
    ResumePoint,
    checkpoint_callbacks,
    resume_point,
)
from concordet.engine.training.launch import Launch, another_was_lost
from concordet.engine.training.logger import build_loggers, check_logger
from concordet.engine.training.module import DetectionModule
from concordet.engine.training.observers import WatchLosses
from concordet.engine.training.progress import LastEpochEvaluation, Progress
from concordet.errors import InterruptedRun, LostProcess, UsageError, unknown
from concordet.files import check_new, new_folder, writable, write_json
from concordet.locks import locked

MAX_CPU_PROCESSES = 16
"""Largest number of processes on a machine with fewer processor cores."""

CONFIG = "config.yaml"
IN_USE = "wait until it ends, or name another --out"


def train(config: TrainConfig, out: str | Path, *, resume: bool = False, launch: Launch | None = None) -> Path:
    """Trains a detector, and evaluates it at the end.

    Args:
        config: Configuration of the run.
        out: Run folder, which must not exist yet unless ``resume`` is set.
        resume: Whether to continue the run in ``out`` from its newest readable checkpoint, with the same order of
            images and the same random draws; ``config`` may differ from that of the run only in settings of files and
            hardware. Updates keep their number of images: with another number of processes or another
            ``data.batch_size`` (what fits into a device's memory), ``optim.accumulate`` changes accordingly.
        launch: Processes of the run; by default those of ``config`` and the environment.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder exists or is in use, the data is missing or invalid, or the checkpoint does not fit.
        DivergedError: the loss became infinite or NaN; earlier checkpoints are untouched.
        InterruptedRun: Ctrl-C; the message says how to continue.
        LostProcess: another process of the run has ended, or has not answered for ``config.timeout`` seconds.

    Example:
        >>> from concordet.engine import DataConfig, OptimConfig, TrainConfig
        >>> scenes = {"length": 8, "size": 64}
        >>> config = TrainConfig(
        ...     size="nano",
        ...     image_size=64,
        ...     loss="focal+concordance(0.3)",
        ...     data=DataConfig(name="digits", train_options=scenes, val_options=scenes, batch_size=4, workers=0),
        ...     optim=OptimConfig(epochs=1),
        ...     accelerator="cpu",
        ... )
        >>> run = train(config, "runs/coupled")
        >>> (run / "evaluation.json").is_file(), (run / "checkpoints" / "last.ckpt").is_file()
        (True, True)
    """
    out = Path(out)
    launch = launch or Launch.of(config)
    fix = "name another --out, or continue the run with --resume"
    with ExitStack() as stack:
        if launch.is_main:
            if resume:
                load_config(out / CONFIG)
                writable(out)
                stack.enter_context(locked(out, IN_USE))
            else:
                check_new(out, fix)
        import_plugins(config.plugins)
        check_names(config)
        check_logger(config.logger)
        _check_devices(config, launch)
        point = _resume(config, out) if resume else None
        if point is not None and point.images is not None:
            config, asked = launch.with_images_per_update(config, point.images), config
        else:
            asked = config
        train_set, val_set = build_datasets(config)
        train_set, held_out = hold_out_for_calibration(train_set, config)
        meta = describe(config, train_set.class_names, train_set.category_ids)
        model = build_model(config, meta)
        if launch.is_main:
            if point is not None and _is_finished(point, config):
                note(f"{out}: all {point.updates} updates are done")
            if not resume:
                stack.enter_context(locked(new_folder(out, fix), IN_USE))
            _note_start(asked, out, {"train": train_set, "val": val_set, "calibration": held_out})
            if config != asked:
                note(
                    f"updates stay at {launch.images_per_update(config)} images: {launch.processes} process(es), "
                    f"batches of {config.data.batch_size}, {config.optim.accumulate} of them per update"
                )
        _fit(config, out, launch, model, meta, (train_set, val_set if config.val_every else None), point)
        if launch.is_main and held_out is not None and checkpoint_path(out).is_file():
            calibrate_checkpoints(out, held_out, accelerator=config.accelerator)
        if launch.is_main and config.evaluate and not _is_evaluated(out):
            evaluate_run(out, dataset=val_set)
    return out


def build_datasets(config: TrainConfig) -> tuple[Any, Any]:
    """The training data, and the evaluation data (None if the run is never evaluated).

    Raises:
        ValueError: the data is missing or invalid, or the two have different classes.
    """
    masks = predicts_masks(config.detector)
    train_set = build_dataset(config.data, "train", augment=True, masks=masks)
    evaluated = config.val_every > 0 or config.evaluate
    val_set = build_dataset(config.data, "val", masks=masks) if evaluated else None
    if val_set is not None and val_set.class_names != train_set.class_names:
        raise ValueError(
            f"the classes of the training and the evaluation data must be the same, got "
            f"{', '.join(train_set.class_names)} and {', '.join(val_set.class_names)}; make their annotation files "
            "name the same categories in order, or set data.train_options and data.val_options"
        )
    return train_set, val_set


def _is_evaluated(out: Path) -> bool:
    """Whether there is an evaluation that is newer than the last checkpoint, which a resumed run replaces."""
    evaluation = out / "evaluation.json"
    return evaluation.is_file() and evaluation.stat().st_mtime >= checkpoint_path(out).stat().st_mtime


def check_names(config: TrainConfig) -> None:
    """Raises a UsageError for an unknown detector or loss."""
    from concordet.detectors import list_detectors
    from concordet.losses.criteria import build_criterion

    if config.detector not in list_detectors():
        raise UsageError(unknown("detector", config.detector, list_detectors()))
    try:
        build_criterion(config.loss)
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_model(config: TrainConfig, meta: dict[str, Any]) -> nn.Module:
    """The detector of a run, with weights from the seed or from ``config.weights``.

    Raises:
        ValueError: the weights do not fit the detector.
    """
    from concordet.detectors import build_detector

    seed_all(config.seed)
    ours = config.weights is not None and is_ours(config.weights)
    model = build_detector(
        config.detector,
        num_classes=meta["num_classes"],
        loss=config.loss,
        size=config.size,
        backbone=config.backbone,
        weights=None if ours else config.weights,
        **detector_options(config),
    )
    if ours and config.weights is not None:
        start_from(model, config.weights, meta)
    return model


def _resume(config: TrainConfig, out: Path) -> ResumePoint | None:
    """The point to continue from; None without a checkpoint.

    Raises:
        UsageError: a setting differs that changes the results.
    """
    before, now = (flat(with_absolute_paths(c)) for c in (load_config(out / CONFIG), config))
    for name, value in now.items():
        if name not in MAY_CHANGE and before[name] != value:
            raise UsageError(
                f"{name} must be {before[name]}, with which the run in {out} was started, got {value}; leave it out, "
                f"or start another run from its weights with --out NEW --weights {out}"
            )
    return resume_point(out)


def _note_start(config: TrainConfig, out: Path, splits: dict[str, Any]) -> None:
    from concordet.data import describe as counts

    save_config(out / CONFIG, with_absolute_paths(config))
    splits = {name: split for name, split in splits.items() if split is not None}
    summaries = {name: split.summary() for name, split in splits.items()}
    source = describe_source(config.data, splits)
    recorded: dict[str, Any] = dict(summaries) if source is None else summaries | {"source": source}
    if "calibration" in splits:
        images = [image["file_name"] for image in splits["calibration"].ground_truth()["images"]]
        recorded["held_out_for_calibration"] = vars(config.calibration) | {"images": images}
    write_json(out / "data.json", recorded)
    if source is not None:
        note(source["description"])
    if source is not None and "held_out" in source:
        held = source["held_out"]
        note(
            f"no validation split: {_are(len(held['images']))} held out (data.val_fraction {held['fraction']}, "
            f"data.val_seed {held['seed']}; data.json names them)"
        )
    for split, summary in summaries.items():
        note(f"{split}: {counts(summary)}")


def _is_finished(point: ResumePoint, config: TrainConfig) -> bool:
    if config.optim.steps is not None:
        return point.updates >= config.optim.steps
    return point.epochs >= config.optim.epochs


def _are(images: int) -> str:
    return "1 image is" if images == 1 else f"{images} images are"


def _fit(
    config: TrainConfig,
    out: Path,
    launch: Launch,
    model: nn.Module,
    meta: dict[str, Any],
    datasets: tuple[Any, Any],
    point: ResumePoint | None,
) -> None:
    train_set, val_set = datasets
    if config.compile:
        getattr(model, "backbone", model).compile()
    images = launch.images_per_update(config)
    module = DetectionModule(
        model, config, meta | {"images_per_update": images}, None if val_set is None else val_set.ground_truth()
    )
    data = DetectionData(
        config.data,
        train_set,
        val_set,
        seed=config.seed,
        first_epoch=0 if point is None else point.epochs,
        first_update=0 if point is None else point.updates_of_epoch,
        accumulate=config.optim.accumulate,
    )
    timer, start = IterationTimer(), StartNote()
    callbacks: list[Callback] = [timer, start, WatchLosses(), Progress(f"{config.detector} {config.loss}")]
    if config.optim.ema > 0:
        callbacks.append(AveragedWeights(config.optim.ema))
    if val_set is not None:
        callbacks.append(LastEpochEvaluation())
    callbacks += checkpoint_callbacks(out, best=val_set is not None, minutes=config.checkpoint_minutes)
    _quiet_lightning()
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=launch.devices,
        num_nodes=launch.nodes,
        strategy=launch.strategy(),
        plugins=[DurableCheckpointIO()],
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=None if config.optim.steps else config.optim.epochs,
        max_steps=config.optim.steps or -1,
        gradient_clip_val=config.optim.clip or None,
        accumulate_grad_batches=config.optim.accumulate,
        check_val_every_n_epoch=config.val_every or 1,
        limit_val_batches=None if val_set is not None else 0,
        num_sanity_val_steps=0,
        sync_batchnorm=config.sync_batchnorm,
        use_distributed_sampler=False,
        log_every_n_steps=min(config.log_every, max(1, len(train_set) // images)),
        logger=build_loggers(config, out, keep=0 if point is None else point.updates),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=None if point is None else point.path,
            weights_only=True,
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # the rest runs on one process
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except SystemExit as stop:
        # Lightning turns Ctrl-C into SystemExit after it has closed loggers and workers
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise InterruptedRun(f"stopped; {_how_to_continue(out)}") from stop
    except Exception as error:
        if "DataLoader worker" in str(error) and "killed by signal: Terminated" in str(error):
            # SIGTERM reached the workers before it reached this process
            raise InterruptedRun(f"stopped; {_how_to_continue(out)}") from error
        if not another_was_lost(error):
            if point is None or start.started or not isinstance(error, _UNFIT):
                raise
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{point.path} must hold the state of this run, got one that cannot be restored ({said}); remove it to "
                "continue from an earlier checkpoint"
            ) from error
        raise LostProcess(
            f"another process of this run has failed, was killed or has not answered for {config.timeout} s (its own "
            f"message says why, if it left one); {_how_to_continue(out)}"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)
    if trainer.is_global_zero and timer.seconds:
        write_json(out / "timing.json", timer.report() | {"updates": trainer.global_step})


_UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of the trainer for a state of another form."""


def _how_to_continue(out: Path) -> str:
    command = f"concordet train --resume {out}"
    if not checkpoint_path(out).is_file():
        return f"there is no checkpoint yet, start again with: {command}"
    return f"the last checkpoint is kept, continue with: {command}"


def _check_devices(config: TrainConfig, launch: Launch) -> None:
    """Raises a ValueError if the requested devices do not exist."""
    device = pick_device(config.accelerator)
    if device.type == "cpu" and config.sync_batchnorm:
        raise ValueError("sync_batchnorm must be false on a CPU, got true; leave it out")
    most = max(os.cpu_count() or 1, MAX_CPU_PROCESSES)
    if device.type == "cpu" and launch.devices > most:
        raise ValueError(f"devices must be at most {most} on the CPU of this machine, got {launch.devices}; give fewer")
    if device.type == "cuda" and launch.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices must be at most the {torch.cuda.device_count()} GPUs of this machine, got {launch.devices}; "
            "give fewer"
        )


def _quiet_lightning() -> None:
    """Silences Lightning's messages about deliberate choices, except with -v."""
    if verbosity() > NORMAL:
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*could not find the monitored key.*",
        ".*exists and is not empty.*",
        ".*Checkpoint directory.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*`isinstance.treespec, LeafSpec.`.*",
        ".*litlogger.*",
        ".*your dataloader is not resumable.*",
        "Grad strides do not match bucket view strides",  # about the speed of a compiled backbone
    ):
        warnings.filterwarnings("ignore", message)
