"""How well scores and IoUs agree, from arrays or from files; nothing here imports torch or a loss."""

from concordet.measures.analysis import Analysis, analyze, evaluate_detections
from concordet.measures.compare import compare
from concordet.measures.correlation import (
    CorrelationReport,
    class_correlation,
    image_correlation,
    pooled_correlation,
)
from concordet.measures.inconsistency import average_inconsistency
from concordet.measures.lrp import ClassLRP, LRPReport, lrp
from concordet.measures.matching import MatchedDetections, match_detections

__all__ = [
    "Analysis",
    "ClassLRP",
    "CorrelationReport",
    "LRPReport",
    "MatchedDetections",
    "analyze",
    "average_inconsistency",
    "class_correlation",
    "compare",
    "evaluate_detections",
    "image_correlation",
    "lrp",
    "match_detections",
    "pooled_correlation",
]
