"""Progress messages of a training run."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

from concordet.console import note, seconds_between_lines, shows_bars
from concordet.engine.evaluation import remaining_time


class Progress(pl.Callback):
    """A bar for the whole run on a terminal; elsewhere one line per epoch, and one every half minute within epochs.

    A line has the epoch, the update, the loss, AP in percent after an evaluation, and the remaining time.

    Args:
        title: Name of what is trained.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Any = None
        self._task: Any = None
        self._ap: float | None = None
        self._start = self._shown = 0.0
        self._first_update = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._shown = time.monotonic()
        self._first_update = trainer.global_step
        if not trainer.is_global_zero:
            return
        if trainer.global_step:
            note(f"{self.title}: continuing in {self._position(trainer)}")
        if not shows_bars():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task(self.title, total=total, completed=trainer.global_step, metrics="")
        self._bar.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get("val/AP")
        self._ap = None if value is None else float(value)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, metrics=self._metrics(trainer))
        elif trainer.is_global_zero and time.monotonic() - self._shown >= seconds_between_lines():
            self._line(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is None and trainer.is_global_zero:
            self._line(trainer)
            self._ap = None

    def _line(self, trainer: pl.Trainer) -> None:
        self._shown = time.monotonic()
        total = int(trainer.estimated_stepping_batches)
        done = trainer.global_step - self._first_update
        text = f"{self.title}: {self._position(trainer)}, {self._metrics(trainer)}"
        if trainer.global_step < total:
            left = remaining_time(done, total - self._first_update, self._shown - self._start)
            text += f", {left} left"
        note(text)

    @staticmethod
    def _position(trainer: pl.Trainer) -> str:
        total = int(trainer.estimated_stepping_batches)
        per_epoch = max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else -(-total // per_epoch)
        epoch = min(trainer.current_epoch + 1, epochs)
        return f"epoch {epoch}/{epochs}, update {trainer.global_step}/{total}"

    def _metrics(self, trainer: pl.Trainer) -> str:
        loss = trainer.callback_metrics.get("train/total")
        words = [] if loss is None else [f"loss {float(loss):.3f}"]
        if self._ap is not None:
            words.append("AP undefined" if self._ap != self._ap else f"AP {100 * self._ap:.1f}")
        return ", ".join(words)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LastEpochEvaluation(pl.Callback):
    """Evaluates at the end of training for any ``val_every``: the best checkpoint is then not worse than the last."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
            trainer.check_val_every_n_epoch = 1
            trainer.should_stop = True  # within an epoch, the trainer evaluates only if it stops
        elif trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1
