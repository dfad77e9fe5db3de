"""concordet: losses and measures that make a detector's confidence agree with its localisation.

The parts, in the order in which they import one another:

* :mod:`concordet.ranking` -- exact ranking quantities in near-linear time;
* :mod:`concordet.losses` -- every loss, as a function, as a module and by name;
* :mod:`concordet.detectors` -- detectors that take any of them;
* :mod:`concordet.engine` -- training, evaluation, prediction;
* :mod:`concordet.measures`, :mod:`concordet.data` -- beside them, importing no loss.
"""

from concordet.version import __version__

__all__ = ["__version__"]
