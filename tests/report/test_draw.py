from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw

from concordet.report import draw_detections
from concordet.report.draw import PALETTE, _dashes, class_color

GRAY = (120, 120, 120)


def blank(width=320, height=240, mode="RGB"):
    return Image.new(mode, (width, height), GRAY if mode == "RGB" else 120)


def colors(image):
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


def changed(before, after):
    return (np.asarray(before.convert("RGB")) != np.asarray(after)).any(-1)


def test_the_outline_lies_on_the_box_and_has_the_color_of_the_class():
    box = [40, 80, 200, 180]
    drawn = np.asarray(draw_detections(blank(), [box], [2], [0.9], ["cat", "dog"]))
    expected = ImageColor.getrgb(class_color(2))
    for x, y in [(40, 130), (200, 130), (120, 80), (120, 180)]:
        assert tuple(drawn[y, x]) == expected
    assert tuple(drawn[130, 120]) == GRAY  # inside nothing is painted
    assert tuple(drawn[220, 300]) == GRAY


def test_the_input_image_does_not_change():
    image = blank()
    draw_detections(image, [[40, 80, 200, 180]], [1], [0.9])
    assert colors(image) == {GRAY}


def test_boxes_below_the_threshold_are_left_out():
    image = blank()
    boxes = [[40, 80, 100, 180], [140, 80, 200, 180]]
    one = draw_detections(image, boxes, [1, 2], [0.29, 0.31])
    assert ImageColor.getrgb(class_color(2)) in colors(one)
    assert ImageColor.getrgb(class_color(1)) not in colors(one)
    assert not changed(image, draw_detections(image, boxes, [1, 2], [0.29, 0.31], score_threshold=0.5)).any()
    assert ImageColor.getrgb(class_color(1)) in colors(draw_detections(image, boxes, [1, 2], [0, 0], score_threshold=0))


def test_objects_are_white_dashes_on_dark():
    image = blank()
    drawn = draw_detections(image, [], ground_truth={"boxes": [[40, 80, 200, 180]]})
    edge = np.asarray(drawn)[80, 44:196]
    assert {tuple(pixel) for pixel in edge.tolist()} == {(255, 255, 255), (32, 32, 32)}
    lines = changed(image, drawn)
    assert not lines[90:170, 50:190].any()


def test_labels_stay_inside_the_image_and_off_each_other():
    image = blank()
    corner = draw_detections(image, [[0, 0, 319, 239]], [1], [0.5], ["thing"])
    assert changed(image, corner)[:20, :20].any()
    apart = draw_detections(image, [[60, 60, 200, 180], [62, 62, 200, 180]], [1, 2], [0.9, 0.8], ["one", "two"])
    filled = np.asarray(apart)
    blue, orange = ((filled == ImageColor.getrgb(class_color(i))).all(-1).sum() for i in (1, 2))
    single = np.asarray(draw_detections(image, [[60, 60, 200, 180]], [1], [0.9], ["one"]))
    assert blue >= (single == ImageColor.getrgb(class_color(1))).all(-1).sum() * 0.5
    assert orange > 600  # outline and label


@pytest.mark.parametrize(("width", "height"), [(24, 24), (160, 120), (2000, 1500)])
def test_lines_and_labels_follow_the_size(width, height):
    image = blank(width, height)
    box = [width * 0.3, height * 0.4, width * 0.8, height * 0.9]
    drawn = changed(image, draw_detections(image, [box], [1], [0.75], ["cell"]))
    row = drawn[int(height * 0.75)]
    thickness = row[: width // 2].sum()
    assert 1 <= thickness <= max(2, min(width, height) / 100)
    assert drawn.any(1)[: int(height * 0.4)].any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_any_mode_becomes_rgb(mode):
    image = Image.new(mode, (64, 48))
    drawn = draw_detections(image, [[8, 8, 40, 40]], [1], [0.9])
    assert (drawn.mode, drawn.size) == ("RGB", (64, 48))


def test_detections_as_detectors_return_them():
    torch = pytest.importorskip("torch")
    found = {"boxes": torch.tensor([[40.0, 80, 200, 180]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    by_mapping = draw_detections(blank(), found, class_names=["a", "b", "c"])
    by_columns = draw_detections(blank(), [[40, 80, 200, 180]], [3], [0.9], ["a", "b", "c"])
    assert by_mapping.tobytes() == by_columns.tobytes()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert colors(draw_detections(blank(), empty)) == {GRAY}


def test_boxes_outside_the_image_and_turned_ones_are_drawn_as_far_as_they_go():
    draw_detections(
        blank(), [[-50, -50, 20, 20], [300, 200, 500, 400], [100, 100, 60, 60]], [1, 12, 1], [0.9, 0.9, 0.9]
    )


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"must be equally many, got 1, 2 and 1"):
        draw_detections(blank(), [[0, 0, 1, 1]], [1, 2], [0.5])


def test_colors_can_be_told_apart_without_red_and_green():
    """Distances after a dichromat's projection (Vienot, Brettel and Mollon 1999), in linear RGB."""
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    linear = (np.array([ImageColor.getrgb(c) for c in PALETTE[:6]]) / 255) ** 2.2
    for seen in (linear, linear @ protan.T, linear @ deutan.T):
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[~np.eye(6, dtype=bool)].min() > 0.1


def test_masks_tint_what_they_cover():
    mask = np.zeros((1, 1, 240, 320))
    mask[..., 150:200, 60:100] = 0.9
    found = {"boxes": [[40, 120, 200, 220]], "labels": [2], "scores": [0.9], "masks": mask}
    plain = np.asarray(draw_detections(blank(), {k: v for k, v in found.items() if k != "masks"}))
    drawn = np.asarray(draw_detections(blank(), found))
    assert (np.abs(drawn.astype(int) - plain).any(-1) == (mask[0, 0] > 0.5)).all()
    color = np.array([int(PALETTE[1][i : i + 2], 16) for i in (1, 3, 5)])
    assert np.abs(drawn[170, 80] - (0.55 * plain[170, 80] + 0.45 * color)).max() <= 1


def test_a_huge_box_takes_as_long_as_a_large_one():
    pen = ImageDraw.Draw(blank())
    lines = []
    pen.line = lambda *args, **kwargs: lines.append(args)
    _dashes(pen, (320, 240), np.array([-1e9, -1e9, 1e9, 1e9]), 2)
    assert len(lines) < 100


def test_tensors_of_any_kind_are_drawn():
    boxes = torch.tensor([[40.0, 80.0, 200.0, 180.0]], dtype=torch.bfloat16, requires_grad=True)
    drawn = draw_detections(blank(), boxes, torch.tensor([1]), torch.tensor([0.9], dtype=torch.bfloat16))
    assert changed(blank(), drawn).any()
