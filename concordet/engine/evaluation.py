"""Runs a detector over the evaluated part of a data set, measures it, and leaves the figures in a folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from concordet.boxes import paired_iou
from concordet.detectors import predicts_masks
from concordet.engine.checkpoint import check_same, checkpoint_path, load_detector
from concordet.engine.config import DataConfig, load_config
from concordet.engine.data import build_dataset, eval_loader
from concordet.engine.detections import batch_results, is_federated, mask_figures
from concordet.errors import UsageError
from concordet.files import new_folder, read_json, replacing, writable, write_json
from concordet.version import __version__

SAMPLES = 12


@dataclass(frozen=True)
class Found:
    """What a detector found in a data set.

    Attributes:
        detections: COCO results, in pixels of the original images.
        masks: whether they have masks.
        positives: ``scores``, ``ious``, ``image_ids``, ``labels`` (1..c), each ``[p]``: the predictions that training
            would assign to an object, of all images, before NMS.
    """

    detections: list[dict[str, Any]]
    positives: dict[str, NDArray[Any]]
    masks: bool = False


def pick_device(accelerator: str = "auto") -> torch.device:
    """The first GPU where there is one and it may be used, else the CPU.

    Raises:
        UsageError: neither auto, cpu nor gpu.
        ValueError: a GPU is asked for, and there is none.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UsageError(f"accelerator is auto, cpu or gpu, not {accelerator}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("a GPU is asked for, but torch sees none; leave accelerator at auto, or mend the driver")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@torch.no_grad()
def run_detector(
    model: nn.Module,
    dataset: Any,
    *,
    device: torch.device | None = None,
    batch_size: int = 8,
    workers: int = 0,
    title: str = "evaluating",
) -> Found:
    """Detections and positives of every image of a data set.

    Args:
        model: a detector of :mod:`concordet.detectors`.
        dataset: one of :mod:`concordet.data`, with evaluation transforms.
        device: where; the model is moved there.
        batch_size: images at a time.
        workers: processes that load images.
        title: what the progress bar says.
    """
    device = device or pick_device()
    model.to(device).eval()
    detections: list[dict[str, Any]] = []
    masks = False
    positives: dict[str, list[NDArray[Any]]] = {"scores": [], "ious": [], "image_ids": [], "labels": []}
    loader = eval_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in progress(loader, title):
        images = [image.to(device) for image in images]
        moved = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
        found, stages = model.detections_and_assigned(images, moved)  # type: ignore[operator]
        detections += batch_results(found, targets, dataset.category_ids)
        masks = "masks" in found[0]
        ids = [int(target["image_id"]) for target in targets]
        last = stages[-1]
        positives["scores"].append(last.confidences().float().cpu().numpy())
        positives["ious"].append(paired_iou(last.boxes, last.gt_boxes).float().cpu().numpy())
        positives["image_ids"].append(np.asarray(ids, dtype=np.int64)[last.image_ids.cpu().numpy()])
        positives["labels"].append(last.labels[last.positive].cpu().numpy() + 1)
    return Found(detections, {name: np.concatenate(parts) for name, parts in positives.items()}, masks)


def progress(items: Any, title: str) -> Iterator[Any]:
    """Goes through ``items`` with a bar on a terminal, in silence elsewhere."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=title, console=Console(stderr=True), transient=True)


def measure(ground_truth: dict[str, Any], found: Found) -> dict[str, Any]:
    """All figures: those of :func:`concordet.measures.evaluate_detections`, beta_img, and AP of masks."""
    from concordet.measures import evaluate_detections, image_correlation

    figures = evaluate_detections(ground_truth, found.detections, lvis=is_federated(ground_truth))
    positives = found.positives
    beta = image_correlation(positives["scores"], positives["ious"], positives["image_ids"])
    figures["beta_img"] = beta.value
    if beta.value is None:
        figures["reasons"]["beta_img"] = beta.reason
    if found.masks:
        values, reasons = mask_figures(ground_truth, found.detections)
        figures |= values
        figures["reasons"] |= reasons
    return figures


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | Path | None = None,
    data: DataConfig | None = None,
    dataset: Any = None,
    out: str | Path | None = None,
    accelerator: str = "auto",
    averaged: bool = True,
) -> dict[str, Any]:
    """Evaluates a run's detector and writes the figures into a folder.

    Args:
        run: Run folder.
        checkpoint: "last", "best" or a file; last when not given.
        data: Data to evaluate on; the run's own when not given.
        dataset: The same, opened already.
        out: Where to write; the run folder when not given.
        accelerator: auto, cpu or gpu.
        averaged: Use the averaged weights where there are some.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        ValueError: the folder is no run, the checkpoint is of other classes, or ``out`` holds another evaluation.
    """
    run = Path(run)
    config = load_config(run / "config.yaml")
    data = data or config.data
    out = Path(run if out is None else out)
    path = (
        Path(checkpoint)
        if checkpoint not in (None, "last", "best")
        else checkpoint_path(run, str(checkpoint or "last"))
    )
    model, meta = load_detector(path, averaged=averaged)
    dataset = dataset or build_dataset(data, "val", masks=predicts_masks(meta["detector"]))
    same = {"num_classes": len(dataset.class_names), "class_names": list(dataset.class_names)}
    check_same(meta, same, path)
    asked = {
        "checkpoint": path.name if path.parent == run / "checkpoints" else str(path),
        "data": evaluated_part(data),
        "averaged": averaged,
    }
    _keep_others(out, run, asked)
    device = pick_device(accelerator)
    found = run_detector(model, dataset, device=device, batch_size=data.batch_size, workers=data.workers)
    ground_truth = dataset.ground_truth()
    figures = measure(ground_truth, found)
    timing = run / "timing.json"
    figures["seconds_per_iteration"] = read_json(timing)["seconds_per_iteration"] if timing.is_file() else None
    report = {
        "metrics": {k: v for k, v in figures.items() if k not in ("per_class", "reasons", "notes")},
        "per_class": figures["per_class"],
        "reasons": figures["reasons"],
        "notes": figures["notes"],
        "loss": meta["loss"],
        "detector": meta["detector"],
        "size": meta["size"],
        "class_names": meta["class_names"],
        "evaluated": asked,
        "environment": environment(device),
    }
    if out.resolve() != run.resolve():
        shutil.copyfile(run / "config.yaml", out / "config.yaml")
    write_evaluation(out, dataset, ground_truth, found, report)
    return report


def evaluated_part(data: DataConfig) -> dict[str, Any]:
    """The settings that decide on what is evaluated; loading and training have others."""
    return {name: value for name, value in vars(data).items() if name in ("name", "root") or name.startswith("val_")}


def _keep_others(out: Path, run: Path, asked: dict[str, Any]) -> None:
    """An evaluation is written again in place only when it is of the same checkpoint and data."""
    path = out / "evaluation.json"
    in_place = out.resolve() == run.resolve()
    if not in_place and (out / "checkpoints").exists():
        raise ValueError(f"{out} is a run of its own, whose evaluation would be lost; name another folder with --out")
    if not path.is_file():
        if in_place:
            writable(out)
        else:
            new_folder(out, "name another folder with --out")
        return
    if read_json(path).get("evaluated") != asked:
        raise ValueError(
            f"{out} already holds an evaluation of another checkpoint or of other data; name another folder with --out"
        )


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that figures were made with."""
    import platform

    return {
        "concordet": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def write_evaluation(
    out: Path, dataset: Any, ground_truth: dict[str, Any], found: Found, report: dict[str, Any]
) -> None:
    """Writes the files of an evaluation, each whole or not at all, the figures last."""
    write_json(out / "ground_truth.json", ground_truth, indent=None)
    write_json(out / "detections.json", found.detections, indent=None)
    with replacing(out / "positives.npz") as temporary:
        np.savez_compressed(temporary, **found.positives)  # type: ignore[arg-type]
    write_samples(out / "samples", dataset, ground_truth)
    write_json(out / "evaluation.json", report)


def write_samples(folder: Path, dataset: Any, ground_truth: dict[str, Any]) -> None:
    """A few images with objects, spread over the data set, for a page's pictures."""
    folder.mkdir(exist_ok=True)
    with_objects = {annotation["image_id"] for annotation in ground_truth["annotations"]}
    places = [place for place, image in enumerate(ground_truth["images"]) if image["id"] in with_objects]
    for place in places[:: max(1, len(places) // SAMPLES)][:SAMPLES]:
        with replacing(folder / f"{ground_truth['images'][place]['id']}.png") as temporary:
            dataset.load_image(place).save(temporary)
