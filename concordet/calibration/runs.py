"""Bootstrap comparisons of runs whose scores were calibrated on the evaluated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from concordet.calibration.calibrator import raw_results
from concordet.calibration.evaluation import cross_fitted
from concordet.calibration.fitting import match_all
from concordet.measures.bootstrap import Sample, affordable_resamples, prepare
from concordet.measures.compare import compare_samples
from concordet.measures.reading.dataset import checked_limit, read_dataset
from concordet.measures.runs import Run, same_ground_truth

FOLDS: Final = 5
"""Number of folds of images for cross-fitting the scores of a run."""


def run_sample(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], *, lvis: bool = False, cross_fit: bool
) -> Sample:
    """Detections of a run, prepared for a bootstrap.

    Args:
        ground_truth: Annotations in COCO form.
        detections: COCO results of the run.
        lvis: Whether LVIS's rules apply.
        cross_fit: Whether the scores are calibrated on these images, with the detector's own as ``raw_score``.
            Calibration errors of such a fit are too small; they are computed from cross-fitted scores instead, as in
            the evaluation of the run.
    """
    limit = checked_limit(None, lvis)
    records = raw_results(list(detections)) if cross_fit else detections
    dataset = read_dataset(ground_truth, records, lvis=lvis, max_dets=limit)
    if not cross_fit:
        return prepare(dataset, limit)
    scores, _ = cross_fitted(match_all(dataset, limit), folds=FOLDS, seed=0)
    return prepare(dataset, limit, calibrated=scores)


def run_differences(
    runs: Sequence[Run], *, n_resamples: int | None = None, confidence: float = 0.95, seed: int = 0
) -> list[dict[str, Any] | None]:
    """Comparisons of every other run with the first, as by :func:`concordet.measures.compare`.

    Args:
        runs: Runs with their analyses, from :func:`concordet.measures.runs.read_runs`.
        n_resamples: Number of draws; None for 1000, and fewer from 40,000 detections on.
        confidence: Confidence of the intervals, in (0, 1).
        seed: Seed of the draws.

    Returns:
        One entry per run but the first; None if one of the two has no detections, or their ground truths differ.
    """
    if len(runs) < 2 or runs[0].analysis is None:
        return [None] * (len(runs) - 1)
    samples = [_sample(run) for run in runs]
    first = samples[0]
    differences: list[dict[str, Any] | None] = []
    for run, second in zip(runs[1:], samples[1:], strict=True):
        if first is None or second is None or not same_ground_truth([runs[0], run]):
            differences.append(None)
            continue
        draws = n_resamples or affordable_resamples(len(first.images) + len(second.images))
        differences.append(compare_samples(first, second, n_resamples=draws, confidence=confidence, seed=seed))
    return differences


def _sample(run: Run) -> Sample | None:
    if run.analysis is None or run.ground_truth is None or run.detections is None:
        return None
    evidence = run.analysis.evidence
    if not run.cross_fitted:
        return prepare(evidence.dataset, evidence.max_dets)
    return run_sample(run.ground_truth, run.detections, lvis=evidence.dataset.lvis, cross_fit=True)
