"""One-stage detectors: sizes as published, torchvision's SSD, stages, and what each detector has of its own."""

import pytest
import torch
from torchvision.models.detection import ssd300_vgg16

from concordet.detectors import build_detector
from concordet.types import BACKGROUND, IGNORED
from tests.detectors.test_detectors import batch, build

MILLIONS = {
    ("foveabox", "resnet50", 800): 36.42,
    ("paa", "resnet50", 800): 32.30,
    ("ssd", "vgg16", 300): 34.31,
    ("ssd", "vgg16", 512): 36.04,
}


@pytest.mark.parametrize(("name", "backbone", "pixels"), MILLIONS)
def test_full_size_has_the_published_number_of_parameters(name, backbone, pixels):
    with torch.device("meta"):
        model = build_detector(name, num_classes=80, backbone=backbone, image_size=(pixels, pixels))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS[name, backbone, pixels], rel=0.001)


class TestSSD:
    def test_losses_and_detections_are_torchvisions(self):
        torch.manual_seed(0)
        theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)
        theirs.score_thresh, theirs.topk_candidates, theirs.detections_per_img = 0.32, 10_000, 100
        ours = build_detector("ssd", num_classes=3, score_threshold=0.32, topk=100_000, detections_per_image=100)
        # torchvision feeds a hundred times larger pixels: an untrained network's logits would saturate
        for layer in theirs.head.classification_head.module_list:
            torch.nn.init.normal_(layer.weight, std=1e-3)
        ours.load_state_dict(theirs.state_dict())
        images, targets = batch(5)
        expected, got = theirs(images, targets), ours(images, targets)
        torch.testing.assert_close(got["classification"], expected["classification"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got["box"], expected["bbox_regression"], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            found = zip(ours.eval()(images), theirs.eval()(images), strict=True)
        for mine, other in found:
            assert len(other["scores"]) > 10
            torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-4)
            same = (mine["labels"] == other["labels"]) & (mine["boxes"] - other["boxes"]).abs().le(0.01).all(1)
            assert same.float().mean() > 0.95  # scores within rounding may change places

    def test_torchvisions_weights_load_with_their_normalisation(self, tmp_path):
        theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)
        torch.save(theirs.state_dict(), tmp_path / "ssd.pt")
        ours = build_detector("ssd", num_classes=3, weights=tmp_path / "ssd.pt")
        assert ours.backbone.caffe_input
        torch.save(build_detector("ssd", num_classes=3).state_dict(), tmp_path / "own.pt")
        assert not build_detector("ssd", num_classes=3, weights=tmp_path / "own.pt").backbone.caffe_input

    def test_a_classifiers_weights_fill_the_backbone(self, tmp_path):
        from torchvision.models import vgg16

        with torch.device("meta"):
            names = vgg16().state_dict()
        state = {k: torch.randn(v.shape if k.startswith("features") else (1,)) for k, v in names.items()}
        torch.save(state, tmp_path / "vgg.pt")
        model = build_detector("ssd", num_classes=3, weights=tmp_path / "vgg.pt")
        assert torch.equal(model.backbone.features[0].weight, state["features.0.weight"])
        assert torch.equal(model.backbone.extra[0][5].weight, state["features.28.weight"])
        torch.save({k: v * torch.nan if "classifier" in k else v for k, v in state.items()}, tmp_path / "caffe.pt")
        with pytest.raises(ValueError, match="take VGG16_Weights"):
            build_detector("ssd", num_classes=3, weights=tmp_path / "caffe.pt")

    def test_levels_of_512_pixels_are_the_papers(self):
        model = build_detector("ssd", num_classes=3, image_size=(512, 512)).eval()
        with torch.no_grad():
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

    def test_resnet_backbone_trains_on_one_image(self):
        model = build_detector("ssd", num_classes=3, backbone="resnet50", image_size=(512, 512))
        terms = model(*batch(3))
        assert all(v.isfinite() for v in terms.values())

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
