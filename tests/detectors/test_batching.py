"""In evaluation mode the detections of an image do not depend on the rest of its batch."""

import pytest
import torch

from concordet.detectors import list_detectors
from tests.detections import assert_same_detections
from tests.detectors.scenes import build, scene

SIZES = [(40, 90), (70, 60), (64, 96), (33, 80), (70, 60)]  # of two to four padded sizes, two of one shape
SIDE = 96  # boxes are compared in units of the image
ATOL = 1e-9  # in float64


def images_and_targets(dtype=torch.float64):
    images, targets = zip(*(scene(2 + i, *size, seed=i) for i, size in enumerate(SIZES)), strict=True)
    return [image.to(dtype) for image in images], targets


def lively(name, **options):
    """A detector with distinct scores; those of a fresh classifier are nearly tied."""
    model = build(name, **{"score_threshold": 0.0, "topk": 60, **options}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 * parameter.std() if parameter.ndim > 1 else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.double()  # so that rounding decides nothing: which box NMS keeps, which object a query gets


@pytest.mark.parametrize("name", list_detectors())
class TestAlone:
    def test_detections(self, name):
        model = lively(name)
        images, _ = images_and_targets()
        with torch.no_grad():
            together = model(images)
            for image, got in zip(images, together, strict=True):
                (expected,) = model([image])
                assert len(expected["scores"]) > 0
                assert_same_detections(got, expected, atol=ATOL, scale=SIDE)

    def test_records(self, name):
        model = lively(name)
        images, targets = images_and_targets()
        with torch.no_grad():
            detections, records = model.detections_and_assigned(images, targets)
            torch.testing.assert_close(detections, model(images))
            firsts = torch.tensor([0, *(len(t["labels"]) for t in targets[:-1])]).cumsum(0)
            for i, (image, target, first) in enumerate(zip(images, targets, firsts, strict=True)):
                for got, expected in zip(records, model.assigned([image], [target]), strict=True):
                    mine = got.image_ids == i
                    torch.testing.assert_close(got.boxes[mine] / SIDE, expected.boxes / SIDE, rtol=0, atol=ATOL)
                    torch.testing.assert_close(got.confidences()[mine], expected.confidences(), rtol=0, atol=ATOL)
                    assert torch.equal(got.gt_ids[mine] - first, expected.gt_ids)
                    assert torch.equal(got.labels[got.positive[mine]], expected.labels[expected.positive])
                    assert torch.equal(got.gt_boxes[mine], expected.gt_boxes)
        assert (records[-1].positive.diff() > 0).all()
        assert sum(len(r.positive) for r in records) > 0


@pytest.mark.parametrize("loss", ["default", "rank_sort"])
def test_losses_are_those_of_the_whole_batch(loss):
    """Merged records give one ranking over all images, and one mean over all positives."""
    model = lively("fcos", loss=loss)
    images, targets = images_and_targets()
    with torch.no_grad():
        losses, _ = model.losses_and_detections(images, targets)
        (record,) = model.assigned(images, targets)
        parts = [model.assigned([i], [t])[0] for i, t in zip(images, targets, strict=True)]
    assert len(record.labels) == sum(len(p.labels) for p in parts)
    assert record.normalizer == sum(len(p.positive) for p in parts)
    logits, expected = record.logits.flatten().sort().values, torch.cat([p.logits.flatten() for p in parts])
    torch.testing.assert_close(logits, expected.sort().values, rtol=0, atol=ATOL)
    assert losses == model.criterion(record)


def test_wider_padding_would_change_detections():
    """Shows that groups are needed; otherwise the tests above could not fail."""
    model = lively("fcos")
    images, _ = images_and_targets()
    expected = model([images[0]])[0]["scores"]
    model._groups = lambda images: [list(range(len(images)))]
    got = model(images)[0]["scores"]
    assert (got[:20] - expected[:20]).abs().max() > 1e-3


def test_images_of_one_padded_size_share_a_forward_pass():
    model = lively("fcos")
    images = [torch.rand(3, *size, dtype=torch.float64) for size in SIZES]
    batches = []
    model.backbone.register_forward_hook(lambda module, args, out: batches.append(args[0].shape))
    model(images)
    assert sum(shape[0] for shape in batches) == len(images)
    assert len(set(batches)) == len(batches) < len(images)
    batches.clear()
    model.train()(images, [scene(2, *size)[1] for size in SIZES])
    assert [shape[0] for shape in batches] == [len(images)]
