"""What AP a better, and a worse, ranking of the same boxes would have (Correlation Loss, Table 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from concordet.measures.coco import Precision, average_precision
from concordet.measures.matching import Matches
from concordet.measures.reading.arrays import Floats
from concordet.measures.reading.dataset import Dataset


def reranking_bounds(dataset: Dataset, truth: Any, matches: Matches, *, max_dets: int) -> tuple[Precision, Precision]:
    """AP with the true positives of each class in the best and in the worst agreement of score and IoU: (upper, lower).

    The detections that ``max_dets`` keeps are evaluated again with every score replaced by its place in the class's
    ranking (so that ties stay as they were broken) and the places of true positives at IoU 0.5 permuted among them.
    False positives and boxes are untouched (Correlation Loss, Kahraman et al. 2023, Analysis Setup).
    """
    kept = dataset.only(matches.rows)
    upper, lower = (
        average_precision(kept, truth, scores=permuted_ranks(matches, best=best), max_dets=max_dets, all_areas=False)
        for best in (True, False)
    )
    return upper, lower


def ranks(matches: Matches) -> Floats:
    """``[n]`` distinct scores that order each class as pycocotools does: by score, then image, then place in file."""
    order = np.lexsort((matches.rows, matches.images, -matches.scores, matches.classes))
    result = np.empty(len(order))
    result[order] = np.arange(len(order), 0, -1)
    return result


def permuted_ranks(matches: Matches, *, best: bool) -> Floats:
    """``[n]`` ranks with those of each class's true positives permuted to rise (``best``) or fall with IoU."""
    result = ranks(matches)
    hit = np.flatnonzero(matches.true_positive)
    classes, held, ious = matches.classes[hit], result[hit], matches.ious[hit]
    by_rank = np.lexsort((-held, classes))
    by_iou = np.lexsort((-held, -ious if best else ious, classes))
    result[hit[by_iou]] = held[by_rank]
    return result
