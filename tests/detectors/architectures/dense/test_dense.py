"""Dense detectors: batches, many objects, and what ATSS, PAA and FoveaBox have of their own."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou_loss

from concordet.detectors import build_detector
from tests.detectors.scenes import batch, build


@pytest.mark.parametrize("name", ["foveabox", "paa", "ssd", "dssd", "refinedet"])
class TestEveryOneStage:
    def test_detections_do_not_depend_on_the_rest_of_the_batch(self, name):
        model = build(name, score_threshold=0.0, topk=20).eval()
        for weight in model.head.parameters():
            if weight.ndim == 4:
                torch.nn.init.normal_(weight, std=0.1)  # fresh classifiers give nearly tied scores
        images, _ = batch(2, 3, 4)
        together = model(images)
        for image, expected in zip(images, together, strict=True):
            torch.testing.assert_close(model([image])[0], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("loss", ["default", "rank_sort"])
    def test_hundreds_of_objects_at_borders_and_below_a_stride(self, name, loss):
        corner = torch.stack(torch.meshgrid(torch.arange(0, 96, 4.0), torch.arange(0, 64, 4.0), indexing="ij"), -1)
        boxes = torch.cat([corner.reshape(-1, 2), corner.reshape(-1, 2) + 4], 1)
        boxes = torch.cat([boxes, boxes[:116] + 0.5, torch.tensor([[0.0, 0.0, 96.0, 64.0]])])
        targets = [{"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}]
        terms = build(name, loss)([torch.rand(3, 64, 96)], targets)
        sum(terms.values()).backward()
        assert all(v.isfinite() for v in terms.values())


def test_ap_in_paa_has_half_the_step():
    assert build("paa", "ap").criterion.core.classification.delta == 0.5
    assert build("atss", "ap").criterion.core.classification.delta == 1.0


@pytest.mark.parametrize("loss", ["ap", "bucketed_ap"])
@pytest.mark.parametrize(("name", "weight"), [("atss", 2.0), ("paa", 1.0)])
def test_ap_has_the_published_weight_of_boxes(name, weight, loss):
    model = build(name, loss)
    (record,) = model.assigned(*batch(1, 2))
    scores = record.logits[record.positive].amax(1).sigmoid()
    errors = generalized_box_iou_loss(record.boxes, record.gt_boxes)
    expected = weight * (scores * errors).sum() / scores.sum()
    torch.testing.assert_close(model.criterion(record)["box"], expected)


@pytest.mark.parametrize(
    ("name", "center", "side"),
    [("retinanet", 1.0, 1.0), ("atss", 0.1, 0.2), ("paa", 0.1, 0.2), ("ssd", 0.1, 0.2), ("yolact", 0.1, 0.2)],
)
def test_regressions_have_the_published_standard_deviations(name, center, side):
    """Regressions of 1 move the center by standard deviations of a side, and the side by e to the power of its own."""
    (box,) = build(name).codec.decode(torch.ones(1, 4), torch.tensor([[0.0, 0.0, 100.0, 50.0]])).tolist()
    sides = box[2] - box[0], box[3] - box[1]
    assert sides == pytest.approx((100 * math.exp(side), 50 * math.exp(side)))
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    assert middle == pytest.approx((50 + 100 * center, 25 + 50 * center))


def test_foveabox_has_the_published_focal_loss():
    focal = build("foveabox", "focal").criterion.core.classification
    assert (focal.alpha, focal.gamma) == (0.4, 1.5)


@pytest.mark.parametrize(("name", "offset", "side"), [("atss", 0.0, 8), ("paa", 0.0, 8), ("foveabox", 0.5, 2)])
def test_anchors_have_the_published_strides_at_800_by_1344(name, offset, side):
    """Strides 8 to 128 whatever the image; P6 and P7 have 13 x 21 and 7 x 11 cells, which do not divide 800 x 1344."""
    with torch.device("meta"):
        model = build_detector(name, num_classes=3)
    expected, features = [], []
    for stride in (8, 16, 32, 64, 128):
        rows, columns = -(-800 // stride), -(-1344 // stride)
        features.append(torch.zeros(1, 1, rows, columns))
        for i in range(rows):
            for j in range(columns):
                x, y, half = (j + offset) * stride, (i + offset) * stride, side * stride / 2
                expected.append([x - half, y - half, x + half, y + half])
    (anchors,) = model.anchor_generator(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1333)]), features)
    assert torch.equal(anchors, torch.tensor(expected))


def test_foveabox_has_the_published_beta():
    """Smooth L1 is quadratic below 0.11: 0.1^2 / (2 * 0.11) there, |x| - 0.11 / 2 above."""
    images, targets = batch(1, 2)
    model = build("foveabox")
    (record,) = model.assigned(images, targets)
    error = (record.regression.deltas - record.regression.targets).abs()
    expected = torch.where(error < 0.11, error**2 / 0.22, error - 0.055).sum() / len(record.positive)
    record = replace(record, normalizer=torch.tensor(float(len(record.positive))))
    torch.testing.assert_close(model.criterion(record)["box"], expected)
