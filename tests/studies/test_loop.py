"""The loop over positives that the study of training steps times is the published algorithm."""

from __future__ import annotations

import pytest
import torch

from concordet.detectors import build_detector
from studies import detection_transformers


def detector():
    torch.manual_seed(0)
    return build_detector("deformable_detr", num_classes=3, size="nano", loss="rank_sort", image_size=(64, 64)).train()


def test_the_loop_gives_the_exact_losses_and_gradients():
    images, targets = detection_transformers.crowds(batch=1, side=64, objects=5, classes=3)
    looped = detection_transformers.loop_over_positives(detector())
    detection_transformers.check_same(looped, detector(), images, targets)


def test_another_loss_is_noticed(monkeypatch):
    images, targets = detection_transformers.crowds(batch=1, side=64, objects=5, classes=3)
    monkeypatch.setattr(detection_transformers.LoopedTerm, "forward", lambda self, assigned, ious: {
        "ranking": assigned.logits.sum(), "sorting": assigned.logits.sum()
    })  # fmt: skip
    looped = detection_transformers.loop_over_positives(detector())
    with pytest.raises(AssertionError):
        detection_transformers.check_same(looped, detector(), images, targets)
