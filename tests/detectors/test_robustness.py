"""Awkward images and objects of real data: every detector trains and detects on them."""

from functools import cache

import pytest
import torch

from concordet.detectors import build_detector, list_detectors

LOSSES = ["default", "rank_sort"]


def target(boxes, height=64, width=96):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    masks = (x > left) & (x < right) & (y > top) & (y < bottom)
    return {"boxes": boxes, "labels": torch.arange(len(boxes)) % 3 + 1, "masks": masks.to(torch.uint8)}


def image(height=64, width=96):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * width))


def crowd(count):
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([80.0, 50.0])
    return torch.cat([corner, corner + 4 + corner.flip(1) / 8], 1).tolist()


SMALL, TALL = (24, 20), (90, 40)
BATCHES = {
    "one image": ([image()], [target([[8, 8, 40, 40]])]),
    "unequal sizes": (
        [image(), image(*SMALL), image(*TALL)],
        [target([[8, 8, 40, 40]]), target([[2, 2, 18, 20]], *SMALL), target([[1, 9, 30, 80]], *TALL)],
    ),
    "no objects": ([image()], [target([])]),
    "none beside some": ([image(), image()], [target([]), target([[8, 8, 40, 40], [50, 5, 80, 60]])]),
    "500 objects": ([image()], [target(crowd(500))]),
    "at the border": ([image()], [target([[0, 0, 30, 30], [66, 34, 96, 64], [0, 0, 96, 64]])]),
    "across the border": ([image()], [target([[-12, -9, 30, 30], [70, 40, 120, 90]])]),
    "smaller than a stride": ([image()], [target([[3, 3, 5, 5], [50.2, 20.1, 50.9, 20.8], [90, 60, 91, 61]])]),
    "thin": ([image()], [target([[2, 30, 94, 32], [40, 1, 41, 63]])]),
    "one upon another": ([image()], [target([[20, 20, 50, 50]] * 4)]),
    "a tiny image": ([image(9, 7)], [target([[1, 1, 6, 8]], 9, 7)]),
    "a narrow image": ([image(8, 96)], [target([[10, 1, 60, 7]], 8, 96)]),
}


@cache
def model(name, loss):
    torch.manual_seed(0)
    return build_detector(name, num_classes=3, size="nano", loss=loss, image_size=(64, 96))


@pytest.mark.parametrize("name", list_detectors())
class TestEveryDetector:
    @pytest.mark.parametrize("batch", BATCHES)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_trains(self, name, loss, batch):
        detector = model(name, loss).train()
        detector.zero_grad()
        terms = detector(*BATCHES[batch])
        assert all(value.isfinite() for value in terms.values()), terms
        sum(terms.values()).backward()
        for parameter, value in detector.named_parameters():
            assert value.grad is None or value.grad.isfinite().all(), parameter

    @pytest.mark.parametrize("batch", BATCHES)
    def test_detects(self, name, batch):
        images = BATCHES[batch][0]
        results = model(name, "rank_sort").eval()(images)
        assert len(results) == len(images)
        for picture, result in zip(images, results, strict=True):
            height, width = picture.shape[-2:]
            boxes, scores = result["boxes"], result["scores"]
            assert len(boxes) == len(scores) == len(result["labels"])
            assert boxes.isfinite().all()
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
            assert ((scores >= 0) & (scores <= 1)).all()
            assert (scores.diff() <= 0).all()
            assert set(result["labels"].tolist()) <= {1, 2, 3}

    @pytest.mark.parametrize("loss", [*LOSSES, "focal+concordance(0.3)"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_trains_in_half_precision(self, name, loss, dtype):
        detector = model(name, loss).train()
        detector.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            terms = detector(*BATCHES["none beside some"])
        assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values()), terms
        sum(terms.values()).backward()
        for parameter, value in detector.named_parameters():
            assert value.grad is None or value.grad.isfinite().all(), parameter
