from __future__ import annotations

import numpy as np
import pytest

from concordet.measures import compare, evaluate_detections
from concordet.measures.bootstrap import MEASURES, evaluate_weighted, prepare
from concordet.measures.reading.dataset import read_dataset
from tests.measures.scenes import SHAPES, make_scene


def repeated(truth, found, weights):
    """The same scene with every image taken as often as its weight says, each time under an id of its own."""
    images, annotations, detections = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy in range(int(weight)):
            new = image["id"] * 100 + copy
            images.append({**image, "id": new})
            annotations += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image["id"]]
            detections += [{**d, "image_id": new} for d in found if d["image_id"] == image["id"]]
    annotations = [{**a, "id": i + 1} for i, a in enumerate(annotations)]
    return {"images": images, "categories": truth["categories"], "annotations": annotations}, detections


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_one_is_the_evaluation_itself(shape):
    truth, found = make_scene(3, **SHAPES[shape])
    sample = prepare(read_dataset(truth, found), 100)
    expected = evaluate_detections(truth, found)
    for name, value in zip(MEASURES, evaluate_weighted(sample, np.ones(len(sample.image_ids), int)), strict=True):
        if expected[name] is None:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(expected[name], abs=1e-9)


@pytest.mark.parametrize("shape", ["plain", "crowds", "ignores", "many_classes", "few_objects"])
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_repetitions_of_images(shape, seed):
    truth, found = make_scene(seed, **SHAPES[shape])
    n = len(truth["images"])
    weights = np.random.default_rng(seed).multinomial(n, np.ones(n) / n)
    expected = evaluate_detections(*repeated(truth, found, weights))
    result = evaluate_weighted(prepare(read_dataset(truth, found), 100), weights)
    for name, value in zip(MEASURES, result, strict=True):
        wanted = np.nan if expected[name] is None else expected[name]
        assert value == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_ties_of_score_weigh_as_repetitions_for_beta_and_olrp():
    truth, found = make_scene(0, **SHAPES["ties"])
    weights = np.random.default_rng(0).multinomial(20, np.ones(20) / 20)
    expected = evaluate_detections(*repeated(truth, found, weights))
    result = dict(zip(MEASURES, evaluate_weighted(prepare(read_dataset(truth, found), 100), weights), strict=True))
    for name in ("beta_cls", "oLRP"):
        assert result[name] == pytest.approx(expected[name], abs=1e-9)


def test_the_same_detections_do_not_differ():
    truth, found = make_scene(0)
    report = compare(truth, found, found, n_resamples=30)
    for name in MEASURES:
        assert (report[name]["low"], report[name]["high"], report[name]["differs"]) == (0, 0, False)
        assert report[name]["share_higher"] == 0


def test_a_clear_difference_is_found_and_a_signed_one():
    truth, found = make_scene(0, n_images=40, n_objects=200, n_detections=400)
    closer = []
    for d in found:
        near = [
            a for a in truth["annotations"] if a["image_id"] == d["image_id"] and a["category_id"] == d["category_id"]
        ]
        box = min(
            (a["bbox"] for a in near),
            key=lambda b: sum(abs(p - q) for p, q in zip(b, d["bbox"], strict=True)),
            default=d["bbox"],
        )
        closer.append({**d, "bbox": [(p + q) / 2 for p, q in zip(box, d["bbox"], strict=True)]})
    report = compare(truth, found, closer, n_resamples=100)
    assert report["AP"]["difference"] > 0
    assert report["AP"]["differs"]
    assert report["AP"]["low"] <= report["AP"]["difference"] <= report["AP"]["high"]
    assert report["AP"]["share_higher"] == 1.0
    assert report["oLRP"]["difference"] < 0
    assert compare(truth, found, closer, n_resamples=100) == report


def test_interval_has_the_spread_of_resampled_evaluations():
    truth, found = make_scene(0)
    rng = np.random.default_rng(5)
    other = [{**d, "score": float(rng.random())} for d in found]
    report = compare(truth, found, other, n_resamples=400)["AP"]
    slow = []
    for _ in range(25):
        weights = rng.multinomial(20, np.ones(20) / 20)
        first, second = (evaluate_detections(*repeated(truth, side, weights))["AP"] for side in (found, other))
        slow.append(second - first)
    spread = (report["high"] - report["low"]) / (2 * 1.96)
    assert spread == pytest.approx(np.std(slow), rel=0.4)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_intervals_are_percentiles_of_the_differences(confidence):
    truth, found = make_scene(0)
    other = [{**d, "score": d["score"] ** 2} if i % 3 else d for i, d in enumerate(found)]
    report = compare(truth, found, other, n_resamples=41, confidence=confidence, seed=3)
    sides = [prepare(read_dataset(truth, d), 100) for d in (found, other)]
    rng = np.random.default_rng(3)
    n = len(truth["images"])
    draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(41)]
    for k, name in enumerate(MEASURES):
        values = sorted(np.subtract(*(evaluate_weighted(side, w)[k] for side in sides[::-1])) for w in draws)
        for end, share in (("low", (1 - confidence) / 2), ("high", (1 + confidence) / 2)):
            index = share * 40  # linear between the sorted differences
            below = int(index)
            expected = values[below] + (index - below) * (values[min(below + 1, 40)] - values[below])
            assert report[name][end] == pytest.approx(expected, abs=1e-12)
        assert report[name]["share_higher"] == pytest.approx(sum(v > 0 for v in values) / 41)
        assert report[name]["differs"] == (report[name]["low"] > 0 or report[name]["high"] < 0)


def test_undefined_measures_say_so_and_settings_are_checked():
    truth, found = make_scene(0)
    report = compare(truth, [], found, n_resamples=5)
    assert report["beta_cls"]["difference"] is None
    assert report["beta_cls"]["reason"]
    assert report["AP"]["first"] == 0.0
    assert compare({**truth, "annotations": []}, found, found, n_resamples=2)["AP"]["reason"]
    with pytest.raises(ValueError, match="n_resamples must be a positive integer, got 0"):
        compare(truth, found, found, n_resamples=0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        compare(truth, found, found, confidence=95)
    with pytest.raises(ValueError, match="the two results name different ones"):
        compare(truth["annotations"], found, [{**found[0], "image_id": 12345}])
