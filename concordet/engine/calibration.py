"""Calibrators of runs: fitted on evaluation images, stored in checkpoints, used by evaluation and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordet.calibration import Calibrator
from concordet.calibration.calibrator import check_scores
from concordet.calibration.evaluation import METRICS, evaluate_matched
from concordet.calibration.fitting import Matched, fit_matched, matched_columns
from concordet.calibration.runs import FOLDS
from concordet.files import read_json
from concordet.measures.evaluation import MatchedEvaluation, match_evaluation
from concordet.measures.reading.records import is_federated

NAME = "calibrator.json"
"""Name of the calibrator's file in a run folder."""


@dataclass(frozen=True)
class CalibratedResults:
    """Detections with calibrated scores.

    Attributes:
        detections: COCO results; ``raw_score`` is the detector's own score.
        calibrator: Calibrator of the scores; None if they are the detector's own.
        report: Cross-fitted comparison if the calibrator was fitted on these detections, else None.
        scores: Description of the scores in words.
    """

    detections: list[dict[str, Any]]
    calibrator: Calibrator | None
    report: dict[str, Any] | None
    scores: str


def match_run(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> MatchedEvaluation:
    """A run's detections, matched once for metrics and calibrators."""
    return match_evaluation(ground_truth, detections, lvis=is_federated(ground_truth))


def fit_run_calibrator(matched: MatchedEvaluation) -> Calibrator | None:
    """A calibrator fitted on a run's detections; None without detections or objects."""
    columns = _columns(matched)
    return None if columns is None else fit_matched(columns)


def _columns(matched: MatchedEvaluation) -> Matched | None:
    """The columns that calibrators are fitted on; None without detections or objects."""
    if not len(matched.matches.rows) or not len(matched.dataset.gt_images):
        return None
    check_scores(matched.dataset.dt_scores, matched.dataset.dt_file)
    return matched_columns(matched.dataset, matched.overlaps, matched.matches)


def calibrated_results(
    matched: MatchedEvaluation,
    detections: list[dict[str, Any]],
    *,
    own_data: bool,
    held_out: bool = False,
    carried: Calibrator | None,
    raw_scores: bool = False,
) -> CalibratedResults:
    """A run's detections with calibrated scores.

    Args:
        matched: The detections, matched with the annotations of the images.
        detections: COCO results with the detector's own scores.
        own_data: Whether these are the run's evaluation images; the calibrator is then fitted on them and evaluated by
            cross-fitting, otherwise the carried one is applied.
        held_out: Whether the calibrator of the checkpoint was fitted on training images that were held out for it; it
            is then applied to all data.
        carried: Calibrator of the checkpoint.
        raw_scores: Whether to keep the detector's own scores.
    """
    if raw_scores:
        return CalibratedResults(detections, None, None, "not calibrated")
    report = None
    fits = own_data and not held_out and len(matched.dataset.images) > 1
    columns = _columns(matched) if fits else None
    if columns is not None:
        carried, report = evaluate_matched(columns, folds=FOLDS, n_resamples=0, seed=0)
        ap = matched.metrics()["AP"]
        report["before"]["AP"] = report["after"]["AP"] = ap  # calibrators keep the order within a class
        report["notes"] = list(matched.dataset.notes)
    if carried is None:
        return CalibratedResults(detections, None, None, "not calibrated: nothing to fit a calibrator on")
    kept = [{**row, "raw_score": row["score"]} for row in detections]
    basis = f"{carried.fit.get('n_images', '?')} images"
    scores = f"calibrated on {basis}"
    if held_out:
        scores += " held out from training"
    elif report is not None:
        scores = f"calibrated, errors cross-fitted over {basis}"
    return CalibratedResults(carried.apply(kept), carried, report, scores)


def cross_fitted_metrics(values: dict[str, Any], report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metrics in which calibration errors are those of cross-fitted scores."""
    if report is None:
        return values
    after = report["after"]
    changed = {name: after[name] for name in METRICS if values.get(name) is not None}
    if changed.get("AIC_mean") is not None:
        changed["AIC"] = changed["AIC_mean"] * values["n_true_positives"]
    errors = {row["id"]: row["LaECE0_after"] for row in report["per_class"]}
    per_class = [{**row, "LaECE0": errors.get(row["id"], row.get("LaECE0"))} for row in values["per_class"]]
    return values | changed | {"per_class": per_class}


def carried_calibrator(meta: Mapping[str, Any], run: Path | None, checkpoint: Path) -> Calibrator | None:
    """The calibrator of a checkpoint, else that of its run folder; None if neither has one.

    Args:
        meta: Description of the checkpoint.
        run: Run folder, or None.
        checkpoint: File of the checkpoint, for errors.

    Raises:
        ValueError: the calibrator is invalid.
    """
    content = meta.get("calibrator")
    if content is not None:
        return Calibrator.from_dict(content, f"the calibrator of {checkpoint}")
    path = None if run is None else run / NAME
    if path is None or not path.is_file():
        return None
    return Calibrator.from_dict(read_json(path), str(path))
