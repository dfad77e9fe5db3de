"""The description of a detector that its file registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchvision.models import WeightsEnum

from concordet.detectors.base import Detector
from concordet.detectors.networks.backbones import Size
from concordet.detectors.networks.weights import load_weights
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.resize import Resize
from concordet.losses.criteria import LossDefaults, StagedCriterion

KEEP_SHAPE = Resize.within(800, 1333)
NANO_SIZE = (240, 320)


@dataclass(frozen=True)
class Architecture:
    """A detector as :func:`~concordet.detectors.build_detector` builds it.

    Attributes:
        build: Function of (criterion, num_classes=, size=, backbone=, pretrained=, resize=, postprocess=,
            ignore_regions=) and of the detector's own options, which returns the detector. ``size`` is ``"full"`` or
            ``"nano"``, ``backbone`` a name or None for the detector's default, ``pretrained`` whether weights will be
            loaded.
        defaults: Terms of the loss that the detector was published with; criteria by name start from them.
        resize: How images are resized for the full-size network; for nano in the same way, to 240 x 320.
        postprocess: Thresholds.
        criterion: Function of (loss, own options) that builds the criterion of a detector with several stages; None for
            a detector with one stage.
        quality_head: The detector can have an auxiliary head (centerness or IoU).
        options: Function of ``size`` to the detector's own options and their defaults.
        load: Loads weights from a file, a folder or torchvision's enumeration.
        masks: The detector learns and predicts instance masks.

    Example:
        >>> from concordet.detectors.architectures.registry import DETECTORS
        >>> fcos = DETECTORS["fcos"]
        >>> fcos.defaults.classification, fcos.defaults.quality, fcos.resize_for("nano").size
        ('focal', 'centerness', (240, 320))
    """

    build: Callable[..., Detector]
    defaults: LossDefaults
    resize: Resize = KEEP_SHAPE
    postprocess: PostProcess = field(default_factory=PostProcess)
    criterion: Callable[..., StagedCriterion] | None = None
    quality_head: bool = False
    options: Callable[[Size], dict[str, Any]] = lambda size: {}
    load: Callable[[Detector, str | Path | WeightsEnum], None] = load_weights
    masks: bool = False

    def resize_for(self, size: Size) -> Resize:
        """The default resizing for this size."""
        return self.resize if size == "full" else self.resize.of(NANO_SIZE)
