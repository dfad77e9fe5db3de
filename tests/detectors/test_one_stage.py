"""One-stage detectors: torchvision's SSD, stages, and what each detector has of its own."""

from dataclasses import replace

import pytest
import torch
from torchvision.models import vgg16
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors import build_detector
from concordet.detectors.parts.anchors import GridAnchors
from concordet.losses.criteria import StagedCriterion, build_criterion
from tests.detectors.test_detectors import batch, build


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


class TestSSD:
    def test_losses_and_detections_are_torchvisions(self):
        ours = build("ssd", score_threshold=0.3, topk=10_000)
        for layer in ours.head.classification_head.module_list:
            torch.nn.init.normal_(layer.weight, std=0.3)  # fresh classifiers give nearly tied scores
        theirs = SSD(
            ours.backbone, ours.anchor_generator, (96, 64), 4, score_thresh=0.3, topk_candidates=10_000,
            detections_per_img=200,
        )  # fmt: skip
        theirs.head.load_state_dict(ours.head.state_dict())
        self.compare(ours, theirs, *batch(5, 2))

    @pytest.mark.slow
    def test_full_size_with_torchvisions_weights_is_torchvisions(self, tmp_path):
        torch.manual_seed(0)
        theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4, score_thresh=0.32)
        theirs.topk_candidates = 10_000
        # torchvision feeds a hundred times larger pixels: an untrained network's logits would saturate
        for layer in theirs.head.classification_head.module_list:
            torch.nn.init.normal_(layer.weight, std=1e-3)
        torch.save(theirs.state_dict(), tmp_path / "ssd.pt")
        ours = build_detector("ssd", num_classes=3, weights=tmp_path / "ssd.pt", score_threshold=0.32, topk=100_000)
        assert ours.backbone.caffe_input
        self.compare(ours, theirs, *batch(5))

    @staticmethod
    def compare(ours, theirs, images, targets):
        with torch.no_grad():
            expected, got = theirs(images, targets), ours(images, targets)
            found = zip(ours.eval()(images), theirs.eval()(images), strict=True)
        torch.testing.assert_close(got["classification"], expected["classification"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got["box"], expected["bbox_regression"], rtol=1e-4, atol=1e-4)
        for mine, other in found:
            assert len(other["scores"]) > 10
            torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-4)
            same = (mine["labels"] == other["labels"]) & (mine["boxes"] - other["boxes"]).abs().le(0.01).all(1)
            assert same.float().mean() > 0.95  # scores within rounding may change places

    def test_weights_are_named_as_torchvisions(self):
        with torch.device("meta"):
            theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4).state_dict()
            ours = build_detector("ssd", num_classes=3).state_dict()
        assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items() if "caffe" not in k}

    def test_image_size_may_be_a_list_as_files_have_it(self):
        with torch.device("meta"):
            assert build_detector("ssd", num_classes=3, image_size=[512, 512]).anchor_generator.steps[-1] == 512

    def test_own_weights_keep_their_normalisation(self):
        with torch.device("meta"):
            first, second = (build_detector("ssd", num_classes=3) for _ in range(2))
        second.load_state_dict(first.state_dict(), assign=True)
        state = {k: v for k, v in first.state_dict().items() if "caffe" not in k}
        first.load_state_dict(state, assign=True)
        assert first.backbone.caffe_input.device.type == "cpu"  # the hook's
        assert second.backbone.caffe_input.device.type == "meta"  # the file's

    def test_a_classifiers_weights_fill_the_backbone(self, tmp_path):
        with torch.device("meta"):
            names = vgg16().state_dict()
        state = {k: torch.zeros(v.shape if k.startswith("features") else (1,)) for k, v in names.items()}
        state["features.0.bias"], state["features.28.bias"] = torch.ones(64), torch.ones(512)
        torch.save(state, tmp_path / "vgg.pt")
        model = build_detector("ssd", num_classes=3, weights=tmp_path / "vgg.pt")
        assert (model.backbone.features[0].bias == 1).all()
        assert (model.backbone.extra[0][5].bias == 1).all()
        assert not model.backbone.caffe_input

    def test_a_classifier_of_caffes_pixels_is_refused(self, tmp_path):
        torch.save(
            {"features.0.bias": torch.zeros(64), "classifier.0.bias": torch.tensor([torch.nan])}, tmp_path / "vgg.pt"
        )
        with torch.device("meta"), pytest.raises(ValueError, match="take VGG16_Weights"):
            build_detector("ssd", num_classes=3, weights=tmp_path / "vgg.pt")

    @pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
    def test_levels_of_512_pixels_are_the_papers_and_take_one_image(self, backbone):
        with torch.device("meta"):
            model = build_detector("ssd", num_classes=3, backbone=backbone, image_size=(512, 512)).train()
            shapes = [tuple(x.shape[-2:]) for x in model.backbone(torch.zeros(1, 3, 512, 512)).values()]
        assert shapes == [(n, n) for n in (64, 32, 16, 8, 4, 2, 1)]

    @pytest.mark.parametrize("loss", ["default", "harmonic", "ce+pse"])
    def test_a_softmax_learns_from_three_negatives_a_positive(self, loss):
        (record,) = build("ssd", loss).assigned(*batch(3, 0))
        assert record.logits.shape[1] == 4
        assert (record.labels == BACKGROUND).sum() == 3 * len(record.positive)
        assert (record.labels[len(record.labels) // 2 :] == IGNORED).all()  # no positive there, no negative

    @pytest.mark.parametrize("loss", ["rank_sort", "focal", "alrp"])
    def test_a_sigmoid_learns_from_all(self, loss):
        (record,) = build("ssd", loss).assigned(*batch(3, 0))
        assert record.logits.shape[1] == 3
        assert (record.labels == IGNORED).sum() == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backbone": "resnet18"}, "backbone must be vgg16 or one of resnet50"),
            ({"image_size": (200, 300)}, "at least 272 pixels"),
            ({"size": "nano", "backbone": "vgg16"}, "drop backbone='vgg16'"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            build_detector("ssd", num_classes=3, **options)


def test_ap_in_paa_has_half_the_step():
    assert build("paa", "ap").criterion.core.keywords["classification"].keywords["delta"] == 0.5
    assert build("atss", "ap").criterion.core.keywords["classification"].keywords["delta"] == 1.0


def test_foveabox_has_its_own_focal_loss():
    assert build("foveabox", "focal").criterion.core.keywords["classification"].keywords == {"alpha": 0.4, "gamma": 1.5}


class TestRefineDet:
    def test_the_second_stage_starts_where_the_first_ends(self):
        model = build("refinedet")
        first, second = model._predict(*batch(3, 2)).stages
        for i in range(2):
            boxes = model.codec.decode(first.regressions[i], first.anchors[i])
            torch.testing.assert_close(second.anchors[i], boxes)
            assert not second.anchors[i].requires_grad

    def test_the_first_stage_tells_objects_from_background(self):
        arm, odm = build("refinedet").assigned(*batch(3, 2))
        assert (arm.stage, odm.stage) == ("arm", "odm")
        assert (arm.logits.shape[1], odm.logits.shape[1]) == (2, 4)
        assert (arm.labels[arm.positive] == 0).all()

    def test_anchors_without_objectness_are_ruled_out(self):
        model = build("refinedet").eval()
        for layer in model.head.arm.classification_head.module_list:
            torch.nn.init.constant_(layer.bias.view(-1, 2)[:, 0], 9.0)  # torchvision's order: background first
        model.eval()
        images, targets = batch(3)
        _, odm = model.assigned(images, targets)
        assert (odm.labels == IGNORED).all()
        assert len(model(images)[0]["boxes"]) == 0
        terms, _ = model.losses_and_detections(images, targets)
        assert all(v.isfinite() for v in terms.values())

    def test_losses_without_softmax_rule_out_nothing(self):
        model = build("refinedet", "rank_sort+pse")
        assert model._predict(*batch(2)).stages[-1].dropped is None
        assert set(model.criterion.stages["arm"].couplings) == set()
        assert set(model.criterion.stages["odm"].couplings) == {"pse"}
        assert model.postprocess.score_threshold == 0

    def test_a_criterion_object_serves_both_stages(self):
        criterion = build_criterion("alrp")
        model = build("refinedet", criterion)
        assert model.criterion.stages["odm"] is criterion
        sum(model(*batch(2)).values()).backward()
        model.criterion.on_epoch_end()
        first, second = (model.criterion.stages[s].core.weight for s in ("arm", "odm"))
        assert first != second  # each balances itself

    @pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
    def test_levels(self, backbone):
        with torch.device("meta"):
            model = build_detector("refinedet", num_classes=3, backbone=backbone)
            shapes = [tuple(x.shape[-2:]) for x in model.backbone(torch.zeros(1, 3, 320, 320)).values()]
        assert shapes == [(40, 40), (20, 20), (10, 10), (5, 5)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": "focal+iou_head"}, "has no auxiliary head"),
            ({"loss": StagedCriterion({"roi": build_criterion("focal")})}, "has the stages"),
            ({"backbone": "vgg"}, "backbone must be one of resnet18"),
            ({"size": "nano", "backbone": "vgg16"}, "drop backbone='vgg16'"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            build_detector("refinedet", num_classes=3, **options)


def test_dssd_is_built_on_a_resnet():
    with torch.device("meta"), pytest.raises(ValueError, match="take another backbone than 'vgg16'"):
        build_detector("dssd", num_classes=3, backbone="vgg16")


def test_centered_anchors_lie_at_the_centres_of_cells():
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    generator = GridAnchors(((16,), (32,)), ((0.5, 1.0),) * 2)
    (anchors,) = generator(images, [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)])
    expected = []
    for stride, rows, columns in ((8, 8, 12), (16, 4, 6)):
        expected += [
            ((c + 0.5) * stride, (r + 0.5) * stride) for r in range(rows) for c in range(columns) for _ in (0, 1)
        ]
    torch.testing.assert_close((anchors[:, :2] + anchors[:, 2:]) / 2, torch.tensor(expected))


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
    error = (record.deltas - record.gt_deltas).abs()
    expected = torch.where(error < 0.11, error**2 / 0.22, error - 0.055).sum() / len(record.positive)
    record = replace(record, normalizer=torch.tensor(float(len(record.positive))))
    torch.testing.assert_close(model.criterion(record)["box"], expected)
