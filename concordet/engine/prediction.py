"""Detections in image files, as COCO results and as pictures."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from concordet.engine.checkpoint import load_detector
from concordet.engine.detections import coco_results
from concordet.engine.evaluation import pick_device, progress
from concordet.files import free_name, read_json, replacing, writable, write_json

DRAWN_FROM = 0.3  # least score of a drawn detection where nothing better is known


@dataclass(frozen=True)
class Predicted:
    """What :func:`predict` did.

    Attributes:
        results: COCO results, with each image's ``file_name`` added.
        images: how many were read.
        unreadable: files left out, with why.
        pictures: files drawn.
    """

    results: list[dict[str, Any]]
    images: int
    unreadable: dict[str, str]
    pictures: list[Path]


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Image files among files, folders (searched within) and patterns, sorted, each once.

    Raises:
        ValueError: a place does not exist, or nothing was found.
    """
    from concordet.data.images import SUFFIXES

    found: list[Path] = []
    for place in map(str, places):
        path = Path(place)
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES]
            if not inside:
                raise ValueError(f"the folder {path} holds no images ({', '.join(SUFFIXES)}); name another one")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            matches = [Path(name) for name in glob.glob(place, recursive=True)]
            if not matches:
                raise ValueError(f"there is no image, folder or match for {place}; check the name")
            found += [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    unique = sorted(set(found))
    if not unique:
        raise ValueError(f"no images were found in {', '.join(map(str, places))}")
    return unique


def image_ids(paths: Sequence[Path], annotations: str | Path | None = None) -> list[int]:
    """Each image's id: of the entry with its file name in a COCO file, or 1, 2, ... without one.

    Raises:
        ValueError: the file does not list an image, or lists its name for two.
    """
    if annotations is None:
        return list(range(1, len(paths) + 1))
    content = read_json(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{annotations} lists no images; name a COCO annotation file")
    known: dict[str, int] = {}
    for image in content["images"]:
        name = Path(str(image.get("file_name", ""))).name
        if name in known:
            raise ValueError(f"{annotations} lists the file name {name} twice, so images cannot be told apart by it")
        known[name] = image["id"]
    missing = [path for path in paths if path.name not in known]
    if missing:
        raise ValueError(
            f"{annotations} does not list {missing[0].name}; leave it out, or name another annotation file"
        )
    return [known[path.name] for path in paths]


@torch.no_grad()
def predict(
    checkpoint: str | Path,
    places: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    draw: str | Path | None = None,
    annotations: str | Path | None = None,
    score_threshold: float | None = None,
    skip_unreadable: bool = False,
    accelerator: str = "auto",
) -> Predicted:
    """Runs a trained detector over image files.

    Args:
        checkpoint: A checkpoint, or a run folder (its last one).
        places: Files, folders and patterns.
        out: COCO results file to write.
        draw: Folder for pictures with the detections drawn in; a picture that exists there is kept, and the new one
            gets another name.
        annotations: COCO file that gives the images their ids by file name; they are 1, 2, ... in order without it.
        score_threshold: Least score of a drawn detection; the results hold all of them.  None takes each class's best
            threshold by LRP from the run's evaluation, 0.3 where there is none: scores of ranking losses have no scale.
        skip_unreadable: Leave images out that cannot be read, instead of stopping.
        accelerator: auto, cpu or gpu.

    Returns:
        Results, counts and pictures.

    Raises:
        ValueError: no checkpoint, no images, or one that cannot be read; nothing is written then.
    """
    from concordet.data.images import read_rgb

    paths = find_images(places)
    ids = image_ids(paths, annotations)
    if out is not None:
        writable(Path(out).parent)
    model, meta = load_detector(checkpoint)
    device = pick_device(accelerator)
    model.to(device)
    drawn_from = thresholds(checkpoint, meta["category_ids"], score_threshold)
    folder = None if draw is None else Path(draw)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        writable(folder)
    results: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    pictures: list[Path] = []
    for path, image_id in zip(progress(paths, "detecting"), ids, strict=True):
        try:
            # a COCO file's boxes are in the pixels as stored; without one, the photograph is meant as it is seen
            image = read_rgb(path, turn=annotations is None)
        except (ValueError, OSError) as error:
            if not skip_unreadable:
                raise
            unreadable[str(path)] = str(error)
            continue
        found = {name: value.cpu() for name, value in model([to_tensor(image).to(device)])[0].items()}
        rows = coco_results([found], [image_id], meta["category_ids"])
        results += [row | {"file_name": path.name} for row in rows]
        if folder is not None:
            shown = found["scores"] >= drawn_from[found["labels"] - 1]
            shown_only = {name: value[shown] for name, value in found.items()}
            pictures.append(_draw(folder, path, image, shown_only, meta["class_names"]))
    if out is not None:
        write_json(out, results, indent=None)
    return Predicted(results, len(paths) - len(unreadable), unreadable, pictures)


def to_tensor(image: Any) -> torch.Tensor:
    """A Pillow RGB image as float ``[3, h, w]`` in [0, 1]."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image).float().div_(255)


def thresholds(checkpoint: str | Path, category_ids: Sequence[int], given: float | None = None) -> torch.Tensor:
    """``[c]`` least score of a drawn detection of each class, in the order of labels."""
    least = torch.full((len(category_ids),), DRAWN_FROM if given is None else given)
    run = next(
        (p for p in (Path(checkpoint), *Path(checkpoint).parents[:2]) if (p / "evaluation.json").is_file()), None
    )
    if given is not None or run is None:
        return least
    known = {c.get("id"): c.get("lrp_threshold") for c in read_json(run / "evaluation.json").get("per_class", [])}
    for place, category in enumerate(category_ids):
        if known.get(category) is not None:
            least[place] = known[category]
    return least


def _draw(folder: Path, path: Path, image: Any, found: dict[str, Any], class_names: list[str]) -> Path:
    from concordet.report import draw_detections

    drawn = draw_detections(image, found, class_names=class_names, score_threshold=0.0)
    target = free_name(folder / f"{path.stem}.png")
    with replacing(target) as temporary:
        drawn.save(temporary)
    return target
