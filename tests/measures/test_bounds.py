from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from concordet.measures import analyze, coco
from concordet.measures.findings.bounds import permuted_ranks, ranks, reranking_bounds
from concordet.measures.matching import match_both
from concordet.measures.reading.dataset import read_dataset
from tests.measures.reference import box_iou, coco_figures, matched_pairs, run_pycocotools
from tests.measures.scenes import SHAPES, make_scene

NAMES = ("AP", "AP50", "AP75")


@st.composite
def separate_scenes(draw):
    """Objects on a grid, each with at most one detection over it, and false positives far from all."""
    n = draw(st.integers(1, 12))
    truth = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [],
    }
    found = []
    scores = st.integers(0, 5).map(lambda k: k / 5)  # few levels, so that true and false positives tie
    for i in range(n):
        image, label = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        box = [100.0 * i, 0, 40, 40]
        truth["annotations"].append({"id": i + 1, "image_id": image, "category_id": label, "bbox": box})
        if draw(st.booleans()):
            width = 40 * draw(st.floats(0.3, 1))
            found.append(
                {"image_id": image, "category_id": label, "bbox": [100.0 * i, 0, width, 40], "score": draw(scores)}
            )
    for i in range(draw(st.integers(0, 6))):
        row = {"image_id": draw(st.integers(1, 3)), "category_id": draw(st.integers(1, 2)), "score": draw(scores)}
        found.append({**row, "bbox": [100.0 * i, 500, 40, 40]})
    return truth, found


@settings(deadline=None, max_examples=150)
@given(separate_scenes())
def test_bounds_bracket_ap_and_leave_ap50(scene):
    report = analyze(*scene).to_dict()
    for entry in (report, *report["per_class"]):
        if entry["AP"] is None:
            assert entry["AP_upper"] is None
            assert entry["reasons"]["AP_upper"]
            continue
        for name in ("AP", "AP75"):
            assert entry[f"{name}_lower"] <= entry[name] + 1e-9
            assert entry[name] <= entry[f"{name}_upper"] + 1e-9
        for side in ("upper", "lower"):
            assert entry[f"AP50_{side}"] == pytest.approx(entry["AP50"], abs=1e-9)
    for low, ap, high in zip(*(report["ap_by_threshold"][k] for k in ("AP_lower", "AP", "AP_upper")), strict=True):
        if ap is not None:
            assert low - 1e-9 <= ap <= high + 1e-9


@settings(deadline=None, max_examples=60)
@given(separate_scenes())
def test_agreeing_scores_are_their_own_upper_bound_and_reversed_ones_their_lower(scene):
    truth, found = scene
    result = match_both(read_dataset(truth, found), max_dets=100)[0]
    hits = {int(row): float(iou) for row, iou in zip(result.rows, result.ious, strict=True) if iou > 0}
    for sign, side in ((1, "upper"), (-1, "lower")):
        scored = [{**d, "score": 0.5 + sign * 0.4 * hits[i]} if i in hits else d for i, d in enumerate(found)]
        report = analyze(truth, scored).to_dict()
        for name in NAMES:
            if report[name] is not None:
                assert report[f"{name}_{side}"] == pytest.approx(report[name], abs=1e-9)
        if report["beta_cls"] is not None:
            assert report["beta_cls"] == sign


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_evaluate_as_the_scores_do(shape):
    truth, found = make_scene(3, **SHAPES[shape])
    dataset = read_dataset(truth, found)
    loaded = coco.load(dataset)
    matches = match_both(dataset, max_dets=100)[0]
    plain = coco.average_precision(dataset, loaded, all_areas=False).ap
    ranked = coco.average_precision(dataset.only(matches.rows), loaded, scores=ranks(matches), all_areas=False).ap
    np.testing.assert_allclose(ranked, plain, atol=1e-12)


def permuted_by_hand(truth, found, best):
    """Table 2's operation on pycocotools' own matches: sort each class's scores and IoUs, and pair them."""
    dataset = read_dataset(truth, found)
    matches = match_both(dataset, max_dets=100)[0]
    iou = dict(zip((matches.rows + 1).tolist(), matches.ious.tolist(), strict=True))
    pairs = matched_pairs(run_pycocotools(truth, found))
    changed = [dict(d) for d in found]
    for label in (c["id"] for c in truth["categories"]):
        hits = [i for i, (m, ignored) in pairs.items() if m and not ignored and found[i - 1]["category_id"] == label]
        scores = sorted((found[i - 1]["score"] for i in hits), reverse=True)
        for i, score in zip(sorted(hits, key=lambda i: iou[i], reverse=best), scores, strict=True):
            changed[i - 1]["score"] = score
    return changed


