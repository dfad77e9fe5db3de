"""Plain mistakes of users: one sentence that names them, instead of a wrong result or an error from deep inside."""

import numpy as np
import pytest
import torch

from concordet.calibration import Calibrator, evaluate_calibration
from concordet.calibration.calibrator import ClassCalibration
from concordet.calibration.maps import Linear
from concordet.detectors import build_detector
from concordet.engine import load_config
from concordet.engine.predictor import to_tensor
from concordet.files import write_text
from concordet.losses import build_criterion
from concordet.losses import functional as F

LOGITS = torch.tensor([0.5, -1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: F.focal_loss(LOGITS, torch.tensor([0.5, 1.0])),
            "targets must be 0 or 1, got 0.5; take",
        ),
        (lambda: F.focal_loss(LOGITS, torch.tensor([0, 1]), alpha=2.0), "alpha must be at most 1, got 2.0"),
        (lambda: F.focal_loss(LOGITS, torch.tensor([0, 1]), alpha=float("nan")), "alpha must be at most 1, got nan"),
        (lambda: F.varifocal_loss(LOGITS, torch.tensor([0.0, 0.5]), alpha=-1), "varifocal_loss: alpha must be"),
        (lambda: F.focal_loss(LOGITS, np.array([0, 1])), "targets must be a tensor, got"),
        (lambda: F.focal_loss(LOGITS, [0, 1]), "targets must be a tensor, got"),
        (lambda: F.alrp_loss([0.5, -1.0], torch.tensor([0, 1]), torch.tensor([0.2])), "must be a .*tensor, got"),
        (lambda: F.harmonic_factors(torch.tensor([-1.0]), torch.tensor([1.0])), "harmonic_factors: cls_losses must be"),
        (lambda: build_criterion("focal+pse(1,2)"), "the weight of 'pse.1,2.' in loss .* must be given once"),
        (lambda: build_criterion("focal+pse(slope=1,slope=2)"), "slope of .* must be given once, got it twice"),
    ],
)
def test_losses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_alpha_is_a_negative_one():
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, torch.tensor([0.0, 1.0]), reduction="sum")
    torch.testing.assert_close(F.focal_loss(LOGITS, torch.tensor([0, 1]), alpha=-1, gamma=0), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[1.0, 1.0, float("nan"), 9.0]])}, "boxes must be xyxy with positive width and height"),
        ({"boxes": torch.tensor([[1.0, 1.0, float("inf"), 9.0]])}, "boxes must be xyxy with positive width and height"),
        ({"labels": torch.tensor([1.0])}, "labels must be integers, got torch.float32"),
        ({"labels": [1]}, "labels must be a tensor, got list"),
        ({"labels": None}, "labels must be a tensor, got NoneType"),
        ({"labels": torch.tensor([[1]])}, r"boxes must be \[m, 4\] and labels \[m\], got \[1, 4\] and \[1, 1\]"),
    ],
)
@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_targets(name, change, message):
    model = build_detector(name, num_classes=2, size="nano").train()
    target = {"boxes": torch.tensor([[1.0, 1.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 64, 64)], [target | change])
    with pytest.raises(ValueError, match="labels must be a tensor, got none"):
        model([torch.rand(3, 64, 64)], [{"boxes": target["boxes"]}])


def test_calibration():
    calibrator = Calibrator("linear", {1: ClassCalibration("cat", Linear(0.5, 0.0))}, Linear(1.0, 0.0))
    for classes in ([1], [1, 1, 1]):
        with pytest.raises(ValueError, match="scores and class_ids must be columns of the same length"):
            calibrator.calibrate([0.9, 0.5], classes)
    for image in ({"scores": [0.5]}, {"labels": [1]}, {"annotations": []}):
        with pytest.raises(ValueError, match="detections of an image must have scores and labels"):
            calibrator.apply(image)
    images = [{"id": i} for i in range(4)]
    truth = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        evaluate_calibration(truth, [], confidence=95)


@pytest.mark.parametrize("shape", [(64, 64, 4), (3, 64, 64), (64, 64)])
def test_images_are_named_with_their_own_shape(shape):
    with pytest.raises(ValueError, match=f"got shape {shape}".replace("(", r"\(").replace(")", r"\)")):
        to_tensor(np.zeros(shape, np.uint8))


def test_files(tmp_path):
    (tmp_path / "run.yaml").write_text("detector: atss\n")
    assert load_config(str(tmp_path / "run.yaml")).detector == "atss"
    with pytest.raises(OSError, match=r"No such file or directory: '[^']*text.txt'$"):
        write_text(tmp_path / "none" / "text.txt", "text")
