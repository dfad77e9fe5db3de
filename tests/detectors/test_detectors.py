"""Detectors: torchvision's numbers with the default loss, and the convention on awkward batches."""

import math

import pytest
import torch
from torchvision.models import detection

from concordet.assigned import IGNORED
from concordet.boxes import paired_iou
from concordet.detectors import build_detector, list_detectors
from concordet.detectors.dense import centerness, select
from concordet.detectors.parts.coders import delta_codec
from concordet.detectors.parts.postprocess import PostProcess
from concordet.losses import build_criterion, list_losses
from tests.detectors.scenes import batch, build, scene

DETECTORS = list_detectors()
REGIONS, QUERIES = ("faster_rcnn", "cascade_rcnn", "mask_rcnn"), ("sparse_rcnn", "detr", "deformable_detr", "co_detr")
CODED = [name for name in DETECTORS if name not in (*REGIONS, *QUERIES)]
"""Detectors whose boxes are coded by one codec; those of the others are tested in their own files."""
SET_PREDICTORS = ("sparse_rcnn", "detr", "deformable_detr", "co_detr")  # which match predictions, and may be larger


class TestAgainstTorchvision:
    """Same weights, same batch: torchvision's own class computes the same losses and detections."""

    def test_fcos(self):
        ours = self.spread(build("fcos", score_threshold=0.0, topk=50))
        theirs = detection.FCOS(
            ours.backbone, 3, 64, 96, anchor_generator=ours.anchor_generator, score_thresh=0.0, topk_candidates=50
        )
        theirs.head = detection.fcos.FCOSHead(64, 1, 3, 2)
        theirs.head.load_state_dict(ours.head.state_dict())
        images, targets = batch(3, 5, 2)
        expected = theirs(images, [{**t, "labels": t["labels"] - 1} for t in targets])
        got = ours(images, targets)
        pairs = {"classification": "classification", "box": "bbox_regression", "quality": "bbox_ctrness"}
        for mine, other in pairs.items():
            torch.testing.assert_close(got[mine], expected[other], rtol=1e-5, atol=1e-6)
        self.compare_detections(ours, theirs, images)

    def test_retinanet(self):
        ours = self.spread(build("retinanet", score_threshold=0.0, topk=50))
        theirs = detection.RetinaNet(
            ours.backbone, 3, 64, 96, anchor_generator=ours.anchor_generator, score_thresh=0.0, topk_candidates=50,
            detections_per_img=100,
        )  # fmt: skip
        theirs.head.classification_head.conv = theirs.head.classification_head.conv[:2]
        theirs.head.regression_head.conv = theirs.head.regression_head.conv[:2]
        theirs.head.load_state_dict(ours.head.state_dict())
        images, targets = batch(4)  # torchvision normalizes image by image: one image is comparable
        expected = theirs(images, [{**t, "labels": t["labels"] - 1} for t in targets])
        got = ours(images, targets)
        torch.testing.assert_close(got["classification"], expected["classification"], rtol=1e-5, atol=1e-6)
        # torchvision takes the mean over the four coordinates' sum as well: both are sums over positives.
        torch.testing.assert_close(got["box"], expected["bbox_regression"], rtol=1e-5, atol=1e-6)
        self.compare_detections(ours, theirs, images)

    @staticmethod
    def spread(model):
        """Fresh classifiers give nearly tied scores, whose order is arbitrary."""
        torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=1.0)
        return model

    @staticmethod
    def compare_detections(ours, theirs, images):
        for got, expected in zip(ours.eval()(images), theirs.eval()(images), strict=True):
            torch.testing.assert_close(got["scores"], expected["scores"][: len(got["scores"])])
            torch.testing.assert_close(got["boxes"], expected["boxes"][: len(got["boxes"])])
            assert (got["labels"] - 1).tolist() == expected["labels"][: len(got["labels"])].tolist()


