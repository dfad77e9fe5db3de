"""The average inconsistency coefficient of Harmonic Loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from concordet.measures.reading.arrays import float_column, same_length


def average_inconsistency(scores: Any, ious: Any) -> tuple[float, float | None]:
    r"""Distance between score and IoU over positives: the paper's sum, and the mean.

    .. math:: AIC = \sum_{i \in Pos}^{N} |p_i - IoU_i|, \qquad AIC_{mean} = AIC / N

    (Harmonic Loss, Wang et al. 2021, Eq. 14: despite its name a sum, over the *positive samples* of training.) Pass
    the assigned predictions of a training step for the paper's curve; :func:`concordet.measures.analyze` passes the
    true positives at IoU 0.5, the only positives that a results file has. The sum grows with the number of positives,
    so compare detectors by the mean.

    Args:
        scores: ``[n]`` probabilities in [0, 1].
        ious: ``[n]`` IoU in [0, 1] of each with its object.

    Returns:
        ``(sum >= 0, mean in [0, 1])``, lower is better; of no pair the sum is 0.0 and the mean None.

    Raises:
        ValueError: the lengths differ, or a value is not a number in [0, 1].

    Example:
        >>> average_inconsistency([1.0, 0.5], [0.75, 0.75])
        (0.5, 0.25)
        >>> average_inconsistency([], [])
        (0.0, None)
    """
    p, iou = float_column(scores, "scores"), float_column(ious, "ious")
    same_length(p, iou, "scores and ious")
    for name, column in (("scores", p), ("ious", iou)):
        outside = np.flatnonzero((column < 0) | (column > 1))
        if outside.size:
            at = outside[0]
            raise ValueError(f"{name}[{at}] is {column[at]:g}; expected a value in [0, 1], so apply sigmoid to logits.")
    gap = np.abs(p - iou)
    return float(gap.sum()), float(gap.mean()) if gap.size else None
