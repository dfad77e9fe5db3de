"""How checkpoints reach the disk, and from which of them a run continues."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from concordet.engine.checkpoint import KEY, checkpoint_path, read_checkpoint
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
    """Lightning's callback, which also knows its best score again after the run folder was moved."""

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


def checkpoint_callbacks(out: Path, *, best: bool) -> list[Callback]:
    """Callbacks that keep the last checkpoint of a run, and the one with the highest AP."""
    common: dict[str, Any] = {
        "dirpath": (out / "checkpoints").absolute(),
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    callbacks: list[Callback] = [RunCheckpoint(filename="last", **common)]
    if best:
        callbacks.append(RunCheckpoint(filename="best", monitor="val/AP", mode="max", **common))
    return callbacks


@dataclass(frozen=True)
class ResumePoint:
    """Where a resumed run stands.

    Attributes:
        path: The checkpoint to continue from.
        epochs: Finished epochs.
        updates: Updates made.
        images: Images of an update; None where an old checkpoint does not say.
    """

    path: Path
    epochs: int
    updates: int
    images: int | None


def resume_point(out: Path) -> ResumePoint | None:
    """The newest whole checkpoint of a run; None where no epoch was finished.

    A checkpoint that cannot be read is named on standard error, and the next one is taken.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    remove_temporaries(out / "checkpoints")
    failures = []
    for name in NAMES:
        path = checkpoint_path(out, name)
        if not path.is_file():
            continue
        try:
            content = read_checkpoint(path)
            # checkpoints are written at the end of an epoch, before the trainer counts it
            point = ResumePoint(
                path, int(content["epoch"]) + 1, int(content["global_step"]), content[KEY].get("images_per_update")
            )
        except (KeyError, TypeError, ValueError) as error:
            failures.append(error)
            continue
        if failures:
            print(
                f"{failures[0]}\ncontinuing from {path} instead, after epoch {point.epochs}",
                file=sys.stderr,
                flush=True,
            )
        return point
    if failures:
        raise failures[0]
    return None
