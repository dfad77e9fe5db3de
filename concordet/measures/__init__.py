"""How well scores and IoUs agree, from arrays or from files; nothing here imports torch or a loss.

Functions of arrays return a report with ``value``, ``reason`` (why the value is None) and, if it is an average over
groups, the values of the groups; :class:`Value` and :class:`Inconsistency` are tuples. Functions of files return plain
JSON (:func:`evaluate_detections`, :func:`compare`, ``Analysis.to_dict()``), in which ``reasons`` explains each None.
"""

from importlib import import_module
from importlib.util import find_spec

from concordet.errors import requires

with requires("concordet.measures", "measures"):
    if find_spec("hotcoco") is None:  # needed only when files are read; if it is missing, the error comes now
        import_module("hotcoco")
    from concordet.measures.analysis import Analysis, analyze, evaluate_detections
    from concordet.measures.calibration import (
        CalibrationReport,
        Inconsistency,
        average_inconsistency,
        detection_ece,
        localization_aware_ace,
        localization_aware_ece,
        object_calibration_error,
    )
    from concordet.measures.compare import compare
    from concordet.measures.correlation import (
        CorrelationReport,
        Value,
        class_correlation,
        image_correlation,
        pooled_correlation,
    )
    from concordet.measures.lrp import ClassLRP, LRPReport, lrp
    from concordet.measures.matching import MatchedDetections, match_detections

__all__ = [
    "Analysis",
    "CalibrationReport",
    "ClassLRP",
    "CorrelationReport",
    "Inconsistency",
    "LRPReport",
    "MatchedDetections",
    "Value",
    "analyze",
    "average_inconsistency",
    "class_correlation",
    "compare",
    "detection_ece",
    "evaluate_detections",
    "image_correlation",
    "localization_aware_ace",
    "localization_aware_ece",
    "lrp",
    "match_detections",
    "object_calibration_error",
    "pooled_correlation",
]
