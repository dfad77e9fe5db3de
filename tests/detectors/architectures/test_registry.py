"""Building detectors by name: image sizes, registration, and what is refused."""

from dataclasses import replace

import pytest
import torch

from concordet.detectors import Detector, Resize, build_detector, list_detectors, register_detector
from concordet.detectors.architectures.registry import DETECTORS
from concordet.detectors.parts.postprocess import PostProcess

STRETCHING = {"ssd", "dssd", "refinedet", "yolact"}


def built(name, **options):
    with torch.device("meta"):
        return build_detector(name, num_classes=3, size="nano", **options)


class TestImageSize:
    def test_two_numbers_of_a_detector_that_keeps_the_shape(self):
        model = built("fcos", image_size=(200, 320))
        assert model.resize == Resize.within(200, 320)
        for shape, expected in [((100, 160), (200, 320)), ((100, 400), (80, 320)), ((300, 200), (300, 200))]:
            images, _ = model.transform([torch.zeros(3, *shape)])
            assert images.image_sizes == [expected]

    def test_two_numbers_of_a_detector_that_stretches(self):
        model = built("ssd", image_size=(200, 160))
        assert model.resize == Resize.exactly(200, 160)
        images, _ = model.transform([torch.zeros(3, 100, 400)])
        assert images.image_sizes == [(200, 160)]

    def test_one_number(self):
        assert built("fcos", image_size=320).resize == Resize.within(320, 426)  # nano's proportion, 240 to 320
        with torch.device("meta"):
            assert build_detector("fcos", num_classes=3, image_size=400).resize == Resize.within(400, 666)
        assert built("ssd", image_size=320).resize == Resize.exactly(320, 320)

    @pytest.mark.parametrize("name", list_detectors())
    def test_defaults(self, name):
        model = built(name)
        assert isinstance(model, Detector)
        assert model.resize == Resize((240, 320), keeps_shape=name not in STRETCHING)

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((320, 200), r"image_size must be \(shorter, longer\) .* did you mean \(200, 320\)\?"),
            ((320,), r"image_size must be one side or two sides in pixels, got \(320,\)"),
            (0, r"image_size must be one side or \(shorter, longer\), from 1 to 16384 pixels"),
        ],
    )
    def test_refusals(self, size, message):
        with pytest.raises(ValueError, match=message):
            built("fcos", image_size=size)

    def test_sizes_of_multi_scale_training_need_a_detector_that_keeps_the_shape(self):
        assert built("fcos", train_sizes=(160, 200)).transform.min_size == (160, 200, 240)
        with pytest.raises(ValueError, match="train_sizes must be empty for ssd"):
            built("ssd", train_sizes=(160, 200))


class TestRegistration:
    def test_a_detector_of_ones_own(self):
        register_detector("mine", replace(DETECTORS["fcos"], postprocess=PostProcess(nms="soft")))
        assert "mine" in list_detectors()
        assert built("mine").postprocess.nms == "soft"

    def test_the_same_definition_again_replaces_the_first(self):
        register_detector("mine", DETECTORS["fcos"])
        register_detector("mine", replace(DETECTORS["fcos"], postprocess=PostProcess(topk=7)))
        assert built("mine").postprocess.topk == 7

    def test_refusals(self):
        with pytest.raises(ValueError, match="name of a detector must be new, got 'atss'"):
            register_detector("atss", DETECTORS["fcos"])
        with pytest.raises(ValueError, match="must be lowercase letters, digits and underscores, got 'My-Net'"):
            register_detector("My-Net", DETECTORS["fcos"])
