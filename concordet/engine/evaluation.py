"""Evaluation of a detector on a data set: detections, metrics, and their files in a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from concordet.boxes import paired_iou
from concordet.console import note, seconds_between_lines, shows_bars
from concordet.detectors import Detector, predicts_masks
from concordet.engine.calibration import NAME as CALIBRATOR
from concordet.engine.calibration import (
    calibrated_results,
    carried_calibrator,
    cross_fitted_metrics,
    fit_run_calibrator,
    match_run,
)
from concordet.engine.checkpoint import add_to_description, check_same, checkpoint_path, load_detector
from concordet.engine.config import DataConfig, load_config
from concordet.engine.data import build_dataset, eval_loader
from concordet.engine.detections import batch_results, mask_metrics
from concordet.engine.plugins import import_plugins
from concordet.errors import UsageError, unknown
from concordet.files import new_folder, plain, read_json, replacing, writable, write_json
from concordet.locks import locked
from concordet.measures.evaluation import MatchedEvaluation
from concordet.measures.metrics import number
from concordet.version import __version__

SAMPLES = 12


@dataclass(frozen=True)
class DetectorOutput:
    """Detections and positives of a detector on a data set.

    Attributes:
        detections: COCO results, in pixels of the original images.
        positives: ``scores``, ``ious``, ``image_ids``, ``labels`` (1..c), each ``[p]``, of the predictions before NMS
            that training would assign to an object.
        masks: Whether the detections have masks.
    """

    detections: list[dict[str, Any]]
    positives: dict[str, NDArray[Any]]
    masks: bool = False


def pick_device(accelerator: str = "auto") -> torch.device:
    """The first GPU if there is one and ``accelerator`` allows it, else the CPU.

    Raises:
        UsageError: ``accelerator`` is not auto, cpu or gpu.
        ValueError: ``accelerator`` is gpu, and there is no GPU.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UsageError(unknown("accelerator", accelerator, ("auto", "cpu", "gpu")))
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator must be auto or cpu where torch finds no GPU, got gpu; or install a GPU driver")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@torch.no_grad()
def run_detector(
    model: Detector,
    dataset: Any,
    *,
    device: torch.device | None = None,
    batch_size: int = 8,
    workers: int = 0,
    title: str = "evaluating",
) -> DetectorOutput:
    """Detections and positives of every image of a data set.

    Args:
        model: Detector of :mod:`concordet.detectors`.
        dataset: Data set of :mod:`concordet.data`, with evaluation transforms.
        device: Device that the model is moved to; by default a GPU if there is one.
        batch_size: Images per batch.
        workers: Processes that load images.
        title: Text of the progress bar.

    Returns:
        ``detections`` in COCO's results form, ``positives`` (arrays of scores, IoUs, image ids and labels of the
        positive predictions before NMS), and whether there are masks.

    Example:
        >>> from concordet.data import eval_transforms, load_dataset
        >>> from concordet.detectors import build_detector
        >>> scenes = load_dataset("digits", split="val", length=2, size=64, transforms=eval_transforms())
        >>> model = build_detector("fcos", num_classes=10, size="nano", image_size=64)
        >>> output = run_detector(model, scenes, device=torch.device("cpu"))
        >>> sorted(output.detections[0]), sorted(output.positives)
        (['bbox', 'category_id', 'image_id', 'score'], ['image_ids', 'ious', 'labels', 'scores'])
    """
    device = device or pick_device()
    model.to(device).eval()
    detections: list[dict[str, Any]] = []
    masks = False
    positives: dict[str, list[NDArray[Any]]] = {"scores": [], "ious": [], "image_ids": [], "labels": []}
    loader = eval_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in progress(loader, title):
        images = [image.to(device) for image in images]
        on_device = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
        batch, stages = model.detections_and_assigned(images, on_device)
        detections += batch_results(batch, targets, dataset.category_ids)
        masks = "masks" in batch[0]
        ids = [int(target["image_id"]) for target in targets]
        last = stages[-1]
        positives["scores"].append(last.confidences().float().cpu().numpy())
        positives["ious"].append(paired_iou(last.boxes, last.gt_boxes).float().cpu().numpy())
        positives["image_ids"].append(np.asarray(ids, dtype=np.int64)[last.image_ids.cpu().numpy()])
        positives["labels"].append(last.labels[last.positive].cpu().numpy() + 1)
    return DetectorOutput(detections, {name: np.concatenate(parts) for name, parts in positives.items()}, masks)


@dataclass(frozen=True)
class Counted:
    """An iterable with a known length, for :func:`progress`.

    Attributes:
        items: Items, which are iterated once.
        total: Number of items; 0 if it is unknown.
    """

    items: Iterable[Any]
    total: int

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return self.total


