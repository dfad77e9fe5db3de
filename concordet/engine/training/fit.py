"""One run, from configuration to a folder with checkpoints and an evaluation."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn

from concordet.detectors import predicts_masks
from concordet.engine.checkpoint import (
    KEY,
    checkpoint_path,
    describe,
    detector_options,
    is_ours,
    read_checkpoint,
    start_from,
)
from concordet.engine.config import MAY_CHANGE, TrainConfig, flat, load_config, save_config
from concordet.engine.data import DetectionData, build_dataset
from concordet.engine.evaluation import evaluate_run, pick_device
from concordet.engine.seeding import seed_all
from concordet.engine.training.callbacks import AveragedWeights, IterationTimer, Progress
from concordet.engine.training.launch import (
    another_was_lost,
    devices,
    images_per_update,
    is_main_process,
    n_processes,
    nodes,
    strategy,
    with_updates_of,
)
from concordet.engine.training.logger import CsvLog
from concordet.engine.training.module import DetectionModule
from concordet.engine.training.observers import WatchLosses
from concordet.errors import InterruptedRun, LostProcess, UsageError
from concordet.files import check_new, new_folder, writable, write_json

CONFIG = "config.yaml"


def train(config: TrainConfig, out: str | Path, *, resume: bool = False) -> Path:
    """Trains a detector, and evaluates it at the end.

    Args:
        config: The run.
        out: Its folder, which must not exist yet unless ``resume`` is set.
        resume: Continue the run in ``out`` from its last finished epoch, with the same order of images and the same
            random draws; ``config`` may differ from the one it was started with only in where things are and run.
            Updates keep their number of images: on other processes, or with another ``data.batch_size`` (what fits
            into a device), batches are added up as it takes.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder exists, the data is missing or broken, or the checkpoint is of something else.
        DivergedError: the loss became infinite or no number; earlier checkpoints are untouched.
        InterruptedRun: Ctrl-C; the message says how to continue.
        LostProcess: another process of the run has ended, or has not answered for ``config.timeout`` seconds.
    """
    out = Path(out)
    main = is_main_process()
    mend = "name another --out, or continue the run with --resume"
    if main and not resume:
        check_new(out, mend)
    check_names(config)
    _check_devices(config)
    reached = _resumed(config, out) if resume else None
    here = config if reached is None or reached.images is None else with_updates_of(config, reached.images)
    masks = predicts_masks(config.detector)
    train_set = build_dataset(config.data, "train", augment=True, masks=masks)
    watched = config.val_every > 0 or config.evaluate
    val_set = build_dataset(config.data, "val", masks=masks) if watched else None
    if val_set is not None and val_set.class_names != train_set.class_names:
        raise ValueError(
            f"the classes of the training part ({', '.join(train_set.class_names)}) and of the evaluated part "
            f"({', '.join(val_set.class_names)}) differ; make their annotation files name the same categories in order"
        )
    meta = describe(config, train_set.class_names, train_set.category_ids)
    model = build_model(config, meta)
    if main and not resume:
        new_folder(out, mend)
    if main:
        _note_start(config, out, train_set, val_set)
        if here != config:
            print(
                f"updates stay at {images_per_update(here)} images: {n_processes(here)} process(es), batches of "
                f"{here.data.batch_size}, {here.optim.accumulate} of them an update",
                file=sys.stderr,
            )
    _fit(here, out, model, meta, train_set, val_set if config.val_every else None, reached)
    if not main:
        return out
    if config.evaluate and not _is_evaluated(out):
        evaluate_run(out, dataset=val_set)
    return out


def _is_evaluated(out: Path) -> bool:
    """Whether the evaluation is of the checkpoint as it is now, not of one that a resumed run has left behind."""
    evaluation = out / "evaluation.json"
    return evaluation.is_file() and evaluation.stat().st_mtime >= checkpoint_path(out).stat().st_mtime


def check_names(config: TrainConfig) -> None:
    """Raises UsageError where there is no such detector or loss."""
    from concordet.detectors import list_detectors
    from concordet.losses.criteria import build_criterion

    if config.detector not in list_detectors():
        raise UsageError(f"there is no detector {config.detector}; choose one of {', '.join(list_detectors())}")
    try:
        build_criterion(config.loss)
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_model(config: TrainConfig, meta: dict[str, Any]) -> nn.Module:
    """The detector of a run, its weights decided by the seed or by ``config.weights``.

    Raises:
        ValueError: the weights are of something else.
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


@dataclass(frozen=True)
class Reached:
    """Where a resumed run stands.

    Attributes:
        path: its last checkpoint.
        epochs: finished ones.
        updates: made.
        images: of an update; None where an old checkpoint does not say.
    """

    path: Path
    epochs: int
    updates: int
    images: int | None


