"""One finished run that tests read and never write."""

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder of a run of two epochs, evaluated."""
    from concordet.engine import train

    from .trained import tiny

    return train(tiny(), tmp_path_factory.mktemp("runs") / "finished")
