"""Calibration: maps detection scores to the IoU to expect, without changing the order of detections within a class.

Needs NumPy and SciPy, and no torch.
"""

from concordet.errors import requires

with requires("concordet.calibration", "measures"):
    from concordet.calibration.calibrator import Calibrator, ClassCalibration
    from concordet.calibration.evaluation import evaluate_calibration
    from concordet.calibration.fit import Method, fit_map
    from concordet.calibration.fitting import fit_calibrator

__all__ = ["Calibrator", "ClassCalibration", "Method", "evaluate_calibration", "fit_calibrator", "fit_map"]
