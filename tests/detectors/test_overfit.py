"""Detectors overfit a few images (minutes each)."""

import pytest

from concordet.detectors import list_detectors
from studies import detection_transformers, overfit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", [name for name in list_detectors() if name not in overfit.SETS])
def test_four_images_full_architecture_on_a_narrow_backbone(name):
    assert overfit.overfit(name)["AP50"] > overfit.GOAL


@pytest.mark.parametrize("loss", detection_transformers.LOSSES)
@pytest.mark.parametrize("name", detection_transformers.LEARNED)
def test_eight_images_nano(name, loss):
    assert detection_transformers.overfit(name, loss)["AP50"] > overfit.GOAL