@pytest.mark.parametrize("shape", ["plain", "crowds", "many_classes", "few_objects"])
def test_bounds_are_pycocotools_of_permuted_scores(shape):
    truth, found = make_scene(9, **SHAPES[shape])
    report = analyze(truth, found).to_dict()
    for side, best in (("upper", True), ("lower", False)):
        theirs = coco_figures(run_pycocotools(truth, permuted_by_hand(truth, found, best)))
        for name in NAMES:
            assert report[f"{name}_{side}"] == pytest.approx(theirs[name], abs=1e-9)


def test_rematching_of_duplicates_is_reported():
    # two boxes on one object and one on another: permuting can hand the first object to the other box
    truth, found = make_scene(1, **SHAPES["dense"])
    report = analyze(truth, found).to_dict()
    shift = report["AP50_upper"] - report["AP50"]
    assert abs(shift) > 1e-6
    assert report["rematching"]["AP50_upper"] == shift
    assert any("which of several boxes on an object is matched" in note for note in report["notes"])


def test_beta_cls_of_permuted_scores_is_one_without_duplicates():
    truth, found = make_scene(9, n_objects=30, n_detections=40)
    single = []
    for d in found:  # one detection per object: permuting cannot change which one is matched
        if all(box_iou(d["bbox"], k["bbox"]) < 0.2 for k in single if k["image_id"] == d["image_id"]):
            single.append(d)
    assert analyze(truth, single).to_dict()["beta_cls"] < 0.9
    assert analyze(truth, permuted_by_hand(truth, single, True)).to_dict()["beta_cls"] == pytest.approx(1, abs=1e-12)
    assert analyze(truth, permuted_by_hand(truth, single, False)).to_dict()["beta_cls"] == pytest.approx(-1, abs=1e-12)


def test_beta_cls_of_permuted_scores_with_duplicates():
    truth, found = make_scene(9, n_objects=30, n_detections=40)
    report = analyze(truth, permuted_by_hand(truth, found, True))
    assert report.to_dict()["beta_cls"] == pytest.approx(0.9857, abs=5e-5)  # two objects change their detection
    hit = report.true_positive
    for label in np.unique(report.class_ids[hit]):
        chosen = hit & (report.class_ids == label)
        expected = stats.spearmanr(report.scores[chosen], report.ious[chosen]).statistic if chosen.sum() > 1 else None
        entry = next(c for c in report.to_dict()["per_class"] if c["id"] == label)
        assert entry["beta_cls"] == (None if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("shape", ["exact_boxes", "ties"])
def test_detections_of_equal_iou_keep_their_order(shape, best):
    truth, found = make_scene(3, **SHAPES[shape] | {"jitter": 0.0})
    matches = match_both(read_dataset(truth, found), max_dets=100)[0]
    assert set(matches.ious[matches.true_positive].round(9)) == {1.0}
    before = ranks(matches)
    assert len(set(before)) == len(before)
    np.testing.assert_array_equal(permuted_ranks(matches, before, best=best), before)
    for label in range(5):  # ranks follow the score, then the order of the file within an image
        own = np.flatnonzero(matches.classes == label)
        order = sorted(own, key=lambda i: (-matches.scores[i], matches.images[i], matches.rows[i]))
        assert np.argsort(-before[own]).tolist() == [own.tolist().index(i) for i in order]


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_of_boxes_equal_hotcoco_with_the_permuted_scores(shape):
    dataset = read_dataset(*make_scene(11, **SHAPES[shape]))
    truth = coco.load(dataset)
    matches, _ = match_both(dataset, truth, max_dets=100)
    kept, original = dataset.only(matches.rows), ranks(matches)
    for ours, best in zip(reranking_bounds(dataset, truth, matches, max_dets=100), (True, False), strict=True):
        scores = permuted_ranks(matches, original, best=best)
        theirs = coco.average_precision(kept, truth, scores=scores, all_areas=False)
        np.testing.assert_allclose(ours.ap, theirs.ap, rtol=0, atol=1e-12)