def progress(items: Any, title: str) -> Iterator[Any]:
    """Iterates with a progress bar on a terminal, and with a line every half minute elsewhere."""
    if not shows_bars():
        total, start = len(items), time.monotonic()
        shown = start
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - shown >= seconds_between_lines():
                shown = now
                left = f" of {total}, {remaining_time(done, total, now - start)} left" if total else ""
                note(f"{title}: {done}{left}")
            yield item
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=title, total=len(items) or None, console=Console(stderr=True), transient=True)


def remaining_time(done: int, total: int, seconds: float) -> str:
    """The estimated time for the remaining items, in words.

    Example:
        >>> remaining_time(10, 40, 60.0), remaining_time(1, 2, 7300.0), remaining_time(9, 10, 9.0)
        ('3 min', '2 h 2 min', '1 s')
    """
    return duration(seconds / max(done, 1) * max(total - done, 0))


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(9.4), duration(150), duration(7300)
        ('9 s', '2 min', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def measure(
    ground_truth: dict[str, Any], output: DetectorOutput, matched: MatchedEvaluation | None = None
) -> dict[str, Any]:
    """All metrics: those of :func:`concordet.measures.evaluate_detections`, beta_img, and AP of masks.

    Args:
        ground_truth: COCO annotations.
        output: Detections, whose scores may differ from the matched ones if they rank each class in the same order.
        matched: The matched detections; None to match them here.
    """
    from concordet.measures import image_correlation

    scores = np.array([row["score"] for row in output.detections], dtype=np.float64)
    values = (matched or match_run(ground_truth, output.detections)).metrics(scores)
    positives = output.positives
    beta = image_correlation(positives["scores"], positives["ious"], positives["image_ids"])
    values["beta_img"] = beta.value
    if beta.value is None:
        values["reasons"]["beta_img"] = beta.reason
    if output.masks:
        of_masks, reasons = mask_metrics(ground_truth, output.detections)
        values |= of_masks
        values["reasons"] |= reasons
    return values


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | Path | None = None,
    data: DataConfig | None = None,
    dataset: Any = None,
    out: str | Path | None = None,
    accelerator: str = "auto",
    averaged: bool = True,
    raw_scores: bool = False,
    plugins: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a run's detector and writes the results into a folder.

    Args:
        run: Run folder.
        checkpoint: Checkpoint: "last", "best" or a file; by default the last.
        data: Data to evaluate on; by default the run's.
        dataset: The same data if it is already open.
        out: Folder to write to; by default the run folder.
        accelerator: Device: auto, cpu or gpu.
        averaged: Whether to use the averaged (EMA) weights if the checkpoint has them.
        raw_scores: Whether to keep the detector's own scores. By default they are calibrated: on the run's evaluation
            data by a calibrator that is fitted on it, evaluated by cross-fitting and stored with the run; on other
            data, and if training images were held out for calibration (``calibration.fraction``), by the calibrator of
            the checkpoint.
        plugins: Python files or modules that register the loss of the run; by default those of its ``config.yaml``.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        ValueError: ``run`` is not a run folder, the checkpoint has other classes, ``out`` has another evaluation, or
            another process writes to it.

    Example:
        >>> report = evaluate_run("runs/first", checkpoint="best", out="runs/first-best", accelerator="cpu")
        >>> report["metrics"]["n_images"], 0 <= report["metrics"]["AP"] <= 1
        (8, True)
    """
    run = Path(run)
    config = load_config(run / "config.yaml")
    import_plugins(config.plugins if plugins is None else plugins)
    data = data or config.data
    out = Path(run if out is None else out)
    path = (
        Path(checkpoint)
        if checkpoint not in (None, "last", "best")
        else checkpoint_path(run, str(checkpoint or "last"))
    )
    of_run = path.resolve().parent == (run / "checkpoints").resolve()
    model, meta = load_detector(path, averaged=averaged)
    dataset = dataset or build_dataset(data, "val", masks=predicts_masks(meta["detector"]))
    same = {"num_classes": len(dataset.class_names), "class_names": list(dataset.class_names)}
    check_same(meta, same, path)
    asked = {
        "checkpoint": path.name if of_run else str(path.absolute()),
        "data": evaluated_data(data),
        "averaged": averaged,
        "raw_scores": raw_scores,
    }
    device = pick_device(accelerator)
    _check_out(out, run, asked)
    with locked(out, "wait until it ends, or name another --out"):
        output = run_detector(model, dataset, device=device, batch_size=data.batch_size, workers=data.workers)
        ground_truth = dataset.ground_truth()
        matched = match_run(ground_truth, output.detections)
        calibrated = calibrated_results(
            matched,
            output.detections,
            own_data=evaluated_data(data) == evaluated_data(config.data),
            held_out=config.calibration.fraction > 0,
            carried=carried_calibrator(meta, run, path),
            raw_scores=raw_scores,
        )
        output = replace(output, detections=calibrated.detections)
        values = cross_fitted_metrics(measure(ground_truth, output, matched), calibrated.report)
        timing = run / "timing.json"
        timed = read_json(timing) if timing.is_file() else {}
        values["seconds_per_iteration"] = (
            number(timed.get("seconds_per_iteration")) if isinstance(timed, dict) else None
        )
        report = {
            "metrics": {k: v for k, v in values.items() if k not in ("per_class", "reasons", "notes")},
            "per_class": values["per_class"],
            "reasons": values["reasons"],
            "notes": values["notes"],
            "loss": meta["loss"],
            "detector": meta["detector"],
            "size": meta["size"],
            "class_names": meta["class_names"],
            "evaluated": asked,
            "scores": calibrated.scores,
            "calibration": calibrated.report,
            "environment": environment(device),
        }
        if out.resolve() != run.resolve():
            shutil.copyfile(run / "config.yaml", out / "config.yaml")
        if calibrated.calibrator is not None:
            calibrated.calibrator.save(out / CALIBRATOR)
            if "calibrator" not in meta and of_run and out.resolve() == run.resolve():
                # the checkpoint of a run without evaluations between epochs needs it if it is copied elsewhere
                add_to_description(path, calibrator=plain(calibrated.calibrator.to_dict()))
        write_evaluation(out, dataset, ground_truth, output, report)
        return report


def calibrate_checkpoints(run: Path, dataset: Any, *, accelerator: str = "auto") -> None:
    """Fits a calibrator for each checkpoint of a run that has none, on images held out from training.

    Args:
        run: Run folder.
        dataset: The held-out images, with evaluation transforms.
        accelerator: Device: auto, cpu or gpu.
    """
    data = load_config(run / "config.yaml").data
    for name in ("best", "last"):
        path = checkpoint_path(run, name)
        if not path.is_file():
            continue
        model, meta = load_detector(path)
        if meta.get("calibrator") is not None:
            continue
        output = run_detector(
            model,
            dataset,
            device=pick_device(accelerator),
            batch_size=data.batch_size,
            workers=data.workers,
            title=f"calibrating {name}",
        )
        calibrator = fit_run_calibrator(match_run(dataset.ground_truth(), output.detections))
        if calibrator is not None:
            add_to_description(path, calibrator=plain(calibrator.to_dict()))


def evaluated_data(data: DataConfig) -> dict[str, Any]:
    """The settings that select the evaluation data, without those of loading and training."""
    names = [name for name in vars(data) if name in ("name", "root") or name.startswith("val_")]
    if data.path is None:  # nothing is held out
        names = [name for name in names if name not in ("val_fraction", "val_seed")]
    chosen = {name: getattr(data, name) for name in names}
    return chosen | {name: value for name in ("path", "classes") if (value := getattr(data, name)) is not None}


def _check_out(out: Path, run: Path, asked: dict[str, Any]) -> None:
    """Raises a ValueError if an evaluation of another checkpoint or of other data would be overwritten."""
    path = out / "evaluation.json"
    in_place = out.resolve() == run.resolve()
    if not in_place and (out / "checkpoints").exists():
        raise ValueError(f"out must not be another run, whose evaluation would be lost, got {out}; name another folder")
    if not path.is_file():
        if in_place:
            writable(out)
        else:
            new_folder(out, "name another folder with --out")
        return
    before = read_json(path)
    evaluated = before.get("evaluated") if isinstance(before, dict) else None
    if not isinstance(evaluated, dict) or {"raw_scores": False, **evaluated} != asked:
        raise ValueError(
            f"out must not hold an evaluation of another checkpoint or of other data, got {out}; name another folder "
            "with --out"
        )


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of an evaluation."""
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
    out: Path, dataset: Any, ground_truth: dict[str, Any], output: DetectorOutput, report: dict[str, Any]
) -> None:
    """Writes the files of an evaluation, each atomically, the metrics last."""
    write_json(out / "ground_truth.json", ground_truth, indent=None)
    write_json(out / "detections.json", output.detections, indent=None)
    with replacing(out / "positives.npz") as temporary:
        np.savez_compressed(temporary, **output.positives)  # type: ignore[arg-type]  # taken for allow_pickle
    write_samples(out / "samples", dataset, ground_truth)
    write_json(out / "evaluation.json", report)


def write_samples(folder: Path, dataset: Any, ground_truth: dict[str, Any]) -> None:
    """Saves a few images with objects, spread over the data set, for the pictures of pages."""
    folder.mkdir(exist_ok=True)
    with_objects = {annotation["image_id"] for annotation in ground_truth["annotations"]}
    indices = [index for index, image in enumerate(ground_truth["images"]) if image["id"] in with_objects]
    for index in indices[:: max(1, len(indices) // SAMPLES)][:SAMPLES]:
        with replacing(folder / f"{ground_truth['images'][index]['id']}.png") as temporary:
            dataset.load_image(index).save(temporary)
