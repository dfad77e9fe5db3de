from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from concordet.measures import Value, analyze, evaluate_detections, metrics, summary
from concordet.measures.matching import match_both
from concordet.measures.overlaps import paired_iou
from concordet.measures.reading.dataset import read_dataset
from tests.measures.reference import best_lrp, box_iou, coco_figures, matched_pairs, run_pycocotools
from tests.measures.scenes import SHAPES, make_scene, write_scene


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_average_precision_is_pycocotools(shape, seed):
    truth, found = make_scene(seed, **SHAPES[shape])
    ours = evaluate_detections(truth, found)
    for name, expected in coco_figures(run_pycocotools(truth, found)).items():
        if expected is None:
            assert ours[name] is None
            assert ours["reasons"][name]
        else:
            assert ours[name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("max_dets", [1, 7, 100, 300])
def test_any_number_of_detections_per_image(max_dets):
    truth, found = make_scene(5, **SHAPES["dense"])
    ours = evaluate_detections(truth, found, max_dets=max_dets)
    theirs = coco_figures(run_pycocotools(truth, found, max_dets=(max_dets,)))
    for name in ("AP", "AP50", "AP75", "APl"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9)
    at_100 = coco_figures(run_pycocotools(truth, found))
    assert ours["AR100"] == pytest.approx(at_100["AR100"], abs=1e-9)
    assert ours["n_kept"] == sum(min(max_dets, sum(d["image_id"] == i["id"] for d in found)) for i in truth["images"])


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_are_pycocotools(shape):
    truth, found = make_scene(2, **SHAPES[shape])
    dataset = read_dataset(truth, found)
    matches = match_both(dataset, max_dets=100)[0]
    theirs = matched_pairs(run_pycocotools(truth, found))
    assert sorted(matches.rows + 1) == sorted(theirs)
    for k, row in enumerate(matches.rows):
        matched, ignored = theirs[row + 1]
        assert matches.objects[k] + 1 == matched
        assert matches.ignored[k] == ignored
        assert matches.true_positive[k] == (matched > 0 and not ignored)
        assert matches.scores[k] == found[row]["score"]
        if matches.true_positive[k]:
            expected = box_iou(found[row]["bbox"], truth["annotations"][matched - 1]["bbox"])
            assert matches.ious[k] == pytest.approx(expected, abs=1e-12)


def test_correlations_and_lrp_follow_from_pycocotools_matches():
    truth, found = make_scene(4, crowd=0.1)
    ours = evaluate_detections(truth, found)
    rows = {c["id"]: [] for c in truth["categories"]}
    for ident, (matched, ignored) in matched_pairs(run_pycocotools(truth, found)).items():
        detection = found[ident - 1]
        if not ignored:
            iou = box_iou(detection["bbox"], truth["annotations"][matched - 1]["bbox"]) if matched else 0.0
            rows[detection["category_id"]].append((detection["score"], iou, bool(matched)))
    rho, errors = [], []
    for entry in ours["per_class"]:
        scores, ious, hit = (np.array(column) for column in zip(*rows[entry["id"]], strict=True))
        rho.append(stats.spearmanr(scores[hit], ious[hit]).statistic)
        assert entry["beta_cls"] == pytest.approx(rho[-1], abs=1e-12)
        n = sum(a["category_id"] == entry["id"] and not a["iscrowd"] for a in truth["annotations"])
        error, threshold = best_lrp(scores, ious, hit, n, 0.5)
        errors.append(error)
        assert entry["n_objects"] == n
        assert entry["oLRP"] == pytest.approx(error, abs=1e-9)
        assert entry["lrp_threshold"] == threshold
    assert ours["beta_cls"] == pytest.approx(np.mean(rho), abs=1e-12)
    assert ours["oLRP"] == pytest.approx(np.mean(errors), abs=1e-9)
    pooled = np.array([row for group in rows.values() for row in group if row[2]])
    assert ours["kendall"] == pytest.approx(stats.kendalltau(pooled[:, 0], pooled[:, 1]).statistic, abs=1e-12)
    assert ours["AIC"] == pytest.approx(np.abs(pooled[:, 0] - pooled[:, 1]).sum())
    assert ours["n_true_positives"] == len(pooled)


def test_metrics_of_a_class_are_pycocotools_of_only_that_class():
    truth, found = make_scene(6)
    ours = evaluate_detections(truth, found)
    for entry in ours["per_class"]:
        one = {**truth, "categories": [c for c in truth["categories"] if c["id"] == entry["id"]]}
        one["annotations"] = [a for a in truth["annotations"] if a["category_id"] == entry["id"]]
        theirs = coco_figures(run_pycocotools(one, [d for d in found if d["category_id"] == entry["id"]]))
        for name, expected in theirs.items():
            assert entry[name] == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_paths_dicts_and_arrays_agree(tmp_path):
    truth, found = make_scene(7)
    expected = evaluate_detections(truth, found)
    assert evaluate_detections(*write_scene(tmp_path, truth, found)) == expected
    rows = np.array([[d["image_id"], *d["bbox"], d["score"], d["category_id"]] for d in found])
    assert evaluate_detections(truth, rows) == expected
    assert json.loads(json.dumps(expected, allow_nan=False)) == expected


def test_no_detection_at_all():
    truth, _ = make_scene(0)
    for found in ([], np.zeros((0, 7)), {"annotations": []}):
        report = evaluate_detections(truth, found)
        assert report["AP"] == 0.0
        assert (report["oLRP"], report["oLRP_fn"]) == (1.0, 1.0)
        for name in ("beta_cls", "pearson", "AIC_mean", "oLRP_loc"):
            assert report[name] is None
            assert report["reasons"][name]


def test_scores_outside_probabilities_leave_only_inconsistency_undefined():
    truth, found = make_scene(0)
    logits = [{**d, "score": 10 * d["score"] - 5} for d in found]
    plain, report = evaluate_detections(truth, found), evaluate_detections(truth, logits)
    assert report["AIC"] is None
    assert "score outside [0, 1]" in report["reasons"]["AIC"]
    for name in ("AP", "beta_cls", "oLRP"):
        assert report[name] == pytest.approx(plain[name])


def test_max_dets_must_be_a_count():
    with pytest.raises(ValueError, match="max_dets must be a positive integer, got 0"):
        evaluate_detections({"annotations": []}, [], max_dets=0)


def test_torch_is_not_imported():
    code = (
        "import sys, concordet.measures as m; m.evaluate_detections({'annotations': []}, []);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("area", [1023, 1024, 1025, 9215, 9216, 9217])
def test_objects_on_the_limits_of_area_are_of_both_sizes(area):
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, area], "area": area, "iscrowd": 0}
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, area], "score": 0.9}]
    report = evaluate_detections(truth, found)
    theirs = coco_figures(run_pycocotools(truth, found))
    sizes = {"APs": area <= 1024, "APm": 1024 <= area <= 9216, "APl": area >= 9216}
    for name, inside in sizes.items():
        expected = pytest.approx(1.0) if inside else None
        assert report[name] == expected
        assert theirs[name] == expected


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_overlap_with_a_crowd_is_the_share_of_the_detection(iou_type):
    from pycocotools import mask

    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.integers(0, 60, (40, 2)), rng.integers(5, 60, (40, 2))]).astype(float).tolist()
    size = {"width": 128, "height": 128}

    def record(box, **more):
        x, y, w, h = box
        return {
            "image_id": 1,
            "category_id": 1,
            "bbox": box,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        } | more

    truth = {
        "images": [{"id": 1, **size}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [record(box, id=i, iscrowd=i % 2) for i, box in enumerate(boxes[:20])],
    }
    dataset = read_dataset(truth, [record(box, score=0.5) for box in boxes[20:]], iou_type=iou_type)
    pairs = [(i, j) for i in range(20) for j in range(20)]
    ours = paired_iou(dataset, *np.array(pairs).T)
    sides = boxes[20:], boxes[:20]
    if iou_type == "segm":
        sides = tuple(
            [mask.merge(mask.frPyObjects(record(box)["segmentation"], 128, 128)) for box in side] for side in sides
        )
    theirs = mask.iou(*sides, [i % 2 for i in range(20)])
    np.testing.assert_allclose(ours, [theirs[i, j] for i, j in pairs], atol=1e-12)


def test_equal_boxes_far_from_the_origin_have_iou_one_and_an_inconsistency():
    box = [1e6 + 0.1, 0.0, 0.3, 10.0]  # x + w - x exceeds w
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": [annotation]}
    report = evaluate_detections(truth, [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1.0}])
    assert (report["AIC"], report["AIC_mean"], report["oLRP"]) == (0.0, 0.0, 0.0)


def test_a_row_of_the_table_is_enough_for_a_measure_of_true_positives(monkeypatch):
    def weighted_kendall(scores, ious):
        if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
            return Value(None, "undefined")
        return Value(float(stats.weightedtau(scores, ious).statistic), None)

    row = metrics.Metric("tau_w", "Weighted Kendall", "higher", 1, 3, "", "", of_true_positives=weighted_kendall)
    monkeypatch.setattr(summary, "TABLE", (*metrics.TABLE, row))
    analysis = analyze(*make_scene(3, **SHAPES["dense"]))
    report, hit = analysis.to_dict(), analysis.true_positive
    assert report["tau_w"] == pytest.approx(stats.weightedtau(analysis.scores[hit], analysis.ious[hit]).statistic)
    for entry in report["per_class"]:
        own = hit & (analysis.class_ids == entry["id"])
        expected = weighted_kendall(analysis.scores[own], analysis.ious[own])
        assert entry["tau_w"] == (None if expected.value is None else pytest.approx(expected.value))
        assert entry["reasons"].get("tau_w") == expected.reason
