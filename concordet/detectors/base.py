"""torchvision's detection convention, which every detector here follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from concordet.assigned import Assigned
from concordet.detectors.parts.records import mean_count, merge_records
from concordet.detectors.parts.resize import Resize
from concordet.detectors.parts.targets import Target, checked_targets
from concordet.losses.criteria import Criterion, StagedCriterion

Detections = list[dict[str, Tensor]]


class Detector(nn.Module, ABC):
    """A detector in torchvision's convention: losses in training mode, detections in evaluation mode.

    In training mode ``model(images, targets)`` returns named losses; in evaluation mode ``model(images)`` returns
    detections.  :meth:`losses_and_detections` gives both of one forward pass, :meth:`assigned` the predictions with
    their objects, from which measures such as beta_img are taken.

    In evaluation mode what comes out for an image does not depend on the batch that it is in: the images that are
    padded to the same size, a multiple of the network's strides, go through the network together, and none is padded to
    the size of a larger one.  (Layers treat their own padding and zeros in their input differently, so that wider
    padding would change predictions near the border.)  In training mode a batch is one tensor.

    A subclass has ``_predict``, the forward pass of one tensor, and makes ``_detections`` and ``_records`` of its
    outcome.  A record's normalizer is the count of its own batch; this class averages it over processes.
    """

    resize: Resize
    transform: GeneralizedRCNNTransform
    criterion: Criterion | StagedCriterion
    num_classes: int

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
        if self.training:
            if targets is None:
                raise ValueError("in training mode a detector needs targets; call model.eval() to detect")
            return self._train(images, targets)
        places = self._groups(images)
        return _in_order(places, [self._detect([images[i] for i in group]) for group in places])

    def losses_and_detections(
        self, images: list[Tensor], targets: list[Target]
    ) -> tuple[dict[str, Tensor], Detections]:
        """Losses and detections of the same batch from one forward pass, in either mode."""
        detections, records = self._run(images, targets, trained=True, detect=True)
        return self._losses(records), detections

    def detections_and_assigned(self, images: list[Tensor], targets: list[Target]) -> tuple[Detections, list[Assigned]]:
        """What an evaluation needs, from one forward pass."""
        return self._run(images, targets, trained=False, detect=True)

    def assigned(self, images: list[Tensor], targets: list[Target]) -> list[Assigned]:
        """Predictions with the objects assigned to them, one record a stage, the final one last.

        In training mode they are what the loss sees, which may be a sample, else all that is seen at inference.
        """
        return self._run(images, targets, trained=self.training, detect=False)[1]

    def _train(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        return self._losses(self.assigned(images, targets))

    def _detect(self, images: list[Tensor]) -> Detections:
        return self._detections(self._predict(images, None), images)

    def _losses(self, records: list[Assigned]) -> dict[str, Tensor]:
        return self.criterion(records if isinstance(self.criterion, StagedCriterion) else records[-1])

    def _run(
        self, images: list[Tensor], targets: list[Target], *, trained: bool, detect: bool
    ) -> tuple[Detections, list[Assigned]]:
        """Detections, where they are wanted, and records of the batch: those of the loss, or those of a measure."""
        checked = self._checked(images, targets)
        places = [list(range(len(images)))] if self.training else self._groups(images)
        records, detections = [], []
        for group in places:
            own = [images[i] for i in group]
            outcome = self._predict(own, [checked[i] for i in group])
            records.append(self._records(outcome, trained=trained))
            if detect:
                detections.append(self._detections(outcome, own))
        counts = [len(target["labels"]) for target in targets]
        merged = [merge_records(parts, places, counts) for parts in zip(*records, strict=True)]
        averaged = [replace(record, normalizer=mean_count(record.normalizer)) for record in merged]
        return _in_order(places, detections), averaged

    def _groups(self, images: list[Tensor]) -> list[list[int]]:
        """Places of the images of each padded size."""
        shapes = {image.shape for image in images}
        if len(shapes) < 2:
            return [list(range(len(images)))]
        # the transform itself says to what size it pads; on the meta device it computes shapes alone
        padded = {shape: self.transform([torch.empty(shape, device="meta")])[0].tensors.shape for shape in shapes}
        groups: dict[torch.Size, list[int]] = {}
        for place, image in enumerate(images):
            groups.setdefault(padded[image.shape], []).append(place)
        return list(groups.values())

    def _checked(self, images: list[Tensor], targets: list[Target]) -> list[Target]:
        """Targets in the form that the network learns from; ValueError for any that it cannot."""
        return checked_targets(images, targets, self.num_classes)

    @abstractmethod
    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Any:
        """The outcome of one forward pass, whatever ``_detections`` and ``_records`` need."""

    @abstractmethod
    def _detections(self, outcome: Any, images: list[Tensor]) -> Detections:
        """Detections of each image, in its own pixels."""

    @abstractmethod
    def _records(self, outcome: Any, *, trained: bool) -> list[Assigned]:
        """One record a stage: what the loss sees, or what a measure sees."""


def _in_order(places: Sequence[Sequence[int]], parts: Sequence[Detections]) -> Detections:
    """The batch's detections from those of its groups."""
    order = [place for group in places for place in group]
    found = dict(zip(order, chain.from_iterable(parts), strict=False))  # none where detections are not wanted
    return [found[place] for place in sorted(found)]


def in_pixels(results: Detections, sizes: Sequence[tuple[int, int]], images: Sequence[Tensor]) -> Detections:
    """Detections in the images' own pixels from those at the network's input, whose ``sizes`` are (height, width)."""
    return [
        found | {"boxes": resize_boxes(found["boxes"], list(size), list(image.shape[-2:]))}
        for found, size, image in zip(results, sizes, images, strict=True)
    ]
