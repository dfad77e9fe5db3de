"""Calibration errors against loops that read like the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from concordet.measures import (
    analyze,
    detection_ece,
    evaluate_detections,
    localization_aware_ace,
    localization_aware_ece,
    object_calibration_error,
)
from tests.measures.reference import box_iou, greedy_targets
from tests.measures.scenes import SHAPES, make_scene


def binned_error(scores, targets, bins):
    """Sum over bins (a, b], the first [0, b], of n_j / n |mean score - mean target|."""
    total = 0.0
    for j in range(bins):
        low, high = j / bins, (j + 1) / bins
        inside = [i for i, s in enumerate(scores) if low < s <= high or (j == 0 and s == 0)]
        if inside:
            gap = sum(scores[i] for i in inside) / len(inside) - sum(targets[i] for i in inside) / len(inside)
            total += len(inside) / len(scores) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 10, 25])
@pytest.mark.parametrize("levels", [None, 50])
def test_errors_of_arrays_are_those_of_a_loop(bins, levels):
    rng = np.random.default_rng(0)
    scores, targets, classes = rng.random(400), rng.random(400) * (rng.random(400) < 0.6), rng.integers(0, 4, 400)
    if levels:
        scores = np.round(scores * levels) / levels  # many scores lie on a limit between two bins
    objects = {0: 10, 1: 5, 2: 0, 3: 1, 9: 2}
    report = localization_aware_ece(scores, targets, classes, objects, bins=bins)
    ace = localization_aware_ace(scores, targets, classes, objects)
    expected, expected_ace = [], []
    for c in (0, 1, 3):
        own = classes == c
        expected.append(binned_error(scores[own].tolist(), targets[own].tolist(), bins))
        expected_ace.append(sum(abs(scores[own] - targets[own])) / own.sum())
        assert report.per_class[c] == pytest.approx(expected[-1], abs=1e-12)
        assert ace.per_class[c] == pytest.approx(expected_ace[-1], abs=1e-12)
    assert report.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert ace.value == pytest.approx(np.mean(expected_ace), abs=1e-12)
    assert (report.n_defined, report.per_class[2], report.per_class[9]) == (3, None, None)
    assert report.reasons == {2: "the class has no object", 9: "the class has no counted detection"}
    hits = rng.random(400) < 0.3
    expected_ece = binned_error(scores.tolist(), hits.astype(float).tolist(), bins)
    assert detection_ece(scores, hits, bins=bins).value == pytest.approx(expected_ece, abs=1e-12)


def test_a_score_on_a_limit_belongs_to_the_lower_bin():
    # with 0.3 in (0.2, 0.3] the two detections share a bin and offset each other; in [0.3, 0.4) they would not
    assert detection_ece([0.3, 0.21], [False, True]).value == pytest.approx(abs(0.51 - 1) / 2)
    assert detection_ece([0.3, 0.31], [False, True]).value == pytest.approx((0.3 + 0.69) / 2)
    assert detection_ece([0.0, 0.1], [False, True]).value == pytest.approx(abs(0.1 - 1) / 2)


def test_detection_ece_is_netcals():
    """Frozen numbers of ``netcal.metrics.ECE(bins=10, detection=True)``, netcal 1.4.0; no score lies on a limit."""
    i = np.arange(1, 2001)
    scores = (i * 0.6180339887498949 % 1) ** 2
    hits = (i * 0.7548776662466927 % 1) < scores**1.3
    assert detection_ece(scores, hits).value == pytest.approx(0.05682188975460043, abs=1e-12)
    assert evaluate_detections(*make_scene(6, crowd=0.1))["D_ECE"] == pytest.approx(0.324601167608724, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_metrics_of_files_are_those_of_a_loop(shape):
    truth, found = make_scene(6, **SHAPES[shape])
    report = evaluate_detections(truth, found)
    loose, counted = greedy_targets(truth, found, 0.0)
    strict, judged = greedy_targets(truth, found, 0.5)
    errors, gaps = [], []
    for entry, category in zip(report["per_class"], truth["categories"], strict=True):
        own = [i for i in loose if counted[i] and found[i]["category_id"] == category["id"]]
        scores = [found[i]["score"] for i in own]
        if not entry["n_objects"] or not own:
            assert (entry["LaECE0"], entry["LaACE0"]) == (None, None)
            expected = "the class has no counted detection" if entry["n_objects"] else "the class has no object"
            assert entry["reasons"]["LaECE0"] == entry["reasons"]["LaACE0"] == expected
        else:
            errors.append(binned_error(scores, [loose[i] for i in own], 25))
            gaps.append(sum(abs(s - loose[i]) for s, i in zip(scores, own, strict=True)) / len(own))
            assert entry["LaECE0"] == pytest.approx(errors[-1], abs=1e-11)
            assert entry["LaACE0"] == pytest.approx(gaps[-1], abs=1e-11)
        kept = [i for i in strict if judged[i] and found[i]["category_id"] == category["id"]]
        hits = [float(strict[i] > 0) for i in kept]
        expected_ece = binned_error([found[i]["score"] for i in kept], hits, 10) if kept else None
        assert entry["D_ECE"] == (None if expected_ece is None else pytest.approx(expected_ece, abs=1e-12))
    for name, values in (("LaECE0", errors), ("LaACE0", gaps)):
        assert report[name] == (pytest.approx(np.mean(values), abs=1e-11) if values else None)
    kept = [i for i in strict if judged[i]]
    pooled = binned_error([found[i]["score"] for i in kept], [float(strict[i] > 0) for i in kept], 10)
    assert report["D_ECE"] == pytest.approx(pooled, abs=1e-12)


def test_reliability_bins_are_a_loop_over_bins():
    truth, found = make_scene(2, crowd=0.1)
    report = analyze(truth, found).to_dict()
    targets, counted = greedy_targets(truth, found, 0.0)
    for entry in (report, *report["per_class"]):
        own = [i for i in targets if counted[i] and ("id" not in entry or found[i]["category_id"] == entry["id"])]
        assert sum(b["count"] for b in entry["calibration"]) == len(own)
        for b in entry["calibration"]:
            inside = [i for i in own if b["low"] < found[i]["score"] <= b["high"]]
            assert b["count"] == len(inside)
            assert b["mean_score"] == pytest.approx(np.mean([found[i]["score"] for i in inside]))
            assert b["mean_iou"] == pytest.approx(np.mean([targets[i] for i in inside]))
            assert b["precision"] == pytest.approx(np.mean([targets[i] > 0 for i in inside]))


def test_scores_that_are_the_iou_are_calibrated():
    truth, _ = make_scene(0)
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0} for a in truth["annotations"]]
    report = analyze(truth, found).to_dict()
    for name in ("LaECE0", "LaACE0", "D_ECE"):
        assert report[name] == pytest.approx(0, abs=1e-12)


def test_detections_in_crowds_change_nothing():
    truth, found = make_scene(0, n_images=2, n_classes=1, n_detections=120)
    before = evaluate_detections(truth, found)
    crowd = {"id": 900, "image_id": 1, "category_id": 1, "bbox": [1000, 1000, 50, 50], "iscrowd": 1, "area": 2500}
    truth["annotations"].append(crowd)
    within = [{"image_id": 1, "category_id": 1, "bbox": [1005, 1005, 20, 20], "score": 0.99}] * 5
    after = evaluate_detections(truth, found + within)
    for name in ("LaECE0", "LaACE0", "D_ECE"):
        assert after[name] == pytest.approx(before[name], abs=1e-12)


def test_scores_outside_probabilities_have_no_calibration_and_say_why():
    truth, found = make_scene(0)
    found[3] = {**found[3], "score": 1.5}
    report = evaluate_detections(truth, found)
    for entry in (report, *report["per_class"]):
        for name in ("LaECE0", "LaACE0", "D_ECE"):
            assert entry[name] is None
            assert entry["reasons"][name] == "1 detection has a score outside [0, 1]"
    with pytest.raises(ValueError, match=r"scores\[1\] must be in \[0, 1\], got 1.5; apply sigmoid to logits"):
        detection_ece([0.5, 1.5], [True, False])
    with pytest.raises(ValueError, match="bins must be a positive integer, got 0"):
        detection_ece([0.5], [True], bins=0)


def test_scores_in_one_bin_get_a_note():
    truth, found = make_scene(0)
    low = [{**d, "score": d["score"] / 20} for d in found]
    note = "100 % of the scores lie between 0 and 0.1, so LaECE0, LaACE0 and D_ECE are small whether or not"
    assert any(note in n for n in evaluate_detections(truth, low)["notes"])
    assert not any("of the scores lie between" in n for n in evaluate_detections(truth, found)["notes"])


def test_nothing_to_calibrate_is_undefined_with_a_reason():
    report = evaluate_detections(make_scene(0)[0], [])
    for name in ("LaECE0", "LaACE0", "D_ECE"):
        assert report[name] is None
        assert "no counted detection" in report["reasons"][name] or "counted detection" in report["reasons"][name]
    assert report["calibration"] == []


def object_errors(p, boxes, images, object_boxes, classes, object_images, tau):
    for box, label, image in zip(object_boxes, classes, object_images, strict=True):
        near = [p[i] for i in range(len(p)) if images[i] == image and box_iou(boxes[i], box) >= tau]
        if not near:
            yield 1.0
            continue
        mean = np.mean(near, axis=0)
        yield sum((mean[c] - (c == label)) ** 2 for c in range(len(mean)))


def test_object_calibration_error_is_a_loop_over_objects():
    truth, found = make_scene(3, n_classes=3)
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), len(found))[:, :3]
    columns = [d["bbox"] for d in found], [d["image_id"] for d in found]
    objects = truth["annotations"]
    held = (
        [a["bbox"] for a in objects],
        [(a["category_id"] - 1) // 2 for a in objects],
        [a["image_id"] for a in objects],
    )
    each = [e for tau in (0.5, 0.75) for e in object_errors(p, *columns, *held, tau)]
    assert object_calibration_error(p, *columns, *held).value == pytest.approx(np.mean(each), abs=1e-12)
    each = list(object_errors(p, *columns, *held, 0.6))
    assert object_calibration_error(p, *columns, *held, thresholds=(0.6,)).value == pytest.approx(np.mean(each))
    none = np.zeros((0, 3)), np.zeros((0, 4)), []
    assert object_calibration_error(*none, *held).value == 1.0
    assert object_calibration_error(p, *columns, np.zeros((0, 4)), [], []) == (None, "there is no object")
    with pytest.raises(ValueError, match=r"object_classes must be in 0..2, got 5..5"):
        object_calibration_error(p, *columns, [[0, 0, 1, 1]], [5], [1])


def test_object_calibration_takes_tensors_in_training():
    p = torch.tensor([[0.75, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    expected = object_calibration_error([[0.75, 0.25]], [[0, 0, 10, 10]], [1], [[0, 0, 10, 10]], [0], [1])
    assert object_calibration_error(p, boxes, [1], boxes, [0], [1]) == expected
