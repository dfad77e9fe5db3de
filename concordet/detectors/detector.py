"""torchvision's detection convention, which every detector here follows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Target = dict[str, Any]
Detections = list[dict[str, Tensor]]


class Detector(nn.Module):
    """A detector in torchvision's convention: losses in training mode, detections in evaluation mode.

    A subclass says how with ``_train(images, targets)`` and ``_detect(images)``.
    """

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> dict[str, Tensor] | Detections:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: float ``[3, h, w]`` in [0, 1] each, of any size.
            targets: one an image, in training: ``boxes`` ``[m, 4]`` xyxy in the image's pixels, ``labels`` ``[m]``
                1..num_classes, optionally ``ignored_boxes`` ``[k, 4]``.

        Returns:
            Named, weighted 0-dim terms, or for each image ``boxes`` ``[k, 4]``, ``labels`` ``[k]``, ``scores`` ``[k]``
            in descending order of score.

        Raises:
            ValueError: for targets that are missing or malformed.
        """
        if not self.training:
            return self._detect(images)
        if targets is None:
            raise ValueError("in training mode a detector needs targets; call model.eval() to detect")
        return self._train(images, targets)

    def _train(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _detect(self, images: list[Tensor]) -> Detections:
        raise NotImplementedError
