"""Agreement of scores and IoUs: beta_img, beta_cls and the pooled coefficients."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from concordet.measures.reading.arrays import Floats, Ints, float_column, group_column, same_length

COEFFICIENTS: Final = ("pearson", "spearman", "kendall", "concordance")


def image_correlation(scores: Any, ious: Any, image_ids: Any) -> CorrelationReport:
    r"""Image-level correlation beta_img: Spearman of score and IoU in each image before NMS, averaged over images.

    .. math:: \beta_{img} = \frac{1}{|I|} \sum_{I} \beta(IoU_{pre}^I, \hat s_{pre}^I)

    (Correlation Loss, Kahraman et al. 2023, Eq. 1). The detections are the *positive* ones, those that training would
    assign to an object, with the score of that object's class. An image with fewer than two of them, or in which all
    scores or all IoUs are equal, has no correlation and is left out of the average.

    Args:
        scores: ``[n]`` confidences, any monotone scale.
        ious: ``[n]`` IoU in [0, 1] of each box with its object.
        image_ids: ``[n]`` image of each, any sortable type.

    Returns:
        A report whose ``value`` is in [-1, 1] (higher is better), or None with a reason.

    Raises:
        ValueError: the lengths differ, or a value is not a finite number.

    Example:
        >>> report = image_correlation([0.9, 0.8, 0.3, 0.6, 0.5], [0.8, 0.9, 0.6, 0.7, 0.55], [1, 1, 1, 2, 2])
        >>> round(report.value, 3), report.per_group
        (0.75, {1: 0.5, 2: 1.0})
    """
    return _grouped_report(scores, ious, image_ids, "image", "image_ids")


def class_correlation(scores: Any, ious: Any, class_ids: Any) -> CorrelationReport:
    r"""Class-level correlation beta_cls: Spearman of score and IoU over each class's true positives, averaged.

    .. math:: \beta_{cls} = \frac{1}{|C|} \sum_{c} \beta(IoU_{post}^c, \hat s_{post}^c)

    (Correlation Loss, Kahraman et al. 2023, Eq. 2). The detections are the true positives at IoU 0.5 after all
    post-processing, of all images together. A class with fewer than two of them, or with all scores or all IoUs equal,
    has no correlation and is left out of the average.

    Args:
        scores: ``[n]`` confidences, any monotone scale.
        ious: ``[n]`` IoU in [0.5, 1] of each true positive with its object.
        class_ids: ``[n]`` class of each, any sortable type.

    Returns:
        A report whose ``value`` is in [-1, 1] (higher is better), or None with a reason.

    Raises:
        ValueError: the lengths differ, or a value is not a finite number.

    Example:
        >>> class_correlation([0.9, 0.8, 0.7], [0.6, 0.7, 0.8], ["cat", "cat", "cat"]).value
        -1.0
        >>> class_correlation([0.9], [0.6], ["cat"]).reason
        'no class has two or more detections with differing scores and differing IoUs (1 class, 1 detection)'
    """
    return _grouped_report(scores, ious, class_ids, "class", "class_ids")


def pooled_correlation(scores: Any, ious: Any, coefficient: str) -> Value:
    r"""One coefficient over all pairs together, with the reason if it is undefined.

    ``pearson``, ``spearman`` and ``kendall`` (tau-b) are SciPy's. ``concordance`` is Lin's (1989) with moments over n,

    .. math:: \gamma = \frac{2\,cov(s, IoU)}{var(s) + var(IoU) + (\bar s - \overline{IoU})^2},

    which is 1 only if every score equals its IoU; it is defined even if all scores or all IoUs are equal.

    Args:
        scores: ``[n]`` confidences.
        ious: ``[n]`` IoUs.
        coefficient: one of :data:`COEFFICIENTS`.

    Returns:
        ``(value in [-1, 1], None)`` or ``(None, reason)``.

    Raises:
        ValueError: the lengths differ, a value is not a finite number, or the coefficient is unknown.

    Example:
        >>> pooled_correlation([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], "concordance")
        Value(value=1.0, reason=None)
        >>> pooled_correlation([0.5], [0.5], "kendall").reason
        'a correlation needs two or more true positives, and there is 1'
    """
    x, y = float_column(scores, "scores"), float_column(ious, "ious")
    same_length(x, y, "scores and ious")
    if coefficient not in COEFFICIENTS:
        raise ValueError(f"coefficient must be one of {', '.join(COEFFICIENTS)}, got {coefficient!r}")
    if len(x) < 2:
        verb = "is" if len(x) == 1 else "are"
        return Value(None, f"a correlation needs two or more true positives, and there {verb} {len(x)}")
    constant = [name for name, column in (("scores", x), ("IoUs", y)) if np.all(column == column[0])]
    if len(constant) == 2 and coefficient == "concordance" and x[0] != y[0]:
        return Value(0.0, None)
    if constant and (coefficient != "concordance" or len(constant) == 2):
        return Value(None, f"all {' and all '.join(constant)} are equal")
    return Value(float(np.clip(_COMPUTE[coefficient](x, y), -1, 1)), None)


def grouped_spearman(x: Floats, y: Floats, codes: Ints, n_groups: int) -> tuple[Floats, Ints]:
    """``[n_groups]`` Spearman of x and y in each group (NaN where undefined), and the number of pairs in each."""
    counts = np.bincount(codes, minlength=n_groups)
    center = (counts - 1) / 2  # exact mean of ranks from 0, also with ties
    u = _ranks_within(x, codes, counts) - center[codes]
    v = _ranks_within(y, codes, counts) - center[codes]
    cross = np.bincount(codes, u * v, n_groups)
    norm = np.sqrt(np.bincount(codes, u * u, n_groups) * np.bincount(codes, v * v, n_groups))
    values = np.full(n_groups, np.nan)
    np.divide(cross, norm, out=values, where=norm > 0)
    return np.clip(values, -1, 1), counts


def _ranks_within(x: Floats, codes: Ints, counts: Ints) -> Floats:
    order = np.lexsort((x, codes))
    sorted_x, sorted_codes = x[order], codes[order]
    first = np.ones(len(x), bool)
    first[1:] = (sorted_x[1:] != sorted_x[:-1]) | (sorted_codes[1:] != sorted_codes[:-1])
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(x)))
    run_rank = starts + (lengths - 1) / 2  # ties share the mean of their ranks
    ranks = np.empty(len(x))
    ranks[order] = np.repeat(run_rank, lengths) - (np.cumsum(counts) - counts)[sorted_codes]
    return ranks


def _concordance(x: Floats, y: Floats) -> float:
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def _pearson(x: Floats, y: Floats) -> float:
    from scipy import stats

    # scores that are equal up to rounding are valid input
    with warnings.catch_warnings(action="ignore", category=stats.NearConstantInputWarning):
        return float(stats.pearsonr(x, y).statistic)


def _spearman(x: Floats, y: Floats) -> float:
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def _kendall(x: Floats, y: Floats) -> float:
    from scipy import stats

    return float(stats.kendalltau(x, y).statistic)


_COMPUTE: Final = {"pearson": _pearson, "spearman": _spearman, "kendall": _kendall, "concordance": _concordance}


def _grouped_report(scores: Any, ious: Any, groups: Any, noun: str, name: str) -> CorrelationReport:
    x, y = float_column(scores, "scores"), float_column(ious, "ious")
    same_length(x, y, "scores and ious")
    labels = group_column(groups, name, len(x))
    ids: NDArray[Any]
    ids, codes = np.unique(labels, return_inverse=True)
    values, counts = grouped_spearman(x, y, codes.astype(np.int64), len(ids))
    defined = ~np.isnan(values)
    keys = ids.tolist()
    reason = None
    if not defined.any():
        nouns = {"image": "images", "class": "classes"}[noun] if len(ids) != 1 else noun
        plural = "" if len(x) == 1 else "s"
        reason = (
            f"no {noun} has two or more detections with differing scores and differing IoUs "
            f"({len(ids)} {nouns}, {len(x)} detection{plural})"
        )
    return CorrelationReport(
        value=float(values[defined].mean()) if defined.any() else None,
        reason=reason,
        per_group={key: float(v) if ok else None for key, v, ok in zip(keys, values, defined, strict=True)},
        counts=dict(zip(keys, counts.tolist(), strict=True)),
    )


class Value(NamedTuple):
    """One number, or None with the reason why it is undefined.

    Attributes:
        value: The number, or None where it is undefined.
        reason: Why ``value`` is None, else None.

    Example:
        >>> from concordet.measures import pooled_correlation
        >>> round(pooled_correlation([0.9, 0.5, 0.1], [0.8, 0.6, 0.7], "kendall").value, 3)
        0.333
        >>> pooled_correlation([0.9], [0.8], "kendall").reason
        'a correlation needs two or more true positives, and there is 1'

    """

    value: float | None
    reason: str | None


@dataclass(frozen=True)
class CorrelationReport:
    """A correlation averaged over groups (images or classes).

    Attributes:
        value: the average in [-1, 1], or None if no group has a correlation.
        reason: why ``value`` is None, else None.
        per_group: each group's Spearman correlation, or None where it is undefined.
        counts: number of detections in each group.

    Example:
        >>> from concordet.measures import image_correlation
        >>> report = image_correlation([0.9, 0.5, 0.4], [0.8, 0.6, 0.9], ["a.jpg", "a.jpg", "b.jpg"])
        >>> report.value, report.per_group, report.counts
        (1.0, {'a.jpg': 1.0, 'b.jpg': None}, {'a.jpg': 2, 'b.jpg': 1})
    """

    value: float | None
    reason: str | None = None
    per_group: dict[Hashable, float | None] = field(default_factory=dict)
    counts: dict[Hashable, int] = field(default_factory=dict)

    @property
    def n_groups(self) -> int:
        """Number of groups with detections."""
        return len(self.per_group)

    @property
    def n_defined(self) -> int:
        """Number of groups in the average."""
        return sum(value is not None for value in self.per_group.values())
