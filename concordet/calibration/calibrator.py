"""Calibrators: a map per class from scores to expected IoUs, saved as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from concordet.calibration.maps import MAPS, Identity, Isotonic, Map, strictly_increasing
from concordet.files import read_json, write_json
from concordet.measures.reading.arrays import Floats, Ints, is_integer, is_number, to_numpy
from concordet.version import __version__

FORMAT: Final = "concordet calibrator"
VERSION: Final = 1


@dataclass(frozen=True)
class ClassCalibration:
    """The calibration of one class.

    Attributes:
        name: name of the class.
        map: map of its scores.
        n_detections: detections that the map was fitted on.
        n_matched: how many of them are matched to an object.
        threshold: LRP-optimal threshold of the calibrated score, in [0, 1]; None where the class has none.
        reason: why the class uses the shared map; None if it has its own.

    Example:
        >>> from concordet.calibration import ClassCalibration, fit_map
        >>> scores, ious = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
        >>> entry = ClassCalibration("cat", fit_map(scores, ious, method="linear"), n_detections=3)
        >>> entry.map(np.array([0.15])).round(3)
        array([0.55])
    """

    name: str
    map: Map
    n_detections: int = 0
    n_matched: int = 0
    threshold: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Calibrator:
    """Replaces scores by the IoU to expect, and keeps the order of detections within each class.

    Every map is strictly increasing in float64, so that average precision, matches and LRP do not change at all;
    :meth:`apply` says what holds for tensors in float32. Created by :func:`concordet.calibration.fit_calibrator`.

    Attributes:
        method: method that fitted the maps, such as ``"isotonic"``.
        classes: class id to its calibration.
        shared: map fitted on all classes together, for classes without their own.
        fit: what the maps were fitted on (numbers of images, detections, matches and objects), as plain JSON.

    Example:
        >>> from concordet.calibration.maps import Linear
        >>> calibrator = Calibrator("linear", {1: ClassCalibration("cat", Linear(0.5, 0.0))}, Linear(1.0, 0.0))
        >>> round(calibrator.apply([{"category_id": 1, "score": 0.8}])[0]["score"], 3)
        0.4
    """

    method: str
    classes: Mapping[int, ClassCalibration]
    shared: Map = field(default_factory=Identity)
    fit: Mapping[str, Any] = field(default_factory=dict)

    def calibrate(self, scores: Floats, class_ids: Ints) -> Floats:
        """Calibrated scores from arrays of scores and classes.

        Args:
            scores: ``[n]`` in [0, 1].
            class_ids: ``[n]`` class of each; a class that was not part of the fit gets the shared map.

        Returns:
            ``[n]`` float64, in the order of ``scores`` within each class, equal where those are equal.

        Raises:
            ValueError: for a score outside [0, 1], or where scores and classes differ in number.
        """
        scores, class_ids = _columns(scores, class_ids)
        result = np.empty(len(scores))
        order = np.argsort(class_ids, kind="stable")
        ids, starts = np.unique(class_ids[order], return_index=True)
        for ident, rows in zip(ids.tolist(), np.split(order, starts[1:]), strict=bool(len(ids))):
            entry = self.classes.get(ident)
            class_scores = scores[rows]
            fitted = self.shared if entry is None else entry.map
            result[rows] = strictly_increasing(class_scores, fitted(class_scores))
        return result

    def apply(self, detections: Any, *, labels: Mapping[int, int] | None = None) -> Any:
        """The same detections with calibrated scores; the argument is not modified.

        Args:
            detections: a list of COCO results, an array ``[n, 7]`` of image_id, x, y, width, height, score,
                category_id, one image's ``{"boxes", "labels", "scores"}`` as torchvision's detectors and Transformers'
                ``post_process_object_detection`` give them, or a list of these.
            labels: label to class id, where the detector's labels are not the class ids of the fit.

        Returns:
            The form of ``detections``. Scores of tensors keep their device; scores in half precision become float32,
            since rounding would create ties, and integers float64. Where a map is nearly flat, float32 has fewer
            numbers than it needs: scores in float32 are then raised by as little as keeps apart all detections of this
            call. Detections of different calls may tie or change places where their scores are closer than that. To
            evaluate, calibrate the list of all images in one call, or scores in float64, which need no raising.

        Raises:
            ValueError: for a score outside [0, 1], or detections of another form.
        """
        if isinstance(detections, Mapping):
            return self._apply_to_images([detections], labels or {})[0]
        if isinstance(detections, list | tuple):
            if all(isinstance(d, Mapping) and "scores" in d for d in detections):
                return self._apply_to_images(detections, labels or {})
            if all(isinstance(d, Mapping) and "score" in d and "category_id" in d for d in detections):
                return self._apply_to_records(detections, labels or {})
        else:
            array = np.array(to_numpy(detections), dtype=np.float64)
            if array.ndim == 2 and array.shape[1] == 7:
                array[:, 5] = self.calibrate(array[:, 5], _translated(array[:, 6].astype(np.int64), labels or {}))
                return array
        raise ValueError(
            "detections must be a list of COCO results, an array [n, 7] or dicts with boxes, labels and scores,"
            f" got {type(detections).__name__}; see Calibrator.apply"
        )

    def _apply_to_records(self, records: Any, labels: Mapping[int, int]) -> list[dict[str, Any]]:
        for index, record in enumerate(records):
            score, ident = record["score"], record["category_id"]
            if not is_number(score) and not isinstance(score, float):  # NaN and infinity are refused by their range
                raise ValueError(f"score of detection {index} (from 0) must be a number, got {score!r:.60}")
            if not is_integer(ident):
                raise ValueError(f"category_id of detection {index} (from 0) must be an integer, got {ident!r:.60}")
        scores = np.array([r["score"] for r in records], np.float64)
        ids = _translated(np.array([r["category_id"] for r in records], np.int64), labels)
        calibrated = self.calibrate(scores, ids).tolist()
        return [{**r, "score": score} for r, score in zip(records, calibrated, strict=True)]

    def _apply_to_images(self, images: Sequence[Mapping[str, Any]], labels: Mapping[int, int]) -> list[dict[str, Any]]:
        """All images together: detections are ranked across images."""
        if not images:
            return []
        pairs = [_columns(*_scores_and_labels(image, labels)) for image in images]
        scores, ids = (np.concatenate(column) for column in zip(*pairs, strict=True))
        wide = self.calibrate(scores, ids)
        narrow = wide.astype(np.float32)
        for ident in np.unique(ids):  # rounding to float32 may create ties
            rows = ids == ident
            narrow[rows] = strictly_increasing(scores[rows], narrow[rows])
        ends = np.cumsum([len(column) for column, _ in pairs])[:-1]
        results = []
        for image, own, rounded in zip(images, np.split(wide, ends), np.split(narrow, ends), strict=True):
            before = image["scores"]
            is_tensor = hasattr(before, "new_tensor")
            dtype = before.dtype if is_tensor else np.asarray(before).dtype
            calibrated: Any = rounded if "float" in str(dtype) and dtype.itemsize < 8 else own
            if is_tensor:
                import torch

                calibrated = torch.from_numpy(calibrated).to(before.device)
            results.append({**image, "scores": calibrated})
        return results

    def thresholds(self) -> dict[int, float | None]:
        """Class id to the LRP-optimal threshold of its calibrated scores; None where there is none."""
        return {ident: entry.threshold for ident, entry in self.classes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as :meth:`save` writes it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "concordet": __version__,
            "method": self.method,
            "shared": _map_to_dict(self.shared),
            "classes": [
                {
                    "id": ident,
                    "name": entry.name,
                    "n_detections": entry.n_detections,
                    "n_matched": entry.n_matched,
                    "threshold": entry.threshold,
                    "reason": entry.reason,
                    "map": None if entry.reason is not None else _map_to_dict(entry.map),
                }
                for ident, entry in self.classes.items()
            ],
            "fit": dict(self.fit),
        }

    @classmethod
    def from_dict(cls, content: Any, name: str = "the calibrator") -> Calibrator:
        """The calibrator from :meth:`to_dict`'s JSON; errors call it ``name``.

        Raises:
            ValueError: one sentence, for anything else.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"calibrator must be a file that concordet calibrate wrote, got {name}; name such a file")
        if content.get("version") != VERSION:
            raise ValueError(
                f"{name} must be of version {VERSION}, got {content.get('version')!r}; fit it again with this concordet"
            )
        try:
            shared = _map_from_dict(_value(content, "shared", dict))
            classes = {}
            for entry in _value(content, "classes", list):
                own = None if _value(entry, "map", dict | None) is None else _map_from_dict(entry["map"])
                classes[_value(entry, "id", int)] = ClassCalibration(
                    name=_value(entry, "name", str),
                    map=shared if own is None else own,
                    n_detections=_value(entry, "n_detections", int),
                    n_matched=_value(entry, "n_matched", int),
                    threshold=_value(entry, "threshold", int | float | None),
                    reason=_value(entry, "reason", str | None),
                )
            return cls(_value(content, "method", str), classes, shared, _value(content, "fit", dict))
        except ValueError as error:
            raise ValueError(f"{name} must hold whole calibration maps, got a faulty {error}; fit it again") from error

    def save(self, path: str | PathLike[str]) -> None:
        """Writes plain JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Calibrator:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: one sentence, for a file that is not a calibrator.
        """
        return cls.from_dict(read_json(Path(path)), str(path))


