"""Tests are of few positives, and most of what there is to test is for many."""

import pytest

from concordet.ranking import exact


@pytest.fixture(scope="package", autouse=True)
def no_positives_are_few():
    """The exact method never falls back on the matrix of pairs, which it is compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "FEW", 0)
        yield
