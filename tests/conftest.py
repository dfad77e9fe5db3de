"""Fixtures of several test packages: a finished run that tests read only, and all ways to count positives."""

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder of a run of two epochs, evaluated."""
    from concordet.engine import train

    from .trained import tiny

    return train(tiny(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module", params=["tree", "pairs", "loops"])
def positives_by(request):
    """How the exact method counts: with a wavelet tree of the positives, the matrix of their pairs, or Numba's loops.

    By default it depends on what is installed and, without Numba, on the number of positives, and tests have few.
    """
    from concordet.ranking import exact
    from concordet.ranking.backend_torch import use_backend

    if request.param == "loops":
        pytest.importorskip("numba", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch, use_backend("numba" if request.param == "loops" else "torch"):
        patch.setattr(exact, "MAX_PAIRWISE_POSITIVES", 0 if request.param == "tree" else 1 << 30)
        yield request.param
