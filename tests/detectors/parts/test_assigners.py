"""Assigners against scalar loops written from the papers."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors.parts.assigners import (
    atss_matches,
    fcos_matches,
    fovea_matches,
    ignore_inside,
    iou_matches,
    own_anchors,
    ssd_matches,
    yolact_matches,
)
from concordet.detectors.parts.coders import log_distance_codec

LEVELS = [(8, 12), (4, 6), (2, 3)]
STRIDES = [8, 16, 32]


def anchors_of(sizes, ratios=(1.0,)):
    generator = AnchorGenerator(tuple((s,) for s in sizes), (ratios,) * len(sizes))
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    boxes = generator(images, [torch.zeros(1, 1, h, w) for h, w in LEVELS])[0]
    return boxes, [h * w * len(ratios) for h, w in LEVELS]


@st.composite
def objects(draw, most=6):
    boxes = []
    for _ in range(draw(st.integers(0, most))):
        x, y = draw(st.integers(0, 80)), draw(st.integers(0, 50))
        width, height = draw(st.integers(2, 60)), draw(st.integers(2, 60))
        x, y = x + 0.375, y + 0.40625  # off the grid, and exact in float32: equal areas are equal for both
        boxes.append([x, y, x + width, y + height])
    return torch.tensor(boxes).reshape(-1, 4)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


@settings(max_examples=30, deadline=None)
@given(objects())
def test_fcos_equals_a_loop_over_points(boxes):
    anchors, sizes = anchors_of(STRIDES)
    expected, index = [], 0
    for level, count in enumerate(sizes):
        for _ in range(count):
            x, y = float(anchors[index, 0] + anchors[index, 2]) / 2, float(anchors[index, 1] + anchors[index, 3]) / 2
            stride, best, area_of_best = STRIDES[level], BACKGROUND, math.inf
            for j, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                sides = (x - x0, y - y0, x1 - x, y1 - y)
                center_offset = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                low = 0 if level == 0 else 4 * stride
                high = math.inf if level == len(sizes) - 1 else 8 * stride
                inside = min(sides) > 0 and center_offset < 1.5 * stride and low < max(sides) < high
                if inside and (x1 - x0) * (y1 - y0) < area_of_best - 1e-3:
                    best, area_of_best = j, (x1 - x0) * (y1 - y0)
            expected.append(best)
            index += 1
    assert fcos_matches(anchors, boxes, sizes).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(objects())
def test_fovea_equals_a_loop_over_points(boxes):
    anchors, sizes = anchors_of([2 * s for s in STRIDES])
    expected, index = [], 0
    for level, count in enumerate(sizes):
        for _ in range(count):
            x, y = float(anchors[index, 0] + anchors[index, 2]) / 2, float(anchors[index, 1] + anchors[index, 3]) / 2
            best, area_of_best = BACKGROUND, math.inf
            for j, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                # Eq. 2: corners of the fovea lie at 0.3 and 0.7 of the object; ranges of the published code.
                inside = (
                    0.7 * x0 + 0.3 * x1 <= x <= 0.3 * x0 + 0.7 * x1 and 0.7 * y0 + 0.3 * y1 <= y <= 0.3 * y0 + 0.7 * y1
                )
                side = math.sqrt((x1 - x0) * (y1 - y0))
                low = 0 if level == 0 else 2 * STRIDES[level]
                high = math.inf if level == len(sizes) - 1 else 8 * STRIDES[level]
                if inside and low <= side <= high and (x1 - x0) * (y1 - y0) < area_of_best - 1e-3:
                    best, area_of_best = j, (x1 - x0) * (y1 - y0)
            expected.append(best)
            index += 1
    assert fovea_matches(anchors, boxes, sizes).tolist() == expected


def test_fovea_codec_is_the_papers_formula():
    codec = log_distance_codec()
    anchor, box = [8.0, 8.0, 24.0, 24.0], [2.0, 10.0, 60.0, 20.0]
    x, y, size = 16.0, 16.0, 16.0
    sides = (x - box[0], y - box[1], box[2] - x, box[3] - y)
    expected = torch.tensor([[math.log(v / size) for v in sides]])
    torch.testing.assert_close(codec.encode(torch.tensor([box]), torch.tensor([anchor])), expected)
    torch.testing.assert_close(codec.decode(expected, torch.tensor([anchor])), torch.tensor([box]))
    assert codec.decode(torch.full((1, 4), 1e9), torch.tensor([anchor])).isfinite().all()


@settings(max_examples=30, deadline=None)
@given(objects())
def test_ssd_equals_a_loop(boxes):
    anchors, sizes = anchors_of([2 * s for s in STRIDES], ratios=(0.5, 1.0, 2.0))
    table = [[iou(a, b) for b in boxes.tolist()] for a in anchors.tolist()]
    columns = [[row[j] for row in table] for j in range(len(boxes))]
    if any(sum(abs(v - max(column)) < 1e-6 for v in column) > 1 for column in columns):
        return  # either of two equally good anchors may be the object's
    own = {column.index(max(column)): j for j, column in enumerate(columns)}
    for i, (row, match) in enumerate(zip(table, ssd_matches(anchors, boxes, sizes).tolist(), strict=True)):
        if i in own:
            assert match == own[i]
        elif not row or max(row) < 0.5 - 1e-5:
            assert match == BACKGROUND
        elif max(row) > 0.5 + 1e-5:
            assert row[match] == pytest.approx(max(row), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(objects())
def test_atss_equals_the_papers_algorithm(boxes):
    anchors, sizes = anchors_of([4 * s for s in STRIDES])
    center = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors.tolist()]
    wanted = [{} for _ in anchors]
    ambiguous = False
    for j, box in enumerate(boxes.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for count in sizes:
            level = sorted(range(start, start + count), key=lambda i: math.dist(center[i], middle))
            distances = [math.dist(center[i], middle) for i in level]
            # Either of two equally distant anchors may come ninth.
            ambiguous |= count > 9 and abs(distances[8] - distances[9]) < 1e-4
            candidates += level[:9]
            start += count
        ious = [iou(anchors[i].tolist(), box) for i in candidates]
        threshold = statistics.mean(ious) + statistics.stdev(ious)
        for i, value in zip(candidates, ious, strict=True):
            x, y = center[i]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            ambiguous |= abs(value - threshold) < 1e-5
            if value >= threshold and inside:
                wanted[i][j] = value
    if ambiguous:
        return
    expected = [max(w, key=w.get) if w else BACKGROUND for w in wanted]
    got = atss_matches(anchors, boxes, sizes).tolist()
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a == b or wanted[i][a] == pytest.approx(wanted[i][b], abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(objects())
def test_iou_matches_equal_a_loop(boxes):
    anchors, sizes = anchors_of([2 * s for s in STRIDES], ratios=(0.5, 1.0, 2.0))
    table = [[iou(a, b) for b in boxes.tolist()] for a in anchors.tolist()]
    best_of_object = [max(row[j] for row in table) for j in range(len(boxes))]
    got = iou_matches(anchors, boxes, sizes).tolist()
    for row, match in zip(table, got, strict=True):
        if not row:
            assert match == BACKGROUND
        elif max(row) >= 0.5 + 1e-5 or any(abs(v - best_of_object[j]) < 1e-7 and v > 0 for j, v in enumerate(row)):
            assert match >= 0
            assert row[match] == pytest.approx(max(row), abs=1e-6)
        elif 0.4 + 1e-5 < max(row) < 0.5 - 1e-5:
            assert match in (IGNORED, row.index(max(row)))
        elif max(row) < 0.4 - 1e-5 and match >= 0:
            assert row[match] == pytest.approx(best_of_object[match], abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(objects())
def test_every_object_can_have_its_best_anchors_as_its_own(boxes):
    """A loop over objects, each taking its best anchors from whoever has them."""
    anchors, sizes = anchors_of([2 * s for s in STRIDES])
    rows = [[iou(a, b) for a in anchors.tolist()] for b in boxes.tolist()]
    table = torch.tensor(rows).reshape(len(boxes), len(anchors))
    expected = iou_matches(anchors, boxes, sizes, foreground=0.1, background=0.1).tolist()
    for j, row in enumerate(table):
        for i in torch.nonzero((row >= row.max() - 1e-6) & (row > 0)).flatten().tolist():
            expected[i] = j
    got = iou_matches(anchors, boxes, sizes, foreground=0.1, background=0.1, own_best=True).tolist()
    for i, (mine, other) in enumerate(zip(got, expected, strict=True)):
        tied = mine >= 0 and other >= 0 and abs(float(table[mine, i] - table[mine].max())) < 1e-5
        assert mine == other or tied


def test_a_small_object_beside_a_large_one_keeps_an_anchor():
    anchors, sizes = anchors_of([64, 128, 256])
    boxes = torch.tensor([[10.0, 10.0, 70.0, 60.0], [20.0, 20.0, 26.0, 26.0]])
    assert 1 not in iou_matches(anchors, boxes, sizes, foreground=0.1, background=0.1)
    assert 1 in iou_matches(anchors, boxes, sizes, foreground=0.1, background=0.1, own_best=True)


def crowded_scenes():
    """Objects in quarter pixels, so that IoUs are exact up to one rounding, with ties in every scene."""
    generator = torch.Generator().manual_seed(7)

    def random(count, low, high):
        sides = torch.randint(4 * low, 4 * high, (count, 2), generator=generator) / 4
        corner = torch.randint(0, 4 * 40, (count, 2), generator=generator) / 4
        return torch.cat([corner, corner + sides], 1)

    grid = torch.tensor([[x, y, x + 16, y + 16] for x in (8, 24, 40) for y in (8, 24)]).float()
    return {
        "tiny": random(12, 1, 5),
        "thin": torch.cat([random(6, 1, 2) + torch.tensor([0, 0, 30, 0]), random(6, 1, 2)]),
        "grid": grid,
        "crowd": random(40, 4, 24),
        "duplicates": random(3, 6, 30).repeat(8, 1),
        "one": random(1, 10, 20),
    }


@pytest.mark.parametrize("scene", ["tiny", "thin", "grid", "crowd", "duplicates", "one"])
def test_yolact_equals_the_authors_loop(scene):
    """Repeatedly the best pair of object and anchor that are both free, as in the published code's ``match``."""
    boxes = crowded_scenes()[scene]
    anchors, sizes = anchors_of([3 * s for s in STRIDES], ratios=(0.5, 1.0, 2.0))
    table = np.array([[np.float32(exact_iou(b, a)) for a in anchors.tolist()] for b in boxes.tolist()])
    best_overlap, best_object = table.max(0), table.argmax(0)
    free = table.copy()
    for _ in range(len(boxes)):
        j = free.max(1).argmax()
        i = free[j].argmax()
        free[:, i] = free[j, :] = -1
        best_overlap[i], best_object[i] = 2, j
    expected = np.where(best_overlap >= 0.5, best_object, np.where(best_overlap < 0.4, BACKGROUND, IGNORED))
    got = yolact_matches(anchors, boxes, sizes)
    assert got.tolist() == expected.tolist()
    assert set(range(len(boxes))) <= set(got.tolist())  # every object has an anchor
    low_quality = (got >= 0) & (torch.from_numpy(table).amax(0) < 0.5)
    assert low_quality.sum() <= len(boxes)  # and at most one below the threshold


def exact_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = np.float32(max(0.0, width) * max(0.0, height))
    return overlap / np.float32((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def test_yolact_without_objects_or_with_more_objects_than_anchors():
    anchors, sizes = anchors_of([3 * s for s in STRIDES])
    assert (yolact_matches(anchors, torch.zeros(0, 4), sizes) == BACKGROUND).all()
    assert own_anchors(torch.tensor([[0.5, 0.2], [0.6, 0.1], [0.4, 0.3]])).tolist() == [-1, 0, 1]


def test_ignored_regions_take_only_background():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [8, 8, 18, 18], [50, 50, 60, 60]])
    matches = torch.tensor([0, BACKGROUND, BACKGROUND, BACKGROUND])
    got = ignore_inside(matches, anchors, torch.tensor([[0.0, 0, 12, 12]]))
    assert got.tolist() == [0, IGNORED, BACKGROUND, BACKGROUND]
    assert ignore_inside(matches, anchors, torch.zeros(0, 4)).tolist() == matches.tolist()
