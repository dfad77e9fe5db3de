from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concordet.measures import average_inconsistency, lrp
from tests.measures.reference import best_lrp

detections = st.lists(
    st.tuples(st.integers(0, 8), st.floats(0.5, 1), st.booleans(), st.integers(0, 2)), min_size=0, max_size=40
)


@settings(deadline=None, max_examples=200)
@given(detections, st.integers(0, 5), st.sampled_from([0.5, 0.3]))
def test_optimum_is_that_of_a_loop_over_thresholds(rows, missed, tau):
    scores = np.array([row[0] / 8 for row in rows])
    hit = np.array([row[2] for row in rows], bool)
    ious = np.where(hit, [row[1] for row in rows], 0.1) if rows else np.zeros(0)
    classes = np.array([row[3] for row in rows], int)
    counts = {c: int(hit[classes == c].sum()) + missed for c in range(3)}
    report = lrp(scores, ious, classes, counts, true_positive=hit, tau=tau)
    values = []
    for c in range(3):
        found = report.per_class[c]
        if counts[c] == 0:
            assert found.value is None
            assert found.reason == "the class has no object"
            continue
        chosen = classes == c
        error, threshold = best_lrp(scores[chosen], ious[chosen], hit[chosen], counts[c], tau)
        assert found.value == pytest.approx(error, abs=1e-9)
        values.append(error)
        if threshold is None:
            assert found.value == pytest.approx(1.0)
        if found.threshold is None:
            assert (found.loc, found.fp, found.fn) == (None, None, 1.0)
            continue
        kept = chosen & (scores >= found.threshold)
        tp = kept & hit
        assert found.loc == pytest.approx(np.mean(1 - ious[tp]), abs=1e-12)
        assert found.fp == pytest.approx(1 - tp.sum() / kept.sum(), abs=1e-12)
        assert found.fn == pytest.approx(1 - tp.sum() / counts[c], abs=1e-12)
    assert report.value == (pytest.approx(np.mean(values), abs=1e-9) if values else None)


def test_worked_example():
    # 4 objects; at s >= 0.7: TP 0.8 and 0.9, one FP: (0.4 + 0.2 + 1 + 2) / 5 = 0.72; at s >= 0.6: TP 1.0 more: 2.6 / 5
    report = lrp([0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.0, 0.9, 1.0, 0.0], [1] * 5, 4)
    found = report.per_class[1]
    assert found.value == pytest.approx(2.6 / 5)
    assert (found.threshold, found.fp, found.fn) == (0.6, 0.25, 0.25)
    assert found.loc == pytest.approx(0.1)


def test_of_equal_minima_the_highest_threshold_is_taken():
    # at s >= 0.9: (0.5 + 0 + 1) / 2; at s >= 0.5: (0.5 + 1 + 0) / 2; both are 0.75
    found = lrp([0.5, 0.9], [0.5, 0.75], [1, 1], 2).per_class[1]
    assert (found.value, found.threshold, found.loc, found.fn) == (0.75, 0.9, 0.25, 0.5)


def test_threshold_attains_the_optimum_when_detections_below_it_are_dropped():
    rng = np.random.default_rng(0)
    scores, hit = rng.random(300), rng.random(300) < 0.4
    ious = np.where(hit, rng.uniform(0.5, 1, 300), 0)
    whole = lrp(scores, ious, np.zeros(300, int), 200).per_class[0]
    kept = scores >= whole.threshold
    cut = lrp(scores[kept], ious[kept], np.zeros(kept.sum(), int), 200).per_class[0]
    assert cut == whole


def test_perfect_detections_have_no_error():
    report = lrp([0.9, 0.2], [1.0, 1.0], ["a", "b"], {"a": 1, "b": 1})
    assert (report.value, report.loc, report.fp, report.fn) == (0.0, 0.0, 0.0, 0.0)


def test_class_without_detection_counts_as_missed_and_without_object_not_at_all():
    report = lrp([0.9], [1.0], [1], {1: 1, 2: 3, 3: 0})
    assert report.value == 0.5
    assert (report.per_class[2].value, report.per_class[2].fn, report.per_class[2].threshold) == (1.0, 1.0, None)
    assert report.per_class[3].value is None
    assert lrp([], [], [], {}).reason == "no class has an object"


def test_errors():
    with pytest.raises(ValueError, match="at most one true positive per object, got 2 for 1 objects"):
        lrp([0.9, 0.8], [0.9, 0.8], [1, 1], {1: 1})
    with pytest.raises(ValueError, match="n_objects must have every class with detections, got none for 2"):
        lrp([0.9], [0.9], [2], {1: 1})
    with pytest.raises(ValueError, match=r"tau must be an IoU in \[0, 1\), got 1"):
        lrp([0.9], [0.9], [1], 1, tau=1)
    with pytest.raises(ValueError, match="n_objects must be a dict of class to count for 2 classes"):
        lrp([0.9, 0.8], [0.9, 0.8], [1, 2], 2)
    with pytest.raises(ValueError, match="true_positive must have one value for each of 2 scores, got 1"):
        lrp([0.9, 0.8], [0.9, 0.8], [1, 1], 2, true_positive=[True])
    with pytest.raises(ValueError, match=r"true_positive\[1\] must be True or False, got 0.7"):
        lrp([0.9, 0.8], [0.9, 0.8], [1, 1], 2, true_positive=[1, 0.7])
    with pytest.raises(ValueError, match=r"ious\[0\] must be in \[0, 1\], got 90; give the IoU"):
        lrp([0.9], [90], [1], 1)


def test_inconsistency_is_the_sum_and_the_mean_of_gaps():
    rng = np.random.default_rng(1)
    p, iou = rng.random(50), rng.random(50)
    total = sum(abs(a - b) for a, b in zip(p, iou, strict=True))
    assert average_inconsistency(p, iou) == (pytest.approx(total), pytest.approx(total / 50))
    assert average_inconsistency(iou, iou) == (0.0, 0.0)


def test_inconsistency_refuses_logits_and_other_ious():
    with pytest.raises(ValueError, match=r"scores\[1\] must be in \[0, 1\], got 2.5; apply sigmoid"):
        average_inconsistency([0.5, 2.5], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"ious\[0\] must be in \[0, 1\], got 1.5"):
        average_inconsistency([0.5, 0.5], [1.5, 0.5])