@pytest.mark.parametrize("name", DETECTORS)
class TestEveryDetector:
    @pytest.mark.parametrize("loss", [*(n for n in list_losses() if n[0] != "+"), "rank_sort+concordance(0.3)"])
    def test_every_loss_gives_finite_gradients_to_every_parameter(self, name, loss):
        model = build(name, loss)
        terms = model(*batch(3, 0, 2))
        sum(terms.values()).backward()
        for parameter, value in model.named_parameters():
            assert value.grad is not None, parameter
            assert value.grad.isfinite().all(), parameter
        assert all(v.ndim == 0 and v.isfinite() for v in terms.values())

    @pytest.mark.parametrize("loss", ["default", "rank_sort", "ap", "alrp", "harmonic", "focal+concordance(0.3)+pse"])
    def test_a_batch_without_objects_trains(self, name, loss):
        model = build(name, loss)
        terms = model(*batch(0, 0))
        sum(terms.values()).backward()
        assert all(v.isfinite() for v in terms.values())
        assert all(value == 0 for term, value in terms.items() if term.endswith("box"))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_images_of_unequal_sizes_one_object_and_many(self, name):
        first, second = scene(1, 40, 90, seed=1), scene(200, 70, 60, seed=2)
        model = build(name)
        terms = model([first[0], second[0]], [first[1], second[1]])
        assert all(v.isfinite() for v in terms.values())
        for image, result in zip((first[0], second[0]), model.eval()([first[0], second[0]]), strict=True):
            height, width = image.shape[-2:]
            assert (result["boxes"] >= 0).all()
            assert (result["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()

    def test_losses_and_detections_are_those_of_the_two_modes(self, name):
        model = build(name, score_threshold=0.0).eval()
        images, targets = batch(3, 2)
        torch.manual_seed(1)  # of the detectors that sample
        losses, detections = model.losses_and_detections(images, targets)
        for got, expected in zip(detections, model(images), strict=True):
            torch.testing.assert_close(got, expected)
        for module in model.modules():  # same normalization in both modes, to compare their losses
            module.training = isinstance(module, type(model))
        torch.manual_seed(1)
        torch.testing.assert_close(losses, model(images, targets))

    def test_nano_is_small(self, name):
        limit = 3e6 if name in SET_PREDICTORS else 1e6
        assert sum(p.numel() for p in build_detector(name, num_classes=80, size="nano").parameters()) < limit

    @pytest.mark.parametrize("loss", ["default", "rank_sort"])
    def test_assigned_records_describe_the_positives(self, name, loss):
        images, targets = batch(3, 0, 4)
        model = build(name, loss)
        *_, record = model.assigned(images, targets)
        assert (record.positive.diff() > 0).all()
        assert (record.labels[record.positive] >= 0).all()
        assert (record.labels >= 0).sum() == len(record.positive)
        objects = torch.cat([t["boxes"] for t in targets])
        torch.testing.assert_close(record.gt_boxes, objects[record.gt_ids], rtol=1e-4, atol=1e-3)
        classes = torch.cat([t["labels"] for t in targets]) - 1
        assert torch.equal(record.labels[record.positive], classes[record.gt_ids])
        assert set(record.image_ids.tolist()) <= {0, 2}
        sampled = record.softmax and hasattr(model, "rpn")  # a two-stage detector's mean is over proposals
        used = len(record.labels) if sampled else len(record.positive)
        assert record.normalizer == max(used, 1)

    def test_ignored_regions_are_not_background(self, name):
        images, targets = batch(1)
        targets[0]["ignored_boxes"] = torch.tensor([[-500.0, -500.0, 600.0, 600.0]])
        # a loss that sees everything: what is ignored is never sampled
        for record, free in zip(
            build(name, "rank_sort").assigned(images, targets),
            build(name, "rank_sort").assigned(images, batch(1)[1]),
            strict=True,
        ):
            if record.stage.startswith(("rcnn_", "atss_")):
                continue  # Co-DETR's extra queries are all of them positive
            assert (record.labels == IGNORED).sum() > 0
            assert (record.labels == -1).sum() < (free.labels == -1).sum()

    def test_bf16_autocast(self, name):
        model = build(name, "rank_sort+concordance(0.3)")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = model(*batch(3, 2))
        assert all(v.dtype == torch.float32 and v.isfinite() for v in terms.values())

    def test_anchors_stay_fp32_under_bf16(self, name):
        """bf16 cannot tell the pixels of a large image apart, so anchors stay in float32."""
        images, targets = batch(3, 2, height=200, width=320)
        model = build_detector(name, num_classes=3, size="nano", image_size=(200, 320)).eval()
        (*_, plain) = model.assigned(images, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (*_, mixed) = model.assigned(images, targets)
        if name not in ("paa", "refinedet", "faster_rcnn", "cascade_rcnn", "mask_rcnn", *SET_PREDICTORS):
            assert torch.equal(plain.positive, mixed.positive)  # the others' matches depend on predictions
        assert mixed.gt_boxes.dtype == torch.float32
        generator = getattr(model, "anchor_generator", None) or getattr(
            getattr(model, "rpn", None), "anchor_generator", None
        )
        if generator is not None:
            seen = []
            generator.register_forward_hook(lambda module, args, out: seen.extend(out))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                model(images)
            assert seen
            assert all(anchors.dtype == torch.float32 for anchors in seen)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": "fcoss"}, "detector must be one of retinanet, .*, got fcoss; did you mean fcos"),
            ({"size": "tiny"}, "size must be one of full, nano, got tiny"),
            ({"num_classes": 0}, "must be at least 1, got 0"),
            ({"loss": "focl"}, "got 'focl'"),
            ({"score": 0.1}, "option of fcos must be one of score_threshold, .*, got score"),
            ({"backbone": "resnet18"}, "drop backbone='resnet18'"),
            ({"size": "full", "backbone": "vgg"}, "backbone must be one of resnet18"),
            ({"weights": "no/such/file.pt"}, "weights must be a file, got"),
            (
                {"name": "retinanet", "loss": "focal+iou_head"},
                "without auxiliary head for retinanet, got 'focal",
            ),
            ({"name": "ssd", "loss": "focal+centerness"}, "without auxiliary head for ssd"),
        ],
    )
    def test_build(self, change, message):
        options = {"name": "fcos", "num_classes": 3, "size": "nano", **change}
        with pytest.raises(ValueError, match=message):
            build_detector(options.pop("name"), **options)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ({"boxes": torch.zeros(1, 4), "labels": torch.tensor([1])}, "positive width and height"),
            (
                {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([4])},
                r"labels must be 1\.\.3, got 4\.\.4",
            ),
            ({"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}, r"got 0\.\.0"),
            ({"boxes": torch.zeros(2, 4), "labels": torch.tensor([1])}, r"boxes must be .*, got \[2, 4\] and \[1\]"),
        ],
    )
    def test_targets(self, target, message):
        with pytest.raises(ValueError, match=message):
            build("fcos")([torch.rand(3, 64, 96)], [target])

    def test_no_targets(self):
        with pytest.raises(ValueError, match="targets must be given in training mode"):
            build("fcos")([torch.rand(3, 64, 96)])


class TestWeights:
    def test_a_saved_detector_loads(self, tmp_path):
        model = build("atss")
        torch.save(model.state_dict(), tmp_path / "w.pt")
        torch.manual_seed(1)
        other = build_detector("atss", num_classes=3, size="nano", weights=tmp_path / "w.pt")
        torch.testing.assert_close(other.state_dict(), model.state_dict())

    def test_averaged_weights_are_those_of_a_checkpoint_that_has_them(self, tmp_path):
        model = build("atss")
        state = {f"model.{k}": v for k, v in model.state_dict().items()}
        averaged = {k: v + 1 for k, v in state.items() if v.is_floating_point()}
        torch.save({"state_dict": state, "ema_state_dict": averaged}, tmp_path / "w.ckpt")
        other = build_detector("atss", num_classes=3, size="nano", weights=tmp_path / "w.ckpt")
        for name, value in other.state_dict().items():
            expected = state[f"model.{name}"]
            torch.testing.assert_close(value, expected + 1 if value.is_floating_point() else expected)

    def test_another_class_count_is_refused(self, tmp_path):
        torch.save(build("fcos").state_dict(), tmp_path / "w.pt")
        with pytest.raises(ValueError, match="same"):
            build_detector("fcos", num_classes=4, size="nano", weights=tmp_path / "w.pt")

    def test_garbage_is_refused(self, tmp_path):
        (tmp_path / "w.pt").write_bytes(b"no weights")
        with pytest.raises(ValueError, match="weights_only=True"):
            build_detector("fcos", num_classes=3, size="nano", weights=tmp_path / "w.pt")


def test_select_keeps_the_better_of_two_overlapping_boxes_and_other_classes():
    anchors = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.0, 0.3]])
    inference = PostProcess(score_threshold=0.1, nms_threshold=0.5)
    got, rows = select(scores, torch.zeros(3, 4), anchors, [3], delta_codec(), inference, (25, 40))
    torch.testing.assert_close(got["scores"], torch.tensor([0.9, 0.7, 0.3]))
    assert got["labels"].tolist() == [1, 2, 2]
    assert rows.tolist() == [0, 1, 2]
    assert got["boxes"][2].tolist() == [20, 20, 30, 25]


