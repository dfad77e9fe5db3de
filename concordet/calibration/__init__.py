"""Calibration: scores that say how well a box lies, in the order that they had.

Needs NumPy and SciPy, and no torch.
"""

from concordet.errors import requires

with requires("concordet.calibration", "measures"):
    from concordet.calibration.calibrator import Calibrator, ClassCalibration
    from concordet.calibration.evaluation import evaluate_calibration
    from concordet.calibration.fit import Method, fit_map
    from concordet.calibration.fitting import fit_calibrator

__all__ = ["Calibrator", "ClassCalibration", "Method", "evaluate_calibration", "fit_calibrator", "fit_map"]
