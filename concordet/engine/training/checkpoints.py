"""Writing of checkpoints, and the choice of the one from which a run continues."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from concordet.console import note
from concordet.engine.checkpoint import EMA_KEY, KEY, check_finite, checkpoint_path, read_checkpoint, write_checkpoint
from concordet.files import remove_temporaries

NAMES = ("last", "best")
"""Checkpoints of a run, in the order in which a resumed run prefers them."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to the disk and renames it.

    The previous file stays until the new one is complete. Lightning's default writes to the temporary folder and moves
    the file, which truncates the previous one first if that folder is on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes one checkpoint, whole or not at all.

        Raises:
            OSError: it cannot be written; the previous one is untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, path)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's callback, which also writes within epochs, and keeps its best score if the run folder is moved.

    Args:
        minutes: Minutes between checkpoints within an epoch; 0 writes none.
        settings: Settings of Lightning's callback.
    """

    def __init__(self, *, minutes: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.minutes = minutes
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint between two updates, if it is due."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        accumulating = progress.current.ready % trainer.accumulate_grad_batches != 0
        if not self.minutes or progress.is_last_batch or accumulating:
            return
        due = time.monotonic() - self._written >= 60 * self.minutes
        if trainer.strategy.broadcast(due):
            self._save_checkpoint(trainer, self.format_checkpoint_name(dict(trainer.callback_metrics)))
            self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._written = time.monotonic()

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state with paths in this run folder."""

        def here(path: str | None) -> str | None:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best})


def checkpoint_callbacks(out: Path, *, best: bool, minutes: float = 0.0) -> list[Callback]:
    """Callbacks that keep the last checkpoint of a run, and the one with the highest AP."""
    common: dict[str, Any] = {
        "dirpath": (out / "checkpoints").absolute(),
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    callbacks: list[Callback] = [RunCheckpoint(filename="last", minutes=minutes, **common)]
    if best:
        callbacks.append(RunCheckpoint(filename="best", monitor="val/AP", mode="max", **common))
    return callbacks


@dataclass(frozen=True)
class ResumePoint:
    """Progress of a run that is resumed.

    Attributes:
        path: Checkpoint to continue from.
        epochs: Finished epochs.
        updates: Updates made.
        updates_of_epoch: Updates made in the unfinished epoch; 0 if the checkpoint was written at the end of an epoch.
        images: Images per update; None for an old checkpoint without this number.
    """

    path: Path
    epochs: int
    updates: int
    updates_of_epoch: int
    images: int | None


def position(trainer: pl.Trainer) -> dict[str, int]:
    """Position of a checkpoint within its epoch, for :func:`resume_point` and :func:`rescale_batches`."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    accumulate = int(trainer.accumulate_grad_batches)
    batches = 0 if progress.is_last_batch else int(progress.current.ready)
    return {"updates_of_epoch": batches // accumulate, "accumulate": accumulate}


def rescale_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Converts a checkpoint's counts of batches in an unfinished epoch to another ``accumulate``, in place."""
    meta = checkpoint[KEY]
    updates = meta.get("updates_of_epoch", 0)
    if not updates or meta["accumulate"] == accumulate:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    difference = updates * (accumulate - meta["accumulate"])
    for counts in (progress["current"], progress["total"]):
        for name in counts:
            counts[name] += difference


def resume_point(out: Path) -> ResumePoint | None:
    """The newest readable checkpoint of a run; None without checkpoints.

    A checkpoint that cannot be read is reported on standard error, and the next one is used.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    remove_temporaries(out / "checkpoints")
    failures: list[Exception] = []
    for name in NAMES:
        path = checkpoint_path(out, name)
        if not path.is_file():
            continue
        try:
            point = _point(path)
        except ValueError as error:
            failures.append(error)
            continue
        if failures:
            note(f"{failures[0]}\ncontinuing from {path} instead")
        return point
    if failures:
        raise failures[0]
    return None


def _point(path: Path) -> ResumePoint:
    content = read_checkpoint(path)
    for key, expected in _TRAINER_STATE.items():
        if not isinstance(content.get(key), expected):
            raise ValueError(
                f"{path} must hold {key}, the trainer's state, got {content.get(key)!r:.60}; name another checkpoint"
            )
    for key in ("state_dict", EMA_KEY):
        check_finite(content.get(key) or {}, path)
    meta = content[KEY]
    within, images = meta.get("updates_of_epoch", 0), meta.get("images_per_update")
    counts = [
        within,
        meta.get("accumulate", 1),
        1 if images is None else images,
        content["epoch"],
        content["global_step"],
    ]
    if not all(isinstance(count, int) and 0 <= count < 2**31 for count in counts) or not all(counts[1:3]):
        raise ValueError(
            f"{path} must hold counts of updates, epochs and images, got {counts}; name another checkpoint"
        )
    # the trainer counts an epoch after the checkpoint at its end is written
    epochs = content["epoch"] + (within == 0)
    return ResumePoint(path, epochs, content["global_step"], within, images)


_TRAINER_STATE: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}
"""Types of the trainer's entries in a checkpoint, besides weights."""
