"""The Lightning module: one training step, and the evaluation between epochs."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from concordet.detectors import predicts_masks
from concordet.distributed import world
from concordet.engine.calibration import fit_run_calibrator, match_run
from concordet.engine.checkpoint import KEY
from concordet.engine.config import TrainConfig
from concordet.engine.detections import batch_results, mask_metrics
from concordet.engine.seeding import seed_all
from concordet.engine.training.checkpoints import position, rescale_batches
from concordet.engine.training.schedule import build_optimizer, learning_rate_factor
from concordet.errors import DivergedError
from concordet.files import plain
from concordet.losses import rank_over, value_checks

DIVERGED_HINT = "a smaller optim.lr (a tenth, say), a longer optim.warmup or a smaller optim.clip usually fixes this"
VALIDATION_METRICS = ("AP", "AP50", "AP75")


class DetectionModule(pl.LightningModule):
    """Trains a detector in torchvision's convention.

    Args:
        model: Detector; ``model(images, targets)`` returns named loss terms in training mode, ``model(images)``
            detections in evaluation mode.
        config: Configuration of the run, for optimization and seed.
        meta: Description of the detector for its checkpoints (:func:`concordet.engine.checkpoint.describe`).
        ground_truth: Evaluation annotations in COCO form; None without evaluation between epochs.

    Example:
        In your own Lightning trainer:

        >>> from concordet.detectors import build_detector
        >>> from concordet.engine import TrainConfig
        >>> model = build_detector("fcos", num_classes=2, size="nano", loss="rank_sort")
        >>> module = DetectionModule(model, TrainConfig(), {"class_names": ["cat", "dog"]})
        >>> images = [torch.rand(3, 120, 160)]
        >>> targets = [{"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([1])}]
        >>> sorted(module.model.train()(images, targets))
        ['box', 'ranking', 'sorting']
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, meta: dict[str, Any], ground_truth: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.meta: dict[str, Any] = dict(meta)
        self.ground_truth = ground_truth
        self.detections: list[dict[str, Any]] = []

    def on_fit_start(self) -> None:
        # the process group exists during training only
        together = self.config.global_ranking and dist.is_available() and dist.is_initialized()
        rank_over(self.model, dist.group.WORLD if together else None)

    def on_fit_end(self) -> None:
        rank_over(self.model, None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # dropout and sampling depend on the update only, so that a resumed run repeats them
        seed_all(self.config.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> Tensor:
        """The sum of the detector's loss terms.

        Raises:
            DivergedError: a term is not finite; the message names it.
        """
        images, targets = batch
        try:
            # checked below, for all terms and processes together
            with value_checks(False):
                terms: dict[str, Tensor] = self.model(images, targets)
        except (ValueError, RuntimeError, IndexError) as error:
            self.check_weights(cause=error)
            raise
        # if one process's value is not finite, neither is the mean, so that all stop together
        means = world().all_mean(torch.stack([term.detach().float() for term in terms.values()]))
        for name, value in zip(terms, means.tolist(), strict=True):
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss term {name} is {value:g} at update {self.global_step} (epoch {self.current_epoch}); "
                    f"{DIVERGED_HINT}, and earlier checkpoints are untouched"
                )
        logged = {f"train/{name}": value for name, value in zip(terms, means, strict=True)}
        self.log_dict(logged | {"train/total": means.sum()}, batch_size=len(images))
        return torch.stack(list(terms.values())).sum()

    def check_weights(self, cause: BaseException | None = None) -> None:
        """Raises DivergedError when a weight is no longer finite."""
        with torch.no_grad():
            norms = torch.stack([parameter.detach().float().norm() for parameter in self.model.parameters()])
            if bool(torch.isfinite(norms).all()):
                return
        raise DivergedError(
            f"the weights are no longer finite numbers at update {self.global_step} (epoch {self.current_epoch}); "
            f"{DIVERGED_HINT}, and earlier checkpoints are untouched"
        ) from cause

    def on_validation_epoch_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.check_weights()
        self.detections = []

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        """Collects the detections of a batch, in COCO form."""
        images, targets = batch
        self.detections += batch_results(self.model(images), targets, self.meta["category_ids"])

    def on_validation_epoch_end(self) -> None:
        metrics, advice = evaluate_on_all(
            self.ground_truth, self.detections, masks=predicts_masks(self.config.detector)
        )
        self.detections = []
        thresholds = advice["thresholds"]
        self.meta["thresholds"] = [thresholds.get(category) for category in self.meta["category_ids"]]
        # with held-out training images, the calibrator is fitted at the end of the run
        self.meta["calibrator"] = advice["calibrator"] if self.config.calibration.fraction == 0 else None
        for name, value in metrics.items():
            # equal on every process; sync_dist only silences Lightning's warning
            self.log(f"val/{name}", value, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        # before the checkpoint of this epoch is written
        self.check_weights()
        hook = getattr(getattr(self.model, "criterion", None), "on_epoch_end", None)
        if hook is not None:
            hook()

    def configure_optimizers(self) -> Any:
        """The optimizer, with its learning rate set before every update."""
        optimizer = build_optimizer(self.model, self.config.optim)
        factor = learning_rate_factor(self.config.optim, self.total_updates)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def total_updates(self) -> int:
        """Number of updates of the whole run."""
        optim = self.config.optim
        # not estimated_stepping_batches, which would start the workers here
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]  # set by Trainer.fit
        return optim.steps or optim.epochs * -(-batches // optim.accumulate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.meta | position(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rescale_batches(checkpoint, self.config.optim.accumulate)
        for name in ("thresholds", "calibrator"):
            if checkpoint[KEY].get(name) is not None:
                self.meta[name] = checkpoint[KEY][name]


def evaluate_on_all(
    ground_truth: dict[str, Any] | None, detections: list[dict[str, Any]], *, masks: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
    """AP of the detections of all processes, LRP-optimal score thresholds, and a calibrator.

    Args:
        ground_truth: Evaluation annotations in COCO form; read on the first process only.
        detections: COCO results of this process.
        masks: Whether to measure AP of masks too.

    Returns:
        Metrics by name, NaN where undefined, and a dict of ``thresholds`` by category id and ``calibrator`` as plain
        JSON (None without detections); the same on every process.

    Raises:
        ValueError: on every process if the evaluation on the first one fails, so that none waits for the others.
    """
    shares: list[Any] = [detections]
    several = dist.is_available() and dist.is_initialized()
    if several:
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, detections)
    outcome: list[Any] = [None, None, ""]  # metrics and advice, or a message
    cause = None
    if not several or dist.get_rank() == 0:
        try:
            together = without_repeats(shares)
            matched = match_run(ground_truth or {}, together)
            measured = matched.metrics()
            values = {name: measured[name] for name in VALIDATION_METRICS}
            if masks:
                values |= mask_metrics(ground_truth, together)[0]
            outcome[0] = {name: float("nan") if value is None else value for name, value in values.items()}
            calibrator = fit_run_calibrator(matched)
            outcome[1] = {
                "thresholds": {row["id"]: row["lrp_threshold"] for row in measured["per_class"]},
                "calibrator": None if calibrator is None else plain(calibrator.to_dict()),
            }
        except Exception as error:
            if not several:
                raise
            cause = error
            outcome[2] = f"the evaluation during training failed ({type(error).__name__}: {error})"
    if several:
        dist.broadcast_object_list(outcome)
    metrics, advice, failure = outcome
    if failure:
        raise ValueError(f"{failure}; --val_every 0 trains without it") from cause
    return metrics, advice


def without_repeats(shares: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Detections of all processes, each image from the first process that has it: samplers repeat some images."""
    owner: dict[int, int] = {}
    for rank, share in enumerate(shares):
        for detection in share:
            owner.setdefault(detection["image_id"], rank)
    return [row for rank, share in enumerate(shares) for row in share if owner[row["image_id"]] == rank]
