"""Suppression of duplicates and score voting, against loops that read like the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from concordet.detectors import build_detector
from concordet.detectors.parts.postprocess import PostProcess, suppress, voted_boxes
from tests.detectors.scenes import build, scene


def candidates(count, seed=0, classes=3):
    """Crowded boxes of distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = 20 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    return boxes, scores, torch.randint(0, classes, (count,), generator=generator)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


def greedy(boxes, scores, labels, inference):
    """Bodla et al. 2017, Fig. 2: B, S and M of one class, then all classes' detections by score."""
    found = []
    groups = set(labels) if inference.class_wise else {None}
    for group in groups:
        left = {i: scores[i] for i in range(len(scores)) if group is None or labels[i] == group}
        while left:
            best = max(left, key=left.get)
            score = left.pop(best)
            if score > inference.score_threshold:
                found.append((score, best))
            for i in list(left):
                overlap = iou(boxes[best], boxes[i])
                if inference.nms == "soft":
                    left[i] *= math.exp(-(overlap**2) / inference.sigma)
                elif overlap > inference.nms_threshold:
                    if inference.nms == "hard":
                        del left[i]
                    else:
                        left[i] *= 1 - overlap
    return sorted(found, reverse=True)[: inference.detections_per_image]


class TestAgainstLoops:
    @pytest.mark.parametrize("class_wise", [True, False])
    @pytest.mark.parametrize("nms", ["hard", "soft", "soft_linear"])
    @given(count=st.integers(0, 40), seed=st.integers(0, 10**6), limit=st.sampled_from([3, 100]))
    @settings(max_examples=15, deadline=None)
    def test_one_after_another(self, nms, class_wise, count, seed, limit):
        boxes, scores, labels = (x.double() if x.is_floating_point() else x for x in candidates(count, seed))
        inference = PostProcess(0.03, 0.4, nms=nms, sigma=0.3, class_wise=class_wise, detections_per_image=limit)
        kept = scores > inference.score_threshold  # detectors drop these before
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        found, places = suppress(boxes, scores, labels, inference)
        expected = greedy(boxes.tolist(), scores.tolist(), labels.tolist(), inference)
        assert places.tolist() == [place for _, place in expected]
        assert found["scores"].tolist() == pytest.approx([score for score, _ in expected], abs=1e-12)
        assert torch.equal(found["labels"], labels[places] + 1)
        assert torch.equal(found["boxes"], boxes[places])

    @given(count=st.integers(0, 40), seed=st.integers(0, 10**6))
    @settings(max_examples=20, deadline=None)
    def test_fast(self, count, seed):
        """Bolya et al. 2019, Sec. 3.5: dropped where any better box of the class overlaps, whatever becomes of that."""
        boxes, scores, labels = candidates(count, seed)
        rows = list(range(count))
        expected = [
            i
            for i in rows
            if not any(
                labels[j] == labels[i] and scores[j] > scores[i] and iou(boxes[j].tolist(), boxes[i].tolist()) > 0.4
                for j in rows
            )
        ]
        _, places = suppress(boxes, scores, labels, PostProcess(nms_threshold=0.4, nms="fast"))
        assert places.tolist() == sorted(expected, key=lambda i: -scores[i])

    @given(count=st.integers(1, 30), seed=st.integers(0, 10**6))
    @settings(max_examples=20, deadline=None)
    def test_score_voting(self, count, seed):
        """Kim and Lee 2020, Sec. 3.3: p_i = exp(-(1 - IoU)^2 / sigma_t), box = sum p_i s_i b_i / sum p_i s_i."""
        boxes, scores, labels = candidates(count, seed)
        kept = torch.arange(0, count, 3)
        got = voted_boxes(boxes[kept], labels[kept], boxes, scores, labels)
        for row, k in zip(got.tolist(), kept.tolist(), strict=True):
            total, mean = 0.0, [0.0] * 4
            for i in range(count):
                overlap = iou(boxes[k].tolist(), boxes[i].tolist())
                if labels[i] == labels[k] and overlap > 0.01:
                    weight = math.exp(-((1 - overlap) ** 2) / 0.025) * float(scores[i])
                    total += weight
                    mean = [m + weight * float(b) for m, b in zip(mean, boxes[i], strict=True)]
            assert row == pytest.approx([m / total for m in mean], rel=1e-4)


