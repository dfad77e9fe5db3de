"""Detectors that take any loss: ``build_detector("fcos", num_classes=3, loss="ap")``, ``install(yours, "ap")``."""

from concordet.errors import requires

with requires("concordet.detectors", "detectors"):
    from concordet.detectors.adapters.registry import install, installed_criterion, list_installable, uninstall
    from concordet.detectors.architectures.architecture import Architecture
    from concordet.detectors.architectures.registry import (
        build_detector,
        list_detectors,
        predicts_masks,
        register_detector,
    )
    from concordet.detectors.base import Detector
    from concordet.detectors.parts.resize import Resize

__all__ = [
    "Architecture",
    "Detector",
    "Resize",
    "build_detector",
    "install",
    "installed_criterion",
    "list_detectors",
    "list_installable",
    "predicts_masks",
    "register_detector",
    "uninstall",
]