def raw_results(records: Any) -> Any:
    """Detections with the detector's own score, where they contain both that and a calibrated score.

    A calibrator must be fitted on the detector's scores: fitted on calibrated ones, it would not apply to the detector.

    Example:
        >>> raw_results([{"image_id": 1, "score": 0.8, "raw_score": 0.02}, {"image_id": 2, "score": 0.5}])
        [{'image_id': 1, 'score': 0.02, 'raw_score': 0.02}, {'image_id': 2, 'score': 0.5}]
    """
    if not isinstance(records, list) or not any(isinstance(r, dict) and "raw_score" in r for r in records):
        return records
    return [
        {**r, "score": r["raw_score"]} if isinstance(r, dict) and r.get("raw_score") is not None else r for r in records
    ]


def has_raw_scores(path: str | PathLike[str]) -> bool:
    """Whether a results file has the detector's own scores beside calibrated ones, as those of runs do."""
    if not Path(path).is_file() or not Path(path).stat().st_size:
        return False
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(b'"raw_score"') >= 0


def check_scores(scores: Any, file: str = "") -> Floats:
    """``[n]`` float64 scores; ValueError for one outside [0, 1], which names their file, if any."""
    column = np.asarray(scores, np.float64)
    bad = np.flatnonzero(~((column >= 0) & (column <= 1)))
    if bad.size:
        value = column[bad[0]]
        fix = "divide percentages by 100 and take the sigmoid of logits"
        where = f"{file}: " if file else ""
        raise ValueError(f"{where}scores must be in [0, 1], got {value:g} at index {bad[0]}; {fix}")
    return column


