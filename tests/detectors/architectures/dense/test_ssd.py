"""SSD and DSSD: torchvision's numbers, weights, levels, and hard negatives."""

import pytest
import torch
from torchvision.models import vgg16
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD

from concordet.assigned import BACKGROUND, IGNORED
from concordet.detectors import build_detector
from tests.detectors.scenes import batch, build


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

    def test_saved_weights_keep_their_normalization(self):
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
    def test_a_softmax_learns_from_three_negatives_per_positive(self, loss):
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


def test_dssd_is_built_on_a_resnet():
    with torch.device("meta"), pytest.raises(ValueError, match="take another backbone than 'vgg16'"):
        build_detector("dssd", num_classes=3, backbone="vgg16")
