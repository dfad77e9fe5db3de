"""Backbones: torchvision's and timm's own outputs on the same weights, deformable convolutions, refusals."""

import math
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from concordet.detectors import build_detector
from concordet.detectors.networks.backbones import PLAIN, RESNETS, DeformableConv, features, pyramid, resnet
from concordet.detectors.networks.weights import load_weights

SMALL = "timm/mobilenetv3_small_050"
IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def target():
    return {"boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0], [30.0, 5.0, 80.0, 60.0]]), "labels": torch.tensor([1, 2])}


class TestPyramid:
    @pytest.mark.parametrize("extra", ["c5", "p5", "pool"])
    def test_is_torchvisions(self, extra):
        ours, strides = pyramid("full", "resnet18", extra=extra, pretrained=False)
        body = torchvision.models.resnet18()
        if extra == "pool":
            theirs = _resnet_fpn_extractor(body, 5)
        else:
            last = LastLevelP6P7(512 if extra == "c5" else 256, 256)
            theirs = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=last)
        theirs.load_state_dict(ours.state_dict())
        got, expected = ours.eval()(IMAGE), theirs.eval()(IMAGE)
        assert list(got) == list(expected)
        torch.testing.assert_close(got, expected)
        assert [math.ceil(64 / stride) for stride in strides] == [level.shape[2] for level in got.values()]

    @pytest.mark.parametrize("name", RESNETS)
    def test_every_resnet_has_the_pyramid_of_its_channels(self, name):
        with torch.device("meta"):
            maps, _ = pyramid("full", name, extra="pool", pretrained=True)
        channels = tuple(block[0].in_channels for block in maps.fpn.inner_blocks)
        assert channels == ((64, 128, 256, 512) if name in ("resnet18", "resnet34") else (256, 512, 1024, 2048))
        frozen = {key.split(".")[1] for key, value in maps.named_parameters() if not value.requires_grad}
        assert frozen == {"conv1", "layer1"}
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in maps.modules())

    def test_swin_with_a_pyramid_trains_a_detector(self):
        model = build_detector("faster_rcnn", num_classes=3, backbone="swin_t", image_size=(64, 96), loss="rank_sort")
        sum(model([IMAGE[0]], [target()]).values()).backward()
        lacking = [key for key, value in model.backbone.named_parameters() if value.grad is None]
        assert not lacking


class TestFeatures:
    @pytest.mark.parametrize("backbone", ["resnet18", "swin_t", SMALL, None])
    @pytest.mark.parametrize("levels", [(8, 16, 32), (16,)])
    def test_maps_have_the_channels_and_sizes_that_are_said(self, backbone, levels):
        maps = features("nano" if backbone is None else "full", backbone, levels=levels)
        got = maps.eval()(torch.rand(2, 3, 70, 101))
        assert [(2, c, math.ceil(70 / s), math.ceil(101 / s)) for c, s in zip(maps.channels, levels, strict=True)] == [
            tuple(m.shape) for m in got
        ]
        assert maps.strides == levels

    @pytest.mark.parametrize("backbone", ["resnet18", "nano", SMALL, "swin_t"])
    def test_nothing_is_left_without_a_gradient(self, backbone):
        maps = features("nano", levels=(8,)) if backbone == "nano" else features("full", backbone, levels=(8,))
        maps(torch.rand(2, 3, 64, 64))[0].square().sum().backward()
        assert all(value.grad is not None for value in maps.parameters())

    def test_swin_is_timms_with_a_layer_norm_on_each_map(self):
        torch.manual_seed(0)
        ours = features("full", "swin_t", levels=(4, 8, 16, 32)).eval()
        theirs = timm.create_model("swin_tiny_patch4_window7_224").eval()
        theirs.load_state_dict(ours.body.model.state_dict(), strict=False)
        image = torch.rand(1, 3, 224, 224)  # the size that timm's own network takes
        x = theirs.patch_embed(image)
        for got, stage in zip(ours(image), theirs.layers, strict=True):
            x = stage(x)
            expected = F.layer_norm(x, x.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_pretrained_networks_of_timm_have_frozen_batch_norms(self):
        maps = features("full", SMALL, pretrained=True)
        assert not any(type(m).__name__.startswith("BatchNorm") for m in maps.modules())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("full", "vgg"), "backbone must be one of resnet18"),
            (("full", "resnet18_dcn"), "backbone must be one of resnet18"),
            (("nano", "resnet18"), "drop backbone='resnet18'"),
            (("full", "timm/nothing"), "must be a network of timm with feature maps, got 'nothing'"),
            (("full", "timm/vit_tiny_patch16_224"), "maps with the strides"),
            (("full", "timm/maxvit_tiny_tf_224"), "must take images of any size"),
        ],
    )
    def test_refusals(self, arguments, message):
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            features(*arguments)

    @pytest.mark.parametrize("levels", [(), (8, 8), (16, 8), (2, 4)])
    def test_levels_are_checked(self, levels):
        with pytest.raises(ValueError, match="levels must be strides of"):
            features("full", levels=levels)

    def test_without_timm_one_sentence_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ValueError, match=r"needs the package timm; install it with: pip install 'concordet"):
            features("full", "swin_t")


