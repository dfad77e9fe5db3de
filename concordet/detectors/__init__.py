"""Detectors that take any loss: ``build_detector("fcos", num_classes=3, loss="rank_sort")``."""

from concordet.detectors.build import build_detector, list_detectors

__all__ = ["build_detector", "list_detectors"]