def test_paa_detects_as_published():
    """Scores are sqrt(class * IoU prediction), 0.05 and above; boxes are voted on after NMS at 0.6."""
    model = build("paa").eval()
    torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    torch.nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    torch.nn.init.normal_(model.head.regression_head.bbox_ctrness.weight, std=0.3)
    image, _ = scene(3)
    (predictions,) = model._predict([image], None).stages
    scores = (predictions.logits[0].sigmoid() * predictions.qualities[0].sigmoid()[:, None]).sqrt()
    boxes = model.codec.decode(predictions.regressions[0], predictions.anchors[0])
    boxes = torch.stack([boxes[:, 0::2].clamp(0, 96), boxes[:, 1::2].clamp(0, 64)], 2).flatten(1)
    rows, labels = torch.nonzero(scores > 0.05, as_tuple=True)
    inference = PostProcess(nms_threshold=0.6, nms="hard")
    boxes, scores = boxes[rows], scores[rows, labels]
    expected = greedy(boxes.tolist(), scores.tolist(), labels.tolist(), inference)
    places = torch.tensor([place for _, place in expected])
    (found,) = model([image])
    torch.testing.assert_close(found["scores"], scores[places])
    voted = voted_boxes(boxes[places], labels[places], boxes, scores, labels)
    torch.testing.assert_close(found["boxes"], voted, rtol=1e-4, atol=1e-3)
    assert (voted - boxes[places]).abs().max() > 1
    (plain,) = build_and_copy(model, score_voting=False)([image])
    torch.testing.assert_close(plain["boxes"], boxes[places], rtol=1e-4, atol=1e-3)


def build_and_copy(model, **options):
    other = build("paa", **options).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_boxes_without_area_are_no_duplicates():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]])
    for nms in ("hard", "soft", "soft_linear", "fast"):
        found, _ = suppress(
            boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), PostProcess(nms=nms, score_voting=True)
        )
        assert found["scores"].tolist() == pytest.approx([0.9, 0.8])
        assert torch.equal(found["boxes"], boxes)


@pytest.mark.parametrize("name", ["fcos", "ssd", "faster_rcnn", "sparse_rcnn"])
class TestEveryFamily:
    def test_class_agnostic(self, name):
        image, _ = scene(3)
        found = build(name, score_threshold=0.0, nms_threshold=0.3).eval()([image])[0]
        overlaps = box_iou(found["boxes"], found["boxes"]).fill_diagonal_(0)
        assert overlaps.max() > 0.31
        found = build(name, score_threshold=0.0, nms_threshold=0.3, class_wise=False).eval()([image])[0]
        overlaps = box_iou(found["boxes"], found["boxes"]).fill_diagonal_(0)
        assert overlaps.max() <= 0.31

    def test_soft(self, name):
        image, _ = scene(3)
        hard = build(name, score_threshold=0.0, nms_threshold=0.3, topk=20).eval()([image])[0]
        soft = build(name, score_threshold=0.0, nms_threshold=0.3, topk=20, nms="soft", sigma=0.4).eval()([image])[0]
        assert len(soft["scores"]) > len(hard["scores"])
        assert (soft["scores"].diff() <= 0).all()
        assert soft["scores"][0] == hard["scores"][0]
        assert soft["scores"].min() < hard["scores"].min()

    def test_limits(self, name):
        image, _ = scene(3)
        found = build(name, score_threshold=0.0, detections_per_image=3).eval()([image])[0]
        assert len(found["scores"]) == 3
        score = float(found["scores"][1])
        assert (build(name, score_threshold=score).eval()([image])[0]["scores"] > score).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nms": "softer"}, "nms must be one of hard, soft, soft_linear, fast, got 'softer'"),
        ({"nms_threshold": 1.5}, r"nms_threshold must be in \[0, 1\], got 1\.5"),
        ({"score_threshold": -0.1}, r"score_threshold must be in \[0, 1\], got -0\.1"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"detections_per_image": 0}, "detections_per_image must be at least 1, got 0"),
        ({"nms": "soft", "sigma": 0.0}, r"sigma must be above 0, got 0\.0"),
    ],
)
def test_bad_values_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_detector("fcos", num_classes=3, size="nano", **options)
