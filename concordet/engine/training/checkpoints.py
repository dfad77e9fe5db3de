"""How checkpoints reach the disk, and from which of them a run continues."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from concordet.console import note
from concordet.engine.checkpoint import EMA_KEY, KEY, check_finite, checkpoint_path, read_checkpoint
from concordet.files import remove_temporaries, replacing

NAMES = ("last", "best")
"""Checkpoints of a run, in the order in which a resumed run prefers them."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to the disk and renames it.

    The previous file stays until the new one is whole.  Lightning's default writes to the temporary folder and moves,
    which truncates the previous file first where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes one checkpoint, whole or not at all.

        Raises:
            OSError: it cannot be written; the previous one is untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # how torch reports that the file refused a write
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise


class RunCheckpoint(ModelCheckpoint):
    """Lightning's callback, which also writes within epochs, and which knows its best score after the folder moved.

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
        """Writes a checkpoint between two updates, once the time has come."""
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
        """Takes over paths as they are in this run folder."""

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
    """Where a resumed run stands.

    Attributes:
        path: Checkpoint to continue from.
        epochs: Finished epochs.
        updates: Updates made.
        updates_of_epoch: Updates made of the epoch after those; 0 where the checkpoint was written at an epoch's end.
        images: Images of an update; None where an old checkpoint does not say.
    """

    path: Path
    epochs: int
    updates: int
    updates_of_epoch: int
    images: int | None


def position(trainer: pl.Trainer) -> dict[str, int]:
    """Where in an epoch a checkpoint is written, for :func:`resume_point` and :func:`rescale_batches`."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    accumulate = int(trainer.accumulate_grad_batches)
    batches = 0 if progress.is_last_batch else int(progress.current.ready)
    return {"updates_of_epoch": batches // accumulate, "accumulate": accumulate}


def rescale_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Counts a checkpoint's batches of an unfinished epoch as a run does with another ``accumulate``, in place."""
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
    """The newest whole checkpoint of a run; None where there is none.

    A checkpoint that cannot be read is named on standard error, and the next one is taken.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
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
    for key, kind in _TRAINER_STATE.items():
        if not isinstance(content.get(key), kind):
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
    # at the end of an epoch, checkpoints are written before the trainer counts it
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
"""What the trainer writes beside weights, by type."""
