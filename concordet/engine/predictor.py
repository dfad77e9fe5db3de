"""A trained detector as a function of images."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from concordet.calibration import Calibrator
from concordet.engine.calibration import NAME as CALIBRATOR
from concordet.engine.calibration import carried_calibrator
from concordet.engine.checkpoint import checkpoint_path, load_detector, run_of
from concordet.engine.config import load_config
from concordet.engine.detections import plain_detections, supervision_detections
from concordet.engine.evaluation import pick_device
from concordet.engine.plugins import import_plugins
from concordet.engine.video.frames import SUFFIXES as OF_VIDEOS
from concordet.errors import UsageError, unknown
from concordet.export import is_exported, load_exported
from concordet.files import read_json

DEFAULT_THRESHOLD = 0.3
"""Lowest score of a drawn detection if no evaluation has found a better threshold."""

CLASS_AGNOSTIC_IOU = 0.5
"""IoU above which class-agnostic NMS removes the lower of two boxes."""

Threshold = float | Mapping[str, float]
"""A score for all classes, or scores by class name."""


class Predictor:
    """A detector that takes images or file names.

    Args:
        model: Detector of :mod:`concordet.detectors`.
        class_names: Name of each class, in the order of labels from 1.
        category_ids: Id of each class in the data set, in the same order.
        thresholds: ``[c]`` lowest score of a drawn detection per class, in the same order; 0.3 by default.
        device: Device of the model; by default a GPU if there is one.
        calibrator: Calibrator of the scores, whose class ids are the category ids; None for uncalibrated scores.
        class_agnostic: Whether to apply another NMS at IoU 0.5 that compares boxes of different classes; detectors
            compare boxes of the same class only.

    Attributes:
        advised: Whether the thresholds are the LRP-optimal ones of an evaluation.

    Example:
        >>> from concordet.detectors import build_detector
        >>> model = build_detector("fcos", num_classes=2, size="nano")
        >>> predictor = Predictor(model, ["cat", "dog"], [1, 2], device=torch.device("cpu"))
        >>> (detection,) = predictor(torch.rand(3, 120, 160), threshold=0.3)
        >>> sorted(detection)
        ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        thresholds: Sequence[float] | None = None,
        device: torch.device | None = None,
        calibrator: Calibrator | None = None,
        class_agnostic: bool = False,
    ) -> None:
        self.device: torch.device = device or pick_device()
        self.model: nn.Module = model.to(self.device).eval()
        self.class_names: list[str] = list(class_names)
        self.category_ids: list[int] = list(category_ids)
        self.calibrator = calibrator
        self.class_agnostic = class_agnostic
        self.advised: bool = thresholds is not None
        self.thresholds: Tensor = torch.tensor(
            thresholds or [DEFAULT_THRESHOLD] * len(self.class_names), dtype=torch.float64
        )

    @torch.no_grad()
    def __call__(self, images: Any, *, threshold: Threshold | None = None) -> list[dict[str, Tensor]]:
        """Detections in each image.

        Args:
            images: An image or a sequence of them, each a file name, a Pillow image, an array ``[h, w, 3]`` or a tensor
                ``[3, h, w]``; values are 0..255 in integer types and 0..1 in floating-point types, channels RGB. A
                folder or a pattern stands for the images in it, sorted by name.
            threshold: Lowest score of a returned detection, or a mapping of class names to scores; by default, and for
                classes that are not in the mapping, all detections are returned.

        Returns:
            One dict per image, on the CPU: ``boxes`` ``[k, 4]`` xyxy in pixels, ``labels`` ``[k]`` from 1, ``scores``
            ``[k]`` in descending order (float64 if they are calibrated, except by exported files), and ``masks``
            ``[k, 1, h, w]`` if the detector predicts them.

        Raises:
            ValueError: an image does not exist or cannot be read.
        """
        return [self.detect(image, threshold=threshold) for image in _each(images)]

    @torch.no_grad()
    def detect(self, image: Any, *, threshold: Threshold | None = None) -> dict[str, Tensor]:
        """Detections in one image; see :meth:`__call__`."""
        (detection,) = self.model([to_tensor(image).to(self.device)])
        detection = {name: value.cpu() for name, value in detection.items()}
        if self.calibrator is not None:
            # in float32, detections of different images could change places
            detection["scores"] = detection["scores"].double()
            detection = self.calibrator.apply(detection, labels=dict(enumerate(self.category_ids, 1)))
            order = detection["scores"].argsort(descending=True, stable=True)  # each class has its own map
            detection = {name: value[order] for name, value in detection.items()}
        if self.class_agnostic:
            kept = nms(detection["boxes"].float(), detection["scores"].float(), CLASS_AGNOSTIC_IOU)
            detection = {name: value[kept] for name, value in detection.items()}
        return detection if threshold is None else self._above(detection, threshold, torch.zeros_like(self.thresholds))

    @property
    def calibrated(self) -> bool:
        """Whether scores are calibrated, by this predictor or in the graph of an exported file."""
        return self.calibrator is not None or bool(getattr(self.model, "calibrated", False))

    def draw(
        self, image: Any, detection: Mapping[str, Tensor] | None = None, *, threshold: Threshold | None = None
    ) -> Any:
        """A copy of an image with detections drawn on it, as a Pillow image.

        Args:
            image: Image in any form that calling the predictor accepts.
            detection: Detections in it; by default they are computed.
            threshold: Lowest score of a drawn detection, or a mapping of class names to scores; by default, and for
                classes that are not in the mapping, :attr:`thresholds`.
        """
        from concordet.report import draw_detections

        image = _pillow(image)
        detection = self.detect(image) if detection is None else detection
        shown = self.visible(detection, threshold)
        return draw_detections(image, shown, class_names=self.class_names, score_threshold=0.0)

    def visible(self, detection: Mapping[str, Tensor], threshold: Threshold | None = None) -> dict[str, Tensor]:
        """The detections that :meth:`draw` draws."""
        return self._above(detection, {} if threshold is None else threshold, self.thresholds)

    def _above(self, detection: Mapping[str, Tensor], threshold: Threshold, others: Tensor) -> dict[str, Tensor]:
        """The detections above a threshold; ``others`` ``[c]`` are thresholds of classes that a mapping lacks."""
        lowest = others.clone()
        if not isinstance(threshold, Mapping):
            lowest.fill_(_score(threshold))
        else:
            missing = [name for name in threshold if name not in self.class_names]
            if missing:
                raise UsageError(unknown("class of a threshold", missing[0], self.class_names))
            for name, score in threshold.items():
                lowest[self.class_names.index(name)] = _score(score)
        kept = detection["scores"] >= lowest.to(detection["scores"].dtype)[detection["labels"] - 1]
        return {name: value[kept] for name, value in detection.items()}

    def to_dicts(self, detection: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """One plain dict per detection: ``class``, ``label``, ``score`` and ``box`` (left, top, right, bottom).

        Example:
            >>> predictor = load("runs/first", accelerator="cpu")
            >>> (detection,) = predictor("photos/0.png")
            >>> sorted(predictor.to_dicts(detection)[0])
            ['box', 'class', 'label', 'score']
        """
        return plain_detections(detection, self.class_names)

    def to_supervision(self, detection: Mapping[str, Tensor]) -> Any:
        """The detections as ``supervision.Detections``; class ids are labels from 0, names are in ``data``.

        Raises:
            ValueError: the package supervision is not installed.
        """
        return supervision_detections(detection, self.class_names)


def load(
    path: str | Path,
    *,
    checkpoint: str = "last",
    averaged: bool = True,
    accelerator: str = "auto",
    plugins: Iterable[str] | None = None,
    raw_scores: bool = False,
    class_agnostic: bool = False,
) -> Predictor:
    """A predictor from a run folder, a checkpoint or an exported file.

    Args:
        path: Run folder, checkpoint file in any folder, or file that ``concordet export`` wrote.
        checkpoint: Checkpoint of a run folder: last or best; without a meaning for files, as are ``averaged`` and
            ``plugins`` for exported ones.
        averaged: Whether to use the averaged (EMA) weights if the checkpoint has them.
        accelerator: Device: cpu, gpu, or auto, which uses a GPU if there is one; exported files run on the CPU.
        plugins: Python files or modules that register the loss of the run; by default those of its ``config.yaml``.
        raw_scores: Whether to return the detector's own scores. By default they are calibrated if the checkpoint or its
            run folder has a calibrator: a score is then the expected IoU.
        class_agnostic: Whether NMS compares boxes of different classes.

    Returns:
        A function of images, with the run's class names, calibrator and score thresholds.

    Raises:
        ValueError: there is no checkpoint, or it is not one of concordet.
        UsageError: an exported file is to run on a GPU.

    Example:
        >>> predictor = load("runs/first", accelerator="cpu")
        >>> (detection,) = predictor("photos/0.png")
        >>> sorted(detection)
        ['boxes', 'labels', 'scores']
        >>> predictor.draw("photos/0.png").save("drawn.png")
    """
    if is_exported(path):
        if accelerator != "auto" and pick_device(accelerator).type != "cpu":
            raise UsageError(f"accelerator must be cpu for an exported file, got {accelerator}; name the run instead")
        return _load_exported(path, raw_scores=raw_scores, class_agnostic=class_agnostic)
    file = checkpoint_path(path, checkpoint)
    run = run_of(path)
    import_plugins(plugins if plugins is not None or run is None else load_config(run / "config.yaml").plugins)
    model, meta = load_detector(file, averaged=averaged)
    calibrator = None if raw_scores else carried_calibrator(meta, run, file)
    if calibrator is None:
        thresholds = known_thresholds(meta, run)
    else:
        advised = calibrator.thresholds()
        thresholds = [DEFAULT_THRESHOLD if (t := advised.get(i)) is None else t for i in meta["category_ids"]]
    return Predictor(
        model,
        meta["class_names"],
        meta["category_ids"],
        thresholds=thresholds,
        device=pick_device(accelerator),
        calibrator=calibrator,
        class_agnostic=class_agnostic,
    )


def _load_exported(path: str | Path, *, raw_scores: bool, class_agnostic: bool) -> Predictor:
    """The predictor of an exported file, whose scores are calibrated in its graph or not at all."""
    model = load_exported(path)
    if raw_scores and model.calibrated:
        raise ValueError(
            f"raw_scores must be left out for {path}, whose scores are calibrated inside; export it with --raw_scores"
        )
    meta = model.meta
    return Predictor(
        model,
        meta["class_names"],
        meta["category_ids"],
        thresholds=meta["thresholds"],
        device=torch.device("cpu"),
        class_agnostic=class_agnostic,
    )


def known_thresholds(meta: Mapping[str, Any], run: Path | None) -> list[float] | None:
    """The LRP-optimal threshold of each class, from the checkpoint or from the evaluation in its run folder.

    Classes for which LRP has no threshold have 0.3. None without an evaluation.
    """
    thresholds = meta.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != len(meta["category_ids"]):
        if run is None or not (run / "evaluation.json").is_file():
            return None
        evaluation = read_json(run / "evaluation.json")
        if (run / CALIBRATOR).is_file():
            return None  # that evaluation's thresholds are for calibrated scores
        rows = evaluation.get("per_class", []) if isinstance(evaluation, dict) else []
        by_id = {row.get("id"): row.get("lrp_threshold") for row in rows if isinstance(row, dict)}
        thresholds = [by_id.get(category) for category in meta["category_ids"]]
    return [
        float(value) if isinstance(value, int | float) and 0 <= value <= 1 else DEFAULT_THRESHOLD
        for value in thresholds
    ]


def find_images(names: Sequence[str | Path], *, videos: bool = False) -> list[Path]:
    """Sorted image files from files, folders (searched recursively) and patterns, without duplicates.

    Args:
        names: Files, folders and patterns.
        videos: Whether to include video files.

    Raises:
        ValueError: a name does not exist, or there are no images.
    """
    from concordet.images import SUFFIXES as OF_IMAGES

    suffixes = (*OF_IMAGES, *(OF_VIDEOS if videos else ()))
    paths: list[Path] = []
    for name in map(str, names):
        path = Path(name)
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in suffixes]
            if not inside:
                raise ValueError(f"{path} must hold images ({', '.join(suffixes)}), got none; name another folder")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            matches = [Path(match) for match in glob.glob(name, recursive=True)]
            if not matches:
                raise ValueError(f"images must be files, folders or patterns, got {name}, which matches none; check it")
            paths += [p for p in matches if p.is_file() and p.suffix.lower() in suffixes]
    unique = sorted(set(paths))
    if not unique:
        raise ValueError(f"images must be in {', '.join(map(str, names))}, got none; name other files")
    return unique


