"""A trained detector as a function of images."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from concordet.calibration import Calibrator
from concordet.engine.calibration import NAME as CALIBRATOR
from concordet.engine.calibration import carried_calibrator
from concordet.engine.checkpoint import checkpoint_path, load_detector, run_of
from concordet.engine.config import load_config
from concordet.engine.evaluation import pick_device
from concordet.engine.plugins import import_plugins
from concordet.files import read_json

DEFAULT_THRESHOLD = 0.3
"""Lowest score of a drawn detection where no evaluation advises one."""


class Predictor:
    """A detector that takes images or file names.

    Args:
        model: Detector of :mod:`concordet.detectors`.
        class_names: Name of each class, in the order of labels from 1.
        category_ids: Id of each class in the data set, in the same order.
        thresholds: ``[c]`` lowest score of a drawn detection per class, in the same order; 0.3 by default.
        device: Device of the model; by default a GPU where there is one.
        calibrator: Calibrator of the scores, whose class ids are the category ids; None leaves them as they are.

    Attributes:
        advised: Whether the thresholds are those that an evaluation found best (LRP).

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
    ) -> None:
        self.device = device or pick_device()
        self.model = model.to(self.device).eval()
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.calibrator = calibrator
        self.advised = thresholds is not None
        self.thresholds = torch.tensor(thresholds or [DEFAULT_THRESHOLD] * len(self.class_names), dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, images: Any, *, threshold: float | None = None) -> list[dict[str, Tensor]]:
        """Detections in each image.

        Args:
            images: An image or a sequence of them, each a file name, a Pillow image, an array ``[h, w, 3]`` or a tensor
                ``[3, h, w]``; numbers are 0..255 in integer types and 0..1 in floating-point types, channels RGB.  A
                folder or a pattern stands for the images in it, sorted by name.
            threshold: Lowest score of a returned detection; by default all are returned.

        Returns:
            Per image a dict on the CPU: ``boxes`` ``[k, 4]`` xyxy in pixels, ``labels`` ``[k]`` from 1, ``scores``
            ``[k]`` in descending order, and ``masks`` ``[k, 1, h, w]`` where the detector predicts them.

        Raises:
            ValueError: an image does not exist or cannot be read.
        """
        return [self.detect(image, threshold=threshold) for image in _each(images)]

    @torch.no_grad()
    def detect(self, image: Any, *, threshold: float | None = None) -> dict[str, Tensor]:
        """Detections in one image; arguments and result are those of calling the predictor."""
        (detection,) = self.model([to_tensor(image).to(self.device)])
        detection = {name: value.cpu() for name, value in detection.items()}
        if self.calibrator is not None:
            detection = self.calibrator.apply(detection, labels=dict(enumerate(self.category_ids, 1)))
            order = detection["scores"].argsort(descending=True, stable=True)  # classes have maps of their own
            detection = {name: value[order] for name, value in detection.items()}
        return detection if threshold is None else _above(detection, detection["scores"] >= threshold)

    def draw(self, image: Any, detection: Mapping[str, Tensor] | None = None, *, threshold: float | None = None) -> Any:
        """A copy of an image with detections drawn on it, as a Pillow image.

        Args:
            image: Image in one of the forms that calling the predictor takes.
            detection: Detections in it; by default they are computed.
            threshold: Lowest score of a drawn detection; by default :attr:`thresholds`, which differ per class.
        """
        from concordet.report import draw_detections

        image = _pillow(image)
        detection = self.detect(image) if detection is None else detection
        shown = self.visible(detection, threshold)
        return draw_detections(image, shown, class_names=self.class_names, score_threshold=0.0)

    def visible(self, detection: Mapping[str, Tensor], threshold: float | None = None) -> dict[str, Tensor]:
        """The detections that :meth:`draw` draws."""
        lowest = self.thresholds[detection["labels"] - 1] if threshold is None else threshold
        return _above(detection, detection["scores"] >= lowest)