def _resumed(config: TrainConfig, out: Path) -> Reached | None:
    """The checkpoint to continue from; None where no epoch was finished."""
    before, now = flat(load_config(out / CONFIG)), flat(config)
    for name, value in now.items():
        if name not in MAY_CHANGE and before[name] != value:
            raise UsageError(
                f"the run in {out} was started with {name} {before[name]}, and {value} would be another run; leave it "
                "out, or start anew with another --out"
            )
    writable(out)
    path = checkpoint_path(out)
    if not path.is_file():
        return None
    content = read_checkpoint(path)
    # checkpoints are written at the end of an epoch, before the trainer counts it
    images = content[KEY].get("images_per_update")
    return Reached(path, int(content["epoch"]) + 1, int(content["global_step"]), images)


def _note_start(config: TrainConfig, out: Path, train_set: Any, val_set: Any) -> None:
    from concordet.data import describe as counts

    save_config(out / CONFIG, config)
    summaries = {"train": train_set.summary()} | ({} if val_set is None else {"val": val_set.summary()})
    write_json(out / "data.json", summaries)
    for part, summary in summaries.items():
        print(f"{part}: {counts(summary)}", file=sys.stderr)


def _fit(
    config: TrainConfig,
    out: Path,
    model: nn.Module,
    meta: dict[str, Any],
    train_set: Any,
    val_set: Any,
    reached: Reached | None,
) -> None:
    if config.compile:
        getattr(model, "backbone", model).compile()
    meta = meta | {"images_per_update": images_per_update(config)}
    module = DetectionModule(model, config, meta, None if val_set is None else val_set.ground_truth())
    first = 0 if reached is None else reached.epochs
    data = DetectionData(
        config.data, train_set, val_set, seed=config.seed, first_epoch=first, accumulate=config.optim.accumulate
    )
    timer = IterationTimer()
    callbacks: list[Callback] = [timer, WatchLosses(), Progress(f"{config.detector} {config.loss}")]
    if config.optim.ema > 0:
        callbacks.append(AveragedWeights(config.optim.ema))
    callbacks += _checkpoints(out, best=val_set is not None)
    _quiet()
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=devices(config),
        num_nodes=nodes(config),
        strategy=strategy(config),
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
        log_every_n_steps=min(config.log_every, max(1, len(train_set) // images_per_update(config))),
        logger=_loggers(out, 0 if reached is None else reached.updates),
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
            ckpt_path=None if reached is None else reached.path,
            weights_only=True,
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # what follows is done by one process
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit once loggers and workers are closed
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise InterruptedRun(f"stopped; {_how_to_continue(out)}") from stop
    except RuntimeError as error:
        if not another_was_lost(error):
            raise
        raise LostProcess(
            f"another process of this run has failed, was killed or has not answered for {config.timeout} s (its own "
            f"message says why, if it left one); {_how_to_continue(out)}"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)
    if trainer.is_global_zero and timer.seconds:
        write_json(out / "timing.json", timer.report() | {"updates": trainer.global_step})


def _how_to_continue(out: Path) -> str:
    if not checkpoint_path(out).is_file():
        return f"no epoch was finished yet, start again with: concordet train --resume {out}"
    return f"the last finished epoch is kept, continue with: concordet train --resume {out}"


def _check_devices(config: TrainConfig) -> None:
    """Raises where the devices that are asked for do not exist."""
    device, count = pick_device(config.accelerator), devices(config)
    if device.type == "cpu" and config.sync_batchnorm:
        raise ValueError("sync_batchnorm needs GPUs, and this run is on a CPU; leave it out")
    if device.type == "cuda" and isinstance(count, int) and count > torch.cuda.device_count():
        raise ValueError(f"{count} devices are asked for, and there are {torch.cuda.device_count()} GPUs")


def _checkpoints(out: Path, *, best: bool) -> list[Callback]:
    common: dict[str, Any] = {
        "dirpath": (out / "checkpoints").absolute(),
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    callbacks: list[Callback] = [ModelCheckpoint(filename="last", **common)]
    if best:
        callbacks.append(ModelCheckpoint(filename="best", monitor="val/AP", mode="max", **common))
    return callbacks


def _loggers(out: Path, updates: int) -> list[Logger]:
    tensorboard = TensorBoardLogger(out, name="", version="tensorboard")
    return [CsvLog(out / "metrics.csv", keep=updates), tensorboard]


def _quiet() -> None:
    """Keeps back what Lightning says about choices that were made on purpose."""
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
        "Grad strides do not match bucket view strides",  # a hint that only matters for speed, of a compiled backbone
    ):
        warnings.filterwarnings("ignore", message)
