"""YOLACT: masks as sums of prototypes, their loss against loops over pixels, anchors, and what is left out."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.image_list import ImageList

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors import build_detector
from concordet.detectors.architectures.dense.yolact import inside
from concordet.losses.criteria.mask import mask_losses, segmentation_value
from tests.detectors.scenes import batch, build, scene

HEIGHT, WIDTH = 64, 96  # of the images, and of the network's input
ROWS, COLUMNS = 16, 24  # of the prototypes


def entropy(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


class TestAnchors:
    def test_full_size_is_the_published_grid(self):
        """Levels of 69, 35, 18, 9 and 5 cells; the k-th center at (k + 1/2) 550 / cells; sizes 24 to 384."""
        with torch.device("meta"):
            model = build_detector("yolact", num_classes=3)
        cells = [69, 35, 18, 9, 5]
        features = [torch.zeros(1, 1, n, n) for n in cells]
        anchors = model.anchor_generator(ImageList(torch.zeros(1, 3, 550, 550), [(550, 550)]), features)[0]
        assert len(anchors) == 3 * sum(n * n for n in cells) == 19248  # the number in the authors' issues
        start = 0
        for n, size in zip(cells, (24, 48, 96, 192, 384), strict=True):
            level = anchors[start : start + 3 * n * n].view(n, n, 3, 4)
            start += 3 * n * n
            center = (level[..., :2] + level[..., 2:]) / 2
            assert center[1, n - 1, 0].tolist() == pytest.approx([550 - 275 / n, 1.5 * 550 / n], abs=1e-3)
            sides = level[0, 0, :, 2:] - level[0, 0, :, :2]
            assert sides[1].tolist() == [size, size]
            assert (sides.prod(1) / size**2).tolist() == pytest.approx([1, 1, 1], abs=0.06)  # torchvision rounds


class TestMasks:
    @torch.no_grad()
    def test_loss_is_the_published_loop(self):
        """6.125 times the mean over positives of (sum of cross entropies within the box) / (the box's area)."""
        images, targets = batch(2, 3)
        model = build("yolact").eval()
        (predictions,) = model._predict(images, model._checked(images, targets)).stages
        (record,) = model.assigned(images, targets)
        masks = [mask for target in targets for mask in target["masks"]]
        chosen = predictions.coefficients.flatten(0, 1)[record.positive]
        entropies = F.binary_cross_entropy_with_logits(record.masks.logits, record.masks.targets, reduction="none")
        got = (entropies * record.masks.weights).sum((1, 2))
        for i in range(0, len(got), 12):
            prototypes = predictions.prototypes[record.image_ids[i]]
            expected = self.loop(prototypes, chosen[i], masks[record.gt_ids[i]], record.gt_boxes[i])
            assert got[i].item() == pytest.approx(expected, rel=1e-4)
        losses, _ = model.losses_and_detections(images, targets)
        assert losses["mask"].item() == pytest.approx(6.125 * got.mean().item(), rel=1e-4)

    @staticmethod
    def loop(prototypes, coefficients, mask, box):
        small = F.interpolate(mask[None, None].float(), (ROWS, COLUMNS), mode="bilinear")[0, 0] > 0.5
        x1, x2 = (float(v) * COLUMNS / WIDTH for v in (box[0], box[2]))
        y1, y2 = (float(v) * ROWS / HEIGHT for v in (box[1], box[3]))
        total = 0.0
        for y in range(ROWS):
            for x in range(COLUMNS):
                if x1 - 1 <= x < x2 + 1 and y1 - 1 <= y < y2 + 1:
                    logit = sum(float(c) * float(p) for c, p in zip(coefficients, prototypes[:, y, x], strict=True))
                    total += entropy(logit, float(small[y, x]))
        return total / ((x2 - x1) * (y2 - y1))

    def test_masks_of_detections(self):
        """Prototypes times coefficients, a sigmoid, cut off outside the box, at the image's own size."""
        image, _ = scene(3, 50, 70)
        model = build("yolact", score_threshold=0.0).eval()
        (found,) = model([image])
        assert found["masks"].shape == (len(found["scores"]), 1, 50, 70)
        assert 0 <= found["masks"].min() < found["masks"].max() <= 1
        for box, mask in zip(found["boxes"][:20], found["masks"][:20, 0], strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            reach_x, reach_y = 2.5 * 70 / COLUMNS, 2.5 * 50 / ROWS  # a margin of one, and interpolation
            assert box[0] - reach_x <= x.min() <= x.max() <= box[2] + reach_x
            assert box[1] - reach_y <= y.min() <= y.max() <= box[3] + reach_y
            middle = ((box[:2] + box[2:]) / 2).long().tolist()
            assert mask[min(middle[1], 49), min(middle[0], 69)] > 0

    def test_an_object_below_a_prototypes_pixel(self):
        image, target = scene(1)
        target["boxes"], target["masks"] = torch.tensor([[40.2, 30.1, 41.0, 31.0]]), torch.zeros(1, 64, 96).byte()
        (record,) = build("yolact").assigned([image], [target])
        assert len(record.positive) > 0
        assert record.masks.weights.max() <= 1

    def test_ranking_losses_have_dice_and_no_classes_of_pixels(self):
        model = build("yolact", "rank_sort")
        assert model.segmentation is None
        terms = model(*batch(3, 2))
        assert "segmentation" not in terms
        assert terms["mask"].item() == pytest.approx((terms["ranking"] + terms["sorting"]).item(), rel=1e-4)

    def test_dice_sees_only_the_crop(self):
        (record,) = build("yolact", "rank_sort").assigned(*batch(2))
        outside = record.masks.weights == 0
        masks = record.masks
        spoiled = replace(masks, logits=masks.logits.masked_fill(outside, 50.0))
        torch.testing.assert_close(mask_losses("dice", masks), mask_losses("dice", spoiled))
        torch.testing.assert_close(mask_losses("bce", masks), mask_losses("bce", spoiled))


class TestClassesOfPixels:
    def test_loss_is_the_published_loop(self):
        images, targets = batch(2, 0)
        model = build("yolact").eval()
        losses, _ = model.losses_and_detections(images, targets)
        logits = model.assigned(images, targets)[0].segmentation.logits
        total = 0.0
        for i, target in enumerate(targets):
            wanted = torch.zeros(3, 8, 12)
            for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
                small = F.interpolate(mask[None, None].float(), (8, 12), mode="bilinear")[0, 0]
                wanted[label - 1][small > 0.5] = 1
            for x, t in zip(logits[i].flatten().tolist(), wanted.flatten().tolist(), strict=True):
                total += entropy(x, t)
        assert losses["segmentation"].item() == pytest.approx(total / (2 * 8 * 12), rel=1e-4)

    def test_ignored_regions_are_not_background(self):
        """A crowd's pixels are no background; those of an object that stands in it are its class all the same."""
        images, targets = batch(1)
        box = targets[0]["boxes"][0]
        targets[0]["ignored_boxes"] = torch.stack([box[:2] - 12, box[2:] + 12]).flatten()[None]
        (record,) = build("yolact").assigned(images, targets)
        region = inside(targets[0]["ignored_boxes"], (HEIGHT, WIDTH), (8, 12), margin=0.0)[0]
        own = int(targets[0]["labels"][0]) - 1
        known = record.segmentation.targets[0]
        assert (known[own][region] != 0).all()
        assert (known[own][region] == 1).any()
        assert (known[own][~region] == 0).all()
        others = [c for c in range(3) if c != own]
        assert (known[others][:, region] == -1).all()
        (gradient,) = torch.autograd.grad(segmentation_value(record.segmentation), record.segmentation.logits)
        assert (gradient[0][known == -1] == 0).all()
        assert (gradient[0][known != -1] != 0).all()
        (record,) = build("yolact", ignore_regions=False).assigned(images, targets)
        assert (record.segmentation.targets >= 0).all()


@pytest.mark.parametrize("name", ["yolact", "mask_rcnn"])
class TestIgnoredRegionsAndMasks:
    def test_masks_of_objects_in_ignored_regions_are_learned(self, name):
        """A crowd around an object changes neither which predictions learn its mask nor what they learn."""
        images, targets = batch(3)
        plain = build(name, "rank_sort").assigned(images, targets)[-1]
        targets[0]["ignored_boxes"] = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
        crowded = build(name, "rank_sort").assigned(images, targets)[-1]
        assert (crowded.labels == IGNORED).any()
        assert (plain.labels == BACKGROUND).sum() > (crowded.labels == BACKGROUND).sum()
        assert len(crowded.positive) == len(plain.positive) > 0
        torch.testing.assert_close(crowded.masks.targets, plain.masks.targets)
        torch.testing.assert_close(crowded.masks.logits, plain.masks.logits)
        assert set(crowded.gt_ids.tolist()) <= {0, 1, 2}  # an ignored region is nobody's object


def test_negatives_are_the_hardest_three_per_positive():
    for record in (build("yolact").assigned(*batch(n))[0] for n in (2, 4)):
        assert (record.labels == BACKGROUND).sum() == 3 * len(record.positive)
    (record,) = build("yolact", "focal").assigned(*batch(2))
    assert (record.labels == BACKGROUND).sum() > 3 * len(record.positive)


def test_box_and_class_terms_are_the_published_sums():
    images, targets = batch(2, 3)
    model = build("yolact").eval()
    losses, _ = model.losses_and_detections(images, targets)
    (record,) = model.assigned(images, targets)
    used = record.labels != IGNORED
    labels = torch.where(record.labels == BACKGROUND, 3, record.labels)
    entropies = F.cross_entropy(record.logits[used], labels[used], reduction="sum")
    torch.testing.assert_close(losses["classification"], entropies / len(record.positive))
    error = (record.regression.deltas - record.regression.targets).abs()
    smooth = torch.where(error < 1, error**2 / 2, error - 0.5)
    torch.testing.assert_close(losses["box"], 1.5 * smooth.sum() / len(record.positive))


def test_targets_without_masks_are_refused():
    images, targets = batch(2)
    del targets[0]["masks"]
    with pytest.raises(ValueError, match="target 0: masks must be given for yolact, got none"):
        build("yolact")(images, targets)
    assert build("yolact").eval().assigned(images, targets)[0].masks is None  # what validation needs
    targets[0]["masks"] = torch.zeros(1, 64, 96)
    with pytest.raises(ValueError, match=r"target 0: masks must be \[2, 64, 96\], one per object, got \[1, 64, 96\]"):
        build("yolact")(images, targets)
