"""Detections in image and video files, as COCO results and as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concordet.engine.detections import coco_results
from concordet.engine.evaluation import Counted, progress
from concordet.engine.predictor import DEFAULT_THRESHOLD, Predictor, Threshold, find_images, load
from concordet.engine.video.frames import is_video, read_frames, read_video, written_frames
from concordet.errors import UsageError
from concordet.files import free_name, read_json, replacing, writable, write_json


@dataclass(frozen=True)
class PredictionResult:
    """Result of :func:`predict`.

    Attributes:
        results: COCO results, with each image's ``file_name`` added.
        images: Number of images and frames of videos read.
        unreadable: Files skipped, with the reason.
        pictures: Files drawn.
        drawn: Number of detections drawn.
        drawn_from: Score from which detections were drawn, in words.
        calibrated: Whether scores are calibrated.
    """

    results: list[dict[str, Any]]
    images: int
    unreadable: dict[str, str]
    pictures: list[Path]
    drawn: int = 0
    drawn_from: str = ""
    calibrated: bool = False


def image_ids(paths: Sequence[Path], annotations: str | Path | None = None) -> list[int]:
    """Ids of images from the entries with their file names in a COCO file, or 1, 2, ... without a file.

    Raises:
        ValueError: the file does not list an image, or lists a name twice.
    """
    if annotations is None:
        return list(range(1, len(paths) + 1))
    content = read_json(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{annotations} must list images, got none; name a COCO annotation file")
    known: dict[str, int] = {}
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("id"), int):
            raise ValueError(f"{annotations}: images must have a whole number id, got {image}; correct it")
        name = Path(str(image.get("file_name", ""))).name
        if name in known:
            raise ValueError(f"{annotations}: file names must differ, got {name} twice; rename one of the images")
        known[name] = image["id"]
    missing = [path for path in paths if path.name not in known]
    if missing:
        raise ValueError(
            f"{annotations} must list every image, got none named {missing[0].name}; leave it out, or name another file"
        )
    return [known[path.name] for path in paths]


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    draw: str | Path | None = None,
    annotations: str | Path | None = None,
    threshold: Threshold | None = None,
    skip_unreadable: bool = True,
    accelerator: str = "auto",
    raw_scores: bool = False,
    class_agnostic: bool = False,
    every: int = 1,
    plugins: Iterable[str] | None = None,
) -> PredictionResult:
    """Runs a trained detector over image and video files.

    Args:
        checkpoint: Checkpoint file, or run folder (then its last checkpoint).
        images: Files, folders and patterns; results of a video have its ``file_name`` and ``frame``, from 0.
        out: COCO results file to write.
        draw: Folder for pictures with the detections, videos as MP4 files; if it is not empty, the next free name.
        annotations: COCO file with the ids of the images, by file name; by default they are 1, 2, ... in order.
        threshold: Lowest score of a detection in the results and the pictures, or a mapping of class names to scores.
            By default, and for classes that are not in the mapping, the results have all detections, and pictures those
            above each class's LRP-optimal threshold (0.3 without one): scores of ranking losses have no scale.
        skip_unreadable: Whether to continue after an image that cannot be read.
        accelerator: Device: cpu, gpu, or auto, which uses a GPU if there is one.
        raw_scores: Whether to write the detector's own scores instead of calibrated ones.
        class_agnostic: Whether NMS compares boxes of different classes.
        every: Interval between the frames of a video that are read; 1 reads every frame.
        plugins: Python files or modules that register the loss of the run; by default those of its ``config.yaml``.

    Returns:
        Results, pictures, and files that could not be read.

    Raises:
        ValueError: there is no checkpoint or no image, or no image can be read; nothing is written then.

    Example:
        >>> result = predict("runs/first", ["photos"], out="detections.json", accelerator="cpu")
        >>> result.images, result.unreadable, sorted(result.results[0])
        (4, {}, ['bbox', 'category_id', 'file_name', 'image_id', 'score'])
    """
    paths = find_images(images, videos=annotations is None)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}; 1 takes every frame")
    ids = None if annotations is None else image_ids(paths, annotations)
    if out is not None:
        writable(Path(out).parent)
    predictor = load(
        checkpoint, accelerator=accelerator, plugins=plugins, raw_scores=raw_scores, class_agnostic=class_agnostic
    )
    work = _Work(predictor, threshold, None if draw is None else _folder(Path(draw)), every)
    unreadable: dict[str, str] = {}
    for index, path in enumerate(progress(paths, "detecting")):
        try:
            # boxes of a COCO file are in pixels as stored; otherwise images are turned upright
            work.file(path, None if ids is None else ids[index])
        except (ValueError, OSError) as error:
            if not skip_unreadable or isinstance(error, UsageError):
                raise
            unreadable[str(path)] = str(error)
    if len(unreadable) == len(paths):
        raise ValueError(f"no image can be read ({next(iter(unreadable.values()))}); name other files")
    if out is not None:
        write_json(out, work.results, indent=None)
    if threshold is not None and not isinstance(threshold, Mapping):
        drawn_from = f"with a score of at least {float(threshold):g}"
    else:
        drawn_from = (
            "above the threshold of their class"
            if predictor.advised
            else f"with a score of at least {DEFAULT_THRESHOLD:g}"
        )
    calibrated = predictor.calibrated
    return PredictionResult(work.results, work.images, unreadable, work.pictures, work.drawn, drawn_from, calibrated)


@dataclass
class _Work:
    """Detects in one file after the other, and collects the results.

    Attributes:
        predictor, threshold, every: As in :func:`predict`.
        folder: Folder for pictures, or None.
        results, images, pictures, drawn: As in :class:`PredictionResult`.
        last_id: Last image id that was counted.
    """

    predictor: Predictor
    threshold: Threshold | None
    folder: Path | None
    every: int
    results: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    pictures: list[Path] = field(default_factory=list)
    drawn: int = 0
    last_id: int = 0

    def file(self, path: Path, image_id: int | None) -> None:
        """Detects in an image or in the frames of a video; without an id, images are numbered."""
        from concordet.images import read_rgb

        if is_video(path):
            self._video(path)
            return
        self.last_id += 1
        number = self.last_id if image_id is None else image_id
        picture = self._image(read_rgb(path, turn=image_id is None), number, {"file_name": path.name})
        if picture is not None and self.folder is not None:
            target = free_name(self.folder / f"{path.stem}.png")  # files of several folders may share a name
            with replacing(target) as temporary:
                picture.save(temporary)
            self.pictures.append(target)

    def _image(self, image: Any, image_id: int, names: dict[str, Any]) -> Any | None:
        """The image with its detections, or None if no pictures are written."""
        detection = self.predictor.detect(image, threshold=self.threshold)
        self.images += 1
        self.results += [row | names for row in coco_results([detection], [image_id], self.predictor.category_ids)]
        if self.folder is None:
            return None
        shown = self.predictor.visible(detection, self.threshold)
        self.drawn += len(shown["scores"])
        return self.predictor.draw(image, shown, threshold=0.0)

    def _video(self, path: Path) -> None:
        video = read_video(path)
        with ExitStack() as stack:
            write = None
            if self.folder is not None:
                target = free_name(self.folder / f"{path.stem}.mp4")
                write = stack.enter_context(written_frames(target, rate=video.rate / self.every, size=video.size))
                self.pictures.append(target)
            total = -(-video.frames // self.every)
            for number, frame in progress(Counted(read_frames(path, every=self.every), total), path.name):
                self.last_id += 1
                picture = self._image(frame, self.last_id, {"file_name": path.name, "frame": number})
                if write is not None and picture is not None:
                    write(picture)


def _folder(path: Path) -> Path:
    """The folder, or the next free name if it is not empty, so that pictures of two runs do not mix."""
    if path.is_dir() and any(path.iterdir()):
        path = free_name(path)
    path.mkdir(parents=True, exist_ok=True)
    return writable(path)