class TestDeformable:
    def plain(self, groups=1, stride=1, dilation=1):
        return torch.nn.Conv2d(8, 12, 3, stride, dilation, dilation, groups, bias=False).double()

    @pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (4, 2, 1), (2, 1, 2)])
    def test_is_the_plain_convolution_at_first(self, groups, stride, dilation):
        plain = self.plain(groups, stride, dilation)
        ours = DeformableConv(plain).double()
        x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
        got, expected = ours(x), plain(x)
        torch.testing.assert_close(got, expected)
        weights = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * weights).sum(), plain.weight)[0]
        torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), ours.weight)[0], wanted)

    def test_offsets_are_rows_and_columns_and_weights_scale_each_sample(self):
        """Constant offsets of a row and two columns: a convolution of the shifted image, each sample by its weight."""
        plain = self.plain()
        ours = DeformableConv(plain).double()
        scale = torch.rand(9, dtype=torch.float64) * 2
        with torch.no_grad():
            ours.offset.bias[:18] = torch.tensor([1.0, 2.0]).repeat(9)
            ours.offset.bias[18:] = torch.logit(scale / 2)
        x = torch.randn(1, 8, 12, 12, dtype=torch.float64)
        shifted = F.conv2d(x, plain.weight * scale.view(3, 3), padding=1)[..., 1:, 2:]
        torch.testing.assert_close(ours(x)[..., 1:-2, 1:-3], shifted[..., 1:-1, 1:-1])

    def test_offsets_learn(self):
        ours = DeformableConv(self.plain()).double()
        ours(torch.randn(1, 8, 9, 9, dtype=torch.float64)).square().sum().backward()
        assert all((value.grad != 0).any() for value in ours.parameters())

    @pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
    def test_weights_of_the_plain_resnet_load_and_give_its_features(self, name, tmp_path):
        plain = getattr(torchvision.models, name)()
        torch.save(plain.state_dict(), tmp_path / "plain.pt")
        model = build_detector("fcos", num_classes=3, backbone=f"{name}_dcn", weights=tmp_path / "plain.pt")
        got = model.backbone.body(IMAGE)["2"]
        expected = torchvision.models._utils.IntermediateLayerGetter(plain.eval(), {"layer4": "0"})(IMAGE)["0"]
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("name", PLAIN)
    def test_the_last_three_stages_have_them(self, name):
        with torch.device("meta"):
            network, plain = resnet(f"{name}_dcn"), getattr(torchvision.models, name)()
        stages = {key.split(".")[0] for key, m in network.named_modules() if isinstance(m, DeformableConv)}
        assert stages == {"layer2", "layer3", "layer4"}
        added = {key for key in network.state_dict() if ".offset." in key}
        assert set(network.state_dict()) - added == set(plain.state_dict())

    def test_bf16(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = features("full", "resnet50_dcn")(IMAGE.repeat(2, 1, 1, 1))
        assert all(m.isfinite().all() for m in maps)


class TestTimmWeights:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_local_file_loads_into_the_body(self, suffix, tmp_path):
        torch.manual_seed(1)
        theirs = timm.create_model("convnext_atto").eval()
        path = tmp_path / f"convnext{suffix}"
        save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(theirs.state_dict(), path)
        model = build_detector("atss", num_classes=3, backbone="timm/convnext_atto", weights=path)
        got = model.eval().backbone.body(IMAGE)["2"]
        torch.testing.assert_close(got, theirs.stages(theirs.stem(IMAGE)))

    def test_weights_of_another_network_are_refused(self, tmp_path):
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pt")
        model = build_detector("atss", num_classes=3, backbone=SMALL)
        with pytest.raises(ValueError, match="are not in it"):
            load_weights(model, tmp_path / "w.pt")


class TestSizesOfTraining:
    @pytest.mark.parametrize("name", ["atss", "faster_rcnn", "sparse_rcnn"])
    def test_each_training_image_has_a_side_of_its_own(self, name):
        options = {"num_classes": 3, "size": "nano", "image_size": (64, 200)}
        model = build_detector(name, train_sizes=[32, 48], **options)
        sides = {model.transform([torch.rand(3, 80, 100)])[0].image_sizes[0] for _ in range(40)}
        assert sides == {(32, 40), (48, 60), (64, 80)}
        model.eval()
        assert model.transform([torch.rand(3, 80, 100)])[0].image_sizes == [(64, 80)]
        plain = build_detector(name, **options)
        assert plain.transform([torch.rand(3, 80, 100)])[0].image_sizes == [(64, 80)]

    @pytest.mark.parametrize(
        ("name", "sizes", "message"),
        [("ssd", [200], "resizes all images to one size"), ("atss", [0], "from 1 to 16384")],
    )
    def test_refusals(self, name, sizes, message):
        with pytest.raises(ValueError, match=message):
            build_detector(name, num_classes=3, size="nano", train_sizes=sizes)


class TestSingleShot:
    """Detectors whose levels are their own."""

    @pytest.mark.parametrize("pixels", [300, 512])
    @pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "resnet101", "resnext50_32x4d", "resnet50_dcn"])
    def test_ssd(self, backbone, pixels):
        with torch.device("meta"):
            model = build_detector("ssd", num_classes=3, backbone=backbone, image_size=(pixels, pixels))
        assert len(model.backbone.out_channels) == (6 if pixels == 300 else 7)
        assert all(c > 0 for c in model.backbone.out_channels)

    @pytest.mark.parametrize("name", ["ssd", "dssd", "refinedet"])
    def test_deformable_convolutions_in_them(self, name):
        pixels = 64
        model = build_detector(name, num_classes=3, backbone="resnet50_dcn", image_size=(pixels, pixels))
        sum(model([IMAGE[0]] * 2, [target()] * 2).values()).backward()
        offsets = [value for key, value in model.named_parameters() if ".offset." in key]
        assert offsets
        assert all(value.grad is not None and value.grad.isfinite().all() for value in offsets)

    @pytest.mark.parametrize("backbone", ["resnet18", SMALL])
    def test_refinedet_on_any_backbone(self, backbone):
        model = build_detector("refinedet", num_classes=3, backbone=backbone, image_size=(64, 64))
        sum(model([IMAGE[0]] * 2, [target()] * 2).values()).backward()
        assert all(value.grad is not None for value in model.parameters())

    def test_frozen_parts_of_a_pretrained_resnet(self, tmp_path):
        torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "w.pt")
        model = build_detector("ssd", num_classes=3, backbone="resnet50", weights=tmp_path / "w.pt")
        assert not model.backbone.body.conv1.weight.requires_grad
        assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
        assert model.backbone.body.layer2[0].conv1.weight.requires_grad