def test_centerness_is_the_papers_formula():
    points = torch.tensor([[5.0, 5.0], [2.0, 5.0], [20.0, 5.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3)
    torch.testing.assert_close(centerness(points, boxes), torch.tensor([1.0, math.sqrt(2 / 8), 0.0]))


def test_scores_of_ranking_losses_have_no_threshold():
    """Their scores have an order but no scale: a threshold of 0.05 would drop detections at random."""
    assert build("fcos", "rank_sort+pse").postprocess.score_threshold == 0
    assert build("fcos", "rank_sort", score_threshold=0.1).postprocess.score_threshold == 0.1
    assert build("fcos", "focal+concordance").postprocess.score_threshold == 0.05


def test_a_criterion_object_is_taken():
    criterion = build_criterion("rank_sort")
    model = build_detector("fcos", num_classes=3, size="nano", loss=criterion)
    assert model.criterion is criterion
    assert model.head.regression_head.bbox_ctrness is None


@pytest.mark.parametrize("name", CODED)
def test_perfect_regression_has_iou_one(name):
    model = build(name)
    outcome = model._predict(*batch(4, 2))
    for predictions in outcome.stages:
        record = model.assign(predictions, outcome.objects)
        anchors = predictions.anchors.flatten(0, 1)[record.positive]
        boxes = model.codec.decode(record.regression.targets, anchors)
        torch.testing.assert_close(paired_iou(boxes, record.gt_boxes), torch.ones(len(record.positive)))
