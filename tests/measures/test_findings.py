"""Confusion, curves, sizes, worst images and intervals, each against a loop that reads like its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest

from concordet.measures import analyze, evaluate_detections
from concordet.measures.findings.curves import threshold_curve
from tests.measures.reference import box_iou, run_pycocotools
from tests.measures.scenes import SHAPES, make_scene


def above_thresholds(truth, found, analysis):
    """Detections above the threshold of their class, without those in crowd regions, the highest scores first."""
    limits = {row["id"]: row["lrp_threshold"] for row in analysis.to_dict()["per_class"]}
    crowd = {
        (i, c, round(s, 12))
        for i, c, s in zip(
            analysis.image_ids[analysis.ignored].tolist(),
            analysis.class_ids[analysis.ignored].tolist(),
            analysis.scores[analysis.ignored].tolist(),
            strict=True,
        )
    }
    kept = [d for d in found if limits[d["category_id"]] is not None and d["score"] >= limits[d["category_id"]]]
    kept = [d for d in kept if (d["image_id"], d["category_id"], round(d["score"], 12)) not in crowd]
    return sorted(kept, key=lambda d: -d["score"])


@pytest.mark.parametrize("shape", ["plain", "crowds", "many_classes", "few_objects", "exact_boxes", "no_object"])
@pytest.mark.parametrize("seed", [0, 1])
def test_confusion_counts_what_each_detection_takes(shape, seed):
    truth, found = make_scene(seed, **SHAPES[shape])
    analysis = analyze(truth, found)
    report = analysis.to_dict()["confusion"]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    pairs, background, taken = {}, dict.fromkeys(names.values(), 0), set()
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    for d in above_thresholds(truth, found, analysis):
        free = [
            (box_iou(a["bbox"], d["bbox"]), a)
            for a in objects
            if a["image_id"] == d["image_id"] and a["id"] not in taken
        ]
        best, held = max(free, key=lambda pair: pair[0], default=(0, None))
        if best < 0.5:
            background[names[d["category_id"]]] += 1
            continue
        taken.add(held["id"])
        key = names[held["category_id"]], names[d["category_id"]]
        pairs[key] = pairs.get(key, 0) + 1
    wrong = {key: n for key, n in pairs.items() if key[0] != key[1]}
    assert {(pair["object"], pair["detection"]): pair["count"] for pair in report["pairs"]} == wrong
    assert [pair["count"] for pair in report["pairs"]] == sorted(wrong.values(), reverse=True)
    for row in report["per_class"]:
        name = row["name"]
        total = sum(names[a["category_id"]] == name for a in objects)
        assert row["right"] == pairs.get((name, name), 0)
        assert row["confused"] == sum(n for key, n in wrong.items() if key[0] == name)
        assert row["missed"] == total - row["right"] - row["confused"]
        assert row["background"] == background[name]
    for pair in report["pairs"]:
        total = sum(names[a["category_id"]] == pair["object"] for a in objects)
        assert pair["share"] == pytest.approx(pair["count"] / total)


def test_confusion_sees_every_class_of_an_image_with_many_detections():
    boxes = [[40 * i, 0, 20, 20] for i in range(120)]
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": c, "name": str(c)} for c in (1, 2)],
        "annotations": [{"id": i + 1, "image_id": 1, "category_id": 1 + i % 2, "bbox": b} for i, b in enumerate(boxes)],
    }
    found = [
        {"image_id": 1, "category_id": a["category_id"], "bbox": a["bbox"], "score": 1 - i / 200}
        for i, a in enumerate(truth["annotations"])
    ]
    rows = analyze(truth, found).to_dict()["confusion"]["per_class"]
    assert [row["right"] for row in rows] == [60, 60]


@pytest.mark.parametrize("shape", ["plain", "crowds", "ties", "many_classes", "few_objects", "no_object"])
def test_worst_images_list_their_errors_at_the_thresholds(shape):
    truth, found = make_scene(2, **SHAPES[shape])
    analysis = analyze(truth, found, n_images=100)
    report = analysis.to_dict()
    limits = {
        row["id"]: np.inf if row["lrp_threshold"] is None else row["lrp_threshold"] for row in report["per_class"]
    }
    expected = {}
    for image in truth["images"]:
        own = [i for i, ident in enumerate(analysis.image_ids) if ident == image["id"]]
        kept = [i for i in own if analysis.scores[i] >= limits[int(analysis.class_ids[i])]]
        n_objects = sum(a["image_id"] == image["id"] and not a["iscrowd"] for a in truth["annotations"])
        hits = [i for i in kept if analysis.true_positive[i]]
        false = [i for i in kept if not analysis.true_positive[i] and not analysis.ignored[i]]
        if n_objects - len(hits) + len(false):
            expected[image["id"]] = (n_objects, n_objects - len(hits), len(false))
    listed = {row["image_id"]: (row["n_objects"], row["n_missed"], row["n_false"]) for row in report["images"]}
    assert listed == expected
    errors = [row["n_missed"] + row["n_false"] for row in report["images"]]
    assert errors == sorted(errors, reverse=True)
    for row in report["images"]:
        assert (len(row["missed"]), len(row["false_positives"])) == (row["n_missed"], row["n_false"])
        assert len(row["true_positives"]) == row["n_objects"] - row["n_missed"]
        boxes = [a["bbox"] for a in truth["annotations"] if a["image_id"] == row["image_id"]]
        assert all(missed["bbox"] in boxes for missed in row["missed"])


@pytest.mark.parametrize("shape", ["plain", "crowds", "small_only"])
def test_sizes_have_pycocotools_ap(shape):
    truth, found = make_scene(1, **SHAPES[shape])
    precision = run_pycocotools(truth, found).eval["precision"]
    analysis = analyze(truth, found)
    rows = analysis.to_dict()["sizes"]
    assert [row["size"] for row in rows] == ["small", "medium", "large"]
    for area, row in enumerate(rows, start=1):
        for key, values in (("AP", precision[:, :, :, area, -1]), ("AP50", precision[0, :, :, area, -1])):
            values = values[values > -1]
            assert row[key] == (pytest.approx(values.mean(), abs=1e-12) if values.size else None)
    edges = [0, 32**2, 96**2, 1e10]
    areas = np.array([a["area"] for a in truth["annotations"] if not a["iscrowd"]])
    assert [row["n_objects"] for row in rows] == np.histogram(areas, edges)[0].tolist()
    found_objects = sum((row["detected"] or 0) * row["n_objects"] for row in rows)
    confused = {row["name"]: row for row in analysis.to_dict()["per_class"]}
    recalled = sum((1 - row["oLRP_fn"]) * row["n_objects"] for row in confused.values() if row["n_objects"])
    assert found_objects == pytest.approx(recalled)


def test_the_curve_is_precision_recall_and_f1_at_each_score():
    rng = np.random.default_rng(0)
    scores, hits = rng.integers(0, 12, 60) / 12, rng.random(60) < 0.4
    curve = threshold_curve(scores, hits, 40)
    assert curve.threshold.tolist() == sorted(set(scores.tolist()), reverse=True)
    for i, threshold in enumerate(curve.threshold.tolist()):
        kept = [hit for score, hit in zip(scores, hits, strict=True) if score >= threshold]
        precision, recall = sum(kept) / len(kept), sum(kept) / 40
        assert (curve.precision[i], curve.recall[i], curve.n_kept[i]) == (precision, recall, len(kept))
        assert curve.f1[i] == pytest.approx(2 * precision * recall / (precision + recall) if sum(kept) else 0)
        assert curve.at(threshold) == i
        assert curve.at(threshold - 1e-9) == i
    assert curve.at(2.0) is None
    few = curve.thinned(5)
    assert len(few.threshold) <= 7
    assert {few.threshold[0], few.threshold[-1]} == {curve.threshold[0], curve.threshold[-1]}
    assert set(few.threshold.tolist()) <= set(curve.threshold.tolist())
    assert len(threshold_curve(np.zeros(0), np.zeros(0, bool), 3).threshold) == 0


def test_the_curve_of_a_class_agrees_with_its_threshold():
    truth, found = make_scene(0)
    analysis = analyze(truth, found)
    for row in analysis.to_dict()["per_class"]:
        curve = analysis.curve(row["id"])
        index = curve.at(row["lrp_threshold"])
        assert curve.precision[index] == pytest.approx(1 - row["oLRP_fp"])
        assert curve.recall[index] == pytest.approx(1 - row["oLRP_fn"])
    pooled = analysis.curve()
    assert pooled.n_kept[-1] == np.count_nonzero(~analysis.ignored)
    with pytest.raises(ValueError, match=r"class_id must be one of \[1, 3, 5, 7, 9\], got 2"):
        analysis.curve(2)


def test_order_and_boxes_cost_what_lies_between_ap_and_ap50():
    report = analyze(*make_scene(0)).to_dict()
    assert report["costs"]["order"] == pytest.approx(report["AP_upper"] - report["AP"])
    assert sum(report["costs"].values()) == pytest.approx(report["AP50"] - report["AP"])
    truth, found = make_scene(0)
    assert analyze({**truth, "annotations": []}, found).to_dict()["costs"] is None


def test_intervals_are_percentiles_of_evaluations_of_the_drawn_images():
    truth, found = make_scene(0)
    report = analyze(truth, found).intervals(n_resamples=12, confidence=0.9, seed=4)
    rng, draws, by_class = np.random.default_rng(4), [], []
    for _ in range(12):
        drawn = rng.integers(0, 20, 20)
        images, annotations, detections = [], [], []
        for new, index in enumerate(drawn.tolist()):
            old = truth["images"][index]["id"]
            images.append({**truth["images"][index], "id": new})
            annotations += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == old]
            detections += [{**d, "image_id": new} for d in found if d["image_id"] == old]
        annotations = [{**a, "id": i + 1} for i, a in enumerate(annotations)]
        values = evaluate_detections({**truth, "images": images, "annotations": annotations}, detections)
        draws.append([values[name] for name in ("AP", "AP50", "AP75", "beta_cls", "oLRP")])
        by_class.append([row["AP"] for row in values["per_class"]])
    for name, column in zip(("AP", "AP50", "AP75", "beta_cls", "oLRP"), np.array(draws).T, strict=True):
        assert report[name] == pytest.approx(np.quantile(column, [0.05, 0.95]), abs=1e-9)
    for ends, column in zip(report["per_class"], np.array(by_class, float).T, strict=True):
        assert ends == pytest.approx(np.nanquantile(column, [0.05, 0.95]), abs=1e-9)
    assert (report["n_resamples"], report["confidence"]) == (12, 0.9)


def test_intervals_hold_the_value_and_are_none_where_it_is_undefined():
    truth, found = make_scene(0)
    analysis = analyze(truth, found)
    report = analysis.intervals(n_resamples=60)
    for name in ("AP", "AP50", "oLRP"):
        assert report[name][0] < analysis.summary[name] < report[name][1]
    assert analysis.intervals(n_resamples=3) == analysis.intervals(n_resamples=3)
    nothing = analyze({**truth, "annotations": []}, found).intervals(n_resamples=3)
    assert nothing["AP"] is None
    assert nothing["per_class"] == [None] * 5
    with pytest.raises(ValueError, match="n_resamples must be a positive integer, got 0"):
        analysis.intervals(n_resamples=0)


def test_findings_are_plain_json():
    report = analyze(*make_scene(0)).to_dict()
    for key in ("confusion", "sizes", "images", "costs"):
        assert json.loads(json.dumps(report[key])) == report[key]