def _columns(scores: Any, class_ids: Any) -> tuple[Floats, Ints]:
    """``[n]`` float64 scores in [0, 1] and ``[n]`` classes as arrays."""
    scores, class_ids = check_scores(to_numpy(scores)), to_numpy(class_ids)
    if scores.ndim != 1 or scores.shape != class_ids.shape:
        raise ValueError(
            f"scores and class_ids must be columns of the same length, got shapes {scores.shape} and "
            f"{class_ids.shape}; give one class per score"
        )
    return scores, class_ids


def _scores_and_labels(image: Mapping[str, Any], labels: Mapping[int, int]) -> tuple[Any, Ints]:
    missing = [name for name in ("scores", "labels") if name not in image]
    if missing:
        raise ValueError(
            f"detections of an image must have scores and labels, got none named {missing[0]}; give the list under "
            "'annotations' of a COCO dict"
        )
    return image["scores"], _translated(to_numpy(image["labels"]), labels)


def _translated(labels: Ints, ids: Mapping[int, int]) -> Ints:
    return np.array([ids.get(label, label) for label in labels.tolist()], np.int64) if ids else labels


def _map_to_dict(fitted: Map) -> dict[str, Any]:
    return {"kind": fitted.name, **fitted.to_dict()}


def _map_from_dict(content: dict[str, Any]) -> Map:
    name = _value(content, "kind", str)
    map_type = MAPS.get(name)
    keys = () if map_type is None else tuple(key for key in map_type.__annotations__ if key != "name")
    if map_type is None or set(content) != {"kind", *keys}:
        raise ValueError(f"kind must be one of {', '.join(MAPS)} with its own numbers, got {name!r:.60}")
    if map_type is Isotonic:
        return Isotonic(**{key: tuple(_numbers(content, key)) for key in keys})
    return map_type(**{key: _number(content, key) for key in keys})


def _number(content: Any, key: str) -> float:
    return float(_value(content, key, int | float))


def _numbers(content: Any, key: str) -> list[float]:
    values = _value(content, key, list)
    if not all(map(is_number, values)):
        raise ValueError(repr(key))
    return [float(value) for value in values]


def _value(content: Any, key: str, expected: Any) -> Any:
    """The value of a key; ValueError with the key if it is missing, of another type or not a finite number."""
    missing = object()
    value = content.get(key, missing) if isinstance(content, dict) else missing
    if not isinstance(value, expected):
        raise ValueError(repr(key))
    if isinstance(value, int | float) and not (is_integer if expected is int else is_number)(value):
        raise ValueError(repr(key))
    return value