def _score(threshold: Any) -> float:
    """A threshold as a number; of any type of number, such as NumPy's."""
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(threshold, str) or not 0 <= value <= 1:
        raise UsageError(f"threshold must be a score from 0 to 1, got {threshold!r}; 0.5 is common")
    return value


def to_tensor(image: Any) -> Tensor:
    """An image as float ``[3, h, w]`` in [0, 1].

    Raises:
        ValueError: it has another shape.

    Example:
        >>> to_tensor(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    if isinstance(image, str | Path) or hasattr(image, "convert"):
        image = _pillow(image)
    # a copy, because PyTorch warns about read-only arrays
    array = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    shape = tuple(array.shape)
    if array.ndim == 3 and array is not image:
        array = array.permute(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or 0 in shape:
        raise ValueError(
            f"images must be arrays [h, w, 3] or tensors [3, h, w], got shape {shape}; convert them to RGB"
        )
    return array.float() if array.is_floating_point() else array.float().div_(255)


def _pillow(image: Any) -> Any:
    from PIL import Image

    from concordet.images import read_rgb

    if isinstance(image, str | Path):
        return read_rgb(Path(image), turn=True)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = to_tensor(image).mul(255).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def _each(images: Any) -> Iterator[Any]:
    single = isinstance(images, str | Path) or hasattr(images, "convert") or getattr(images, "ndim", 4) == 3
    for image in [images] if single else images:
        if isinstance(image, str | Path):
            yield from find_images([image])
        else:
            yield image
