"""Detections in image files, as COCO results and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordet.engine.detections import coco_results
from concordet.engine.evaluation import progress
from concordet.engine.predictor import DEFAULT_THRESHOLD, find_images, load
from concordet.files import free_name, read_json, replacing, writable, write_json


@dataclass(frozen=True)
class PredictionResult:
    """What :func:`predict` did.

    Attributes:
        results: COCO results, with each image's ``file_name`` added.
        images: Number of images read.
        unreadable: Files skipped, with the reason.
        pictures: Files drawn.
        drawn: Number of detections drawn.
        drawn_from: From which score detections were drawn, in words.
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
    """Each image's id: of the entry with its file name in a COCO file, or 1, 2, ... without one.

    Raises:
        ValueError: the file does not list an image, or lists its name for two.
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
    threshold: float | None = None,
    skip_unreadable: bool = True,
    accelerator: str = "auto",
    raw_scores: bool = False,
) -> PredictionResult:
    """Runs a trained detector over image files.

    Args:
        checkpoint: Checkpoint file, or run folder (then its last checkpoint).
        images: Files, folders and patterns.
        out: COCO results file to write.
        draw: Folder for pictures with the detections; the next free name is taken where it holds something.
        annotations: COCO file with the ids of the images, by file name; by default they are 1, 2, ... in order.
        threshold: Lowest score of a detection in the results and the pictures.  By default the results hold all, and
            pictures those above each class's best threshold by LRP, 0.3 where there is none: scores of ranking losses
            have no scale.
        skip_unreadable: Whether to go on after an image that cannot be read.
        accelerator: Device: cpu, gpu, or auto, which takes a GPU where there is one.
        raw_scores: Whether to write the detector's own scores instead of calibrated ones.

    Returns:
        What was written and which files could not be read.

    Raises:
        ValueError: no checkpoint, no images, or none of them can be read; nothing is written then.

    Example:
        >>> result = predict("runs/first", ["photos"], out="detections.json", accelerator="cpu")
        >>> result.images, result.unreadable, sorted(result.results[0])
        (4, {}, ['bbox', 'category_id', 'file_name', 'image_id', 'score'])
    """
    from concordet.data.images import read_rgb

    paths = find_images(images)
    ids = image_ids(paths, annotations)
    if out is not None:
        writable(Path(out).parent)
    predictor = load(checkpoint, accelerator=accelerator, raw_scores=raw_scores)
    folder = None if draw is None else _folder(Path(draw))
    results: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    pictures: list[Path] = []
    drawn = 0
    for path, image_id in zip(progress(paths, "detecting"), ids, strict=True):
        try:
            # a COCO file's boxes are in the pixels as stored; without one, the photograph is meant as it is seen
            image = read_rgb(path, turn=annotations is None)
        except (ValueError, OSError) as error:
            if not skip_unreadable:
                raise
            unreadable[str(path)] = str(error)
            continue
        detection = predictor.detect(image, threshold=threshold)
        rows = coco_results([detection], [image_id], predictor.category_ids)
        results += [row | {"file_name": path.name} for row in rows]
        if folder is not None:
            shown = predictor.visible(detection, threshold)
            drawn += len(shown["scores"])
            target = free_name(folder / f"{path.stem}.png")  # files of several folders may share a name
            with replacing(target) as temporary:
                predictor.draw(image, shown, threshold=0.0).save(temporary)
            pictures.append(target)
    if len(unreadable) == len(paths):
        raise ValueError(f"images must be readable, got none that is: {next(iter(unreadable.values()))}")
    if out is not None:
        write_json(out, results, indent=None)
    if threshold is not None:
        drawn_from = f"from a score of {threshold:g}"
    else:
        drawn_from = "from each class's threshold" if predictor.advised else f"from a score of {DEFAULT_THRESHOLD:g}"
    n_images = len(paths) - len(unreadable)
    calibrated = predictor.calibrator is not None
    return PredictionResult(results, n_images, unreadable, pictures, drawn, drawn_from, calibrated)


def _folder(path: Path) -> Path:
    """The folder, or the next free name where it holds something, so that pictures of two runs never mix."""
    if path.is_dir() and any(path.iterdir()):
        path = free_name(path)
    path.mkdir(parents=True, exist_ok=True)
    return writable(path)