def load(
    path: str | Path,
    *,
    checkpoint: str = "last",
    averaged: bool = True,
    accelerator: str = "auto",
    plugins: Sequence[str] | None = None,
    raw_scores: bool = False,
) -> Predictor:
    """A predictor from a run folder or a checkpoint.

    Args:
        path: Run folder, or checkpoint file, which may lie anywhere.
        checkpoint: Checkpoint of a run folder: last or best.
        averaged: Whether to use the averaged (EMA) weights where there are some.
        accelerator: Device: cpu, gpu, or auto, which takes a GPU where there is one.
        plugins: Python files or modules that register the loss of the run; by default those of its ``config.yaml``.
        raw_scores: Whether to give the detector's own scores.  By default they are calibrated where the checkpoint or
            its run folder has a calibrator: a score is then the IoU to expect.

    Returns:
        A function of images, with the run's class names, calibrator and score thresholds.

    Raises:
        ValueError: there is no checkpoint, or it is not one of concordet.

    Example:
        >>> predictor = load("runs/first", accelerator="cpu")
        >>> (detection,) = predictor("photos/0.png")
        >>> sorted(detection)
        ['boxes', 'labels', 'scores']
        >>> predictor.draw("photos/0.png").save("drawn.png")
    """
    file = checkpoint_path(path, checkpoint)
    run = run_of(path)
    import_plugins(plugins if plugins is not None or run is None else load_config(run / "config.yaml").plugins)
    model, meta = load_detector(file, averaged=averaged)
    calibrator = None if raw_scores else carried_calibrator(meta, run)
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
    )


def known_thresholds(meta: Mapping[str, Any], run: Path | None) -> list[float] | None:
    """The threshold per class that an evaluation found best: the checkpoint's own, else that of its run folder.

    Classes for which LRP has no threshold keep 0.3.  None where nothing was evaluated.
    """
    thresholds = meta.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != len(meta["category_ids"]):
        if run is None or not (run / "evaluation.json").is_file():
            return None
        evaluation = read_json(run / "evaluation.json")
        if (run / CALIBRATOR).is_file():
            return None  # the thresholds of that evaluation are of calibrated scores
        rows = evaluation.get("per_class", []) if isinstance(evaluation, dict) else []
        by_id = {row.get("id"): row.get("lrp_threshold") for row in rows if isinstance(row, dict)}
        thresholds = [by_id.get(category) for category in meta["category_ids"]]
    return [
        float(value) if isinstance(value, int | float) and 0 <= value <= 1 else DEFAULT_THRESHOLD
        for value in thresholds
    ]


def find_images(names: Sequence[str | Path]) -> list[Path]:
    """Image files among files, folders (searched within) and patterns, sorted, each once.

    Raises:
        ValueError: a name does not exist, or there are no images.
    """
    from concordet.data.images import SUFFIXES

    paths: list[Path] = []
    for name in map(str, names):
        path = Path(name)
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES]
            if not inside:
                raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}), got none; name another folder")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            matches = [Path(match) for match in glob.glob(name, recursive=True)]
            if not matches:
                raise ValueError(f"images must be files, folders or patterns, got {name}, which matches none; check it")
            paths += [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    unique = sorted(set(paths))
    if not unique:
        raise ValueError(f"images must be in {', '.join(map(str, names))}, got none; name other files")
    return unique


def to_tensor(image: Any) -> Tensor:
    """An image as float ``[3, h, w]`` in [0, 1].

    Raises:
        ValueError: it has another shape.

    Example:
        >>> to_tensor(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    if isinstance(image, str | Path) or hasattr(image, "convert"):
        array = torch.from_numpy(np.array(_pillow(image))).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        array = image
    else:
        array = torch.from_numpy(np.array(image))  # a copy: PyTorch warns of arrays that cannot be written
        array = array.permute(2, 0, 1) if array.ndim == 3 else array
    if array.ndim != 3 or array.shape[0] != 3 or 0 in array.shape:
        raise ValueError(
            f"images must be arrays [h, w, 3] or tensors [3, h, w], got shape {tuple(array.shape)}; convert them to RGB"
        )
    return array.float() if array.is_floating_point() else array.float().div_(255)


def _pillow(image: Any) -> Any:
    from PIL import Image

    from concordet.data.images import read_rgb

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


def _above(detection: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    return {name: value[kept] for name, value in detection.items()}
