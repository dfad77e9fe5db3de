"""Detections matched once, for all that is computed from the matches: metrics, calibrators, metrics of other scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from concordet.measures import coco
from concordet.measures.matching import Matches, match_both
from concordet.measures.reading.arrays import Floats
from concordet.measures.reading.dataset import Dataset, checked_limit, read_dataset
from concordet.measures.summary import summarize


@dataclass(frozen=True)
class MatchedEvaluation:
    """Ground truth and detections, read and matched.

    Attributes:
        dataset: Aligned ground truth and detections.
        truth: Ground truth for hotcoco.
        limit: Number of detections that are kept, per image and class, with LVIS per image.
        precision: AP and AR.
        matches: Matches at IoU 0.5.
        overlaps: Matches at tau = 0, of the same detections in the same order.
    """

    dataset: Dataset
    truth: Any
    limit: int
    precision: coco.Precision
    matches: Matches
    overlaps: Matches

    def metrics(self, scores: Floats | None = None) -> dict[str, Any]:
        """All metrics as :func:`concordet.measures.evaluate_detections` returns them.

        Args:
            scores: ``[n]`` scores to use instead of those in the source, in its order. They must rank each class in the
                same order, as calibrated scores do: matches and AP stay the same.
        """
        if scores is None:
            return summarize(self.dataset, self.precision, self.matches, self.overlaps)
        new = scores[self.dataset.dt_rows]
        changed = (replace(each, scores=new[each.rows]) for each in (self.matches, self.overlaps))
        return summarize(self.dataset, self.precision, *changed)


def match_evaluation(
    ground_truth: Any, detections: Any, *, iou_type: str = "bbox", max_dets: int | None = None, lvis: bool = False
) -> MatchedEvaluation:
    """Reads and matches detections; arguments and errors are those of :func:`concordet.measures.evaluate_detections`.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[1, 0, 0, 10, 10, 7]])
        >>> matched = match_evaluation(truth, np.array([[1, 0, 0, 10, 8, 0.2, 7]]))
        >>> round(matched.metrics()["AIC_mean"], 2), round(matched.metrics(np.array([0.8]))["AIC_mean"], 2)
        (0.6, 0.0)
    """
    limit = checked_limit(max_dets, lvis)
    dataset = read_dataset(ground_truth, detections, iou_type=iou_type, lvis=lvis, max_dets=limit)
    truth = coco.load(dataset)
    precision = coco.average_precision(dataset, truth, max_dets=limit)
    matches, overlaps = match_both(dataset, truth, max_dets=limit)
    return MatchedEvaluation(dataset, truth, limit, precision, matches, overlaps)
