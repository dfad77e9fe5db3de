"""Full architectures on a narrow backbone learn four images by heart (minutes each)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from overfit import GOAL, SETS, overfit

from concordet.detectors import list_detectors


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in list_detectors() if name not in SETS])
def test_four_images(name):
    assert overfit(name)["AP50"] > GOAL
