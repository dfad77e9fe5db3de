"""concordet: losses and measures that make a detector's confidence agree with its localization.

The parts, in the order in which they import one another:

* :mod:`concordet.ranking` -- exact ranking quantities in near-linear time;
* :mod:`concordet.losses` -- every loss, as a function, as a module and by name;
* :mod:`concordet.detectors` -- detectors that take any of them;
* :mod:`concordet.engine` -- training, evaluation, prediction;
* :mod:`concordet.measures`, :mod:`concordet.data` -- beside them, importing no loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from concordet.errors import requires
from concordet.version import __version__

if TYPE_CHECKING:
    from concordet.engine.predictor import Predictor, load

__all__ = ["Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in ("Predictor", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires(f"concordet.{name}", "train"):
        return getattr(import_module("concordet.engine.predictor"), name)
