"""The base class of detectors: torchvision's convention, batches, records."""

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
from concordet.detectors.parts.postprocess import PostProcess
from concordet.detectors.parts.records import mean_count, merge_records
from concordet.detectors.parts.resize import Resize
from concordet.detectors.parts.targets import Target, checked_targets
from concordet.losses.criteria import Criterion, StagedCriterion

Detections = list[dict[str, Tensor]]


class Detector(nn.Module, ABC):
    """A detector in torchvision's convention: losses in training mode, detections in evaluation mode.

    In training mode ``model(images, targets)`` returns named losses; in evaluation mode ``model(images)`` returns
    detections. :meth:`losses_and_detections` returns both from one forward pass, :meth:`assigned` the predictions with
    their objects, from which measures such as beta_img are computed.

    In evaluation mode the detections of an image do not depend on the other images of its batch: images that are
    padded to the same size, a multiple of the network's strides, go through the network together, and none is padded to
    the size of a larger one. (Layers treat their own padding and zeros in their input differently, so that wider
    padding would change predictions near the border.)  In training mode a batch is one tensor.

    A subclass implements ``_predict``, the forward pass of one tensor, and turns its outcome into ``_detections`` and
    ``_records``. The normalizer of a record is the count in its own batch; this class averages it over processes.

    Attributes:
        resize: How images are resized for the network.
        transform: torchvision's transform, which resizes, normalizes and pads.
        criterion: Loss of one stage, or of several.
        num_classes: Foreground classes; labels outside are 1..num_classes.
        postprocess: Thresholds of detections.
        ignore_regions: Whether predictions inside ``target["ignored_boxes"]`` are neither positive nor negative.

    Example:
        >>> from concordet.detectors import build_detector
        >>> model = build_detector("atss", num_classes=3, size="nano")
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        >>> losses, detections = model.losses_and_detections([torch.rand(3, 64, 64)], [target])
        >>> sorted(losses), sorted(detections[0])
        (['box', 'classification', 'quality'], ['boxes', 'labels', 'scores'])
    """

    resize: Resize
    transform: GeneralizedRCNNTransform
    criterion: Criterion | StagedCriterion
    num_classes: int
    postprocess: PostProcess
    ignore_regions: bool

    def _set_up(
        self, criterion: Criterion | StagedCriterion, *, num_classes: int, resize: Resize, ignore_regions: bool
    ) -> None:
        """Sets the attributes that all flows share."""
        self.resize = resize
        self.transform = resize.transform()
        self.criterion = criterion
        self.num_classes = num_classes
        self.ignore_regions = ignore_regions

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> dict[str, Tensor] | Detections:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: Float tensors ``[3, h, w]`` in [0, 1], of any sizes.
            targets: One per image, required in training: ``boxes`` ``[m, 4]`` xyxy in pixels of the image, ``labels``
                ``[m]`` 1..num_classes, optionally ``ignored_boxes`` ``[k, 4]`` and ``masks`` ``[m, h, w]`` uint8.

        Returns:
            In training, named and weighted 0-dim terms whose sum is the loss. In evaluation, per image ``boxes``
            ``[k, 4]``, ``labels`` ``[k]`` and ``scores`` ``[k]`` in descending order of score; ``masks``
            ``[k, 1, h, w]`` in [0, 1] from detectors that predict them.

        Raises:
            ValueError: If targets are missing or malformed.
        """
        if self.training:
            if targets is None:
                raise ValueError("targets must be given in training mode; call model.eval() to detect")
            return self._train(images, targets)
        groups = self._groups(images)
        return _in_order(groups, [self._detect([images[i] for i in group]) for group in groups])

    def losses_and_detections(
        self, images: list[Tensor], targets: list[Target]
    ) -> tuple[dict[str, Tensor], Detections]:
        """Losses and detections of the same batch from one forward pass, in either mode; see :meth:`forward`."""
        detections, records = self._run(images, targets, trained=True, detect=True)
        return self.losses(records), detections

    def detections_and_assigned(self, images: list[Tensor], targets: list[Target]) -> tuple[Detections, list[Assigned]]:
        """Detections and :meth:`assigned` records from one forward pass, as an evaluation needs them."""
        return self._run(images, targets, trained=False, detect=True)

    def assigned(self, images: list[Tensor], targets: list[Target]) -> list[Assigned]:
        """Predictions with the objects assigned to them, one record per stage, the final one last.

        In training mode these are the predictions that the loss is computed on, which may be a sample; in evaluation
        mode all predictions that detections are selected from.
        """
        return self._run(images, targets, trained=self.training, detect=False)[1]

    def losses(self, records: list[Assigned]) -> dict[str, Tensor]:
        """Named and weighted terms of records from :meth:`assigned` in training mode, as :meth:`forward` has them."""
        return self.criterion(records if isinstance(self.criterion, StagedCriterion) else records[-1])

    def _train(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        return self.losses(self.assigned(images, targets))

    def _detect(self, images: list[Tensor]) -> Detections:
        return self._detections(self._predict(images, None), images)

    def _run(
        self, images: list[Tensor], targets: list[Target], *, trained: bool, detect: bool
    ) -> tuple[Detections, list[Assigned]]:
        """Detections (with ``detect``) and records of the batch, for the loss (``trained``) or for measures."""
        checked = self._checked(images, targets)
        groups = [list(range(len(images)))] if self.training else self._groups(images)
        records, detections = [], []
        for group in groups:
            own = [images[i] for i in group]
            outcome = self._predict(own, [checked[i] for i in group])
            records.append(self._records(outcome, trained=trained))
            if detect:
                detections.append(self._detections(outcome, own))
        counts = [len(target["labels"]) for target in targets]
        merged = [merge_records(parts, groups, counts) for parts in zip(*records, strict=True)]
        averaged = [replace(record, normalizer=mean_count(record.normalizer)) for record in merged]
        return _in_order(groups, detections), averaged

    def _groups(self, images: list[Tensor]) -> list[list[int]]:
        """Indices of the images of each padded size."""
        shapes = {image.shape for image in images}
        if len(shapes) < 2:
            return [list(range(len(images)))]
        # the transform itself pads; on the meta device it computes shapes only
        padded = {shape: self.transform([torch.empty(shape, device="meta")])[0].tensors.shape for shape in shapes}
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(padded[image.shape], []).append(index)
        return list(groups.values())

    def _checked(self, images: list[Tensor], targets: list[Target]) -> list[Target]:
        """Targets as the network is trained on them; raises ValueError for malformed ones."""
        return checked_targets(images, targets, self.num_classes)

    @abstractmethod
    def _predict(self, images: list[Tensor], targets: list[Target] | None) -> Any:
        """The outcome of one forward pass: everything that ``_detections`` and ``_records`` need."""

    @abstractmethod
    def _detections(self, outcome: Any, images: list[Tensor]) -> Detections:
        """Detections of each image, in its own pixels."""

    @abstractmethod
    def _records(self, outcome: Any, *, trained: bool) -> list[Assigned]:
        """One record per stage, for the loss (``trained``) or for measures."""


def _in_order(groups: Sequence[Sequence[int]], detections: Sequence[Detections]) -> Detections:
    """Detections in the order of the batch, from those of groups of its images."""
    order = [index for group in groups for index in group]
    by_index = dict(zip(order, chain.from_iterable(detections), strict=False))  # no detections without ``detect``
    return [by_index[index] for index in sorted(by_index)]


def in_pixels(results: Detections, sizes: Sequence[tuple[int, int]], images: Sequence[Tensor]) -> Detections:
    """Detections in pixels of the images, from those at the network's input, whose ``sizes`` are (height, width)."""
    return [
        result | {"boxes": resize_boxes(result["boxes"], list(size), list(image.shape[-2:]))}
        for result, size, image in zip(results, sizes, images, strict=True)
    ]
