"""Detectors that take any loss: ``build_detector("fcos", num_classes=3, loss="ap")``, ``install(yours, "ap")``."""

from concordet.detectors.build import build_detector, list_detectors, predicts_masks
from concordet.detectors.install import install, installed_criterion, list_installable, uninstall

__all__ = [
    "build_detector",
    "install",
    "installed_criterion",
    "list_detectors",
    "list_installable",
    "predicts_masks",
    "uninstall",
]
