"""Detectors learn a few images by heart (minutes each)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))

import detection_transformers
import overfit

from concordet.detectors import list_detectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", [name for name in list_detectors() if name not in overfit.SETS])
def test_four_images_full_architecture_on_a_narrow_backbone(name):
    assert overfit.overfit(name)["AP50"] > overfit.GOAL


@pytest.mark.parametrize("loss", detection_transformers.LOSSES)
@pytest.mark.parametrize("name", detection_transformers.LEARNED)
def test_eight_images_nano(name, loss):
    assert detection_transformers.overfit(name, loss)["AP50"] > overfit.GOAL
