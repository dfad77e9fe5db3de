"""Fixtures of several test packages: a finished run that tests read only, and both ways to count positives."""

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder of a run of two epochs, evaluated."""
    from concordet.engine import train

    from .trained import tiny

    return train(tiny(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module", params=["tree", "pairs"])
def positives_by(request):
    """How the exact method counts positives among each other: by a wavelet tree, or by the matrix of their pairs.

    By default it depends on their number, and tests have few.
    """
    from concordet.ranking import exact

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "MAX_PAIRWISE_POSITIVES", 0 if request.param == "tree" else 1 << 30)
        yield request.param
